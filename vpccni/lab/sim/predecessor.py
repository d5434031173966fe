"""amazon-vpc-cni-k8s on a simulated node, as far as it shows."""

from __future__ import annotations

from vpccni.errors import Reason, TransientError

_SOCKET = "/var/run/aws-node/ipamd.sock"


class FakePredecessor:
    """The ``Predecessor`` port. One that is still starting lives and does not show: leave ``is_alive`` false.

    Attributes:
        is_alive: Its daemon listens.
        is_hanging: A process has the socket and accepts nobody.
        pins: Names of the programs that it has pinned.
        are_pins_readable: Whether the pins can be listed.
    """

    def __init__(self) -> None:
        self.is_alive = False
        self.is_hanging = False
        self.pins: set[str] = set()
        self.are_pins_readable = True

    async def living(self) -> str:
        """See ``Predecessor.living``."""
        if self.is_hanging:
            return f"{_SOCKET} is held by a process that does not answer"
        return f"{_SOCKET} answers" if self.is_alive else ""

    async def enforced_policies(self) -> tuple[str, ...]:
        """See ``Predecessor.enforced_policies``."""
        if not self.are_pins_readable:
            raise TransientError(Reason.INTERNAL, "/sys/fs/bpf/globals/aws/programs: Permission denied")
        return tuple(sorted(self.pins))

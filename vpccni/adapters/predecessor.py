"""The predecessor port: amazon-vpc-cni-k8s on this node, as far as it shows without being asked for anything.

* *living*: its daemon listens on ``ipamd.sock`` in the run directory. It removes and makes that socket anew at
  every start, and the kernel lets nobody connect to a socket whose process is gone. A daemon that is still
  starting has no socket yet: that somebody else writes the checkpoint file is the other sign.
* *pin*: a program of its network policy agent in the BPF filesystem; it goes on filtering without the agent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Final

from vpccni.adapters.foreign_file import why
from vpccni.errors import Reason, TransientError

RUN_DIR: Final = Path("/var/run/aws-node")
SOCKET_NAME: Final = "ipamd.sock"
PINS: Final = Path("/sys/fs/bpf/globals/aws/programs")
PINS_MAX: Final = 50
"""Names that are told: the first ones show what is enforced, and where to look for the rest."""
_NOBODY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED})
"""There is no socket, or one that its process has left behind."""


class VpcCni:
    """The ``Predecessor`` port over its socket and its pins."""

    def __init__(self, run_dir: Path = RUN_DIR, pins: Path = PINS) -> None:
        """Remember where they are; nothing is touched."""
        self._socket = run_dir / SOCKET_NAME
        self._pins = pins

    async def living(self) -> str:
        """How it shows that its daemon lives; empty when it does not. Never raises.

        The connection is closed at once and nothing is sent. What cannot be told counts as living, for a wrong
        "no" lets two daemons give the same addresses; the sentence then says what stands in the way.
        """
        # On the loop: it asks nothing of a disk, and to change to a thread and back costs ten times as much.
        return _living(self._socket)

    async def enforced_policies(self) -> tuple[str, ...]:
        """Names of its pinned programs, sorted, at most ``PINS_MAX``; none without the directory.

        ``npa.sock`` is not looked at: it is on every stock node, whether or not a policy is enforced.

        Raises:
            TransientError: the directory is there and cannot be listed.
        """
        try:
            names = await asyncio.to_thread(os.listdir, self._pins)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise TransientError(Reason.INTERNAL, f"{self._pins}: {why(error)}") from error
        return tuple(sorted(names)[:PINS_MAX])


def _living(path: Path) -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # To connect a Unix socket never waits for the other side's accept, so this needs no time limit. It
            # would wait for room in the queue of a process that hangs; without blocking, that is BlockingIOError.
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except BlockingIOError:
        return f"{path} is held by a process that does not answer"
    except OSError as error:
        if error.errno in _NOBODY:
            return ""
        # Python itself refuses a path that is too long for a socket, without errno: nobody can listen there.
        return f"whether somebody listens on {path} cannot be told: {why(error)}" if error.errno else ""
    return f"{path} answers"

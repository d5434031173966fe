"""Whether ADDs can be served, and if not, why: asked by the probes, by STATUS and by the writer."""

from __future__ import annotations

from collections.abc import Callable

from vpccni.errors import Reason, Refused


class Readiness:
    """What stands between the agent and serving.

    Attributes:
        not_serving: Why no ADD can be served at all; ``None`` once the books are known to be this
            machine's.
        must_not_change: Kinds of a newer log that must be understood.
        log_refusal: Why the log takes no new lease just now.
        kernel_refusal: Why no sandbox can be wired just now.
    """

    def __init__(self) -> None:
        self.not_serving: Refused | None = Refused(Reason.NODE_NOT_INITIALIZED, "the agent is starting")
        self.must_not_change: tuple[str, ...] = ()
        self.log_refusal: Callable[[], Refused | None] = lambda: None
        self.kernel_refusal: Callable[[], Refused | None] = lambda: None
        self.is_stopping = False
        self.is_broken = ""

    def refusal(self) -> Refused | None:
        """Why the node should not be given pods now; ``None`` when it should."""
        if self.is_stopping:
            return Refused(Reason.STOPPING)
        if self.must_not_change:
            return Refused(Reason.LOG_NEWER, ", ".join(self.must_not_change))
        return self.not_serving or self.kernel_refusal() or self.log_refusal()

    def no_change(self) -> str:
        """Why nothing may be changed in EC2; empty when it may."""
        if self.is_stopping:
            return str(Reason.STOPPING)
        if self.must_not_change:
            return str(Reason.LOG_NEWER)
        if self.not_serving is not None:
            # Before it is known that the books are this machine's, their ENIs may be another's.
            return str(self.not_serving.reason)
        return str(Reason.INVARIANT_BROKEN) if self.is_broken else ""

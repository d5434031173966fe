"""Whether ADDs can be served, and if not, why: asked by the probes, by STATUS and by the writer."""

from __future__ import annotations

from collections.abc import Callable

from vpccni.errors import Reason, Refused


class Readiness:
    """What stands between the agent and serving.

    Attributes:
        hold: Why nothing outside may be changed at all: nobody knows yet who lives here, another agent does, or
            the take-over is refused. ``None`` when it may.
        unexplained: Why no address may be assigned although the rest is in order; ``None`` when one may.
        is_unexplained_for_long: Waiting for the explanation would not help a new ADD.
        not_serving: Why no ADD can be served at all; ``None`` once the books are known to be this
            machine's.
        must_not_change: Kinds of a newer log that must be understood.
        log_refusal: Why the log takes no new lease just now.
        kernel_refusal: Why no sandbox can be wired just now.
        frozen: Why EC2 must not be changed, by the log itself (``instance_doubted``, …); empty when it may.
    """

    def __init__(self) -> None:
        self.hold: Refused | None = None
        self.unexplained: Refused | None = None
        self.is_unexplained_for_long = False
        self.not_serving: Refused | None = Refused(Reason.NODE_NOT_INITIALIZED, "the agent is starting")
        self.must_not_change: tuple[str, ...] = ()
        self.log_refusal: Callable[[], Refused | None] = lambda: None
        self.kernel_refusal: Callable[[], Refused | None] = lambda: None
        self.frozen: Callable[[], str] = lambda: ""
        self.is_stopping = False
        self.is_broken = ""

    def refusal(self) -> Refused | None:
        """Why no ADD is served just now; ``None`` when they are."""
        return self.unusable() or self.unexplained

    def unusable(self) -> Refused | None:
        """Why the node should not be given pods now; ``None`` when it should.

        An interface that nothing explains is no such reason: it is told, but to call the node unusable would drive
        its living pods away.
        """
        if self.is_stopping:
            return Refused(Reason.STOPPING)
        if self.must_not_change:
            return Refused(Reason.LOG_NEWER, ", ".join(self.must_not_change))
        return self.hold or self.not_serving or self.kernel_refusal() or self.log_refusal()

    def waiting(self) -> Refused | None:
        """Why an ADD waits although nothing is wrong with its request; ``None`` when it need not."""
        if self.hold is not None and self.hold.reason is Reason.RECOVERING:
            return self.hold
        if self.unexplained is not None and not self.is_unexplained_for_long:
            return self.unexplained
        return self.not_serving

    def refusing(self) -> Refused | None:
        """Why an ADD is refused at once: waiting would not help it."""
        if self.hold is not None and self.hold.reason is not Reason.RECOVERING:
            return self.hold
        if self.unexplained is not None and self.is_unexplained_for_long:
            return self.unexplained
        return self.kernel_refusal()

    def no_change(self) -> str:
        """Why nothing may be changed in EC2; empty when it may."""
        if self.is_stopping:
            return str(Reason.STOPPING)
        if self.must_not_change:
            return str(Reason.LOG_NEWER)
        for held in (self.hold, self.unexplained, self.not_serving):
            # Before it is known that the books are this machine's and whole, their ENIs may be another's.
            if held is not None:
                return str(held.reason)
        return self.frozen() or (str(Reason.INVARIANT_BROKEN) if self.is_broken else "")

    def may_finish(self) -> bool:
        """Whether what was intended in EC2 may be carried out.

        A node that is handed back begins nothing, and finishes what it has begun.
        """
        return self.no_change() in ("", Reason.HANDING_BACK)

    def may_change_kernel(self) -> bool:
        """Whether the kernel is ours to bring in line."""
        return self.hold is None and not self.must_not_change

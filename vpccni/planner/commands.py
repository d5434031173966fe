"""What the shell asks of the core. Each is answered by ``decide`` with events, a refusal, or waiting."""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.errors import Reason, Refused
from vpccni.events.codec import Event
from vpccni.events.decision import PlanMade
from vpccni.events.effect import EffectIntended
from vpccni.events.sandbox import SandboxWired
from vpccni.evidence import Verdict
from vpccni.model import (
    Address,
    Cidr,
    EniFacts,
    EniId,
    InstanceFacts,
    IntentId,
    LeaseId,
    PodRef,
    SandboxKey,
    Stamp,
)
from vpccni.planner.warm_pool import Constraints, PoolPolicy

PREVIOUS: Final = -1
"""Cause of an event: the one before it in the same decision."""


class StartAgent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent begins to write; ends every lease of another boot.

    Attributes:
        log_id: The id of the log, should it be new; of no meaning otherwise.
    """

    boot_id: str
    version: str
    log_id: str = ""


class Observe(msgspec.Struct, frozen=True):
    """Something about the node was observed; recorded when it differs from what the log says."""

    event: Event


class ObserveInstance(msgspec.Struct, frozen=True):
    """IMDS told which machine this is. Another one than before starts the books over, if there is proof.

    Attributes:
        readings: How many readings in a row have named this instance.
        has_other_primary: No link here has the MAC of the primary ENI that the log knows.
    """

    instance: InstanceFacts
    readings: int = 1
    has_other_primary: bool = False


class ObserveVpc(msgspec.Struct, frozen=True, kw_only=True):
    """IMDS told the CIDRs of the VPC. What is new is believed at once, what is missing at the second reading.

    Attributes:
        cidrs: Empty when IMDS told none, which is no answer.
        previous: The reading before; empty for none.
    """

    cidrs: tuple[Cidr, ...]
    previous: tuple[Cidr, ...]


class Add(msgspec.Struct, frozen=True, kw_only=True):
    """CNI ADD: an address for a sandbox.

    Attributes:
        request: The sequence number of its ``AddRequested``, once that is recorded.
    """

    key: SandboxKey
    pod: PodRef
    netns: str
    netns_inode: int = 0
    request: int = 0


class RefuseAdd(msgspec.Struct, frozen=True, kw_only=True):
    """An ADD is answered with an error.

    Attributes:
        ends_lease: The lease that this ADD opened is undone. False when the ADD was a repetition: the
            lease may have been acknowledged before, and an error now does not end it.
        was_wired: Packets may have carried the address, so it needs a cooldown.
        request: The sequence number of its ``AddRequested``; 0 when there is none, -1 when nobody knows.
    """

    key: SandboxKey
    pod: PodRef
    reason: Reason
    detail: str = ""
    ends_lease: bool = True
    was_wired: bool = False
    is_undone: bool = True
    request: int = -1


class NoteWired(msgspec.Struct, frozen=True):
    """The kernel has the sandbox's wiring."""

    wired: SandboxWired


class EndLease(msgspec.Struct, frozen=True, kw_only=True):
    """CNI DEL, or its spooled form.

    Attributes:
        addresses, netns: What the runtime says that the sandbox had: by both together a hold is found.
        written_boot_id, written_boottime_ns: For a spooled DEL, when it was written: it does not end a
            lease that is younger.
    """

    key: SandboxKey
    cause: str
    sources: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    netns: str = ""
    written_boot_id: str = ""
    written_boottime_ns: int = 0


class Identify(msgspec.Struct, frozen=True, kw_only=True):
    """A call names the sandbox of a hold, by its address and its namespace."""

    key: SandboxKey
    pod: PodRef
    netns: str
    addresses: tuple[Address, ...]
    source: str


class NoteUnwired(msgspec.Struct, frozen=True):
    """Nothing of these ended leases is left in the kernel."""

    leases: tuple[LeaseId, ...]


class NoteEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One source about a lease: its sandbox is gone (the lease is suspected), or alive (it is cleared)."""

    lease: LeaseId
    source: str
    is_alive: bool
    detail: str = ""


class EndBySources(msgspec.Struct, frozen=True, kw_only=True):
    """Two independent sources agree that the sandbox is gone."""

    lease: LeaseId
    sources: tuple[str, str]


class Intend(msgspec.Struct, frozen=True):
    """Carry out one step of a plan. The plan may be stale: everything is checked again."""

    effect: EffectIntended


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 did it. ``facts`` for a create, ``cidrs`` for an assign, ``attachment`` for an attach."""

    facts: EniFacts | None = None
    cidrs: tuple[Cidr, ...] = ()
    attachment: str = ""
    how: str = "reply"


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 did not do it."""

    reason: Reason
    code: str = ""
    detail: str = ""
    is_transient: bool = False


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """No reply: it may or may not have been done."""

    detail: str = ""


class Abandoned(msgspec.Struct, frozen=True, kw_only=True):
    """It will not be done: what it was for is gone."""

    reason: str


Outcome = Confirmed | Failed | Unknown | Abandoned


class Settle(msgspec.Struct, frozen=True):
    """The outcome of an intended effect."""

    intent: IntentId
    outcome: Outcome


class Reading(msgspec.Struct, frozen=True):
    """What EC2 listed as attached to this machine.

    Attributes:
        begun: When it was asked, which is the latest time that the answer can be about.
    """

    enis: tuple[EniFacts, ...]
    begun: Stamp


class ReadEc2(msgspec.Struct, frozen=True):
    """A Describe of every ENI that EC2 says is attached to this machine.

    Attributes:
        previous: The reading before it in this process; what is new to the books is believed when two agree.
    """

    reading: Reading
    previous: Reading | None


class AdoptLeftBehind(msgspec.Struct, frozen=True):
    """Unattached ENIs with this instance's tag that the books do not hold: to be deleted."""

    enis: tuple[EniFacts, ...]


class NoteLinks(msgspec.Struct, frozen=True, kw_only=True):
    """Which ENIs have their link in the kernel, set up; and which have not."""

    ready: tuple[tuple[EniId, str, int], ...] = ()
    lost: tuple[tuple[EniId, str], ...] = ()


class NotePlan(msgspec.Struct, frozen=True):
    """A plan to remember; recorded when it acts or when its reason changes."""

    plan: PlanMade


class TakeSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """The node was searched: open, end and record what the verdict says.

    Attributes:
        why: See ``NodeSurveyed.why``.
        is_repeated_anyway: Record it also when nothing is new.
        seen_head: The newest event when the search began; 0 when that does not matter. A lease that was opened since
            does not end by it.
    """

    why: str
    verdict: Verdict
    seen_head: int = 0
    is_repeated_anyway: bool = False


class SetMode(msgspec.Struct, frozen=True):
    """What the agent is for from now on: one of ``events.adoption.MODES``."""

    mode: str
    reason: str = ""


class NoteOtherAgent(msgspec.Struct, frozen=True):
    """Another agent serves this node, or no longer does."""

    is_alive: bool
    detail: str = ""


class Note(msgspec.Struct, frozen=True):
    """History that no decision depends on."""

    events: tuple[Event, ...]


class ReportBroken(msgspec.Struct, frozen=True, kw_only=True):
    """A check of our own failed."""

    name: str
    detail: str


Command = (
    StartAgent
    | Observe
    | ObserveInstance
    | ObserveVpc
    | Add
    | RefuseAdd
    | NoteWired
    | EndLease
    | NoteUnwired
    | NoteEvidence
    | EndBySources
    | Intend
    | Settle
    | ReadEc2
    | AdoptLeftBehind
    | NoteLinks
    | NotePlan
    | ReportBroken
    | Identify
    | TakeSurvey
    | SetMode
    | NoteOtherAgent
    | Note
)


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision depends on besides the log: settings, and what holds us back just now.

    Attributes:
        not_serving: Why no ADD can be served at all (``not_the_same_machine``, ...); ``None`` when it can.
        refusing: Why waiting would not help a new ADD, either (``kernel_refused``).
        must_not_change: Kinds of records that a newer version wrote and that must be understood: ADD, DEL
            and intents are refused.
        ahead: ADDs that wait already and are served before this one.
    """

    cooldown_s: float
    add_wait_s: float
    policy: PoolPolicy | None
    constraints: Constraints
    not_serving: Refused | None = None
    refusing: Refused | None = None
    must_not_change: tuple[str, ...] = ()
    manages_untagged: bool = True
    ahead: int = 0


Caused = tuple[Event, int]
"""An event and the sequence number that caused it; -1 means: the event before it in the same decision."""


class Decision(msgspec.Struct, frozen=True):
    """Events to append, in order; and the lease or intent that the command was about, 0 for none.

    ``is_new``: the lease was opened by this very decision.
    """

    events: tuple[Caused, ...] = ()
    lease: LeaseId = LeaseId(0)
    is_new: bool = False
    intent: IntentId = IntentId(0)


class Park(msgspec.Struct, frozen=True):
    """Not now, but an open or plannable intent, or the end of a rest, can satisfy it: wait."""

    reason: Reason
    detail: str = ""
    events: tuple[Caused, ...] = ()


Answer = Decision | Refused | Park

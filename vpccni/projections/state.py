"""The whole state of a node, folded from its log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vpccni.events import address, adoption, decision, node, sandbox
from vpccni.events.codec import Record, UnknownEvent
from vpccni.events.effect import EFFECT_KINDS
from vpccni.model import (
    Address,
    Cidr,
    EniId,
    InstanceFacts,
    InstanceLimits,
    IntentId,
    LeaseId,
    SandboxKey,
    Seq,
    Stamp,
    SubnetId,
)
from vpccni.projections import fold_effects, fold_enis, fold_leases, fold_machine
from vpccni.projections.enis import Eni, Intent, OwnedCidr
from vpccni.projections.leases import Lease, Rest
from vpccni.projections.rest import BootMark, elapsed_ns


class State:
    """Everything that the log says. ``evolve`` is the only door in.

    Invariants (checked by ``planner.doctor`` and by the property tests):
        * an address has at most one open lease, and its ENI is in the books;
        * ``by_key`` indexes exactly the open leases with a key, ``by_address`` all of them;
        * an address is not leased and resting at once.
    """

    def __init__(self) -> None:
        self.head = Seq(0)
        self.log_id = ""
        self.stamp: Stamp | None = None
        self.boot_id = ""
        self.agent_version = ""
        self.instance: InstanceFacts | None = None
        self.identity_boot = ""
        self.doubted: node.InstanceDoubted | None = None
        self.survey: adoption.NodeSurveyed | None = None
        self.survey_seq = Seq(0)
        self.other_agent: adoption.OtherAgentObserved | None = None
        self.imported: adoption.CheckpointImported | None = None
        self.exported: adoption.CheckpointExported | None = None
        self.mode = "serve"
        self.limits: InstanceLimits | None = None
        self.policy: dict[str, str] = {}
        self.max_pods: int | None = None
        self.is_schedulable = True
        self.vpc_cidrs: tuple[Cidr, ...] = ()
        self.subnets: dict[SubnetId, node.SubnetObserved] = {}
        self.broken: node.InvariantBroken | None = None
        self.boots: dict[str, BootMark] = {}
        self.enis: dict[EniId, Eni] = {}
        self.deleted: dict[EniId, Stamp] = {}
        self.leases: dict[LeaseId, Lease] = {}
        self.unlocated: dict[LeaseId, None] = {}
        self.by_key: dict[SandboxKey, LeaseId] = {}
        self.by_address: dict[Address, LeaseId] = {}
        self.rests: dict[Address, Rest] = {}
        self.standing: dict[LeaseId, Rest] = {}
        self.intents: dict[IntentId, Intent] = {}
        self.plan: decision.PlanMade | None = None
        self.unknown_kinds: set[str] = set()
        self.latest: dict[str, Record] = {}

    # -- the door ---------------------------------------------------------------------------------

    def evolve(self, record: Record) -> None:
        """Apply one record.

        Raises:
            InvariantBrokenError: the record contradicts the state (two leases for one address, an
                ending of a lease that is not open). The state is as before.
        """
        _FOLDS[type(record.event)](self, record, record.event)
        self.head = record.seq
        self.stamp = record.stamp

    def evolve_all(self, records: Iterable[Record]) -> None:
        """Apply records in order."""
        for record in records:
            self.evolve(record)

    # -- questions --------------------------------------------------------------------------------

    def elapsed_s(self, since: Stamp, now: Stamp) -> float:
        """Seconds that have surely passed since then (see :func:`vpccni.projections.rest.elapsed_ns`)."""
        return elapsed_ns(since, now, self.boots) / 1e9

    def rest_left_s(self, rest: Rest, now: Stamp, cooldown_s: float) -> float:
        """Seconds until the address of an ended lease may be used again; 0 when it may."""
        return max(0.0, cooldown_s - self.elapsed_s(rest.ended, now))

    def is_inherited(self, owned: OwnedCidr) -> bool:
        """Whether a CIDR was, or may have been, here before the last survey: the log does not know who used it.

        Only what EC2 has answered to a call that was first made since then is surely new: what Describe shows instead
        of an answer may be what somebody else has brought here.
        """
        event = owned.record.event
        is_new = isinstance(event, address.CidrsOwned) and event.source == "reply"
        return not (is_new and owned.record.seq > self.survey_seq)

    def inherited_s(self, now: Stamp, cooldown_s: float) -> float:
        """Seconds until the addresses that were here before the last survey may be used; 0 when they may.

        Each of them counts as used until the latest trace of any use. Ask once for all of them (and which they
        are by :meth:`is_inherited`): it is the same for each, and a plan looks at hundreds.
        """
        last_use = self.survey.last_use if self.survey is not None else None
        if last_use is None:
            return 0.0
        return max(0.0, cooldown_s - self.elapsed_s(last_use, now))

    def unknown_effects(self) -> list[str]:
        """Kinds of open intents that a later release added: EC2 must not be changed meanwhile."""
        return sorted({intent.intended.kind for intent in self.intents.values()} - EFFECT_KINDS)

    def lease_of(self, key: SandboxKey) -> Lease | None:
        """The open lease of a sandbox."""
        lease_id = self.by_key.get(key)
        return None if lease_id is None else self.leases[lease_id]

    def intents_on(self, eni_id: EniId) -> list[Intent]:
        """Open intents that concern an ENI."""
        return [intent for intent in self.intents.values() if intent.intended.eni == eni_id]

    def primary_eni(self) -> Eni | None:
        """Device 0 of card 0, if it is in the books."""
        return next((held for held in self.enis.values() if held.is_primary), None)

    def enis_under_removal(self) -> set[EniId]:
        """ENIs that an open intent detaches or deletes: no new pod is put on them."""
        return {
            intent.intended.eni
            for intent in self.intents.values()
            if intent.intended.kind in ("detach", "delete")
        }

    def cidrs_under_release(self) -> set[Cidr]:
        """CIDRs that an open unassign intent covers: nothing is assigned out of them."""
        return {
            cidr
            for intent in self.intents.values()
            if intent.intended.kind == "unassign"
            for cidr in intent.intended.cidrs
        }


def _ignored(state: State, record: Record, event: object) -> None:
    """History that no decision depends on."""


def _unknown(state: State, record: Record, event: UnknownEvent) -> None:
    if event.must_understand:
        state.unknown_kinds.add(event.kind)


_FOLDS: dict[type, Callable[[State, Record, Any], None]] = {
    **fold_machine.FOLDS,
    **fold_effects.FOLDS,
    **fold_enis.FOLDS,
    **fold_leases.FOLDS,
    node.LogRestored: _ignored,
    sandbox.AddRequested: _ignored,
    sandbox.AddFailed: _ignored,
    sandbox.AddressUnexplained: _ignored,
    adoption.ForeignObjectRemoved: _ignored,
    UnknownEvent: _unknown,
}

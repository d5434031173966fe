"""The whole state of a node, folded from its log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vpccni.errors import InvariantBrokenError
from vpccni.events import address, adoption, decision, effect, eni, node, sandbox
from vpccni.events.codec import Record, UnknownEvent
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
    is_inside,
    route_table_of,
)
from vpccni.projections.enis import Eni, Intent, OwnedCidr
from vpccni.projections.leases import Lease, Rest
from vpccni.projections.rest import BootMark, elapsed_ns

_RELEASES_KEPT_NS = 120 * 10**9
"""A release is remembered for as long as a Describe may lag, twice over."""
_BOOTS_KEPT = 8
"""Boot changes remembered: rests are seconds long, so one would do; a few more cost nothing."""


class State:
    """Everything that the log says. ``evolve`` is the only door in.

    Invariants (checked by ``planner.doctor`` and by the property tests):
        * an address has at most one open lease, and its ENI is in the books;
        * ``by_key`` and ``by_address`` index exactly the open leases;
        * an address is not leased and resting at once.
    """

    def __init__(self) -> None:
        self.head = Seq(0)
        self.stamp: Stamp | None = None
        self.boot_id = ""
        self.agent_version = ""
        self.instance: InstanceFacts | None = None
        self.limits: InstanceLimits | None = None
        self.policy: dict[str, str] = {}
        self.max_pods: int | None = None
        self.is_schedulable = True
        self.vpc_cidrs: tuple[Cidr, ...] = ()
        self.subnets: dict[SubnetId, node.SubnetObserved] = {}
        self.broken: node.InvariantBroken | None = None
        self.boots: dict[str, BootMark] = {}
        self.enis: dict[EniId, Eni] = {}
        self.leases: dict[LeaseId, Lease] = {}
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

    def cidrs_under_release(self) -> set[Cidr]:
        """CIDRs that an open unassign intent covers: nothing is assigned out of them."""
        return {
            cidr
            for intent in self.intents.values()
            if intent.intended.kind == "unassign"
            for cidr in intent.intended.cidrs
        }

    # -- folds: the machine -----------------------------------------------------------------------

    def _keep(self, kind: str, record: Record) -> None:
        self.latest[kind] = record

    def _agent_started(self, record: Record, event: node.AgentStarted) -> None:
        self.boot_id = event.boot_id
        self.agent_version = event.version
        self.broken = None
        self.latest.pop("broken", None)
        self._keep("agent", record)

    def _boot_changed(self, record: Record, event: node.BootChanged) -> None:
        self.boots[event.old] = BootMark(event.last, record.stamp)
        self._keep(f"boot:{event.old}", record)
        while len(self.boots) > _BOOTS_KEPT:
            oldest = next(iter(self.boots))
            del self.boots[oldest]
            del self.latest[f"boot:{oldest}"]
        self.boot_id = event.new

    def _instance_observed(self, record: Record, event: node.InstanceObserved) -> None:
        self.instance = event.instance
        self.vpc_cidrs = event.instance.vpc_cidrs
        self.latest.pop("network", None)
        self._keep("instance", record)

    def _limits_observed(self, record: Record, event: node.LimitsObserved) -> None:
        self.limits = event.limits
        self._keep("limits", record)

    def _policy_observed(self, record: Record, event: node.PolicyObserved) -> None:
        self.policy = event.settings
        self._keep("policy", record)

    def _max_pods_observed(self, record: Record, event: node.MaxPodsObserved) -> None:
        self.max_pods = event.max_pods
        self._keep("max_pods", record)

    def _scheduling_observed(self, record: Record, event: node.SchedulingObserved) -> None:
        self.is_schedulable = event.schedulable
        self._keep("scheduling", record)

    def _subnet_observed(self, record: Record, event: node.SubnetObserved) -> None:
        self.subnets[event.subnet] = event
        self._keep(f"subnet:{event.subnet}", record)

    def _network_config_observed(self, record: Record, event: node.NetworkConfigObserved) -> None:
        self.vpc_cidrs = event.vpc_cidrs
        self._keep("network", record)

    def _invariant_broken(self, record: Record, event: node.InvariantBroken) -> None:
        self.broken = event
        self._keep("broken", record)

    def _plan_made(self, record: Record, event: decision.PlanMade) -> None:
        self.plan = event
        self._keep("plan", record)

    # -- folds: effects ---------------------------------------------------------------------------

    def _effect_intended(self, record: Record, event: effect.EffectIntended) -> None:
        intent_id = IntentId(record.seq)
        self.intents[intent_id] = Intent(
            id=intent_id, intended=event, since=record.stamp, records={"intended": record}
        )
        held = self.enis.get(event.eni)
        if held is not None and event.kind == "detach":
            held.is_retiring = True

    def _effect_confirmed(self, record: Record, event: effect.EffectConfirmed) -> None:
        self._close_intent(event.intent)
        held = self.enis.get(event.eni)
        if held is not None and event.kind == "modify":
            held.is_kept_safe = True
            held.records["modify"] = record

    def _effect_failed(self, record: Record, event: effect.EffectFailed) -> None:
        self._close_intent(event.intent)
        held = self.enis.get(event.eni)
        if held is not None and event.kind == "detach":
            held.is_retiring = False

    def _effect_unknown(self, record: Record, event: effect.EffectUnknown) -> None:
        intent = self.intents.get(event.intent)
        if intent is not None:
            intent.unknown = event
            intent.records["unknown"] = record

    def _effect_abandoned(self, record: Record, event: effect.EffectAbandoned) -> None:
        self._close_intent(event.intent)
        held = self.enis.get(event.eni)
        if held is not None and event.kind == "detach":
            held.is_retiring = False

    def _close_intent(self, intent_id: IntentId) -> None:
        # Confirming twice is harmless; a snapshot holds confirmations whose intent is long closed.
        self.intents.pop(intent_id, None)

    # -- folds: ENIs and CIDRs --------------------------------------------------------------------

    def _eni_adopted(self, record: Record, event: eni.EniAdopted) -> None:
        facts = event.facts
        before = self.enis.get(facts.id)
        is_attached = facts.device >= 0 and bool(facts.instance)
        self.enis[facts.id] = Eni(
            facts=facts,
            managed=event.managed,
            origin=event.origin,
            phase="attached" if is_attached else "detached",
            attachment=facts.attachment,
            device=facts.device if is_attached else -1,
            card=facts.card,
            table=event.table or (route_table_of(facts.card, facts.device) if is_attached else 0),
            is_link_ready=before.is_link_ready if before else False,
            ifname=before.ifname if before else "",
            ifindex=before.ifindex if before else 0,
            is_kept_safe=bool(facts.delete_on_termination) or (before is not None and before.is_kept_safe),
            lease_count=before.lease_count if before else 0,
            adopted=before.adopted if before else record.stamp,
            cidrs=before.cidrs if before else {},
            released=before.released if before else {},
            # The first adoption stays: in a snapshot everything else about the ENI follows it.
            records={**before.records, "adopted again": record} if before else {"adopted": record},
        )
        self.enis[facts.id].records.pop("suspected", None)
        if facts.delete_on_termination:
            self.enis[facts.id].records["modify"] = record

    def _eni_attached(self, record: Record, event: eni.EniAttached) -> None:
        held = self._eni(event.eni, record)
        held.phase, held.attachment = "attached", event.attachment
        held.device, held.card, held.table = event.device, event.card, event.table
        held.is_retiring = False
        held.records["attached"] = record

    def _eni_link_ready(self, record: Record, event: eni.EniLinkReady) -> None:
        held = self._eni(event.eni, record)
        held.is_link_ready, held.ifname, held.ifindex = True, event.ifname, event.ifindex
        held.records["link"] = record

    def _eni_link_lost(self, record: Record, event: eni.EniLinkLost) -> None:
        held = self._eni(event.eni, record)
        # Its name goes with it: a snapshot keeps the newest word about the link only.
        held.is_link_ready, held.ifname, held.ifindex = False, "", 0
        held.records["link"] = record

    def _eni_suspected(self, record: Record, event: eni.EniSuspected) -> None:
        held = self._eni(event.eni, record)
        held.suspected = event.readings
        held.records["suspected"] = record

    def _eni_cleared(self, record: Record, event: eni.EniCleared) -> None:
        held = self._eni(event.eni, record)
        held.suspected = 0
        held.records.pop("suspected", None)

    def _eni_detached(self, record: Record, event: eni.EniDetached) -> None:
        held = self._eni(event.eni, record)
        held.phase, held.attachment, held.device, held.table = "detached", "", -1, 0
        held.is_link_ready, held.ifname, held.ifindex = False, "", 0
        held.is_retiring = True
        held.records.pop("link", None)
        held.records["detached"] = record

    def _eni_gone(self, record: Record, event: eni.EniGone) -> None:
        held = self._eni(event.eni, record)
        if held.lease_count:
            raise InvariantBrokenError(
                f"{event.eni} is said to be gone and has {held.lease_count} open leases"
            )
        for cidr in held.cidrs:
            self._forget_rests(cidr)
        del self.enis[event.eni]

    def _cidrs_owned(self, record: Record, event: address.CidrsOwned) -> None:
        held = self._eni(event.eni, record)
        for cidr in event.cidrs:
            held.cidrs.setdefault(cidr, OwnedCidr(record))
            held.released.pop(cidr, None)
            # EC2 may give an address again before we learned that another ENI of ours lost it: whatever ends
            # there later must not forget that it rests here.
            for other in self.enis.values():
                if other is not held:
                    self._disown(other, cidr)

    def _cidrs_released(self, record: Record, event: address.CidrsReleased) -> None:
        held = self._eni(event.eni, record)
        for cidr in event.cidrs:
            if self._leased_in(cidr):
                raise InvariantBrokenError(f"{cidr} is released and has an open lease")
        for cidr in event.cidrs:
            if cidr in held.cidrs:
                self._disown(held, cidr)
                self._forget_rests(cidr)
            if event.source != "describe":
                held.released[cidr] = record
        held.released = {
            cidr: said for cidr, said in held.released.items() if _is_recent(said.stamp, record.stamp)
        }

    def _cidr_suspected(self, record: Record, event: address.CidrSuspected) -> None:
        held = self._eni(event.eni, record)
        if event.cidr in held.cidrs:
            held.cidrs[event.cidr].suspected = event.readings
            held.records[f"suspected:{event.cidr}"] = record

    def _cidr_cleared(self, record: Record, event: address.CidrCleared) -> None:
        held = self._eni(event.eni, record)
        if event.cidr in held.cidrs:
            held.cidrs[event.cidr].suspected = 0
        held.records.pop(f"suspected:{event.cidr}", None)

    def _eni(self, eni_id: EniId, record: Record) -> Eni:
        held = self.enis.get(eni_id)
        if held is None:
            raise InvariantBrokenError(f"event {record.seq} is about {eni_id}, which is not in the books")
        return held

    def _leased_in(self, cidr: Cidr) -> list[Address]:
        if cidr.endswith("/32"):
            single = Address(cidr[:-3])
            return [single] if single in self.by_address else []
        return [leased for leased in self.by_address if is_inside(leased, cidr)]

    def _disown(self, held: Eni, cidr: Cidr) -> None:
        if held.cidrs.pop(cidr, None) is not None:
            held.records.pop(f"suspected:{cidr}", None)

    def _forget_rests(self, cidr: Cidr) -> None:
        if cidr.endswith("/32"):
            single = Address(cidr[:-3])
            inside = [single] if single in self.rests else []
        else:
            inside = [held for held in self.rests if is_inside(held, cidr)]
        for rested in inside:
            rest = self.rests.pop(rested)
            if not any(self.rests.get(binding.address) is rest for binding in rest.bindings):
                self.standing.pop(rest.lease, None)

    # -- folds: leases ----------------------------------------------------------------------------

    def _ignored(self, record: Record, event: Any) -> None:
        """Demand, failures and hand-overs are history, not state."""

    def _address_assigned(self, record: Record, event: sandbox.AddressAssigned) -> None:
        for binding in event.bindings:
            if binding.address in self.by_address:
                raise InvariantBrokenError(
                    f"{binding.address} is assigned by event {record.seq} and held by lease "
                    f"{self.by_address[binding.address]}"
                )
        if event.key in self.by_key:
            raise InvariantBrokenError(f"{event.key} already has lease {self.by_key[event.key]}")
        lease_id = LeaseId(record.seq)
        self.leases[lease_id] = Lease(
            id=lease_id,
            key=event.key,
            pod=event.pod,
            bindings=event.bindings,
            netns=event.netns,
            netns_inode=event.netns_inode,
            opened=record.stamp,
            records={"assigned": record},
        )
        self.by_key[event.key] = lease_id
        for binding in event.bindings:
            self.by_address[binding.address] = lease_id
            self.rests.pop(binding.address, None)
            if binding.eni in self.enis:
                self.enis[binding.eni].lease_count += 1

    def _sandbox_wired(self, record: Record, event: sandbox.SandboxWired) -> None:
        lease = self.leases.get(event.lease)
        if lease is None:
            return  # The DEL overtook it: wiring rides along with a later batch.
        lease.wired = event
        if event.netns:
            lease.netns, lease.netns_inode = event.netns, event.netns_inode
        lease.records["wired"] = record

    def _lease_ended(self, record: Record, event: sandbox.LeaseEnded) -> None:
        lease = self.leases.pop(event.lease, None)
        if lease is None:
            raise InvariantBrokenError(f"event {record.seq} ends lease {event.lease}, which is not open")
        del self.by_key[lease.key]
        rest = Rest(
            lease=lease.id,
            key=lease.key,
            pod=lease.pod,
            bindings=lease.bindings,
            netns=lease.netns,
            ended=record.stamp,
            wired=lease.wired,
            # After a boot or on another machine no veth of before can stand.
            is_standing=event.cause not in ("boot", "instance"),
            records={**lease.records, "ended": record},
        )
        rest.records.pop("quarantined", None)
        needs_rest = not (event.cause == "undo" and "never_wired" in event.witnesses)
        for binding in lease.bindings:
            del self.by_address[binding.address]
            if needs_rest:
                self.rests[binding.address] = rest
            if binding.eni in self.enis:
                self.enis[binding.eni].lease_count -= 1
        if needs_rest and rest.is_standing:
            self.standing[lease.id] = rest

    def _sandbox_unwired(self, record: Record, event: sandbox.SandboxUnwired) -> None:
        rest = self.standing.pop(event.lease, None)
        if rest is not None:
            rest.is_standing = False
            rest.records["unwired"] = record

    def _lease_quarantined(self, record: Record, event: sandbox.LeaseQuarantined) -> None:
        lease = self.leases.get(event.lease)
        if lease is not None:
            lease.quarantined, lease.witness = record.stamp, event.witness
            lease.records["quarantined"] = record

    def _lease_witnessed(self, record: Record, event: sandbox.LeaseWitnessed) -> None:
        lease = self.leases.get(event.lease)
        if lease is not None:
            lease.quarantined, lease.witness = None, ""
            lease.records.pop("quarantined", None)

    def _unknown(self, record: Record, event: UnknownEvent) -> None:
        if event.must_understand:
            self.unknown_kinds.add(event.kind)


def _is_recent(then: Stamp, now: Stamp) -> bool:
    return then.boot_id == now.boot_id and now.boottime_ns - then.boottime_ns < _RELEASES_KEPT_NS


_FOLDS: dict[type, Callable[[State, Record, Any], None]] = {
    node.AgentStarted: State._agent_started,
    node.BootChanged: State._boot_changed,
    node.InstanceObserved: State._instance_observed,
    node.LimitsObserved: State._limits_observed,
    node.PolicyObserved: State._policy_observed,
    node.MaxPodsObserved: State._max_pods_observed,
    node.SchedulingObserved: State._scheduling_observed,
    node.SubnetObserved: State._subnet_observed,
    node.NetworkConfigObserved: State._network_config_observed,
    node.InvariantBroken: State._invariant_broken,
    effect.EffectIntended: State._effect_intended,
    effect.EffectConfirmed: State._effect_confirmed,
    effect.EffectFailed: State._effect_failed,
    effect.EffectUnknown: State._effect_unknown,
    effect.EffectAbandoned: State._effect_abandoned,
    eni.EniAdopted: State._eni_adopted,
    eni.EniAttached: State._eni_attached,
    eni.EniLinkReady: State._eni_link_ready,
    eni.EniLinkLost: State._eni_link_lost,
    eni.EniSuspected: State._eni_suspected,
    eni.EniCleared: State._eni_cleared,
    eni.EniDetached: State._eni_detached,
    eni.EniGone: State._eni_gone,
    address.CidrsOwned: State._cidrs_owned,
    address.CidrsReleased: State._cidrs_released,
    address.CidrSuspected: State._cidr_suspected,
    address.CidrCleared: State._cidr_cleared,
    sandbox.AddRequested: State._ignored,
    sandbox.AddressAssigned: State._address_assigned,
    sandbox.SandboxWired: State._sandbox_wired,
    sandbox.AddFailed: State._ignored,
    sandbox.LeaseEnded: State._lease_ended,
    sandbox.SandboxUnwired: State._sandbox_unwired,
    sandbox.LeaseQuarantined: State._lease_quarantined,
    sandbox.LeaseWitnessed: State._lease_witnessed,
    adoption.CheckpointImported: State._ignored,
    adoption.CheckpointExported: State._ignored,
    decision.PlanMade: State._plan_made,
    UnknownEvent: State._unknown,
}

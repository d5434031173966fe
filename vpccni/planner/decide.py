"""The one place where a command becomes events, checked against the state of that very instant.

``decide`` is pure: it reads the state and says what to append. The writer evolves its speculative state
with the answer before it asks the next question, so two commands of one batch cannot contradict each other.
"""

from __future__ import annotations

import msgspec

from vpccni.errors import Reason, Refused
from vpccni.events import address, effect, eni, node, sandbox
from vpccni.events.codec import KIND_OF
from vpccni.model import (
    Cidr,
    EniFacts,
    EniId,
    IntentId,
    LeaseId,
    Seq,
    Stamp,
    cidr_size,
    is_inside,
    route_table_of,
)
from vpccni.planner import commands as c
from vpccni.planner.assign import choose_address, is_usable
from vpccni.planner.reconcile import adopt_left_behind, compare_with_ec2
from vpccni.planner.view import ADDRESS_KINDS, SIDE_KINDS, busy_with, is_cidr_rested, views_of
from vpccni.planner.warm_pool import prospect
from vpccni.projections.enis import Eni
from vpccni.projections.leases import Lease
from vpccni.projections.state import State

PREVIOUS = -1
"""Cause of an event: the one before it in the same decision."""


def decide(state: State, command: c.Command, now: Stamp, context: c.Context) -> c.Answer:
    """Answer one command. Nothing is changed; equal arguments give equal answers."""
    match command:
        case c.Add():
            return _add(state, command, now, context)
        case c.EndLease():
            return _end_lease(state, command, context)
        case c.RefuseAdd():
            return _refuse_add(state, command, context)
        case c.NoteWired():
            return c.Decision(((command.wired, command.wired.lease),))
        case c.NoteUnwired():
            return c.Decision(
                tuple(
                    (sandbox.SandboxUnwired(lease=lease), lease)
                    for lease in command.leases
                    if lease in state.standing
                )
            )
        case c.NoteWitness():
            return _note_witness(state, command)
        case c.EndByWitnesses():
            lease = state.leases.get(command.lease)
            if lease is None:
                return c.Decision()
            return c.Decision((_ended(lease, "gc", command.witnesses),), lease.id)
        case c.Intend():
            return _intend(state, command.effect, now, context)
        case c.Settle():
            return _settle(state, command)
        case c.ReadEc2():
            return c.Decision(
                compare_with_ec2(state, command, now, context.cooldown_s, context.manages_untagged)
            )
        case c.AdoptLeftBehind():
            return c.Decision(adopt_left_behind(state, command.enis))
        case c.NoteLinks():
            return _note_links(state, command)
        case c.StartAgent():
            return _start_agent(state, command, now)
        case c.ObserveInstance():
            return _observe_instance(state, command)
        case c.Observe():
            return _observe(state, command)
        case c.NotePlan():
            before = state.plan
            if before == command.plan:
                return c.Decision()  # Said already; if it acts again, its intents tell of it.
            if not command.plan.steps and before is not None and before.reason == command.plan.reason:
                return c.Decision()
            return c.Decision(((command.plan, 0),))
        case c.ReportBroken():
            if state.broken is not None:
                return c.Decision()
            return c.Decision(((node.InvariantBroken(name=command.name, detail=command.detail), 0),))


# -- leases ---------------------------------------------------------------------------------------


def _add(state: State, command: c.Add, now: Stamp, context: c.Context) -> c.Answer:
    held = state.lease_of(command.key)
    if held is not None:
        return c.Decision((), held.id)
    request: tuple[c.Caused, ...] = ()
    if not command.request:
        request = ((sandbox.AddRequested(key=command.key, pod=command.pod), 0),)
    if context.must_not_change:
        return Refused(Reason.LOG_NEWER, ", ".join(context.must_not_change))
    if context.not_serving is not None:
        return c.Park(context.not_serving.reason, context.not_serving.detail, request)
    if context.refusing is not None:
        return context.refusing
    # First come, first served: what is free belongs to those who wait already.
    binding = choose_address(state, now, context.cooldown_s) if not context.ahead else None
    if binding is None:
        return _wait_or_refuse(state, now, context, request)
    assigned = sandbox.AddressAssigned(
        key=command.key,
        pod=command.pod,
        bindings=(binding,),
        netns=command.netns,
        netns_inode=command.netns_inode,
    )
    cause = command.request or PREVIOUS
    lease = LeaseId(state.head + len(request) + 1)
    return c.Decision((*request, (assigned, cause)), lease, is_new=True)


def _wait_or_refuse(state: State, now: Stamp, context: c.Context, request: tuple[c.Caused, ...]) -> c.Answer:
    if _resting_soon(state, now, context) > context.ahead:
        return c.Park(Reason.NO_ADDRESS, "waiting for a resting address", request)
    if context.policy is None:
        return c.Park(Reason.NODE_NOT_INITIALIZED, "the limits of the instance type are not known", request)
    views = views_of(state, now, context.cooldown_s, context.policy.slots_per_eni)
    outlook = prospect(views, context.policy, context.constraints, context.ahead)
    if outlook.possible:
        return c.Park(Reason.NO_ADDRESS, "waiting for EC2", request)
    return Refused(outlook.reason)


def _resting_soon(state: State, now: Stamp, context: c.Context) -> int:
    """How many addresses end their rest while an ADD may wait.

    A rest is remembered long after its end, and also on an ENI that serves nobody any more: neither is worth
    waiting for.
    """
    under_release = state.cidrs_under_release()
    usable: dict[EniId, set[Cidr]] = {
        held.facts.id: {
            one for one, owned in held.cidrs.items() if not owned.suspected and one not in under_release
        }
        for held in state.enis.values()
        if is_usable(held)
    }
    prefixes = {eni: [one for one in cidrs if cidr_size(one) > 1] for eni, cidrs in usable.items()}
    return sum(
        rest.is_standing or state.rest_left_s(rest, now, context.cooldown_s) < context.add_wait_s
        for rested, rest in state.rests.items()
        for eni in (rest.bindings[0].eni,)
        if f"{rested}/32" in usable.get(eni, ())
        or any(is_inside(rested, cidr) for cidr in prefixes.get(eni, ()))
    )


def _ended(lease: Lease, cause: sandbox.EndCause, witnesses: tuple[str, ...] = ()) -> c.Caused:
    event = sandbox.LeaseEnded(
        lease=lease.id,
        cause=cause,
        key=lease.key,
        pod=lease.pod,
        bindings=lease.bindings,
        witnesses=witnesses,
    )
    return event, lease.id


def _end_lease(state: State, command: c.EndLease, context: c.Context) -> c.Answer:
    if context.must_not_change:
        return Refused(Reason.LOG_NEWER, ", ".join(context.must_not_change))
    lease = state.lease_of(command.key)
    if lease is None:
        return c.Decision()
    if command.written_boot_id:
        is_older = (
            command.written_boottime_ns < lease.opened.boottime_ns
            if command.written_boot_id == lease.opened.boot_id
            else lease.opened.boot_id == state.boot_id
        )
        if is_older:
            return c.Decision()
    return c.Decision((_ended(lease, command.cause, command.witnesses),), lease.id)


def _refuse_add(state: State, command: c.RefuseAdd, context: c.Context) -> c.Answer:
    if context.must_not_change:
        return c.Decision()  # It was refused before it did anything.
    lease = state.lease_of(command.key)
    failed = sandbox.AddFailed(
        key=command.key,
        pod=command.pod,
        reason=str(command.reason),
        detail=command.detail,
        lease=lease.id if lease else LeaseId(0),
        undone=command.is_undone,
    )
    if lease is None or not command.ends_lease:
        return c.Decision(((failed, 0),))
    # The log's word counts, too: what was wired has carried packets, whatever the caller knows of it.
    witnesses = () if command.was_wired or lease.wired is not None else ("never_wired",)
    return c.Decision(((failed, lease.id), _ended(lease, "undo", witnesses)), lease.id)


def _note_witness(state: State, command: c.NoteWitness) -> c.Answer:
    lease = state.leases.get(command.lease)
    if lease is None:
        return c.Decision()
    if command.is_alive:
        if lease.quarantined is None:
            return c.Decision()
        return c.Decision(
            ((sandbox.LeaseWitnessed(lease=lease.id, witness=command.witness), lease.id),), lease.id
        )
    if lease.quarantined is not None:
        return c.Decision((), lease.id)
    event = sandbox.LeaseQuarantined(lease=lease.id, witness=command.witness, detail=command.detail)
    return c.Decision(((event, lease.id),), lease.id)


# -- effects --------------------------------------------------------------------------------------


def _intend(state: State, wanted: effect.EffectIntended, now: Stamp, context: c.Context) -> c.Answer:
    """Promise 3 is kept here: the check and the intent are one turn."""
    frozen = context.constraints.no_change or (
        Reason.LOG_NEWER if context.must_not_change else Reason.INVARIANT_BROKEN if state.broken else ""
    )
    if frozen:
        return Refused(Reason(frozen), "nothing is changed in EC2")
    objection = _objection(state, wanted, now, context)
    if objection:
        return Refused(Reason.CANCELLED, f"stale plan: {objection}")
    return c.Decision(((wanted, 0),), intent=IntentId(state.head + 1))


def _objection(state: State, wanted: effect.EffectIntended, now: Stamp, context: c.Context) -> str:
    if wanted.kind == "create":
        if context.policy is None:
            return "limits unknown"
        creating = sum(1 for intent in state.intents.values() if intent.intended.kind == "create")
        # What an earlier agent left behind is not attached, and is only kept to be deleted: no place is taken.
        present = sum(held.origin != "left_behind" for held in state.enis.values())
        if present + creating >= context.policy.enis_max - context.policy.reserved_slots:
            return "no ENI slot left"
        return ""
    held = state.enis.get(wanted.eni)
    if held is None:
        return "the ENI is not in the books"
    busy = busy_with(state, held)
    match wanted.kind:
        case "attach":
            return _attach_objection(state, held, wanted, busy)
        case "modify" | "tag":
            return "busy" if busy or held.phase != "attached" else ""
        case "assign":
            # As in the plan's view of the ENI: what changes neither addresses nor attachment is not in the way.
            return "busy" if busy - SIDE_KINDS or held.phase != "attached" or held.is_retiring else ""
        case "unassign":
            if busy & {*ADDRESS_KINDS, "detach"}:
                return "busy"
            for cidr in wanted.cidrs:
                if cidr not in held.cidrs:
                    return f"{cidr} is not owned"
                if not is_cidr_rested(state, cidr, now, context.cooldown_s):
                    return f"{cidr} is leased or resting"
            return ""
        case "detach":
            return _detach_objection(state, held, busy, now, context.cooldown_s)
        case "delete":
            return "busy" if busy or held.phase != "detached" or held.lease_count else ""


def _attach_objection(state: State, held: Eni, wanted: effect.EffectIntended, busy: set[str]) -> str:
    if busy or held.phase != "detached":
        return "busy"
    for other in state.enis.values():
        if other.phase == "attached" and (other.card, other.device) == (wanted.card, wanted.device):
            return f"device {wanted.device} is in use"
    for intent in state.intents.values():
        reserved = intent.intended
        if reserved.kind == "attach" and (reserved.card, reserved.device) == (wanted.card, wanted.device):
            return f"device {wanted.device} is reserved"
    return ""


def _detach_objection(state: State, held: Eni, busy: set[str], now: Stamp, cooldown_s: float) -> str:
    if held.is_primary or not held.managed or held.facts.type != "interface":
        return "not ours to detach"
    if busy - SIDE_KINDS or held.phase != "attached":
        return "busy"
    if held.lease_count:
        return "it has open leases"
    if not all(is_cidr_rested(state, cidr, now, cooldown_s) for cidr in held.cidrs):
        return "an address of it is resting"
    return ""


def _settle(state: State, command: c.Settle) -> c.Answer:
    intent = state.intents.get(command.intent)
    if intent is None:
        return c.Decision()
    wanted, outcome = intent.intended, command.outcome
    match outcome:
        case c.Failed():
            failed = effect.EffectFailed(
                intent=intent.id,
                kind=wanted.kind,
                reason=str(outcome.reason),
                code=outcome.code,
                detail=outcome.detail,
                transient=outcome.is_transient,
                eni=wanted.eni,
            )
            return c.Decision(((failed, intent.id),))
        case c.Unknown():
            if intent.unknown is not None:
                return c.Decision()
            unknown = effect.EffectUnknown(
                intent=intent.id, kind=wanted.kind, detail=outcome.detail, eni=wanted.eni
            )
            return c.Decision(((unknown, intent.id),))
        case c.Abandoned():
            abandoned = effect.EffectAbandoned(
                intent=intent.id, kind=wanted.kind, reason=outcome.reason, eni=wanted.eni
            )
            return c.Decision(((abandoned, intent.id),))
        case c.Confirmed():
            facts = outcome.facts
            eni_id = facts.id if wanted.kind == "create" and facts is not None else wanted.eni
            confirmed = effect.EffectConfirmed(
                intent=intent.id,
                kind=wanted.kind,
                eni=eni_id,
                cidrs=outcome.cidrs,
                attachment=outcome.attachment,
                how=outcome.how,
            )
            return c.Decision(((confirmed, intent.id), *_consequences(state, wanted, outcome)))


def _consequences(state: State, wanted: effect.EffectIntended, outcome: c.Confirmed) -> list[c.Caused]:
    """What a confirmed effect means for the books."""
    held = state.enis.get(wanted.eni)
    match wanted.kind:
        case "create" if outcome.facts is not None:
            return _created(state, outcome.facts, outcome.how)
        case "attach" if held is not None:
            attached = eni.EniAttached(
                eni=wanted.eni,
                attachment=outcome.attachment,
                device=wanted.device,
                card=wanted.card,
                table=route_table_of(wanted.card, wanted.device),
            )
            return [(attached, PREVIOUS)]
        case "assign" if held is not None and outcome.cidrs:
            fresh = tuple(cidr for cidr in outcome.cidrs if cidr not in held.cidrs)
            owned = address.CidrsOwned(eni=wanted.eni, cidrs=fresh, source=outcome.how)
            return [(owned, PREVIOUS)] if fresh else []
        case "unassign" if held is not None:
            gone = tuple(cidr for cidr in wanted.cidrs if cidr in held.cidrs)
            released = address.CidrsReleased(eni=wanted.eni, cidrs=gone, source=outcome.how)
            return [(released, PREVIOUS)] if gone else []
        case "detach" if held is not None and held.phase == "attached":
            return [(eni.EniDetached(eni=wanted.eni), PREVIOUS)]
        case "delete" if held is not None:
            return [(eni.EniGone(eni=wanted.eni, source=outcome.how), PREVIOUS)]
        case _:
            return []


def _created(state: State, facts: EniFacts, how: str) -> list[c.Caused]:
    if facts.id in state.enis:
        return []
    # EC2 tells a subnet's CIDR by another call, which may have failed; it never changes.
    known = (held.facts.subnet_cidr for held in state.enis.values() if held.facts.subnet == facts.subnet)
    bare = msgspec.structs.replace(
        facts,
        cidrs=(),
        instance="",
        device=-1,
        attachment="",
        attachment_status="",
        subnet_cidr=facts.subnet_cidr or next(filter(None, known), ""),
    )
    events: list[c.Caused] = [
        (eni.EniAdopted(facts=bare, managed=True, origin="created"), PREVIOUS),
    ]
    if facts.cidrs:
        events.append((address.CidrsOwned(eni=facts.id, cidrs=facts.cidrs, source=how), PREVIOUS))
    return events


# -- the machine ----------------------------------------------------------------------------------


def _note_links(state: State, command: c.NoteLinks) -> c.Answer:
    events: list[c.Caused] = []
    for eni_id, ifname, ifindex in command.ready:
        held = state.enis.get(eni_id)
        if held is None or held.phase != "attached":
            continue
        if not held.is_link_ready or (held.ifname, held.ifindex) != (ifname, ifindex):
            events.append((eni.EniLinkReady(eni=eni_id, ifname=ifname, ifindex=ifindex), 0))
    for eni_id, detail in command.lost:
        held = state.enis.get(eni_id)
        if held is not None and held.is_link_ready:
            events.append((eni.EniLinkLost(eni=eni_id, detail=detail), 0))
    return c.Decision(tuple(events))


def _start_agent(state: State, command: c.StartAgent, now: Stamp) -> c.Answer:
    events: list[c.Caused] = []
    if state.boot_id and state.boot_id != command.boot_id and state.stamp is not None:
        changed = node.BootChanged(old=state.boot_id, new=command.boot_id, last=state.stamp)
        cause = Seq(state.head + 1)
        events.append((changed, 0))
        events += [(_ended(lease, "boot")[0], cause) for lease in state.leases.values()]
        events += [(sandbox.SandboxUnwired(lease=lease), cause) for lease in state.standing]
    events.append((node.AgentStarted(boot_id=command.boot_id, version=command.version), 0))
    return c.Decision(tuple(events))


def _observe_instance(state: State, command: c.ObserveInstance) -> c.Answer:
    before, now_seen = state.instance, command.instance
    if before is None or before.id == now_seen.id:
        if before == now_seen:
            return c.Decision()
        return c.Decision(((node.InstanceObserved(instance=now_seen), 0),))
    # Another machine: nothing of the old one's is ours. Its own agent, if it lives, keeps it.
    cause = Seq(state.head + 1)
    events: list[c.Caused] = [(node.InstanceObserved(instance=now_seen, changed=True), 0)]
    events += [(_ended(lease, "instance")[0], cause) for lease in state.leases.values()]
    events += [
        (
            effect.EffectAbandoned(
                intent=intent.id,
                kind=intent.intended.kind,
                reason="another machine",
                eni=intent.intended.eni,
            ),
            cause,
        )
        for intent in state.intents.values()
    ]
    events += [(eni.EniGone(eni=eni_id, source="instance"), cause) for eni_id in state.enis]
    return c.Decision(tuple(events))


def _observe(state: State, command: c.Observe) -> c.Answer:
    kind = KIND_OF[type(command.event)]
    slot = {"subnet_observed": f"subnet:{getattr(command.event, 'subnet', '')}"}.get(
        kind, kind.removesuffix("_observed")
    )
    slot = {"network_config": "network"}.get(slot, slot)
    latest = state.latest.get(slot)
    if latest is not None and latest.event == command.event:
        return c.Decision()
    return c.Decision(((command.event, 0),))

"""The one place where a command becomes events, checked against the state of that very instant.

``decide`` is pure: it reads the state and says what to append. The writer evolves its speculative state
with the answer before it asks the next question, so two commands of one batch cannot contradict each other.
"""

from __future__ import annotations

import msgspec

from vpccni.errors import Reason, Refused
from vpccni.events import address, effect, eni, node, sandbox
from vpccni.model import POOL_CARD, EniFacts, IntentId, Stamp, route_table_of
from vpccni.planner import commands as c
from vpccni.planner import decide_leases, decide_machine
from vpccni.planner.commands import PREVIOUS
from vpccni.planner.reconcile import adopt_left_behind, compare_with_ec2
from vpccni.planner.view import (
    ADDRESS_KINDS,
    SIDE_KINDS,
    busy_with,
    is_cidr_free,
    is_cidr_rested,
    is_leased,
)
from vpccni.projections.enis import Eni
from vpccni.projections.state import State


def decide(state: State, command: c.Command, now: Stamp, context: c.Context) -> c.Answer:
    """Answer one command. Nothing is changed; equal arguments give equal answers."""
    match command:
        case c.Add():
            return decide_leases.add(state, command, now, context)
        case c.EndLease():
            return decide_leases.end_lease(state, command, context)
        case c.RefuseAdd():
            return decide_leases.refuse_add(state, command, context)
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
        case c.NoteEvidence():
            return decide_leases.note_evidence(state, command)
        case c.EndBySources():
            lease = state.leases.get(command.lease)
            if lease is None:
                return c.Decision()
            return c.Decision((decide_leases.ended(lease, "sandbox_gone", command.sources),), lease.id)
        case c.Intend():
            return _intend(state, command.effect, now, context)
        case c.Settle():
            return _settle(state, command)
        case c.ReadEc2():
            events = compare_with_ec2(state, command, now, context.cooldown_s, context.manages_untagged)
            return c.Decision((*events, *decide_machine.locations(state, events)))
        case c.Identify():
            return decide_leases.identify(state, command)
        case c.TakeSurvey():
            return decide_machine.take_survey(state, command, now)
        case c.SetMode():
            return decide_machine.set_mode(state, command)
        case c.NoteOtherAgent():
            return decide_machine.note_other_agent(state, command)
        case c.Note():
            return c.Decision(tuple((event, 0) for event in command.events))
        case c.AdoptLeftBehind():
            return c.Decision(adopt_left_behind(state, command.enis, now))
        case c.NoteLinks():
            return decide_machine.note_links(state, command)
        case c.StartAgent():
            return decide_machine.start_agent(state, command, now)
        case c.ObserveInstance():
            return decide_machine.observe_instance(state, command, now)
        case c.ObserveVpc():
            return decide_machine.observe_vpc(state, command)
        case c.Observe():
            return decide_machine.observe(state, command)
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


# -- effects --------------------------------------------------------------------------------------


def _intend(state: State, wanted: effect.EffectIntended, now: Stamp, context: c.Context) -> c.Answer:
    """Promise 3 is kept here: the check and the intent are one turn."""
    frozen = context.constraints.no_change or (
        Reason.LOG_NEWER
        if context.must_not_change or state.unknown_effects()
        else Reason.INVARIANT_BROKEN
        if state.broken
        else ""
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
        present = sum(held.origin != "left_behind" and held.card == POOL_CARD for held in state.enis.values())
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
                if not is_cidr_free(state, held, cidr, now, context.cooldown_s):
                    return f"{cidr} is leased or resting"
            return ""
        case "detach":
            return _detach_objection(state, held, busy, now, context.cooldown_s)
        case "delete":
            # Of what was left behind no CIDR is in the pool; its facts tell them.
            cidrs = (*held.cidrs, *held.facts.cidrs)
            is_used = held.lease_count or not all(
                is_cidr_rested(state, cidr, now, context.cooldown_s) for cidr in cidrs
            )
            return "busy" if busy or held.phase != "detached" or is_used else ""
        case _:
            return f"effect {wanted.kind} is of a later release"


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
    if not all(is_cidr_free(state, held, cidr, now, cooldown_s) for cidr in held.cidrs):
        return "an address of it is in cooldown"
    if any(
        not binding.eni and binding.table == held.table
        for lease_id in state.unlocated
        for binding in state.leases[lease_id].bindings
    ):
        return "a recovered lease may be on it"
    if any(
        not binding.eni and binding.table == held.table and state.rest_left_s(rest, now, cooldown_s) > 0
        for rest in state.rests.values()
        for binding in rest.bindings
    ):
        return "an address that was found in use and is in cooldown may be on it"
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
            if intent.id < state.survey_seq:
                # The same call again: its first try may have been long ago, and others may have used what it brought.
                outcome = msgspec.structs.replace(outcome, how="observed")
            confirmed = effect.EffectConfirmed(
                intent=intent.id,
                kind=wanted.kind,
                eni=eni_id,
                cidrs=outcome.cidrs,
                attachment=outcome.attachment,
                how=outcome.how,
                attribute=wanted.attribute,
            )
            events = _consequences(state, wanted, outcome)
            return c.Decision(((confirmed, intent.id), *events, *decide_machine.locations(state, events)))


def _consequences(state: State, wanted: effect.EffectIntended, outcome: c.Confirmed) -> list[c.Caused]:
    """What a confirmed effect means for the books."""
    held = state.enis.get(wanted.eni)
    match wanted.kind:
        case "create" if outcome.facts is not None:
            return _created(state, wanted, outcome.facts, outcome.how)
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
            # What a search has found in use since stays in the books: EC2's reading decides on it.
            gone = tuple(cidr for cidr in wanted.cidrs if cidr in held.cidrs and not is_leased(state, cidr))
            released = address.CidrsReleased(eni=wanted.eni, cidrs=gone, source=outcome.how)
            return [(released, PREVIOUS)] if gone else []
        case "detach" if held is not None and held.phase == "attached":
            return [(eni.EniDetached(eni=wanted.eni), PREVIOUS)]
        case "delete" if held is not None:
            return [(eni.EniGone(eni=wanted.eni, source=outcome.how), PREVIOUS)]
        case _:
            return []


def _created(state: State, wanted: effect.EffectIntended, facts: EniFacts, how: str) -> list[c.Caused]:
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
        (
            eni.EniAdopted(facts=bare, managed=True, origin="created", eni_config=wanted.eni_config),
            PREVIOUS,
        ),
    ]
    if facts.cidrs:
        events.append((address.CidrsOwned(eni=facts.id, cidrs=facts.cidrs, source=how), PREVIOUS))
    return events

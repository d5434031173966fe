"""Decisions about the machine: starts, identity, links, observations, surveys and modes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from vpccni.events import address, adoption, effect, eni, node, sandbox
from vpccni.events.codec import KIND_OF, Event
from vpccni.evidence import KERNEL, Claim
from vpccni.model import (
    MAIN_TABLE,
    Address,
    Binding,
    Cidr,
    EniId,
    LeaseId,
    Seq,
    Stamp,
    cidr_span,
    device_of_table,
    is_inside,
)
from vpccni.planner import commands as c
from vpccni.planner.decide_leases import ended
from vpccni.projections.state import State

READINGS_TO_CHANGE: Final = 2
STALE_BOOKS: Final = ("older_log", "no_checkpoint", "foreign_checkpoint", "another_agent", "handed_back")
"""Why a node was searched whose log may be behind EC2: others have changed addresses and ENIs meanwhile."""


def note_links(state: State, command: c.NoteLinks) -> c.Answer:
    """Which ENIs have their link."""
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


def start_agent(state: State, command: c.StartAgent, now: Stamp) -> c.Answer:
    """An agent becomes the log's writer; what an earlier boot left is over."""
    events: list[c.Caused] = []
    if not state.head:
        events.append((node.LogCreated(log_id=command.log_id), 0))
    if state.boot_id and state.boot_id != command.boot_id and state.stamp is not None:
        changed = node.BootChanged(old=state.boot_id, new=command.boot_id, last=state.stamp)
        cause = Seq(state.head + 1)
        events.append((changed, 0))
        events += [(ended(lease, "reboot")[0], cause) for lease in state.leases.values()]
        events += [(sandbox.SandboxUnwired(lease=lease), cause) for lease in state.standing]
    events.append((node.AgentStarted(boot_id=command.boot_id, version=command.version), 0))
    return c.Decision(tuple(events))


def observe_instance(state: State, command: c.ObserveInstance, now: Stamp) -> c.Answer:
    """IMDS told who this machine is. Another one than the log knows needs proof.

    ==========================================  ========================================================
    since the log last knew its machine          another instance is believed
    ==========================================  ========================================================
    the same boot                                never: a machine does not change while it runs
    a new boot, and another primary MAC          at the first reading
    a new boot, and the same primary MAC         when two readings agree
    ==========================================  ========================================================

    Leases of sandboxes that were found in this boot stay: this is the machine on which they were found.
    """
    before, now_seen = state.instance, command.instance
    if before is None or before.id == now_seen.id:
        is_same = before == now_seen and state.vpc_cidrs == now_seen.vpc_cidrs
        is_known = is_same and state.identity_boot == now.boot_id and state.doubted is None
        if is_known:
            return c.Decision()
        return c.Decision(((node.InstanceObserved(instance=now_seen, readings=command.readings), 0),))
    is_proved = state.identity_boot != now.boot_id and (
        command.has_other_primary or command.readings >= READINGS_TO_CHANGE
    )
    if not is_proved:
        if state.doubted is not None and state.doubted.instance == now_seen.id:
            return c.Decision()
        doubted = node.InstanceDoubted(
            instance=now_seen.id, detail=f"the log is of {before.id}; readings: {command.readings}"
        )
        return c.Decision(((doubted, 0),))
    # Another machine: nothing of the old one's is ours. Its own agent, if it lives, keeps it.
    cause = Seq(state.head + 1)
    events: list[c.Caused] = [
        (node.InstanceObserved(instance=now_seen, changed=True, readings=command.readings), 0)
    ]
    for lease in state.leases.values():
        if lease.origin == "add" or lease.opened.boot_id != now.boot_id:
            events.append((ended(lease, "machine_changed")[0], cause))
        elif any(binding.eni in state.enis for binding in lease.bindings):
            # Whoever was found in this boot lives here, whatever the log is about.
            bindings = tuple(msgspec.structs.replace(each, eni=EniId("")) for each in lease.bindings)
            events.append((sandbox.LeaseLocated(lease=lease.id, bindings=bindings), cause))
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


def observe_vpc(state: State, command: c.ObserveVpc) -> c.Answer:
    """The CIDRs of the VPC: traffic to them keeps its source address.

    One short answer of IMDS must not send traffic inside the VPC out under the node's address: a CIDR goes only
    when two readings in a row lack it.
    """
    if not command.cidrs:
        return c.Decision()
    kept = {cidr for cidr in state.vpc_cidrs if not command.previous or cidr in command.previous}
    cidrs = tuple(sorted(kept | {*command.cidrs}, key=cidr_span))
    if cidrs == state.vpc_cidrs:
        return c.Decision()
    return c.Decision(((node.NetworkConfigObserved(vpc_cidrs=cidrs), 0),))


def observe(state: State, command: c.Observe) -> c.Answer:
    """Something about the node; recorded when it is news."""
    kind = KIND_OF[type(command.event)]
    slot = {"subnet_observed": f"subnet:{getattr(command.event, 'subnet', '')}"}.get(
        kind, kind.removesuffix("_observed")
    )
    slot = {"network_config": "network"}.get(slot, slot)
    latest = state.latest.get(slot)
    if latest is not None and latest.event == command.event:
        return c.Decision()
    return c.Decision(((command.event, 0),))


# -- surveys, modes, another agent ----------------------------------------------------------------


def take_survey(state: State, command: c.TakeSurvey, now: Stamp) -> c.Answer:
    """Open what a search of the node found, end what it refuted, and say what was looked at."""
    verdict, events = command.verdict, list[c.Caused]()
    over: set[LeaseId] = set()
    for ending in verdict.endings:
        lease = state.leases.get(ending.lease)
        # A lease that was opened while the node was searched is newer than what the search saw.
        if lease is not None and (not command.seen_head or lease.id <= command.seen_head):
            over.add(lease.id)
            events.append(ended(lease, ending.cause, ending.sources))
    is_stale = command.why in STALE_BOOKS
    opened = _openings(
        state, verdict.claims, over, now, first=state.head + len(events) + 1, are_books_stale=is_stale
    )
    events += opened
    for found in verdict.wired:
        known_lease = state.leases.get(found.lease)
        if known_lease is not None and known_lease.wired is None and known_lease.id not in over:
            events.append((found, known_lease.id))
    names = tuple(veth.ifname for veth in verdict.unexplained)
    known = state.survey.unexplained if state.survey is not None else ()
    events += [
        (
            sandbox.AddressUnexplained(
                ifname=veth.ifname,
                ifindex=veth.ifindex,
                detail="no route leads to it, and no namespace shows its address",
            ),
            0,
        )
        for veth in verdict.unexplained
        if veth.ifname not in known
    ]
    is_again = state.survey is not None and command.why == "unknown_veth" and names == known
    if is_again and not events and not command.is_repeated_anyway:
        return (
            c.Decision()
        )  # Looked at again every few seconds. What another one's file tells is always news.
    events += [
        (
            adoption.CheckpointImported(
                digest=file.digest, allocations=len(file.rows), path=file.path, modified_ns=file.modified_ns
            ),
            0,
        )
        for file in verdict.imported
        if file.card == 0 and (file.log_id != state.log_id or not state.log_id)
    ]
    in_use = [claim.address for claim in verdict.claims]
    events += _abandoned(state, in_use, {claim.table for claim in verdict.claims})
    if is_stale or opened or over:
        # Of whom the kernel shows, EC2 has the address. A file may speak of one that is long given back, and so may
        # an old lease: when it ends, the address must not be assigned unless EC2 lists it.
        shown = {claim.address for claim in verdict.claims if KERNEL in claim.evidence}
        leased = () if is_stale else state.by_address
        events += _doubted(state, {*shown, *leased} - _unlocated(opened))
    last_use = None if verdict.last_use_ns is None else stamp_of(verdict.last_use_ns, now)
    surveyed = adoption.NodeSurveyed(
        why=command.why,
        leases=sum(isinstance(event, sandbox.AddressAssigned) for event, _ in opened),
        holds=sum(isinstance(event, sandbox.AddressHeld) for event, _ in opened),
        ended=len(over),
        unexplained=names,
        sources=verdict.sources,
        last_use=last_use,
        notes=verdict.notes,
    )
    return c.Decision((*events, (surveyed, 0)))


def _openings(
    state: State,
    claims: Iterable[Claim],
    over: set[LeaseId],
    now: Stamp,
    *,
    first: int,
    are_books_stale: bool,
) -> list[c.Caused]:
    """The events that open claims; ``first`` is the number that the first of them will have."""
    attached = [held for held in state.enis.values() if held.phase == "attached"]
    owners = Owners((held.facts.id, held.cidrs) for held in attached)
    events: list[c.Caused] = []
    for claim in claims:
        if _is_taken(state, claim, over):
            continue
        holder = state.by_key.get(claim.key) if claim.key is not None else None
        is_hold = claim.key is None or (holder is not None and holder not in over)
        lease_id = LeaseId(first + len(events))
        bindings = (binding_of(claim, state, owners, are_books_stale=are_books_stale),)
        events.append((_opening(claim, bindings, now, is_hold=is_hold), 0))
        if claim.veth is not None:
            wired = sandbox.SandboxWired(
                lease=lease_id, links=(claim.veth,), netns=claim.netns, netns_inode=claim.netns_inode
            )
            events.append((wired, lease_id))
    return events


def _unlocated(opened: Iterable[c.Caused]) -> set[Address]:
    """Addresses that were opened without an ENI: if the books name one, it may be another's by now."""
    return {
        binding.address
        for event, _ in opened
        if isinstance(event, sandbox.AddressAssigned | sandbox.AddressHeld)
        for binding in event.bindings
        if not binding.eni
    }


def _doubted(state: State, sure: Container[Address]) -> list[c.Caused]:
    """Whoever was here without this log may have given back what the log says we own: EC2 is to list it first."""
    return [
        (address.CidrSuspected(eni=held.facts.id, cidr=cidr, source="survey", readings=1), 0)
        for held in state.enis.values()
        if held.managed and held.phase == "attached"
        for cidr, owned in held.cidrs.items()
        if not owned.suspected and not (cidr.endswith("/32") and cidr[:-3] in sure)
    ]


def _abandoned(state: State, in_use: Sequence[Address], tables: Container[int]) -> list[c.Caused]:
    """What was under way before somebody else was here must not be repeated over who lives there now."""
    events: list[c.Caused] = []
    for intent in state.intents.values():
        wanted, held = intent.intended, state.enis.get(intent.intended.eni)
        if wanted.kind == "unassign":
            covered = any(is_inside(one, cidr) for one in in_use for cidr in wanted.cidrs)
        elif wanted.kind in ("detach", "delete") and held is not None:
            covered = (held.table != MAIN_TABLE and held.table in tables) or any(
                is_inside(one, cidr) for one in in_use for cidr in held.cidrs
            )
        else:
            continue
        if covered:
            dropped = effect.EffectAbandoned(
                intent=intent.id, kind=wanted.kind, reason="an address of it is in use", eni=wanted.eni
            )
            events.append((dropped, intent.id))
    return events


def _is_taken(state: State, claim: Claim, over: set[LeaseId]) -> bool:
    """Whether somebody got the address while the node was searched."""
    holder = state.by_address.get(claim.address)
    return holder is not None and holder not in over


def _opening(claim: Claim, bindings: tuple[Binding, ...], now: Stamp, *, is_hold: bool) -> Event:
    """The event that opens a claim. Without a time of its own it is as old as this boot."""
    # A time after now was told by a clock that was set back since: it says nothing.
    told_ns = claim.since_ns if 0 < claim.since_ns <= now.wall_ns else now.wall_ns - now.boottime_ns
    since = stamp_of(told_ns, now)
    if is_hold or claim.key is None:
        return sandbox.AddressHeld(
            bindings=bindings,
            netns=claim.netns,
            netns_inode=claim.netns_inode,
            ifname=claim.ifname,
            pod=claim.pod,
            evidence=claim.evidence,
            since=since,
            detail=claim.detail,
        )
    return sandbox.AddressAssigned(
        key=claim.key,
        pod=claim.pod,
        bindings=bindings,
        netns=claim.netns,
        netns_inode=claim.netns_inode,
        origin=claim.origin,
        evidence=claim.evidence,
        since=since,
    )


def stamp_of(wall_ns: int, now: Stamp) -> Stamp:
    """An instant that only a wall clock tells, on this boot's clock: never after now, and maybe before the boot."""
    wall_ns = min(wall_ns, now.wall_ns)
    return Stamp(wall_ns, now.boottime_ns - (now.wall_ns - wall_ns), now.boot_id)


def binding_of(claim: Claim, state: State, owners: Owners, *, are_books_stale: bool = False) -> Binding:
    """Where the packets of a claim go; its ENI when the log knows who owns the address.

    An address may have come to another ENI since the books were true. So where the rules that the kernel follows are
    against them, EC2 is to say who has it.
    """
    table = claim.table
    card, device = device_of_table(table)
    found = owners.of(claim.address)
    if found is not None and _is_elsewhere(claim, state.enis[found].table, are_books_stale=are_books_stale):
        found = None
    if found is not None:
        held = state.enis[found]
        # A pod that is still being wired has no rule yet that would tell its table.
        card, device, table = held.card, held.device, held.table or table
    return Binding(
        family=6 if ":" in claim.address else 4,
        address=claim.address,
        eni=found or EniId(""),
        card=card,
        device=device,
        table=table,
    )


def _is_elsewhere(claim: Claim, table: int, *, are_books_stale: bool) -> bool:
    """Whether the kernel sends the packets of a claim by another table than that of the ENI that the books name.

    That no rule sends them anywhere says so of stale books only: a plugin adds its rule at last.
    """
    is_told = claim.table != MAIN_TABLE or are_books_stale
    return KERNEL in claim.evidence and is_told and bool(table) and claim.table != table


class Owners:
    """Which ENI owns an address. Made once for many addresses: a full node has hundreds, on as many CIDRs."""

    def __init__(self, owned: Iterable[tuple[EniId, Iterable[Cidr]]]) -> None:
        """Of two ENIs with one CIDR the first has it."""
        self._single: dict[Cidr, EniId] = {}
        self._wide: list[tuple[EniId, Cidr]] = []
        for eni_id, cidrs in owned:
            for cidr in cidrs:
                if cidr.endswith(("/32", "/128")):
                    self._single.setdefault(cidr, eni_id)
                else:
                    self._wide.append((eni_id, cidr))

    def of(self, address: Address) -> EniId | None:
        """The ENI, if one of them has the address."""
        found = self._single.get(Cidr(f"{address}/{128 if ':' in address else 32}"))
        if found is not None:
            return found
        return next((eni_id for eni_id, cidr in self._wide if is_inside(address, cidr)), None)


def locations(state: State, events: Sequence[c.Caused]) -> list[c.Caused]:
    """Leases whose ENI becomes known by these events, or is another one than the log has.

    Where EC2 has an address is where its packets go: an old log may have a lease on the ENI that had it before.
    """
    news = [event for event, _ in events if isinstance(event, address.CidrsOwned)]
    moved = {
        state.by_address[Address(cidr[:-3])]: None
        for event in news
        for cidr in event.cidrs
        if cidr.endswith("/32") and cidr[:-3] in state.by_address
    }
    if not state.unlocated and not moved:
        return []
    places = {eni_id: (held.card, held.device, held.table) for eni_id, held in state.enis.items()}
    owned: list[tuple[EniId, tuple[Cidr, ...]]] = []
    for event, _ in events:
        if isinstance(event, eni.EniAdopted):
            places[event.facts.id] = (event.facts.card, event.facts.device, event.table)
        elif isinstance(event, eni.EniAttached):
            places[event.eni] = (event.card, event.device, event.table)
            if event.eni in state.enis:  # Its addresses were in the books before it was on the machine.
                owned.append((event.eni, tuple(state.enis[event.eni].cidrs)))
        elif isinstance(event, address.CidrsOwned):
            owned.append((event.eni, event.cidrs))
        elif isinstance(event, address.CidrCleared):
            owned.append((event.eni, (event.cidr,)))
    owners = Owners(owned)
    found: list[c.Caused] = []
    for lease_id in {**state.unlocated, **moved}:
        lease = state.leases[lease_id]
        bindings = tuple(_place(binding, owners, places) for binding in lease.bindings)
        if bindings != lease.bindings:
            found.append((sandbox.LeaseLocated(lease=lease_id, bindings=bindings), lease_id))
    return found


def _place(binding: Binding, owners: Owners, places: Mapping[EniId, tuple[int, int, int]]) -> Binding:
    found = None if binding.kind != "pool" else owners.of(binding.address)
    if found is None or found == binding.eni:
        return binding
    card, device, table = places.get(found, (binding.card, binding.device, 0))
    return msgspec.structs.replace(binding, eni=found, card=card, device=device, table=table or binding.table)


def set_mode(state: State, command: c.SetMode) -> c.Answer:
    """An operator asked to hand the node back, or to serve it again."""
    if state.mode == command.mode:
        return c.Decision()
    return c.Decision(((adoption.ModeChanged(mode=command.mode, reason=command.reason), 0),))


def note_other_agent(state: State, command: c.NoteOtherAgent) -> c.Answer:
    """Another agent lives on this node, or no longer does."""
    if (state.other_agent is not None) == command.is_alive:
        return c.Decision()
    said = adoption.OtherAgentObserved(is_alive=command.is_alive, detail=command.detail)
    return c.Decision(((said, 0),))

"""Decisions about leases: ADD, DEL, their undo, and what a source says of a sandbox."""

from __future__ import annotations

from vpccni.checkpoint import UNKNOWN_IFNAME, is_made_up
from vpccni.errors import Reason, Refused
from vpccni.events import sandbox
from vpccni.model import MAIN_TABLE, Cidr, EniId, LeaseId, SandboxKey, Stamp, cidr_size, is_inside
from vpccni.planner import commands as c
from vpccni.planner.assign import choose_address, is_usable
from vpccni.planner.commands import PREVIOUS
from vpccni.planner.view import is_unread, unleased, views_of
from vpccni.planner.warm_pool import prospect
from vpccni.projections.leases import Lease
from vpccni.projections.state import State


def add(state: State, command: c.Add, now: Stamp, context: c.Context) -> c.Answer:
    """An ADD: the lease that its sandbox has, else a free address, else waiting or a refusal."""
    if state.other_agent is not None and context.refusing is not None:
        return context.refusing  # Also a sandbox that has its lease: nothing is wired beside another agent.
    held = state.lease_of(command.key)
    if held is not None:
        is_table_told = held.wired is not None and all(one.table != MAIN_TABLE for one in held.bindings)
        if not held.is_located and not is_table_told:
            # Wired before its ENI is known, its packets could leave by another one. What is there may be half wired.
            return Refused(Reason.RECOVERING, "EC2 has not told yet which ENI has the sandbox's address")
        return c.Decision((), held.id)
    found = _hold_in(state, command) or _half_known(state, command.key)
    if found is not None and not context.must_not_change:
        named = sandbox.LeaseIdentified(lease=found.id, key=command.key, pod=command.pod, source="add")
        return c.Decision(((named, found.id),), found.id)
    request: tuple[c.Caused, ...] = ()
    if not command.request:
        request = ((sandbox.AddRequested(key=command.key, pod=command.pod), 0),)
    if context.must_not_change:
        return Refused(Reason.LOG_NEWER, ", ".join(context.must_not_change))
    if context.refusing is not None:
        return context.refusing
    if context.not_serving is not None:
        return c.Park(context.not_serving.reason, context.not_serving.detail, request)
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


def _hold_in(state: State, command: c.Add) -> Lease | None:
    """The hold whose namespace and interface this call names."""
    if len(state.by_key) == len(state.leases):
        return None  # there is no hold, as on most nodes
    for lease in state.leases.values():
        if not lease.is_hold or not command.netns or not same_netns(lease.netns, command.netns):
            continue
        if lease.key.ifname in ("", command.key.ifname):
            return lease
    return None


def _half_known(state: State, key: SandboxKey) -> Lease | None:
    """The lease of this sandbox, found by a row that told of its key no more than the container id."""
    for lease in state.leases.values():
        if lease.key.container_id == key.container_id and is_made_up(lease.key):
            return lease if lease.key.ifname in ("", UNKNOWN_IFNAME, key.ifname) else None
    return None


def identify(state: State, command: c.Identify) -> c.Answer:
    """A call that is not an ADD names the sandbox of a hold, or of a lease whose key is not whole."""
    if state.lease_of(command.key) is not None:
        return c.Decision()
    half = _half_known(state, command.key)
    if half is not None:
        whole = sandbox.LeaseIdentified(
            lease=half.id, key=command.key, pod=command.pod, source=command.source
        )
        return c.Decision(((whole, half.id),), half.id)
    for lease in state.leases.values():
        is_here = lease.is_hold and bool(command.netns) and same_netns(lease.netns, command.netns)
        if is_here and any(binding.address in command.addresses for binding in lease.bindings):
            named = sandbox.LeaseIdentified(
                lease=lease.id, key=command.key, pod=command.pod, source=command.source
            )
            return c.Decision(((named, lease.id),), lease.id)
    return c.Decision()


def _wait_or_refuse(state: State, now: Stamp, context: c.Context, request: tuple[c.Caused, ...]) -> c.Answer:
    if _resting_soon(state, now, context) > context.ahead:
        return c.Park(Reason.NO_ADDRESS, "waiting for the end of a cooldown", request)
    if _unread(state) > context.ahead:
        return c.Park(Reason.NO_ADDRESS, "waiting for EC2 to list the addresses again", request)
    if context.policy is None:
        return c.Park(Reason.NODE_NOT_INITIALIZED, "the limits of the instance type are not known", request)
    views = views_of(state, now, context.cooldown_s, context.policy.slots_per_eni)
    outlook = prospect(views, context.policy, context.constraints, context.ahead)
    if outlook.possible:
        return c.Park(Reason.NO_ADDRESS, "waiting for EC2", request)
    return Refused(outlook.reason, outlook.detail)


def _unread(state: State) -> int:
    """How many addresses the next reading of EC2 may bring back."""
    under_removal = state.enis_under_removal()
    return sum(
        unleased(state, cidr)
        for held in state.enis.values()
        if is_usable(held, under_removal)
        for cidr in held.cidrs
        if is_unread(held, cidr)
    )


def _resting_soon(state: State, now: Stamp, context: c.Context) -> int:
    """How many addresses end their rest while an ADD may wait.

    A rest is remembered long after its end, and also on an ENI that serves nobody any more: neither is worth
    waiting for.
    """
    under_release, under_removal = state.cidrs_under_release(), state.enis_under_removal()
    inherited = 0
    if 0 < state.inherited_s(now, context.cooldown_s) < context.add_wait_s:
        inherited = sum(
            unleased(state, cidr)
            for held in state.enis.values()
            if is_usable(held, under_removal)
            for cidr, owned in held.cidrs.items()
            if state.is_inherited(owned) and not owned.suspected and cidr not in under_release
        )
    usable: dict[EniId, set[Cidr]] = {
        held.facts.id: {
            one for one, owned in held.cidrs.items() if not owned.suspected and one not in under_release
        }
        for held in state.enis.values()
        if is_usable(held, under_removal)
    }
    prefixes = {eni: [one for one in cidrs if cidr_size(one) > 1] for eni, cidrs in usable.items()}
    return inherited + sum(
        rest.is_standing or state.rest_left_s(rest, now, context.cooldown_s) < context.add_wait_s
        for rested, rest in state.rests.items()
        for eni in (rest.bindings[0].eni,)
        if f"{rested}/32" in usable.get(eni, ())
        or any(is_inside(rested, cidr) for cidr in prefixes.get(eni, ()))
    )


def ended(lease: Lease, cause: str, sources: tuple[str, ...] = (), *, was_wired: bool = True) -> c.Caused:
    """The end of a lease, with the lease's own event as its cause."""
    event = sandbox.LeaseEnded(
        lease=lease.id,
        cause=cause,
        key=lease.key,
        pod=lease.pod,
        bindings=lease.bindings,
        sources=sources,
        was_wired=was_wired,
    )
    return event, lease.id


def end_lease(state: State, command: c.EndLease, context: c.Context) -> c.Answer:
    """A DEL: by the sandbox's key, else by address and namespace. Nothing to end is success, too."""
    if context.must_not_change:
        return Refused(Reason.LOG_NEWER, ", ".join(context.must_not_change))
    leases = [lease for lease in find_leases(state, command) if not _is_older(state, lease, command)]
    if not leases:
        return c.Decision()
    return c.Decision(tuple(ended(lease, command.cause, command.sources) for lease in leases), leases[0].id)


def find_leases(state: State, command: c.EndLease) -> list[Lease]:
    """The leases and holds that a DEL is about, that of its key first.

    They are more than one where a search has found the sandbox with another address than the log has for its key.
    Of a key that the original once made up only the container id is real.
    A hold is never found by a pod's name: a repeated DEL of an old sandbox must not free the address of the
    sandbox that has it now. Its address and its namespace together belong to one sandbox only.
    """
    lease = state.lease_of(command.key)
    found = [lease] if lease is not None else []
    for each in state.leases.values():
        if each.is_hold:
            is_here = bool(command.netns) and same_netns(each.netns, command.netns)
            if is_here and any(binding.address in command.addresses for binding in each.bindings):
                found.append(each)
        elif each is not lease and each.key.container_id == command.key.container_id and is_made_up(each.key):
            found.append(each)
    return found


def same_netns(one: str, other: str) -> bool:
    """Whether two paths of namespaces are one: ``/var/run`` is ``/run``."""
    return one.removeprefix("/var") == other.removeprefix("/var")


def _is_older(state: State, lease: Lease, command: c.EndLease) -> bool:
    """Whether a spooled DEL was written before the sandbox got the address."""
    if not command.written_boot_id:
        return False
    if command.written_boot_id == lease.since.boot_id:
        return command.written_boottime_ns < lease.since.boottime_ns
    return lease.since.boot_id == state.boot_id


def refuse_add(state: State, command: c.RefuseAdd, context: c.Context) -> c.Answer:
    """An ADD was answered with an error: what it had opened ends, and what was asked for is on record."""
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
    if lease is None and command.request == 0:
        return c.Decision(((sandbox.AddRequested(key=command.key, pod=command.pod), 0), (failed, PREVIOUS)))
    if lease is None or not command.ends_lease or lease.origin != "add":
        # What was found on the node lives, whatever comes of an ADD that names it.
        return c.Decision(((failed, max(command.request, 0)),))
    # The log's word counts, too: what was wired has carried packets, whatever the caller knows of it.
    was_wired = command.was_wired or lease.wired is not None
    return c.Decision(((failed, lease.id), ended(lease, "add_failed", was_wired=was_wired)), lease.id)


def note_evidence(state: State, command: c.NoteEvidence) -> c.Answer:
    """One source says that a sandbox is gone, or alive. Nothing ends by one source."""
    lease = state.leases.get(command.lease)
    if lease is None:
        return c.Decision()
    if command.is_alive:
        if lease.suspected is None:
            return c.Decision()
        return c.Decision(
            ((sandbox.LeaseCleared(lease=lease.id, source=command.source), lease.id),), lease.id
        )
    if lease.suspected is not None:
        return c.Decision((), lease.id)
    event = sandbox.LeaseSuspected(lease=lease.id, source=command.source, detail=command.detail)
    return c.Decision(((event, lease.id),), lease.id)

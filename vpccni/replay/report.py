"""Answers as text for a person and as plain data for ``--json``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from vpccni.events.codec import Record, kind_of
from vpccni.model import Address
from vpccni.projections.leases import Rest
from vpccni.projections.snapshot import picture
from vpccni.projections.state import State
from vpccni.replay.checks import Verdict
from vpccni.replay.history import Holding, Holdings, Story
from vpccni.replay.past import Past, Unheld, cooldown_of, counts_of
from vpccni.replay.text import (
    SHORT_ID,
    end_text,
    event_text,
    key_text,
    plain,
    pod_text,
    record_json,
    table,
)
from vpccni.replay.when import Moment, clock_text, iso_text, span_text

# -- whohad -----------------------------------------------------------------------------------------


def holding_text(holding: Holding) -> str:
    """One lease, as a block."""
    event, ended = holding.event, holding.ended
    until = "still (as of the end of this log)"
    if ended is not None:
        lasted = span_text(ended.stamp.wall_ns - holding.assigned.stamp.wall_ns)
        until = f"{clock_text(ended.stamp.wall_ns, fraction=True)}   after {lasted}"
    uid = f"   uid {holding.pod.uid}" if holding.pod.uid else ""
    binding = holding.binding
    rows = [
        ("pod", pod_text(holding.pod) + uid),
        ("container", _sandbox_text(holding)),
        ("from", clock_text(holding.assigned.stamp.wall_ns, fraction=True)),
        ("to", until),
    ]
    if event.evidence:
        found = f"{', '.join(event.evidence)}: the node was searched, its log did not know"
        rows.append(("found by", found))
    if event.since is not None:
        rows.append(("since", clock_text(event.since.wall_ns, fraction=True)))
    if holding.end is not None:
        rows.append(("ended by", end_text(holding.end)))
    if holding.failed is not None:
        rows.append(("ADD", event_text(holding.failed.event)))
    rows += [
        ("in doubt", f"{clock_text(one.stamp.wall_ns)} {event_text(one.event)}") for one in holding.doubts
    ]
    where = f"device {binding.device}, table {binding.table}"
    rows.append(("ENI", f"{binding.eni or binding.kind} ({where})"))
    rows += [("booted", f"{clock_text(boot.wall_ns)} (event {boot.seq})") for boot in holding.boots]
    events = f"event {holding.assigned.seq}" + (f" to {ended.seq}" if ended else "")
    lines = [f"lease {holding.lease}   {events}"]
    lines += [f"  {name:<10} {plain(words)}" for name, words in rows]
    return "\n".join(lines)


def _sandbox_text(holding: Holding) -> str:
    key = holding.key
    if not key.container_id:
        return "not known: no source told the sandbox's key"
    return f"{key.container_id[:SHORT_ID]}   {key.ifname} of {key.network}"


def whohad_text(address: Address, holdings: Holdings) -> str:
    """Every lease of an address."""
    count = len(holdings.found)
    if not count:
        return f"{address} was held by nobody in this log."
    heading = f"{address} was held {'once' if count == 1 else f'{count} times'} in this log (UTC):"
    return "\n\n".join([heading, *map(holding_text, holdings.found)])


_UNHELD_WORDS = {
    "resting": "it was resting",
    "standing": "its last pod's interface had not yet been seen gone",
    "free": "it was owned and free",
    "suspected": "it was owned, but EC2 no longer listed it",
    "under_release": "it was being given back to EC2",
    "not_owned": "this node did not own it then",
    "unknown": "no lease of it is readable there, and the log cannot be folded to that moment",
}


def unheld_text(address: Address, moment: Moment, unheld: Unheld) -> str:
    """Why nobody held an address."""
    words = _UNHELD_WORDS[unheld.status]
    if unheld.status == "resting":
        words += f" for another {unheld.left_s:.1f} s"
    if unheld.eni:
        words += f", on {unheld.eni}"
    lines = [f"{address} was held by nobody at {clock_text(moment.stamp.wall_ns)} UTC: {words}."]
    if unheld.rest is not None:
        lines.append(f"Before: {_rest_text(unheld.rest)}.")
    return "\n".join(lines)


def _rest_text(rest: Rest) -> str:
    ended = clock_text(rest.ended.wall_ns)
    return plain(f"{pod_text(rest.pod)} ({key_text(rest.key)}), lease {rest.lease}, until {ended}")


# -- pod --------------------------------------------------------------------------------------------


def story_text(pod: str, story: Story) -> str:
    """What happened to a pod: one line an event, each with how long after the one before."""
    if not story.records:
        return f"{pod} does not occur in this log."
    return "\n".join([f"{pod} (UTC):", "", table(("EVENT", "TIME", "", "WHAT"), _steps(story.records))])


def _steps(records: list[Record]) -> Iterator[tuple[object, ...]]:
    before: Record | None = None
    day = ""
    for record in records:
        time = clock_text(record.stamp.wall_ns, fraction=True)
        shown = time.removeprefix(day)
        day = time[:11]
        since = f"+{span_text(record.stamp.wall_ns - before.stamp.wall_ns)}" if before else ""
        cause = f" (because of {record.cause})" if record.cause else ""
        yield record.seq, shown, since, event_text(record.event) + cause
        before = record


# -- state ------------------------------------------------------------------------------------------


def state_json(past: Past, moment: Moment) -> dict[str, Any]:
    """The whole state, as plain data."""
    state = past.state
    return {
        "seq": past.seq,
        "time": iso_text(moment.stamp.wall_ns),
        "from_snapshot": past.from_snapshot,
        "note": moment.note,
        "problem": past.problem,
        "unknown_kinds": past.unknown,
        "agent_version": state.agent_version,
        "state": picture(state),
        "counts": {
            key: {name: getattr(counts, name) for name in counts.__struct_fields__}
            for key, counts in (
                (key, counts_of(state, held, moment.stamp)) for key, held in sorted(state.enis.items())
            )
        },
    }


def state_text(past: Past, moment: Moment) -> str:
    """The whole state, as tables."""
    state = past.state
    if past.problem and state.stamp is not None:
        moment = Moment(seq=past.seq, stamp=state.stamp)
    parts = ["\n".join(_state_head(past, moment)), _enis_text(state, moment), _leases_text(state)]
    parts += [_rests_text(state, moment), _intents_text(state)]
    if state.plan is not None:
        steps = "".join(f"\n  {plain(step)}" for step in state.plan.steps)
        held = f"\n  held back by {', '.join(state.plan.constraints)}" if state.plan.constraints else ""
        parts.append(f"Last plan: {plain(state.plan.reason)}{steps}{held}")
    if state.broken is not None:
        parts.append(plain(f"A check of our own had failed: {state.broken.name}: {state.broken.detail}"))
    return "\n\n".join(parts)


def _state_head(past: Past, moment: Moment) -> Iterator[str]:
    state = past.state
    yield f"At event {past.seq}, {clock_text(moment.stamp.wall_ns, fraction=True)} UTC"
    if state.instance is not None:
        one = state.instance
        yield plain(f"  instance   {one.id} ({one.type}, {one.az})")
    if state.limits is not None:
        limits = state.limits
        yield f"  limits     {limits.enis_max} ENIs with {limits.ipv4_per_eni} addresses each"
    yield f"  boot       {plain(state.boot_id or '-')}"
    yield f"  agent      {plain(state.agent_version or '-')}"
    pods = "-" if state.max_pods is None else str(state.max_pods)
    yield f"  max pods   {pods}{'' if state.is_schedulable else ', not schedulable'}"
    for kind, count in past.unknown.items():
        yield plain(f"  unknown    {count} events of kind {kind}, written by a newer vpccni, are left out")


def _enis_text(state: State, moment: Moment) -> str:
    heads = ("ENI", "DEV", "OWNED", "LEASED", "RESTING", "BLOCKED", "FREE", "STATUS")
    rows = []
    for key, held in sorted(state.enis.items(), key=lambda item: (item[1].card, item[1].device, item[0])):
        counts = counts_of(state, held, moment.stamp)
        words = [held.phase]
        words += ["primary"] if held.is_primary else []
        words += [] if held.managed else ["unmanaged"]
        words += ["no link"] if held.phase == "attached" and not held.is_link_ready else []
        words += ["retiring"] if held.is_retiring else []
        words += ["suspected"] if held.suspected else []
        rows.append((
            key, held.device, counts.owned, counts.leased, counts.resting, counts.blocked, counts.free,
            ", ".join(words),
        ))  # fmt: skip
    return _titled("ENIs", heads, rows)


def _leases_text(state: State) -> str:
    rows = []
    for lease in state.leases.values():
        words = [] if lease.wired else ["not wired"]
        words += [f"in doubt: {lease.source}"] if lease.suspected else []
        for binding in lease.bindings:
            since = clock_text(lease.opened.wall_ns)
            rows.append((binding.address, lease.id, since, pod_text(lease.pod), ", ".join(words)))
    return _titled("Leases", ("ADDRESS", "LEASE", "SINCE", "POD", ""), rows)


def _rests_text(state: State, moment: Moment) -> str:
    rows = []
    for address, rest in state.rests.items():
        left_s = state.rest_left_s(rest, moment.stamp, cooldown_of(state))
        if left_s > 0 or rest.is_standing:
            left = f"{left_s:.1f} s" if left_s > 0 else "interface not seen gone"
            rows.append((address, rest.lease, clock_text(rest.ended.wall_ns), left, pod_text(rest.pod)))
    return _titled("Resting", ("ADDRESS", "LEASE", "ENDED", "LEFT", "WAS"), rows)


def _intents_text(state: State) -> str:
    rows = [
        (
            intent.id,
            clock_text(intent.since.wall_ns),
            event_text(intent.intended),
            _unknown_text(intent.unknown),
        )
        for intent in state.intents.values()
    ]
    return _titled("Open intents", ("INTENT", "SINCE", "WHAT", ""), rows)


def _unknown_text(unknown: object) -> str:
    return "outcome unknown" if unknown is not None else ""


def _titled(title: str, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return f"{title}: none"
    return f"{title} ({len(rows)})\n{table(heads, rows, '  ')}"


# -- verify -----------------------------------------------------------------------------------------

_NEXT = (
    "Keep this file as it is, and read what is good with the other commands. On the node, restore a good copy; or "
    "move the damaged log and the files beside it out of the agent's directory, without deleting them: the agent "
    "then makes a new log and recovers the leases from the pods that live there."
)


def _folded(name: str, words: str) -> str:
    """A sentence under a heading, broken at 80 columns."""
    return textwrap.fill(plain(words), 80, initial_indent=f"{name:<11}", subsequent_indent=" " * 11)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """What was checked and found, as plain data."""
    chain, fold = verdict.chain, verdict.fold
    return {
        "ok": verdict.ok,
        "chain_ok": chain.ok,
        "fold_ok": not fold.why,
        "first_bad_seq": chain.first_bad_seq or fold.first_bad_seq or None,
        "why": [why for why in (chain.why, fold.why) if why],
        "events": chain.events,
        "head_seq": chain.head_seq,
        "head_hash": chain.head_hash,
        "snapshots": chain.snapshots,
        "snapshots_compared": list(fold.compared),
        "folded": fold.events,
        "judged_to": fold.judged_to,
        "unknown_kinds": fold.unknown,
        "ends_without_wal": chain.ends_without_wal,
        "notes": list(chain.notes),
    }


def verdict_text(verdict: Verdict) -> str:
    """What was checked and found."""
    chain, fold = verdict.chain, verdict.fold
    compared = ", ".join(str(seq) for seq in fold.compared) or "none"
    rows = [
        ("chain", f"{chain.events} events, the last is {chain.head_seq}: {'whole' if chain.ok else 'BAD'}"),
        ("head hash", chain.head_hash),
        ("fold", f"{fold.events} events: {'no contradiction' if not fold.why else 'BAD'}"),
        ("snapshots", f"{chain.snapshots} sound; equal to the fold at event: {compared}"),
    ]
    lines = [f"{name:<10} {words}" for name, words in rows]
    for kind, count in fold.unknown.items():
        lines.append(plain(f"unknown    {count} events of kind {kind}: a newer vpccni wrote them"))
    if fold.unknown and fold.judged_to < chain.head_seq:
        lines.append(f"unknown    the fold can be judged up to event {fold.judged_to} only; use that version")
    lines += [_folded("note", note) for note in chain.notes]
    lines += [_folded("WRONG", why) for why in (chain.why, fold.why) if why]
    if not verdict.ok:
        lines.append(_folded("NEXT", _NEXT))
    lines.append("The log is good." if verdict.ok else "The log is NOT good.")
    return "\n".join(lines)


# -- events -----------------------------------------------------------------------------------------


def events_text(records: list[Record]) -> str:
    """One line an event."""
    if not records:
        return "No event matches."
    rows = (
        (record.seq, clock_text(record.stamp.wall_ns, fraction=True), kind_of(record.event),
         event_text(record.event))
        for record in records
    )  # fmt: skip
    return table(("EVENT", "TIME (UTC)", "KIND", "WHAT"), rows)


def events_json(records: list[Record], damage: str) -> dict[str, Any]:
    """The same as plain data."""
    return {"events": [record_json(record) for record in records], "damage": damage}

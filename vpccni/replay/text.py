"""Words and columns: how records and tables are printed for a person. 80 columns where that makes sense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from vpccni.events import address, adoption, decision, effect, eni, node, sandbox
from vpccni.events.codec import Event, Record, UnknownEvent, kind_of
from vpccni.model import Binding, PodRef, SandboxKey
from vpccni.replay.when import iso_text

SHORT_ID: Final = 12
"""Characters of a container id that people tell containers apart by."""

_LIST_MAX: Final = 4


def plain(text: str) -> str:
    """The text without what a terminal would obey: a log may come from anywhere."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def pod_text(pod: PodRef) -> str:
    """``namespace/name``, or a dash when the runtime named no pod."""
    return f"{pod.namespace}/{pod.name}" if pod.name else "-"


def key_text(key: SandboxKey) -> str:
    """The sandbox, short."""
    return f"{key.container_id[:SHORT_ID] or '-'} {key.ifname}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], indent: str = "") -> str:
    """Aligned columns; numbers to the right. The last column is as wide as it likes."""
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    numeric = [all(row[at].isdecimal() for row in cells) and bool(cells) for at in range(len(heads))]
    widths = [max(len(line[at]) for line in (list(heads), *cells)) for at in range(len(heads))]
    lines = []
    for line in (list(heads), *cells):
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        lines.append((indent + "  ".join(parts)).rstrip())
    return "\n".join(lines)


def record_json(record: Record) -> dict[str, Any]:
    """A record as plain data for ``--json``."""
    event = record.event
    body: Any
    if isinstance(event, UnknownEvent):
        try:
            body = msgspec.json.decode(event.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = event.body.hex()
    else:
        body = msgspec.to_builtins(event)
    shown = {
        "seq": record.seq,
        "time": iso_text(record.stamp.wall_ns),
        "boot_id": record.stamp.boot_id,
        "kind": kind_of(event),
        "cause": record.cause,
        "event": body,
    }
    if isinstance(event, UnknownEvent):
        shown["unknown"] = {"version": event.version, "must_understand": event.must_understand}
    return shown


def _some(words: Sequence[str]) -> str:
    shown = ", ".join(words[:_LIST_MAX])
    return shown if len(words) <= _LIST_MAX else f"{shown} and {len(words) - _LIST_MAX} more"


def addresses_text(bindings: Sequence[Binding]) -> str:
    """The addresses of a lease."""
    return _some([binding.address for binding in bindings])


def event_text(event: Event) -> str:
    """What happened, in one line."""
    told = _sandbox_text(event) or _effect_text(event) or _pool_text(event) or _node_text(event)
    return plain(told or _fields_text(event))


def _sandbox_text(event: Event) -> str:
    match event:
        case sandbox.AddRequested():
            return f"asked for an address: {pod_text(event.pod)} ({key_text(event.key)})"
        case sandbox.AddressAssigned():
            bindings = event.bindings
            ways = _some([binding.eni or binding.kind for binding in bindings])
            verb = "assigned" if event.origin == "add" else f"{event.origin} lease of"
            by = f" [{', '.join(event.evidence)}]" if event.evidence else ""
            return f"{verb} {addresses_text(bindings)} on {ways} to {pod_text(event.pod)}{by}"
        case sandbox.AddressHeld():
            return f"held {addresses_text(event.bindings)} for {pod_text(event.pod)}: {event.detail}"
        case sandbox.LeaseLocated():
            ways = _some([binding.eni for binding in event.bindings])
            return f"lease {event.lease} of {addresses_text(event.bindings)} is on {ways}"
        case sandbox.LeaseIdentified():
            whose = f"{pod_text(event.pod)} ({key_text(event.key)})"
            return f"lease {event.lease} belongs to {whose}, says {event.source}"
        case sandbox.AddressUnexplained():
            return f"nothing tells the address of {event.ifname}: {event.detail}"
        case sandbox.SandboxWired():
            return f"wired lease {event.lease} as {event.host_ifname}"
        case sandbox.AddFailed():
            undone = "" if event.undone else ", not undone"
            detail = f": {event.detail}" if event.detail else ""
            return f"ADD failed for {pod_text(event.pod)}: {event.reason}{undone}{detail}"
        case sandbox.LeaseEnded():
            return (
                f"ended lease {event.lease} of {addresses_text(event.bindings)}"
                f" ({pod_text(event.pod)}): {end_text(event)}"
            )
        case sandbox.SandboxUnwired():
            return f"nothing of lease {event.lease} is left in the kernel"
        case sandbox.LeaseSuspected():
            detail = f" ({event.detail})" if event.detail else ""
            return f"lease {event.lease} in doubt: {event.source} says it is gone{detail}"
        case sandbox.LeaseCleared():
            return f"lease {event.lease} seen alive by {event.source}"
        case _:
            return ""


_CAUSES: Final = {
    "del": "the runtime deleted it",
    "add_failed": "its ADD failed and was undone",
    "sandbox_gone": "two sources found the sandbox gone",
    "reboot": "the node was booted",
    "machine_changed": "the log moved to another machine",
    "superseded": "another sandbox uses its address",
}


def end_text(event: sandbox.LeaseEnded) -> str:
    """How a lease ended, with its sources."""
    sources = f" [{', '.join(event.sources)}]" if event.sources else ""
    meaning = _CAUSES.get(event.cause, "a cause that a later release knows")
    return f"{event.cause}, {meaning}{sources}"


def _effect_text(event: Event) -> str:
    match event:
        case effect.EffectIntended():
            what: list[str] = [event.eni] if event.eni else []
            what += [f"{event.count} addresses"] if event.count else []
            what += [_some(event.cidrs)] if event.cidrs else []
            return f"intends to {event.kind} {' '.join(what)}: {event.reason}"
        case effect.EffectConfirmed():
            got = f" {_some(event.cidrs)}" if event.cidrs else ""
            return f"{event.kind} {event.eni}{got} done ({event.how}), intent {event.intent}"
        case effect.EffectFailed():
            code = f" {event.code}" if event.code else ""
            return f"{event.kind} {event.eni} failed: {event.reason}{code}, intent {event.intent}"
        case effect.EffectUnknown():
            return f"{event.kind} {event.eni}: outcome unknown, intent {event.intent} stays open"
        case effect.EffectAbandoned():
            return f"{event.kind} {event.eni} given up: {event.reason}, intent {event.intent}"
        case _:
            return ""


def _pool_text(event: Event) -> str:
    match event:
        case address.CidrsOwned():
            return f"owns {_some(event.cidrs)} on {event.eni} ({event.source})"
        case address.CidrsReleased():
            return f"no longer owns {_some(event.cidrs)} on {event.eni} ({event.source})"
        case eni.EniAdopted():
            managed = "" if event.managed else ", not managed"
            return f"took {event.facts.id} into the books ({event.origin}{managed})"
        case eni.EniAttached():
            return f"{event.eni} attached as device {event.device}, table {event.table}"
        case eni.EniLinkReady():
            return f"{event.eni} can serve: link {event.ifname}"
        case eni.EniDetached():
            return f"{event.eni} detached"
        case eni.EniGone():
            return f"{event.eni} is gone ({event.source})"
        case _:
            return ""


def _node_text(event: Event) -> str:
    match event:
        case node.LogCreated():
            return f"log {event.log_id} begins"
        case node.InstanceDoubted():
            return f"IMDS names {event.instance}, which is not proved: {event.detail}"
        case adoption.NodeSurveyed():
            return _survey_text(event)
        case adoption.OtherAgentObserved():
            return (
                f"another agent serves this node: {event.detail}"
                if event.is_alive
                else "no other agent any more"
            )
        case adoption.CheckpointImported():
            return f"read {event.allocations} rows of {event.path}"
        case adoption.CheckpointExported():
            return f"exports its leases to {event.path} from now on"
        case adoption.ModeChanged():
            return f"mode {event.mode}: {event.reason}"
        case adoption.ForeignObjectRemoved():
            return f"removed what amazon-vpc-cni-k8s left: {event.kind} {event.text}"
        case node.AgentStarted():
            return f"agent {event.version} started"
        case node.BootChanged():
            return f"the node was booted ({event.old} -> {event.new})"
        case node.InvariantBroken():
            return f"a check of our own failed: {event.name}: {event.detail}"
        case node.LogRestored():
            return f"the log was put back with {event.events} events: {_some(event.missing)} had been removed"
        case decision.PlanMade():
            steps = f" {_some(event.steps)}" if event.steps else ""
            return f"plan: {event.reason}{steps}"
        case UnknownEvent():
            must = ", must be understood" if event.must_understand else ""
            return f"unknown to this version of vpccni (version {event.version}{must})"
        case _:
            return ""


def _survey_text(event: adoption.NodeSurveyed) -> str:
    found = f"{event.leases} leases and {event.holds} holds found, {event.ended} ended"
    unexplained = f", unexplained: {_some(event.unexplained)}" if event.unexplained else ""
    unread = [f"{name} {status}" for name, status in event.sources.items() if status.startswith("unreadable")]
    told = f"; {'; '.join(unread)}" if unread else ""
    return f"searched the node ({event.why}): {found}{unexplained}{told}"


def _fields_text(event: Event) -> str:
    fields = msgspec.to_builtins(event)
    return " ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in fields.items())

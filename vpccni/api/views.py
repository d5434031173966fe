"""JSON pictures of the durable state, for people and programs. Container ids are left out."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from vpccni.events.codec import Record, UnknownEvent, kind_of
from vpccni.model import Stamp, cidr_size
from vpccni.planner.assign import is_usable
from vpccni.planner.view import views_of
from vpccni.projections.state import State


def time_text(stamp: Stamp) -> str:
    """Wall time as RFC 3339 in UTC with milliseconds."""
    moment = datetime.datetime.fromtimestamp(stamp.wall_ns / 1e9, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event_view(record: Record) -> dict[str, Any]:
    """One record: where and when, what, and why."""
    event = record.event
    body = (
        {"version": event.version}
        if isinstance(event, UnknownEvent)
        else msgspec.to_builtins(event, str_keys=True)
    )
    return {
        "seq": record.seq,
        "time": time_text(record.stamp),
        "kind": kind_of(event),
        "cause": record.cause or None,
        "event": body,
    }


def pods_view(state: State, now: Stamp) -> list[dict[str, Any]]:
    """Open leases by address."""
    found = [
        {
            "namespace": lease.pod.namespace,
            "name": lease.pod.name,
            "uid": lease.pod.uid,
            "addresses": [binding.address for binding in lease.bindings],
            "eni": lease.bindings[0].eni,
            "device": lease.bindings[0].device,
            "host_ifname": lease.wired.host_ifname if lease.wired else "",
            "lease": lease.id,
            "since": time_text(lease.since),
            "age_s": round(state.elapsed_s(lease.since, now), 1),
            "suspected": lease.source,
            "origin": "held" if lease.is_hold else lease.origin,
            "evidence": list(lease.evidence),
        }
        for lease in state.leases.values()
    ]
    return sorted(found, key=lambda pod: str(pod["lease"]).zfill(12))


def enis_view(state: State, now: Stamp, cooldown_s: float) -> list[dict[str, Any]]:
    """ENIs by device, each with its addresses counted."""
    slots = state.limits.ipv4_per_eni - 1 if state.limits else 0
    views = {view.id: view for view in views_of(state, now, cooldown_s, slots)}
    under_removal = state.enis_under_removal()
    rows = []
    for held in sorted(
        state.enis.values(), key=lambda held: (held.phase != "attached", held.card, held.device)
    ):
        view = views.get(held.facts.id)
        owned = sum(cidr_size(cidr) for cidr in held.cidrs)
        resting = view.resting + view.blocked if view else 0
        rows.append(
            {
                "eni": held.facts.id,
                "mac": held.facts.mac,
                "subnet": held.facts.subnet,
                "primary": held.facts.primary,
                "device": held.device if held.phase == "attached" else None,
                "card": held.card,
                "table": held.table,
                "phase": "retiring" if held.is_retiring else held.phase,
                "managed": held.managed,
                "usable": is_usable(held, under_removal),
                "link": held.ifname if held.is_link_ready else "",
                "suspected": held.suspected,
                "owned": owned,
                "assigned": held.lease_count,
                "resting": resting,
                "free": max(0, owned - held.lease_count - resting) if is_usable(held, under_removal) else 0,
                "slots": slots,
                "doing": sorted(intent.intended.kind for intent in state.intents_on(held.facts.id)),
                "cidrs": sorted(held.cidrs),
            }
        )
    return rows


def pool_view(state: State, now: Stamp, cooldown_s: float) -> dict[str, int]:
    """The pool in five figures."""
    enis = enis_view(state, now, cooldown_s)
    return {
        "enis": sum(1 for row in enis if row["phase"] == "attached"),
        "owned": sum(row["owned"] for row in enis),
        "assigned": len(state.leases),
        "resting": sum(row["resting"] for row in enis),
        "free": sum(row["free"] for row in enis),
    }

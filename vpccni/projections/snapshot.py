"""Snapshots: the shortest list of real records whose fold is the state.

Records keep their own sequence numbers and stamps, so a lease keeps its id and a rest its beginning, and
upcasters lift them like all others. Waiting ADDs, EC2 budgets and what the kernel looks like are no part
of the state, so they are in no snapshot.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from vpccni.events.address import CidrsOwned, CidrsReleased
from vpccni.events.codec import Record
from vpccni.model import Cidr
from vpccni.projections.state import State


def snapshot_of(state: State) -> tuple[Record, ...]:
    """The records, by sequence number, that rebuild ``state`` when folded into an empty one."""
    kept: dict[int, Record] = {}

    def keep(record: Record) -> None:
        kept[record.seq] = record

    for record in state.latest.values():
        keep(record)
    for held in state.enis.values():
        for record in held.records.values():
            keep(record)
        owned_by: dict[int, list[Cidr]] = {}
        for cidr, owned in held.cidrs.items():
            owned_by.setdefault(owned.record.seq, []).append(cidr)
            kept.setdefault(owned.record.seq, owned.record)
        released_by: dict[int, list[Cidr]] = {}
        for cidr, record in held.released.items():
            released_by.setdefault(record.seq, []).append(cidr)
            kept.setdefault(record.seq, record)
        # Only what still holds of each record, so that what happened to the rest since stays true.
        for seq, cidrs in (*owned_by.items(), *released_by.items()):
            whole = kept[seq]
            if isinstance(whole.event, (CidrsOwned, CidrsReleased)):
                event = msgspec.structs.replace(whole.event, cidrs=tuple(cidrs))
                kept[seq] = Record(whole.seq, whole.stamp, event, whole.cause)
    for lease in state.leases.values():
        for record in lease.records.values():
            keep(record)
    for rest in (*state.rests.values(), *state.standing.values()):
        for record in rest.records.values():
            keep(record)
    for intent in state.intents.values():
        for record in intent.records.values():
            keep(record)
    return tuple(kept[seq] for seq in sorted(kept))


def restore(records: tuple[Record, ...]) -> State:
    """The state that a snapshot stands for. Its ``head`` is the caller's to set."""
    state = State()
    state.evolve_all(records)
    return state


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True)


def picture(state: State) -> dict[str, Any]:
    """The state as plain, ordered data: two states are the same if and only if their pictures are."""
    return {
        "node": {
            "log_id": state.log_id,
            "boot_id": state.boot_id,
            "identity_boot": state.identity_boot,
            "doubted": _plain(state.doubted),
            "survey": [state.survey_seq, _plain(state.survey)],
            "other_agent": _plain(state.other_agent),
            "imported": _plain(state.imported),
            "exported": _plain(state.exported),
            "mode": state.mode,
            "instance": _plain(state.instance),
            "limits": _plain(state.limits),
            "policy": dict(sorted(state.policy.items())),
            "max_pods": state.max_pods,
            "schedulable": state.is_schedulable,
            "vpc_cidrs": list(state.vpc_cidrs),
            "subnets": {key: _plain(state.subnets[key]) for key in sorted(state.subnets)},
            "broken": _plain(state.broken),
            "boots": {key: _plain(mark) for key, mark in sorted(state.boots.items())},
            "plan": _plain(state.plan),
        },
        "enis": {
            key: {
                "facts": _plain(held.facts),
                "managed": held.managed,
                "origin": held.origin,
                "eni_config": held.eni_config,
                "phase": held.phase,
                "attachment": held.attachment,
                "device": held.device,
                "card": held.card,
                "table": held.table,
                "link": [held.is_link_ready, held.ifname, held.ifindex],
                "retiring": held.is_retiring,
                "kept_safe": held.is_kept_safe,
                "suspected": held.suspected,
                "lease_count": held.lease_count,
                "adopted": _plain(held.adopted),
                "released": {cidr: record.seq for cidr, record in sorted(held.released.items())},
                "effect": record.seq if (record := held.records.get("effect")) else 0,
                "cidrs": {
                    cidr: [owned.record.seq, owned.suspected] for cidr, owned in sorted(held.cidrs.items())
                },
            }
            for key, held in sorted(state.enis.items())
        },
        "deleted": {key: _plain(stamp) for key, stamp in sorted(state.deleted.items())},
        "leases": {
            str(key): {
                "key": _plain(lease.key),
                "pod": _plain(lease.pod),
                "bindings": _plain(lease.bindings),
                "netns": [lease.netns, lease.netns_inode],
                "opened": _plain(lease.opened),
                "wired": _plain(lease.wired),
                "origin": [lease.origin, list(lease.evidence), _plain(lease.since)],
                "suspected": [_plain(lease.suspected), lease.source],
            }
            for key, lease in sorted(state.leases.items())
        },
        "resting": {
            key: [rest.lease, _plain(rest.ended), rest.is_standing]
            for key, rest in sorted(state.rests.items())
        },
        "standing": sorted(state.standing),
        "intents": {
            str(key): [_plain(intent.intended), _plain(intent.unknown)]
            for key, intent in sorted(state.intents.items())
        },
    }


def digest(state: State) -> str:
    """SHA-256 of the picture, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(picture(state), order="deterministic")).hexdigest()

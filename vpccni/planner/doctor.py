"""Checks a state from outside: what must always be true, said once more and independently.

Nothing here is used by the code that it checks. Severity ``broken``: a promise is violated, changes to EC2 must
stop. Severity ``odd``: worth a look, nothing is endangered.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

import msgspec

from vpccni.model import Address
from vpccni.projections.state import State

BROKEN = "broken"
ODD = "odd"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it must be."""

    severity: str
    name: str
    detail: str


def examine(state: State) -> list[Finding]:
    """Everything wrong with a state, worst first; empty when all is well."""
    found = [
        *_double_holders(state),
        *_indexes(state),
        *_leases_on_books(state),
        *_intents(state),
        *_rests(state),
        *_enis(state),
    ]
    return sorted(found, key=lambda finding: (finding.severity != BROKEN, finding.name, finding.detail))


def _double_holders(state: State) -> list[Finding]:
    held = Counter(binding.address for lease in state.leases.values() for binding in lease.bindings)
    return [
        Finding(BROKEN, "address_held_twice", f"{address} has {count} open leases")
        for address, count in held.items()
        if count > 1
    ]


def _indexes(state: State) -> list[Finding]:
    by_key = {lease.key: lease_id for lease_id, lease in state.leases.items() if not lease.is_hold}
    by_address = {
        binding.address: lease_id for lease_id, lease in state.leases.items() for binding in lease.bindings
    }
    found = []
    if by_key != state.by_key:
        found.append(Finding(BROKEN, "key_index_differs", "the index by sandbox is not that of the leases"))
    if by_address != state.by_address:
        found.append(
            Finding(BROKEN, "address_index_differs", "the index by address is not that of the leases")
        )
    counts = Counter(binding.eni for lease in state.leases.values() for binding in lease.bindings)
    for eni_id, held in state.enis.items():
        if held.lease_count != counts.get(eni_id, 0):
            detail = f"{eni_id} counts {held.lease_count} leases and has {counts.get(eni_id, 0)}"
            found.append(Finding(BROKEN, "lease_count_differs", detail))
    return found


def _leases_on_books(state: State) -> list[Finding]:
    found = []
    for lease in state.leases.values():
        for binding in lease.bindings:
            if binding.kind != "pool" or not binding.eni:
                continue  # a recovered one whose ENI EC2 has not told yet
            held = state.enis.get(binding.eni)
            if held is None:
                detail = f"lease {lease.id} is on {binding.eni}, which is not in the books"
                # A recovered one may be older than what EC2 has told: nothing of it is endangered.
                severity = BROKEN if lease.origin == "add" else ODD
                found.append(Finding(severity, "lease_without_eni", detail))
            elif not any(_contains(cidr, binding.address) for cidr in held.cidrs):
                detail = f"{binding.address} of lease {lease.id} is not owned by {binding.eni}"
                severity = BROKEN if lease.origin == "add" else ODD
                found.append(Finding(severity, "lease_without_cidr", detail))
    return found


def _intents(state: State) -> list[Finding]:
    found = []
    for intent in state.intents.values():
        wanted = intent.intended
        if wanted.kind in ("detach", "delete"):
            on_it = [lease.id for lease in state.leases.values() if lease.bindings[0].eni == wanted.eni]
            if on_it:
                detail = f"{wanted.kind} of {wanted.eni} covers lease {on_it[0]}"
                found.append(Finding(BROKEN, "release_covers_lease", detail))
        for cidr in wanted.cidrs if wanted.kind == "unassign" else ():
            covered = [address for address in state.by_address if _contains(cidr, address)]
            if covered:
                detail = f"unassign of {cidr} covers {covered[0]}"
                found.append(Finding(BROKEN, "release_covers_lease", detail))
    changing = Counter(
        intent.intended.eni
        for intent in state.intents.values()
        if intent.intended.kind in ("assign", "unassign")
    )
    found += [
        Finding(BROKEN, "two_changes_at_once", f"{eni_id} has {count} address-changing intents open")
        for eni_id, count in changing.items()
        if count > 1
    ]
    return found


def _rests(state: State) -> list[Finding]:
    return [
        Finding(BROKEN, "leased_and_resting", f"{address} is leased and resting at once")
        for address in state.rests
        if address in state.by_address
    ]


def _enis(state: State) -> list[Finding]:
    owners: dict[str, str] = {}
    found = []
    for eni_id, held in state.enis.items():
        for cidr in held.cidrs:
            if cidr in owners:
                detail = f"{cidr} is on {owners[cidr]} and on {eni_id}"
                found.append(Finding(ODD, "cidr_on_two_enis", detail))
            owners[cidr] = eni_id
    places = Counter((held.card, held.device) for held in state.enis.values() if held.phase == "attached")
    found += [
        Finding(ODD, "device_used_twice", f"device {device} of card {card} has {count} ENIs")
        for (card, device), count in places.items()
        if count > 1
    ]
    return found


def _contains(cidr: str, address: Address) -> bool:
    if cidr.endswith("/32"):
        return cidr[:-3] == address
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)

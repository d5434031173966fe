"""The one nft table of our own, as a pure function of state."""

from __future__ import annotations

import hashlib
from typing import Final

from vpccni.datapath.numbers import NFT_FAMILY, NFT_TABLE
from vpccni.datapath.objects import NftPolicy, NftSeen, NftTable

STATE_PREFIX: Final = "made_from_"
"""An empty chain of this name and a digest says what the table was made from. (A comment would do, but old
kernels drop a table's comment, and nft's JSON leaves it out.)"""
_DIGEST_DIGITS: Final = 32
_PORTS: Final = {"prng": " fully-random", "hashrandom": " random", "none": ""}

ABSENT: Final = NftTable(text="", seen=NftSeen())
"""There is to be no table."""


def nft_table(policy: NftPolicy, primary_ifname: str) -> NftTable:
    """The table for a policy.

    Args:
        policy: What to translate and mark.
        primary_ifname: Name of the primary ENI's link; while it is empty (the link is not there) the
            NodePort rule is left out.
    """
    chains = _chains(policy, primary_ifname)
    if not chains:
        return ABSENT
    rules = sum(len(lines) for _, _, lines in chains)
    body = _body(policy, chains)
    digest = hashlib.sha256(body.encode()).hexdigest()[:_DIGEST_DIGITS]
    table = f"{NFT_FAMILY} {NFT_TABLE}"
    text = (
        # Declaring before deleting makes the deletion succeed whether or not the table is there; the
        # three statements are one transaction, so no packet meets a half of it.
        f"table {table}\n"
        f"delete table {table}\n"
        f"table {table} {{\n"
        f"\tchain {STATE_PREFIX}{digest} {{\n\t}}\n"
        f"{body}"
        "}\n"
    )
    elements = len(policy.direct) if _uses_direct(policy) else 0
    return NftTable(text=text, seen=NftSeen(digest=digest, rules=rules, elements=elements))


def _uses_direct(policy: NftPolicy) -> bool:
    return bool(policy.snat_to)


def _chains(policy: NftPolicy, primary_ifname: str) -> list[tuple[str, str, list[str]]]:
    """Name, hook and rules of each chain that is needed."""
    mark = f"{policy.connmark:#x}"
    pods = f'iifname "{policy.veth_prefix}*"'
    chains: list[tuple[str, str, list[str]]] = []
    if policy.node_port and primary_ifname:
        # Before DNAT (-100): the test is for the address that the client used.
        hook = "type filter hook prerouting priority -150; policy accept;"
        rule = f'iifname "{primary_ifname}" fib daddr . iif type local ct mark set ct mark | {mark}'
        chains.append(("node_port", hook, [rule]))
    if policy.node_port or policy.snat_to:
        # After DNAT, and of type filter: a nat chain would not see what another one has translated.
        hook = "type filter hook prerouting priority -90; policy accept;"
        lines = ["fib daddr type local return"]
        if policy.snat_to:
            lines.append(f"{pods} ct state new ip daddr != @direct ct mark set ct mark | {mark}")
        lines.append(f"{pods} ct mark & {mark} == {mark} meta mark set meta mark | {mark}")
        chains.append(("classify", hook, lines))
    if policy.snat_to:
        hook = "type nat hook postrouting priority 100; policy accept;"
        lines = [
            'oifname "vlan*" return',
            "ip daddr @direct return",
            "fib daddr type local return",
            f"snat to {policy.snat_to}{_PORTS.get(policy.random_snat, _PORTS['prng'])}",
        ]
        chains.append(("source_nat", hook, lines))
    return chains


def _body(policy: NftPolicy, chains: list[tuple[str, str, list[str]]]) -> str:
    parts: list[str] = []
    if _uses_direct(policy):
        elements = ", ".join(policy.direct)
        kind = "type ipv4_addr\n\t\tflags interval"
        parts.append(f"\tset direct {{\n\t\t{kind}\n\t\telements = {{ {elements} }}\n\t}}\n")
    for name, hook, lines in chains:
        rules = "".join(f"\t\t{line}\n" for line in lines)
        parts.append(f"\tchain {name} {{\n\t\t{hook}\n{rules}\t}}\n")
    return "".join(parts)

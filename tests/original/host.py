"""What the daemon of amazon-vpc-cni-k8s does to the node when it starts: rules, iptables, nftables, ENIs.

Written after its documented behaviour, with the programs that an operator has: ``ip``, ``iptables`` and ``nft``.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.original.wiring import MAIN_TABLE, run_in

SNAT_CHAIN: Final = "AWS-SNAT-CHAIN-0"
CONNMARK_CHAIN: Final = "AWS-CONNMARK-CHAIN-0"
NFT_TABLE: Final = "ip aws-cni"
_ANYWHERE: Final = "0.0.0.0/0"


@dataclass(frozen=True, kw_only=True)
class Eni:
    """One ENI of the node, of network card 0.

    Attributes:
        device: Its device index; 0 for the primary.
        primary: Its own address.
        subnet: CIDR of its subnet, whose second address is the router.
        addresses: What IMDS lists besides the primary address: addresses or CIDRs.
    """

    mac: str
    device: int
    primary: str
    subnet: str
    addresses: tuple[str, ...] = ()

    @property
    def table(self) -> int:
        """Its routing table."""
        return self.device + 1 if self.device else MAIN_TABLE

    def holds(self, address: str) -> bool:
        """Whether IMDS lists the address for it."""
        parsed = ipaddress.ip_address(address)
        return any(parsed in ipaddress.ip_network(each) for each in self.addresses)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What its environment says.

    Attributes:
        iptables: Which flavour its ``iptables`` is: ``nft``, ``legacy``, or empty for a node where none may
            be used: then only rules, routes and the nftables table are made.
        connmark: Its connmark backend: ``nft`` (since v1.23) or ``iptables`` (before, and with the legacy
            flavour); empty for what it would choose itself.
    """

    vpc_cidrs: tuple[str, ...] = ("10.0.0.0/16",)
    excluded_cidrs: tuple[str, ...] = ()
    external_service_cidrs: tuple[str, ...] = ()
    veth_prefix: str = "eni"
    mtu: int = 9001
    node_port: bool = True
    external_snat: bool = False
    random_snat: str = "prng"
    iptables: str = "nft"
    connmark: str = ""

    @property
    def backend(self) -> str:
        """The connmark backend that it uses."""
        return self.connmark or ("iptables" if self.iptables == "legacy" else "nft")


def missing_program(settings: Settings) -> str:
    """The program that these settings need and this machine lacks; empty when all are there."""
    wanted = ["ip", "nft", *([f"iptables-{settings.iptables}"] if settings.iptables else [])]
    return next((program for program in wanted if shutil.which(program) is None), "")


# --- the order of its start ---------------------------------------------------------------------------


def set_up_host(node: str, primary: Eni, settings: Settings) -> None:
    """Everything that depends neither on secondary ENIs nor on pods, in its order.

    Raises:
        RuntimeError: A command failed, or the primary ENI has no link.
    """
    link = link_of(node, primary.mac)
    if not link:
        raise RuntimeError(f"no link has the MAC {primary.mac}")
    run_in(node, f"ip link set {link} mtu {settings.mtu}")
    mark = "pref 1024 fwmark 0x80/0x80 lookup main"
    run_in(node, f"may_lack ip rule del {mark}")
    if settings.node_port or not settings.external_snat:
        run_in(node, f"ip rule add {mark}")
    if settings.iptables:
        _set_up_snat(node, primary.primary, settings)
        _set_up_mangle(node, link, settings)
    _set_up_connmark(node, settings)


def set_up_eni(node: str, eni: Eni, settings: Settings) -> bool:
    """Set a secondary ENI up anew: its address is deleted and added again. False when its link is missing."""
    link = link_of(node, eni.mac)
    if not link:
        return False
    subnet = ipaddress.ip_network(eni.subnet)
    table, gateway = f"table {eni.table}", subnet[1]
    found = json.loads(run_in(node, f"ip -j -4 address show dev {link} scope global"))
    old = [f"{each['local']}/{each['prefixlen']}" for each in (found[0]["addr_info"] if found else [])]
    script = [
        f"ip link set {link} mtu {settings.mtu}",
        f"ip link set {link} up",
        *(f"ip address del {each} dev {link}" for each in old),
        f"ip address add {eni.primary}/{subnet.prefixlen} dev {link}",
        f"may_lack ip route del {gateway}/32 dev {link} {table}",
        f"ip route replace {gateway}/32 dev {link} scope link {table}",
        f"may_lack ip route del default via {gateway} dev {link} {table}",
        f"ip route replace default via {gateway} dev {link} {table}",
        f"may_lack ip route del {subnet} dev {link} src {eni.primary} scope link",
        f"may_exist ip rule add pref 32765 from {eni.primary}/32 lookup {eni.table}",
    ]
    run_in(node, "\n".join(script))
    return True


def refresh_pod_rules(node: str, addresses: Iterable[str]) -> None:
    """For each pod: every rule whose source begins with its address makes way for one for the address alone."""
    for address in addresses:
        stale = [rule for rule in rules_of(node) if rule.get("src") == address]
        for rule in stale:
            length = rule.get("srclen", 32)
            run_in(
                node, f"ip rule del pref {rule['priority']} from {address}/{length} lookup {rule['table']}"
            )
        if stale:
            run_in(node, f"ip rule add pref 1536 from {address}/32 lookup {stale[-1]['table']}")


def set_up_external_services(node: str, settings: Settings) -> None:
    """Rules to services outside the VPC that are reached by the primary ENI."""
    for rule in rules_of(node):
        if rule["priority"] == 1535 and rule.get("table") == "main":
            run_in(node, f"ip rule del pref 1535 to {rule['dst']}/{rule.get('dstlen', 32)} lookup main")
    for cidr in settings.external_service_cidrs:
        run_in(node, f"ip rule add pref 1535 to {cidr} lookup main")


def forget_pod_rules(node: str, address: str) -> None:
    """Delete the rules of a pod whose host link is missing."""
    script = [f"may_lack ip rule del pref 512 to {address} lookup main"]
    script += [
        f"ip rule del pref 1536 from {address} lookup {rule['table']}"
        for rule in rules_of(node)
        if rule["priority"] == 1536 and rule.get("src") == address and "srclen" not in rule
    ]
    run_in(node, "\n".join(script))


def rules_of(node: str) -> list[dict[str, Any]]:
    """The node's rules, as ``ip -j rule`` tells them."""
    found: list[dict[str, Any]] = json.loads(run_in(node, "ip -j rule list"))
    return found


def links_of(node: str) -> list[dict[str, Any]]:
    """The node's links, as ``ip -j link`` tells them."""
    found: list[dict[str, Any]] = json.loads(run_in(node, "ip -j link show"))
    return found


def link_of(node: str, mac: str) -> str:
    """Name of the first link with this MAC; empty when there is none."""
    return next((str(link["ifname"]) for link in links_of(node) if link.get("address") == mac), "")


# --- iptables -----------------------------------------------------------------------------------------


def _set_up_snat(node: str, primary: str, settings: Settings) -> None:
    tables = _Iptables(node, settings.iptables)
    tables.need_chain("nat", SNAT_CHAIN)
    comment = _comment("AWS SNAT CHAIN")
    exclusion = _comment("AWS SNAT CHAIN EXCLUSION")
    returns = [[*_to(cidr), *comment, "-j", "RETURN"] for cidr in settings.vpc_cidrs]
    returns += [[*_to(cidr), *exclusion, "-j", "RETURN"] for cidr in settings.excluded_cidrs]
    if settings.external_snat:
        returns = []
    # The rule that translates is in no list of what is wanted, so it goes and comes back each time.
    tables.keep_only("nat", SNAT_CHAIN, returns)
    for rule in returns:
        tables.need("nat", SNAT_CHAIN, rule, is_first=True)
    jump = [*comment, "-j", SNAT_CHAIN]
    if settings.external_snat:
        tables.drop("nat", "POSTROUTING", jump)
        tables.run()
        return
    ports = {"prng": ["--random-fully"], "hashrandom": ["--random"]}.get(settings.random_snat, [])
    not_local = ["-m", "addrtype", "!", "--dst-type", "LOCAL"]
    target = ["-j", "SNAT", "--to-source", primary, *ports]
    tables.need("nat", SNAT_CHAIN, ["!", "-o", "vlan+", *_comment("AWS, SNAT"), *not_local, *target])
    tables.need("nat", "POSTROUTING", jump)
    tables.run()


def _set_up_mangle(node: str, link: str, settings: Settings) -> None:
    tables = _Iptables(node, settings.iptables)
    comment = _comment("AWS, primary ENI")
    local = ["-m", "addrtype", "--dst-type", "LOCAL", "--limit-iface-in"]
    restore = ["-j", "CONNMARK", "--restore-mark", "--mask", "0x80"]
    pods = f"{settings.veth_prefix}+"
    mark = ["-j", "CONNMARK", "--set-mark", "0x80/0x80"]
    for rule, is_wanted in (
        (["-i", link, *comment, *local, *mark], settings.node_port),
        (["-i", pods, *comment, *restore], settings.node_port or not settings.external_snat),
        (["-i", "vlan+", *comment, *restore], settings.node_port),
    ):
        (tables.need if is_wanted else tables.drop)("mangle", "PREROUTING", rule)
    tables.run()


def _set_up_connmark(node: str, settings: Settings) -> None:
    if settings.external_snat:
        _drop_nft(node)
        _drop_iptables_connmark(node, settings)
    elif settings.backend == "nft":
        run_in(node, f"nft -f - <<'end'\n{nft_text(settings)}end")
        _drop_iptables_connmark(node, settings)
    else:
        _set_up_iptables_connmark(node, settings)
        _drop_nft(node)


def _set_up_iptables_connmark(node: str, settings: Settings) -> None:
    tables = _Iptables(node, settings.iptables)
    tables.need_chain("nat", CONNMARK_CHAIN)
    jump, restore = _connmark_rules(settings)
    tables.need("nat", "PREROUTING", jump)
    comment = _comment("AWS CONNMARK CHAIN")
    returns = [[*_to(cidr), *comment, "-j", "RETURN"] for cidr in _exempt(settings)]
    tables.keep_only("nat", CONNMARK_CHAIN, returns)
    for rule in returns:
        tables.need("nat", CONNMARK_CHAIN, rule, is_first=True)
    mark = [*_comment("AWS, CONNMARK"), "-j", "CONNMARK", "--set-xmark", "0x80/0x80"]
    tables.need("nat", CONNMARK_CHAIN, mark)
    tables.drop("nat", "PREROUTING", restore)
    tables.need("nat", "PREROUTING", restore)
    tables.run()


def _drop_iptables_connmark(node: str, settings: Settings) -> None:
    if not settings.iptables:
        return
    tables = _Iptables(node, settings.iptables)
    for rule in _connmark_rules(settings):
        tables.drop("nat", "PREROUTING", rule)
    tables.remove_chain("nat", CONNMARK_CHAIN)
    tables.run()


def _connmark_rules(settings: Settings) -> tuple[list[str], list[str]]:
    """The jump and the restore rule of nat PREROUTING."""
    jump = ["-i", f"{settings.veth_prefix}+", *_comment("AWS, outbound connections"), "-j", CONNMARK_CHAIN]
    return jump, [*_comment("AWS, CONNMARK"), "-j", "CONNMARK", "--restore-mark", "--mask", "0x80"]


def _exempt(settings: Settings) -> tuple[str, ...]:
    return settings.vpc_cidrs + settings.excluded_cidrs


def _comment(text: str) -> list[str]:
    return ["-m", "comment", "--comment", text]


def _to(cidr: str) -> list[str]:
    return [] if cidr == _ANYWHERE else ["-d", cidr]


class _Iptables:
    """One flavour of iptables in the node's namespace: a script that grows, and is run by ``run``."""

    def __init__(self, node: str, flavour: str) -> None:
        self._node = node
        self._program = f"iptables-{flavour} -w"
        self._lines: list[str] = []

    def run(self) -> None:
        """Do what was asked for, in order."""
        run_in(self._node, "\n".join(self._lines))

    def need_chain(self, table: str, chain: str) -> None:
        """Make a chain unless it is there."""
        program = f"{self._program} -t {table}"
        self._lines.append(f"{program} -S {chain} >/dev/null 2>&1 || {program} -N {chain}")

    def remove_chain(self, table: str, chain: str) -> None:
        """Remove a chain if it is there."""
        program = f"{self._program} -t {table}"
        removal = f"{program} -F {chain}; {program} -X {chain}"
        self._lines.append(f"if {program} -S {chain} >/dev/null 2>&1; then {removal}; fi")

    def need(self, table: str, chain: str, rule: Sequence[str], *, is_first: bool = False) -> None:
        """Add a rule at the end (or first) unless it is there."""
        program, words = f"{self._program} -t {table}", shlex.join(rule)
        where = f"-I {chain} 1" if is_first else f"-A {chain}"
        self._lines.append(f"{program} -C {chain} {words} 2>/dev/null || {program} {where} {words}")

    def drop(self, table: str, chain: str, rule: Sequence[str]) -> None:
        """Delete a rule, as often as it is there."""
        program, words = f"{self._program} -t {table}", f"{chain} {shlex.join(rule)}"
        self._lines.append(f"while {program} -C {words} 2>/dev/null; do {program} -D {words}; done")

    def keep_only(self, table: str, chain: str, rules: Sequence[Sequence[str]]) -> None:
        """Delete whatever else is in a chain."""
        program = f"{self._program} -t {table}"
        wanted = [["-A", chain, *rule] for rule in rules]
        for line in run_in(self._node, f"{program} -S {chain} 2>/dev/null || :").splitlines():
            words = shlex.split(line)
            if words[0] == "-A" and words not in wanted:
                self._lines.append(f"{program} -D {shlex.join(words[1:])}")


# --- nftables -----------------------------------------------------------------------------------------


def nft_text(settings: Settings) -> str:
    """Its nftables table, as a file for ``nft -f`` that replaces the one that is there."""
    exempt = "".join(f"\t\tcounter ip daddr {cidr} return\n" for cidr in _exempt(settings))
    return (
        f"table {NFT_TABLE}\n"
        f"delete table {NFT_TABLE}\n"
        f"table {NFT_TABLE} {{\n"
        "\tchain snat-mark {\n"
        f"{exempt}"
        "\t\tcounter ct mark set ct mark | 0x80\n"
        "\t}\n"
        "\tchain nat-prerouting {\n"
        "\t\ttype nat hook prerouting priority -90; policy accept;\n"
        "\t\tfib daddr type local return\n"
        f'\t\tiifname "{settings.veth_prefix}*" counter jump snat-mark\n'
        "\t\tcounter meta mark set ct mark & 0x80\n"
        "\t}\n"
        "}\n"
    )


def _drop_nft(node: str) -> None:
    run_in(node, f"may_lack nft delete table {NFT_TABLE}")

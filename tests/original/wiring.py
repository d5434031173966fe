"""How amazon-vpc-cni-k8s wires and unwires a pod, step by step, with ``ip`` in real network namespaces.

Written after its documented behaviour, from nothing of ours, so that tests of ours meet what it leaves behind.
Its plugin may die between any two steps: wiring and unwiring can stop before a step that is named.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from typing import Final

MAIN_TABLE: Final = 254
GATEWAY: Final = "169.254.1.1"

WIRING: Final = (
    "create_veth",
    "host_up",
    "pod_gateway_route",
    "pod_default_route",
    "pod_address",
    "pod_neighbour",
    "host_route",
    "to_rule",
    "from_rule",
    "done",
)
"""The steps of its ADD, in order. ``from_rule`` does nothing for a pod of the primary ENI."""

UNWIRING: Final = ("to_rule", "from_rule", "host_route", "done")
"""The steps of its DEL, in order. The veth is left to whoever ends the namespace."""

_macs = itertools.count(1)

_TOLERANT: Final = """
may_exist() { said=$("$@" 2>&1) || case $said in *'File exists'*) ;; *) echo "$said" >&2; return 1 ;; esac; }
may_lack() {
  said=$("$@" 2>&1) || case $said in
    *'No such'*|*'Cannot find device'*|*'does not exist'*) ;;
    *) echo "$said" >&2; return 1 ;;
  esac
}
"""


def host_veth_name(prefix: str, namespace: str, name: str) -> str:
    """Name of a pod's host veth: the prefix and 11 digits of a SHA-1."""
    return prefix + hashlib.sha1(f"{namespace}.{name}".encode(), usedforsecurity=False).hexdigest()[:11]


def run_in(netns: str, script: str) -> str:
    """Run a shell script in the namespace at a path; what it prints. ``may_exist`` and ``may_lack`` are defined.

    Raises:
        RuntimeError: A command failed.
    """
    done = subprocess.run(
        ["nsenter", f"--net={netns}", "--", "sh", "-ec", _TOLERANT + script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        raise RuntimeError(f"in {netns}, exit status {done.returncode}: {done.stderr.strip()}\n{script}")
    return done.stdout


def wire(
    node: str,
    namespace: str,
    name: str,
    *,
    netns: str,
    address: str,
    table: int = MAIN_TABLE,
    ifname: str = "eth0",
    veth_prefix: str = "eni",
    mtu: int = 9001,
    since: str = WIRING[0],
    until: str = "done",
) -> str:
    """Wire a pod: the step ``since`` and all that follow, before the step ``until``.

    Args:
        node: Path of the node's namespace.
        namespace: Kubernetes namespace of the pod.
        name: Its name.
        netns: Path of its network namespace.
        address: Its address.
        table: Of the ENI that the address is on.
        ifname: Name of the interface inside.
        veth_prefix: How the host veth's name begins.
        mtu: Of both ends, in bytes.
        since: One of :data:`WIRING`; later than the first for a plugin that goes on where it was held up.
        until: One of :data:`WIRING`.

    Returns:
        The name of the host veth.
    """
    veth = host_veth_name(veth_prefix, namespace, name)
    has_veth = "create_veth" in _before(since, WIRING)
    mac = _mac_of(node, veth) if has_veth else _next_mac()
    up = [
        f"echo {value} >/proc/sys/net/ipv6/conf/{veth}/{sysctl} 2>/dev/null || :"
        for sysctl, value in (("accept_ra", 0), ("accept_redirects", 1), ("forwarding", 0))
    ]
    peer = f"peer name {veth} address {mac} mtu {mtu} netns {node}"
    commands: dict[str, list[tuple[str, str]]] = {
        "create_veth": [
            (node, f"may_lack ip link del {veth}"),
            (netns, f"ip link add {ifname} up mtu {mtu} type veth {peer}"),
        ],
        "host_up": [
            (node, "\n".join([*up, f"ip link set {veth} up"])),
            (netns, f"ip link set {ifname} up"),
        ],
        "pod_gateway_route": [(netns, f"ip route replace {GATEWAY}/32 dev {ifname} scope link")],
        "pod_default_route": [(netns, f"ip route add default via {GATEWAY} dev {ifname}")],
        "pod_address": [(netns, f"ip address add {address}/32 dev {ifname}")],
        "pod_neighbour": [(netns, f"ip neighbour add {GATEWAY} lladdr {mac} dev {ifname} nud permanent")],
        "host_route": [(node, f"ip route replace {address}/32 dev {veth} scope link")],
        "to_rule": [(node, f"may_exist ip rule add pref 512 to {address} lookup main")],
        "from_rule": [(node, f"may_exist ip rule add pref 1536 from {address} lookup {table}")],
    }
    if table == MAIN_TABLE:
        commands["from_rule"] = []
    steps = _before(until, WIRING)[len(_before(since, WIRING)) :]
    _run_steps([each for step in steps for each in commands[step]])
    return veth


def _next_mac() -> str:
    digits = f"0a{next(_macs) % 0x10000000000:010x}"
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def _mac_of(node: str, veth: str) -> str:
    return str(json.loads(run_in(node, f"ip -j link show {veth}"))[0]["address"])


def unwire(node: str, *, address: str, table: int = MAIN_TABLE, until: str = "done") -> None:
    """Unwire a pod; everything before the step ``until`` (one of :data:`UNWIRING`) is done. Absent is fine."""
    each_rule = (
        f"while ip rule list | grep -q '^1536:.*from {address} lookup {table} *$'; do\n"
        f"  ip rule del pref 1536 from {address} lookup {table}\ndone"
    )
    commands = {
        "to_rule": [(node, f"may_lack ip rule del pref 512 to {address} lookup main")],
        "from_rule": [] if table == MAIN_TABLE else [(node, each_rule)],
        "host_route": [(node, f"may_lack ip route del {address}/32")],
    }
    _run_steps([each for step in _before(until, UNWIRING) for each in commands[step]])


def _before(until: str, steps: tuple[str, ...]) -> tuple[str, ...]:
    if until not in steps:
        raise ValueError(f"no step of the original is called {until}")
    return steps[: steps.index(until)]


def _run_steps(commands: list[tuple[str, str]]) -> None:
    """Run commands in order, those that follow each other in one namespace by one shell."""
    for netns, group in itertools.groupby(commands, key=lambda command: command[0]):
        run_in(netns, "\n".join(script for _, script in group))

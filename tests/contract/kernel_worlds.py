"""A node and its sandboxes, for the kernel port's suite: one in memory, one in real network namespaces.

A real namespace is held by a descriptor alone and named by ``/proc/<pid>/fd/<n>``: nothing is mounted or
written, and whatever happens to the process, the kernel removes the namespace with it.
"""

from __future__ import annotations

import copy
import ctypes
import fcntl
import itertools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from tests.fakes.kernel import FakeInterface, FakeKernel
from tests.original import wiring
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.kernel_survey import Places
from vpccni.datapath.names import host_veth_name
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import PathChange, Rule
from vpccni.model import MAIN_TABLE, PodRef
from vpccni.ports import Kernel

Fault = Callable[[str], None]
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class World(Protocol):
    """The outside of the port: what a test may do to a node besides calling it."""

    async def open(self, fault: Fault | None = None) -> Kernel: ...
    def add_netns(self) -> str: ...
    def remove_netns(self, path: str) -> None: ...
    def add_foreign_interface(self, path: str, ifname: str) -> None: ...
    def plug(self, mac: str, ifname: str, alias: str = "") -> None: ...
    def unplug(self, mac: str, ifname: str) -> None: ...
    def add_rule(self, rule: Rule) -> None: ...
    def forget_alias(self, ifname: str) -> None: ...
    def set_alias(self, ifname: str, alias: str) -> None: ...
    def plug_pair(self, ifname: str) -> None: ...
    def hide(self, path: str) -> None: ...
    def inode(self, path: str) -> int: ...
    def wire_as_original(
        self, pod: PodRef, path: str, address: str, *, table: int = MAIN_TABLE, until: str = "done"
    ) -> str: ...
    def unwire_as_original(self, address: str, *, table: int = MAIN_TABLE, until: str = "done") -> None: ...
    def lose_routes(self, address: str) -> None: ...
    def lose_inside(self, path: str, address: str) -> None: ...
    def add_inside(self, path: str, ifname: str, address: str) -> None: ...
    def rename_inside(self, path: str, ifname: str, to: str) -> None: ...
    def add_pair_inside(self, path: str, one: str, other: str) -> None: ...
    def inside(self, path: str) -> object: ...
    def dump(self, *paths: str) -> object: ...
    def own_netns(self) -> str: ...
    async def close(self) -> None: ...


class FakeWorld:
    """The node in memory."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self._count = 0

    async def open(self, fault: Fault | None = None) -> Kernel:
        self.kernel.fault = fault
        return self.kernel

    def add_netns(self) -> str:
        self._count += 1
        path = f"/run/netns/{self._count}"
        self.kernel.add_netns(path)
        return path

    def remove_netns(self, path: str) -> None:
        self.kernel.remove_netns(path)

    def add_foreign_interface(self, path: str, ifname: str) -> None:
        interface = FakeInterface(ifindex=9, mac="02:00:00:00:ff:01", mtu=1500)
        self.kernel.state.netns[path].interfaces[ifname] = interface

    def plug(self, mac: str, ifname: str, alias: str = "") -> None:
        self.kernel.plug(mac, ifname, kind="veth", alias=alias)

    def unplug(self, mac: str, ifname: str) -> None:
        self.kernel.unplug(mac)

    def add_rule(self, rule: Rule) -> None:
        self.kernel.state.rules.append(rule)
        self.kernel.tell_path(PathChange(rule=rule))

    def forget_alias(self, ifname: str) -> None:
        self.set_alias(ifname, "")

    def set_alias(self, ifname: str, alias: str) -> None:
        links = self.kernel.state.links
        index = next(index for index, link in links.items() if link.ifname == ifname)
        links[index] = msgspec.structs.replace(links[index], alias=alias)

    def plug_pair(self, ifname: str) -> None:
        self._count += 1
        mac = f"02:00:00:00:fd:{self._count:02x}"
        self.kernel.plug(mac, ifname, kind="veth", is_peerless=True)

    def hide(self, path: str) -> None:
        self.kernel.hidden.add(path)

    def inode(self, path: str) -> int:
        return self.kernel.state.netns[path].inode

    def wire_as_original(
        self, pod: PodRef, path: str, address: str, *, table: int = MAIN_TABLE, until: str = "done"
    ) -> str:
        self.kernel.wire_as_original(pod, netns=path, address=address, table=table, until=until)
        return host_veth_name("eni", pod.namespace, pod.name)

    def unwire_as_original(self, address: str, *, table: int = MAIN_TABLE, until: str = "done") -> None:
        self.kernel.unwire_as_original(address=address, table=table, until=until)

    def lose_routes(self, address: str) -> None:
        self.kernel.lose_routes(address)

    def lose_inside(self, path: str, address: str) -> None:
        self.kernel.lose_inside(address)

    def add_inside(self, path: str, ifname: str, address: str) -> None:
        self.kernel.state.netns[path].interfaces[ifname].addresses.add(f"{address}/32")

    def rename_inside(self, path: str, ifname: str, to: str) -> None:
        interfaces = self.kernel.state.netns[path].interfaces
        interfaces[to] = interfaces.pop(ifname)

    def add_pair_inside(self, path: str, one: str, other: str) -> None:
        for number, ifname in enumerate((one, other)):
            inside = FakeInterface(ifindex=20 + number, mac=f"02:00:00:00:fc:{number:02x}", mtu=1500)
            self.kernel.state.netns[path].interfaces[ifname] = inside

    def inside(self, path: str) -> object:
        return copy.deepcopy(self.kernel.state.netns[path])

    def dump(self, *paths: str) -> object:
        return self.kernel.dump()

    def own_netns(self) -> str:
        pytest.skip("the fake lives in no namespace")

    async def close(self) -> None:
        pass


class RealWorld:
    """The node and its sandboxes as network namespaces of the kernel that the test runs on."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._kernels: list[NetlinkKernel] = []
        self._count = 0
        # Links to the descriptors, as a runtime's directory holds mounts. In a world, /run is its own.
        self.directory = Path(tempfile.mkdtemp(prefix="vpccni-netns-", dir="/run"))
        self.node = self._make()
        self.outside = self._make()
        sh(
            self.node,
            "ip link set lo up; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6;"
            "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6",
        )

    def _make(self) -> str:
        descriptor = new_netns()
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        self._descriptors[path] = descriptor
        return path

    async def open(self, fault: Fault | None = None) -> NetlinkKernel:
        places = Places(directories=(str(self.directory),), proc="")
        kernel = await NetlinkKernel.open(self.node, fault=fault, places=places)
        self._kernels.append(kernel)
        return kernel

    def add_netns(self) -> str:
        path = self._make()
        self._link_of(path).symlink_to(path)
        return path

    def remove_netns(self, path: str) -> None:
        self.hide(path)
        os.close(self._descriptors.pop(path))

    def _link_of(self, path: str) -> Path:
        return self.directory / Path(path).name

    def hide(self, path: str) -> None:
        self._link_of(path).unlink(missing_ok=True)

    def inode(self, path: str) -> int:
        return os.stat(path).st_ino

    def plug_pair(self, ifname: str) -> None:
        self._count += 1
        sh(self.node, f"ip link add {ifname} type veth peer name near{self._count}")

    def wire_as_original(
        self, pod: PodRef, path: str, address: str, *, table: int = MAIN_TABLE, until: str = "done"
    ) -> str:
        return wiring.wire(
            self.node, pod.namespace, pod.name, netns=path, address=address, table=table, until=until
        )

    def unwire_as_original(self, address: str, *, table: int = MAIN_TABLE, until: str = "done") -> None:
        wiring.unwire(self.node, address=address, table=table, until=until)

    def lose_routes(self, address: str) -> None:
        for table in (MAIN_TABLE, POD_TABLE):
            sh(self.node, f"ip route flush table {table} {address}/32")

    def lose_inside(self, path: str, address: str) -> None:
        sh(path, f"ip address flush to {address}/32")

    def add_inside(self, path: str, ifname: str, address: str) -> None:
        sh(path, f"ip address add {address}/32 dev {shlex.quote(ifname)}")

    def rename_inside(self, path: str, ifname: str, to: str) -> None:
        new = shlex.quote(to)
        sh(path, f"ip link set {ifname} down; ip link set {ifname} name {new}; ip link set {new} up")

    def add_pair_inside(self, path: str, one: str, other: str) -> None:
        sh(path, f"ip link add {one} type veth peer name {other}; ip link set {one} up")

    def add_foreign_interface(self, path: str, ifname: str) -> None:
        self._count += 1
        sh(path, f"ip link add {ifname} type veth peer name far{self._count} netns {self.outside}")

    def plug(self, mac: str, ifname: str, alias: str = "") -> None:
        self._count += 1
        far = f"far{self._count}"
        script = f"ip link add {ifname} address {mac} type veth peer name {far} netns {self.outside}"
        sh(self.node, script + (f"; ip link set {ifname} alias '{alias}'" if alias else ""))
        sh(self.outside, f"ip link set {far} up")

    def unplug(self, mac: str, ifname: str) -> None:
        sh(self.node, f"ip link del {ifname}")

    def add_rule(self, rule: Rule) -> None:
        words = [f"pref {rule.priority}", f"lookup {rule.table}"]
        words += [f"from {rule.src}"] if rule.src else []
        words += [f"to {rule.dst}"] if rule.dst else []
        sh(self.node, f"ip rule add {' '.join(words)}")

    def forget_alias(self, ifname: str) -> None:
        self.set_alias(ifname, "")

    def set_alias(self, ifname: str, alias: str) -> None:
        sh(self.node, f"ip link set {ifname} alias '{alias}'")

    def inside(self, path: str) -> object:
        # Who set a route is of no consequence.
        return [
            [{key: value for key, value in each.items() if key != "protocol"} for each in part]
            if isinstance(part, list)
            else part
            for part in dump_netns(path)
        ]

    def dump(self, *paths: str) -> object:
        return [dump_netns(path) for path in (self.node, *paths)]

    def own_netns(self) -> str:
        return self.node

    async def close(self) -> None:
        for kernel in self._kernels:
            await kernel.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        shutil.rmtree(self.directory)


def new_netns() -> int:
    """A descriptor of a new network namespace; skips the test where none can be made."""
    made: list[int] = []
    failed: list[int] = []

    def make() -> None:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            failed.append(ctypes.get_errno())
            return
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        pytest.skip(
            f"a network namespace cannot be made here: {os.strerror(failed[0])} (needs CAP_SYS_ADMIN)"
        )
    # Far from the numbers that the next open() takes: a path whose namespace is gone must stay gone.
    descriptor = fcntl.fcntl(made[0], fcntl.F_DUPFD_CLOEXEC, 400 + next(_numbers) % 500)
    os.close(made[0])
    return descriptor


def sh(path: str, script: str) -> str:
    """Run a script in a namespace and return what it prints; its failure fails the test."""
    done = subprocess.run(
        ["nsenter", f"--net={path}", "--", "sh", "-ec", script], capture_output=True, text=True, timeout=20
    )
    if done.returncode != 0:
        pytest.fail(f"{script}\n{done.stderr}")
    return done.stdout


_DUMP = """
for what in 'addr show' 'link show' 'route show table all' 'rule show' 'neigh show nud permanent'; do
  ip -j -d -4 $what; echo
done
nft list ruleset
"""


def dump_netns(path: str) -> list[Any]:
    """Links, addresses, routes of all tables, rules, neighbours and nft of a namespace, in full.

    All but what the kernel changes by itself a moment after a link was made: carrier and queueing.
    """
    parts: list[Any] = []
    for line in sh(path, _DUMP).splitlines():
        parts.append(json.loads(line, object_hook=_steady) if line.startswith("[") else line)
    return parts


def _steady(found: dict[str, Any]) -> dict[str, Any]:
    steady = {key: value for key, value in found.items() if key not in ("operstate", "qdisc")}
    flags = steady.get("flags")
    if isinstance(flags, list):
        steady["flags"] = sorted(set(flags) - {"LOWER_UP", "NO-CARRIER", "linkdown"})
    return steady

"""amazon-vpc-cni-k8s on a node, played: its daemon's start, its ADDs and DELs, and the file that it keeps.

A script of the tests, written after its documented behaviour, for namespaces that a test made. One
``OriginalNode`` stands for the daemon and the plugin of one node; several processes of it are made by
``stop`` and ``start``, and nothing is kept between them but the node and the file::

    original = OriginalNode(node.path, enis=[eni0, eni1], run_directory=tmp_path)
    original.start()
    pod = original.add("default", "web-0", netns=sandbox.path, container_id="c1")
    original.stop()
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.original import checkpoint, host, wiring
from tests.original.checkpoint import Row
from tests.original.host import Eni, Settings

CHECKPOINT_NAME: Final = "ipam.json"
SOCKET_NAME: Final = "ipamd.sock"


class NoAddressError(Exception):
    """Its pool is empty: the ADD fails."""


class AwayError(Exception):
    """Its daemon does not run: the ADD fails."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod that it has wired.

    Attributes:
        host_ifname: Name of the host veth, whether or not the ADD came as far as making it.
        device: Device index of the ENI that the address is on.
        result: What the plugin printed: the runtime's ``prevResult`` of later calls.
    """

    row: Row
    netns: str
    host_ifname: str
    device: int
    table: int
    result: dict[str, Any]

    @property
    def address(self) -> str:
        """The pod's address."""
        return self.row.address


class OriginalNode:
    """The original on one node.

    Args:
        node: Path of the node's network namespace.
        enis: The node's ENIs, the primary first, as IMDS lists them.
        run_directory: Where ``ipam.json`` and ``ipamd.sock`` are.
        settings: Its environment.

    Attributes:
        enis, settings: As given; what is changed counts from the next start.
        rows: Its allocations by key; what the file says while it runs, empty while it does not.

    Not played: the cooldown of an address (a freed one can be had again at once), EC2, more than one network
    card, IPv6, branch ENIs, and the installation of executables and conflist.
    """

    def __init__(
        self, node: str, *, enis: Sequence[Eni], run_directory: Path, settings: Settings | None = None
    ) -> None:
        self.node = node
        self.enis = list(enis)
        self.settings = settings or Settings()
        self.rows: dict[tuple[str, str, str], Row] = {}
        self._run_directory = run_directory
        self._ready: list[Eni] = []
        self._socket: socket.socket | None = None

    @property
    def checkpoint_path(self) -> Path:
        """``ipam.json``."""
        return self._run_directory / CHECKPOINT_NAME

    @property
    def socket_path(self) -> Path:
        """``ipamd.sock``."""
        return self._run_directory / SOCKET_NAME

    @property
    def is_running(self) -> bool:
        """Whether its daemon lives."""
        return self._socket is not None

    # --- the daemon -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything that its daemon does before it serves, in its order.

        Raises:
            FatalCheckpointError: It dies of the file; the host and the ENIs are set up, nothing else is done.
            RuntimeError: A command failed.
        """
        if self.is_running:
            raise RuntimeError("its daemon runs already")
        primary = self.enis[0]
        host.set_up_host(self.node, primary, self.settings)
        self._ready = [primary]
        self._ready += [eni for eni in self.enis[1:] if host.set_up_eni(self.node, eni, self.settings)]
        self._restore()
        host.refresh_pod_rules(self.node, [row.address for row in self.rows.values()])
        host.set_up_external_services(self.node, self.settings)
        self.socket_path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self.socket_path))
        listening.listen(16)
        listening.setblocking(False)
        self.socket_path.chmod(0o660)
        self._socket = listening

    def stop(self) -> None:
        """Kill its daemon: the socket's file stays, everything on the node stays. Idempotent."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self.rows = {}

    def callers(self) -> int:
        """How often somebody has connected to its socket since this was asked last."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self._socket is not None:
                self._socket.accept()[0].close()
                count += 1
        return count

    @contextlib.contextmanager
    def running(self) -> Iterator[OriginalNode]:
        """Its daemon, for the length of the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def _restore(self) -> None:
        names = [str(link["ifname"]) for link in host.links_of(self.node)]

        def is_linked(row: Row) -> bool:
            digits = wiring.host_veth_name("", row.namespace, row.name)
            return any(name.endswith(digits) for name in names)

        if not self.checkpoint_path.exists():
            return
        kept, gone = checkpoint.restored(
            checkpoint.read(self.checkpoint_path),
            is_linked=is_linked,
            is_listed=lambda address: self._eni_of(address) is not None,
        )
        for row in gone:
            host.forget_pod_rules(self.node, row.address)
        self.rows = {row.key: row for row in kept}
        self._write()

    # --- the plugin -----------------------------------------------------------------------------------

    def add(
        self,
        namespace: str,
        name: str,
        *,
        netns: str,
        container_id: str,
        address: str = "",
        ifname: str = "eth0",
        until: str = "done",
    ) -> Pod:
        """ADD of a pod.

        Args:
            namespace: Kubernetes namespace of the pod.
            name: Its name.
            netns: Path of its network namespace, as the runtime gives it.
            container_id: Of its sandbox.
            address: Which free address it gets; empty for the first one of the first ENI that has any.
            ifname: Name of the interface inside.
            until: A step of ``wiring.WIRING`` before which the plugin is killed: the address stays assigned.

        Raises:
            AwayError: Its daemon does not run.
            NoAddressError: The address is not free, or none is.
            RuntimeError: A step of the wiring failed: the address is free again, what was built stays.
        """
        if not self.is_running:
            raise AwayError("add cmd: failed to connect to the daemon")
        key = ("aws-cni", container_id, ifname)
        row = self.rows.get(key)
        if row is None:
            row = Row(
                container_id=container_id,
                ifname=ifname,
                address=self._free(address),
                namespace=namespace,
                name=name,
                allocated_ns=time.time_ns(),
            )
            self.rows[key] = row
            self._write()
        eni = self._eni_of(row.address)
        if eni is None:
            raise NoAddressError(f"{row.address} is on no ENI")
        try:
            veth = wiring.wire(
                self.node,
                namespace,
                name,
                netns=netns,
                address=row.address,
                table=eni.table,
                ifname=ifname,
                veth_prefix=self.settings.veth_prefix,
                mtu=self.settings.mtu,
                until=until,
            )
        except RuntimeError:
            del self.rows[key]
            self._write()
            raise
        return Pod(
            row=row,
            netns=netns,
            host_ifname=veth,
            device=eni.device,
            table=eni.table,
            result=_result(veth, ifname, netns, eni, row.address),
        )

    def delete(self, container_id: str, *, ifname: str = "eth0", prev_result: Any = None) -> None:
        """DEL of a sandbox. It always succeeds, whether or not anything was taken away.

        Args:
            container_id: Of the sandbox.
            ifname: Name of the interface inside.
            prev_result: What the runtime has cached of the ADD. Only looked at while the daemon is away, and
                then only good when the original wrote it: without its entry of an interface that does not
                exist, nothing is taken away.
        """
        if self.is_running:
            row = self.rows.pop(("aws-cni", container_id, ifname), None)
            if row is None:
                return
            eni = self._eni_of(row.address)
            self._write()
            wiring.unwire(self.node, address=row.address, table=eni.table if eni else wiring.MAIN_TABLE)
            return
        found = _from_result(prev_result, ifname)
        if found is not None:
            address, table = found
            wiring.unwire(self.node, address=address, table=table)

    # --- inside ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        checkpoint.write(self.checkpoint_path, self.rows.values())

    def _eni_of(self, address: str) -> Eni | None:
        return next((eni for eni in self._ready if eni.holds(address)), None)

    def _free(self, wanted: str) -> str:
        taken = {row.address for row in self.rows.values()}
        pool = (
            str(each) for eni in self._ready for cidr in eni.addresses for each in ipaddress.ip_network(cidr)
        )
        for address in pool:
            if address not in taken and wanted in ("", address):
                return address
        raise NoAddressError(f"{wanted or 'any address'} is not free")


def _result(veth: str, ifname: str, netns: str, eni: Eni, address: str) -> dict[str, Any]:
    """What its plugin prints, in the form of CNI 0.4.0: table and device stand where nobody expects them."""
    return {
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": veth},
            {"name": ifname, "mac": str(eni.table), "sandbox": netns},
            {"name": f"dummy{veth[-11:]}", "mac": "0", "sandbox": str(eni.device)},
        ],
        "ips": [{"version": "4", "interface": 1, "address": f"{address}/32"}],
        "dns": {},
    }


def _from_result(result: Any, ifname: str) -> tuple[str, int] | None:
    """Address and table of a result of its own; ``None`` for anybody else's."""
    interfaces = (result or {}).get("interfaces", [])
    if not any(each["name"].startswith("dummy") and each.get("mac") == "0" for each in interfaces):
        return None
    for number, each in enumerate(interfaces):
        ips = [ip for ip in result.get("ips", []) if ip.get("interface") == number]
        if each["name"] == ifname and len(ips) == 1 and each.get("mac"):
            return ips[0]["address"].partition("/")[0], int(each["mac"])
    return None

"""The fabric: a VPC, an internet and nodes, as network namespaces of the real kernel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from vpccni.lab.fabric import namespaces, ping, processes
from vpccni.lab.fabric.enter import require_inside
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.fabric.ping import PingPair, PingResult
from vpccni.lab.fabric.plugs import Drops, EniPlug
from vpccni.lab.fabric.processes import Completed, Daemon
from vpccni.lab.fabric.wiring import Wiring

T = TypeVar("T")

INTERNET_ADDRESS = "198.51.100.10"
"""The host on the internet that answers (TEST-NET-2, so it is nobody's)."""

PUBLIC_CIDR = "203.0.113.0/24"
"""Where public addresses come from (TEST-NET-3)."""

ECHO_PORT = 7


class EchoServer:
    """A TCP echo service on the internet. ``sources`` are the addresses that reached it, in order."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.sources: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send back what comes until the peer ends."""
        self.sources.append(writer.get_extra_info("peername")[0])
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # the peer went away, which is its right
        finally:
            writer.close()


class Fabric:
    """A VPC with an internet behind it, into which nodes and their ENIs are plugged.

    An async context manager, to be opened inside a world (`enter`). Calls are carried out one at a time, in
    order, on a thread of the fabric's own; a call that is cancelled is carried out all the same. What EC2
    refuses is for the EC2 model to refuse: the fabric wires what it is told.

    Args:
        name: Begins the name of every namespace, so that several fabrics can stand in one world.
        vpc_cidrs: What belongs to the VPC: there, only addresses of plugged ENIs can be reached.
        internet_addresses: The internet host's addresses.
    """

    def __init__(
        self,
        *,
        name: str = "lab",
        vpc_cidrs: Sequence[str] = ("10.0.0.0/16",),
        internet_addresses: Sequence[str] = (INTERNET_ADDRESS,),
    ) -> None:
        self._wiring = Wiring(
            prefix=name, vpc_cidrs=vpc_cidrs, internet_addresses=internet_addresses, public_cidr=PUBLIC_CIDR
        )
        self._name = name
        self._internet_address = internet_addresses[0]
        self._thread: ThreadPoolExecutor | None = None
        self._ends: tuple[Namespace, Namespace] | None = None
        self._daemons: list[Daemon] = []

    async def __aenter__(self) -> Fabric:
        require_inside()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"fabric-{self._name}")
        try:
            self._ends = await self._wire(self._wiring.open)
        except BaseException:
            await self.destroy()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.destroy()

    @property
    def vpc(self) -> Namespace:
        """The VPC router's namespace."""
        return self._opened()[0]

    @property
    def internet(self) -> Namespace:
        """The internet host's namespace."""
        return self._opened()[1]

    async def destroy(self) -> None:
        """Stop every daemon, kill what else runs in the namespaces, remove them. Can be called again."""
        if self._thread is None:
            return
        for daemon in self._daemons:
            await daemon.kill()
        self._daemons.clear()
        await self._wire(self._wiring.close)
        self._thread.shutdown(wait=True)
        self._thread = None
        self._ends = None

    async def add_node(self, name: str) -> Namespace:
        """Make a node: forwarding is on, 169.254.169.254 and .253 are on its loopback, and no ENI yet."""
        return await self._wire(lambda: self._wiring.add_node(name))

    async def add_namespace(self, name: str) -> Namespace:
        """Make a bare namespace, such as a pod's, loopback down. It goes with the fabric at the latest."""
        return await self._wire(lambda: self._wiring.add_namespace(name))

    async def remove(self, namespace: Namespace) -> None:
        """Remove a node or another namespace: kill what runs inside, unplug its ENIs."""
        await self._wire(lambda: self._wiring.remove_namespace(namespace))

    async def plug(
        self, node: Namespace, eni: EniPlug, *, ifname: str | None = None, configure: bool | None = None
    ) -> str:
        """Attach an ENI to a node: a link with its MAC appears there, and the VPC routes its addresses to it.

        Args:
            node: Where it appears.
            eni: What appears.
            ifname: The link's name; by default ``ens5`` for device 0, ``ens6`` for device 1 …
            configure: Whether the link gets its primary address and the default route and comes up, as by
                DHCP; by default only device 0 of card 0 does, and any other appears down and bare.

        Returns:
            The link's name.

        Raises:
            FabricError: the ENI is plugged, the name is taken, or the node is not ours. Nothing was changed.
            ValueError: an address or CIDR is not one. Nothing was changed.
        """
        return await self._wire(lambda: self._wiring.plug(node, eni, ifname, configure))

    async def unplug(self, eni_id: str) -> None:
        """Detach an ENI: its link, addresses and public mapping are gone when this returns.

        Raises:
            FabricError: it is not plugged.
        """
        await self._wire(lambda: self._wiring.unplug(eni_id))

    async def rename(self, eni_id: str, ifname: str) -> None:
        """Rename an ENI's link in its node, as udev may do late."""
        await self._wire(lambda: self._wiring.rename(eni_id, ifname))

    async def set_addresses(self, eni_id: str, cidrs: Sequence[str]) -> None:
        """Say what the VPC routes to an ENI besides its primary address: addresses, /32s or prefixes.

        Only what differs from before is changed. A CIDR that another ENI had moves.

        Raises:
            FabricError: the ENI is not plugged.
            ValueError: a CIDR is not one. Nothing was changed.
        """
        await self._wire(lambda: self._wiring.set_addresses(eni_id, cidrs))

    async def addresses(self, eni_id: str) -> frozenset[str]:
        """The CIDRs that the VPC routes to an ENI, its primary address included."""
        return await self._wire(lambda: self._wiring.addresses(eni_id))

    async def set_public(self, private_ip: str, public_ip: str | None) -> None:
        """Give a private address a public one, one to one, or take it away (None).

        Raises:
            FabricError: another private address has it.
        """
        await self._wire(lambda: self._wiring.set_public(private_ip, public_ip))

    async def public_of(self, private_ip: str) -> str | None:
        """The public address of a private one, if it has one."""
        return await self._wire(lambda: self._wiring.public_of(private_ip))

    async def drops(self, eni_id: str) -> Drops:
        """Count what the VPC dropped of what this ENI sent since it was plugged."""
        return await self._wire(lambda: self._wiring.drops(eni_id))

    async def ping_all(
        self, pairs: Sequence[PingPair], *, timeout_s: float = 2.0, size: int = 56
    ) -> list[PingResult]:
        """Ping every pair at once; see `ping.ping_all`."""
        return await _on_new_thread(lambda: ping.ping_all(pairs, timeout_s=timeout_s, size=size))

    async def exec_in(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command inside a namespace to its end; see `processes.exec_in`."""
        return await processes.exec_in(namespace, argv, timeout_s=timeout_s, stdin=stdin, env=env)

    async def spawn_in(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        *,
        output: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Daemon:
        """Start a daemon inside a namespace; the fabric ends it at the latest. See `processes.spawn_in`."""
        daemon = await processes.spawn_in(namespace, argv, output=output, env=env)
        self._daemons = [known for known in self._daemons if known.returncode is None]
        self._daemons.append(daemon)
        return daemon

    def listen_in(self, namespace: Namespace, address: str, port: int) -> socket.socket:
        """Listen inside a namespace, for a server that runs in this process; see `namespaces.listen_in`."""
        return namespaces.listen_in(namespace, address, port)

    async def run_in_thread(self, namespace: Namespace, call: Callable[[], T]) -> T:
        """Call ``call()``, which may block, on a thread inside a namespace."""
        return await _on_new_thread(lambda: namespaces.run_in(namespace, call))

    @asynccontextmanager
    async def echo_server(self, port: int = ECHO_PORT) -> AsyncIterator[EchoServer]:
        """Run a TCP echo service on the internet host for the length of the block."""
        echo = EchoServer(self._internet_address, port)
        listening = namespaces.listen_in(self.internet, echo.address, port)
        async with await asyncio.start_server(echo.serve, sock=listening):
            yield echo

    def _opened(self) -> tuple[Namespace, Namespace]:
        if self._ends is None:
            raise RuntimeError("the fabric is not open: use it as an async context manager")
        return self._ends

    async def _wire(self, call: Callable[[], T]) -> T:
        if self._thread is None:
            raise RuntimeError("the fabric is not open: use it as an async context manager")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


async def _on_new_thread(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread that is thrown away: it may be left in another namespace."""
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, call)
    finally:
        thread.shutdown(wait=False)

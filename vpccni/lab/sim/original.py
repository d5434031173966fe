"""amazon-vpc-cni-k8s on a simulated node: its daemon, its plugin and its checkpoint file, after its documented rules.

It knows the addresses that IMDS lists, and restores its assignments from ``ipam.json`` when it starts. It forgets
cooldowns when it ends. It is not judged here, with one exception: a living pod that it loses although our export
and IMDS told of it was lost by us. An address that it lost otherwise it would give away sooner or later; here it
passes such an address over, because what it breaks by itself is none of our promises.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from vpccni.adapters.imds import ImdsV2
from vpccni.checkpoint import parse_checkpoint, render_checkpoint
from vpccni.datapath.desired import eni_setup
from vpccni.datapath.names import host_veth_name
from vpccni.datapath.numbers import PRIORITY_FROM_POD, PRIORITY_TO_POD
from vpccni.datapath.objects import DatapathSettings, EniSetup, EniWiring
from vpccni.errors import VpccniError
from vpccni.evidence import READ, CheckpointFile, Row
from vpccni.lab.ec2 import Ec2Fault
from vpccni.lab.ec2.entities import Eni
from vpccni.lab.sim import kernel_original
from vpccni.lab.sim.sandbox import NAMESPACE, Sandbox
from vpccni.model import Address, Cidr, EniId, Mac, PodRef, host_cidr, route_table_of
from vpccni.planner.reconcile import INSTANCE_TAG

if TYPE_CHECKING:
    from vpccni.lab.sim.node import SimNode

COOLDOWN_S: Final = 30.0
START_S: Final = 2.5
"""From its entrypoint, which puts its executable in place, to its socket."""
RETRY_S: Final = 3.0
LOOK_S: Final = 5.0
FREE_MIN: Final = 2
GROW: Final = 4
NOTICED_S: Final = 8.0
"""After so long our agent has seen it: a look every two seconds, and whatever was under way."""
VETH_PREFIX: Final = "eni"
_BACK: Final = 503


class OriginalWatcher(Protocol):
    """Who looks at what it does."""

    def on_original_restored(
        self, node: SimNode, kept: dict[Address, Row], listed: Collection[Address]
    ) -> frozenset[Address]:
        """It has read the checkpoint file. Gives the addresses of living pods that it does not know."""

    def is_living(self, node: SimNode, address: Address) -> bool:
        """Whether a living pod has the address."""


def restored(
    file: CheckpointFile, links: Iterable[str], listed: Collection[Address]
) -> tuple[list[Row], list[Row]]:
    """The rows that its start keeps, and those that it drops as stale.

    Args:
        file: Its checkpoint file.
        links: Names of the node's links: a row with a pod's name needs one that is made from this name.
        listed: The addresses that IMDS lists.
    """
    ends = {name[-11:] for name in links}
    kept: list[Row] = []
    dropped: list[Row] = []
    for row in file.rows:
        is_named = bool(row.pod.namespace and row.pod.name)
        has_link = not is_named or host_veth_name("", row.pod.namespace, row.pod.name) in ends
        (kept if has_link and row.address in listed else dropped).append(row)
    return kept, dropped


class Original:
    """One node's. ``start`` and ``stop`` are called by whoever rolls out the DaemonSet.

    Attributes:
        is_running: Its container runs.
        is_serving: Its daemon answers.
        serving_since: Since which virtual second it does; ``None`` while it does not.
        ended_at: When it was last stopped.
        left_behind: It has made an ENI that it never attached.
        rows: Its datastore: what it has assigned.
        pool: The routing table of each address that it knows.
        lost: Addresses of living pods that it did not know when it last started. It has taken their rules away.
    """

    def __init__(self, node: SimNode, watcher: OriginalWatcher, seed: int) -> None:
        self._node = node
        self._watcher = watcher
        self._rng = random.Random(f"{seed} {node.name} original")
        self._task: asyncio.Task[None] | None = None
        self._rested: dict[Address, float] = {}
        self.lost: frozenset[Address] = frozenset()
        self.is_running = False
        self.is_serving = False
        self.serving_since: float | None = None
        self.ended_at = float("-inf")
        self.left_behind = False
        self._is_ending = False
        self._pending: asyncio.TimerHandle | None = None
        self.rows: dict[Address, Row] = {}
        self.pool: dict[Address, int] = {}

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Its pod is started: its executable is in place at once, its daemon answers seconds later."""
        self._pending = None
        self._node.trace(f"{self._node.name} original start")
        self._node.plugin = "original"
        self.is_running, self._is_ending = True, False
        self._task = self._node.loop.create_task(self._live(), name=f"original of {self._node.name}")

    def start_later(self, seconds: float) -> None:
        """The machine is down; its kubelet starts it again."""
        self._pending = self._node.loop.call_outside(seconds, self.start)

    def terminate(self) -> None:
        """SIGTERM: it serves on until it is killed, and changes nothing in EC2 any more."""
        self._is_ending = True

    def stop(self) -> None:
        """Its daemon is gone. What its plugin is doing goes on."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if not self.is_running:
            return
        self._node.trace(f"{self._node.name} original stop, {len(self.rows)} rows")
        self.is_running = self.is_serving = self._node.predecessor.is_alive = False
        self.serving_since, self.ended_at = None, self._node.loop.time()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._node.on_original_end()

    async def _live(self) -> None:
        node = self._node
        await asyncio.sleep(START_S * self._rng.uniform(0.7, 1.5))
        imds = ImdsV2(exchange=node.imds)
        listed: dict[Address, int] | None = None
        while listed is None:
            try:
                listed = await self._listed(imds)
            except VpccniError:
                await asyncio.sleep(RETRY_S)
        self._restore(listed)
        self.is_serving = node.predecessor.is_alive = True
        self.serving_since = node.loop.time()
        node.trace(f"{node.name} original serves {len(self.rows)} of {len(self.pool)}")
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._is_ending:
                self._size_pool()

    async def _listed(self, imds: ImdsV2) -> dict[Address, int]:
        """The addresses of all ENIs but their own, as IMDS lists them, each with its routing table."""
        found: dict[Address, int] = {}
        devices = {eni.mac: eni for eni in self._node.instance.enis.values() if eni.attachment}
        for mac in await imds.attached_macs():
            eni = devices.get(mac)
            if eni is not None and eni.attachment is not None and self._is_mine(eni):
                table = route_table_of(eni.attachment.card, eni.attachment.device_index)
                for address in await imds.addresses(Mac(mac)):
                    if address != eni.addresses[0]:
                        found[address] = table
        return found

    def _restore(self, listed: dict[Address, int]) -> None:
        node = self._node
        self.pool, self._rested = listed, {}
        content, modified_ns = node.checkpoints.files.get(0, (b"", 0))
        file = parse_checkpoint(content, path="ipam.json", modified_ns=modified_ns)
        names = [link.ifname for link in node.kernel.state.links.values()]
        # A file that it cannot read ends it; somebody takes the file away, and it starts with nothing.
        kept, dropped = restored(file, names, listed) if file.status == READ else ([], [])
        self.rows = {row.address: row for row in kept}
        for row in dropped:
            self._drop_rules(row.address)
        self.lost = self._watcher.on_original_restored(node, dict(self.rows), listed)
        self._write()
        node.kernel.start_as_original(self._setups(), sorted(self.rows))

    def _drop_rules(self, address: Address) -> None:
        state, one = self._node.kernel.state, host_cidr(address)
        state.rules = [
            rule
            for rule in state.rules
            if (rule.priority, rule.dst) != (PRIORITY_TO_POD, one)
            and (rule.priority, rule.src) != (PRIORITY_FROM_POD, one)
        ]

    def _setups(self) -> list[EniSetup]:
        cidr = Cidr(str(self._node.instance.subnet.cidr))
        return [
            eni_setup(
                EniWiring(
                    eni=EniId(eni.id),
                    mac=Mac(eni.mac),
                    primary=Address(eni.addresses[0]),
                    subnet_cidr=cidr,
                    table=route_table_of(eni.attachment.card, eni.attachment.device_index),
                    card=eni.attachment.card,
                    device=eni.attachment.device_index,
                    is_primary=eni.attachment.device_index == 0,
                ),
                DatapathSettings(),
            )
            for eni in self._node.instance.enis.values()
            if eni.attachment is not None and eni.attachment.status == "attached" and self._is_mine(eni)
        ]

    def _write(self) -> None:
        rows = list(self.rows.values())
        self._rng.shuffle(rows)
        self._node.checkpoints.put(render_checkpoint(rows, None))

    # -- EC2 --------------------------------------------------------------------------------------

    def _is_mine(self, eni: Eni) -> bool:
        return self._node.is_managed(eni)

    def _free(self) -> list[Address]:
        now = self._node.loop.time()
        return [
            address
            for address in sorted(self.pool)
            if address not in self.rows and now - self._rested.get(address, -COOLDOWN_S) >= COOLDOWN_S
        ]

    def _size_pool(self) -> None:
        """Grow when little is free; now and then give something back that nobody has, in cooldown or not."""
        unassigned = sorted(set(self.pool) - set(self.rows))
        enis = [eni for eni in self._node.instance.enis.values() if self._is_settled(eni)]
        if len(unassigned) < FREE_MIN:
            for eni in enis:
                if self._assign(eni):
                    return
            self._attach_new()
        elif len(unassigned) > 3 * GROW and self._rng.random() < 0.3:
            self._unassign(self._rng.sample(unassigned, self._rng.randint(1, 3)), enis)

    def _is_settled(self, eni: Eni) -> bool:
        return self._is_mine(eni) and eni.attachment is not None and eni.attachment.status == "attached"

    def _assign(self, eni: Eni) -> bool:
        room = self._node.instance.type.ipv4_per_eni - len(eni.addresses)
        if room <= 0 or eni.attachment is None:
            return False
        answer = self._call(
            "AssignPrivateIpAddresses",
            NetworkInterfaceId=eni.id,
            SecondaryPrivateIpAddressCount=min(room, GROW),
        )
        table = route_table_of(eni.attachment.card, eni.attachment.device_index)
        for one in (answer or {}).get("AssignedPrivateIpAddresses", ()):
            self.pool[Address(one["PrivateIpAddress"])] = table
        return answer is not None

    def _is_unseen(self) -> bool:
        """Whether our agent serves beside it and cannot have seen it yet: then both have the same free addresses.

        Nothing can keep the two from giving one of them away twice (docs/reliability.md, *What is not promised*). So
        it gives none away, but only for as long as not to have been seen is no mistake of ours.
        """
        agent, since = self._node.agent, self.serving_since
        if agent is None or since is None or not agent.recovery.is_done:
            return False
        return self._node.loop.time() - since < NOTICED_S

    def _unassign(self, addresses: Sequence[Address], enis: Sequence[Eni]) -> None:
        if self._is_unseen():
            return
        for address in addresses:
            owner = next((eni for eni in enis if address in eni.secondaries), None)
            if owner is None or self._watcher.is_living(self._node, address):
                continue
            self._call(
                "UnassignPrivateIpAddresses", NetworkInterfaceId=owner.id, PrivateIpAddresses=[address]
            )
            self.pool.pop(address, None)

    def _attach_new(self) -> None:
        """An ENI as it makes it: tagged with the instance, attached, its addresses there a moment later."""
        instance = self._node.instance
        used = {eni.attachment.device_index for eni in instance.enis.values() if eni.attachment}
        if len(used) >= instance.type.enis:
            return
        tags = [{"Key": INSTANCE_TAG, "Value": instance.id}]
        made = self._call(
            "CreateNetworkInterface",
            SubnetId=instance.subnet.id,
            SecondaryPrivateIpAddressCount=GROW,
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}],
        )
        if made is None:
            return
        eni_id = made["NetworkInterface"]["NetworkInterfaceId"]
        if self._rng.random() < 0.1:
            self.left_behind = True
            return  # Killed before it was attached.
        device = next(index for index in range(1, 64) if index not in used)
        attached = self._call(
            "AttachNetworkInterface", NetworkInterfaceId=eni_id, InstanceId=instance.id, DeviceIndex=device
        )
        if attached is None:
            self._call("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
            return
        eni = self._node.region.world.enis[eni_id]
        if self._rng.random() < 0.8:  # Else it was killed before it knew of them, or of DeleteOnTermination.
            for address in eni.secondaries:
                self.pool[Address(address)] = route_table_of(0, device)

    def _call(self, action: str, **params: Any) -> dict[str, Any] | None:
        region, now = self._node.region, self._node.loop.time()
        answer = region.perform(action, params, now)
        region.advance(now)
        refused = answer if isinstance(answer, Ec2Fault) else None
        self._node.trace(f"{self._node.name} original {action} {'ok' if refused is None else refused.code}")
        return None if isinstance(answer, Ec2Fault) else answer

    # -- its plugin -------------------------------------------------------------------------------

    async def add(self, sandbox: Sandbox) -> tuple[int, dict[str, Any]]:
        """An ADD by its executable: status and result. Its steps take time, and its daemon may end meanwhile."""
        if not self.is_serving:
            return _BACK, {"reason": "the original's daemon does not answer"}
        known = next((row for row in self.rows.values() if row.key == sandbox.key), None)
        address = known.address if known is not None else self._choose()
        if not address:
            return _BACK, {"reason": "the original has no available address"}
        pod = PodRef(NAMESPACE, sandbox.pod)
        wall_ns = self._node.clock.now().wall_ns
        self.rows[address] = Row(
            key=sandbox.key, address=address, pod=pod, allocated_ns=wall_ns, interfaces_count=1
        )
        self._write()
        table = self.pool[address]
        node = self._node
        wiring = kernel_original.wiring_of(
            node.kernel,
            pod,
            netns=sandbox.netns,
            address=address,
            table=table,
            ifname="eth0",
            veth_prefix=VETH_PREFIX,
        )
        if not await self._step(wiring, lambda: sandbox.netns in node.kernel.state.netns):
            return _BACK, {"reason": "the sandbox is gone"}
        sandbox.table = table
        return 200, {"ips": [{"address": f"{address}/32"}], "interfaces": self._interfaces(sandbox, pod)}

    async def _step(
        self, steps: Iterable[tuple[str, Callable[[], object]]], is_possible: Callable[[], bool]
    ) -> bool:
        kernel, pace_s = self._node.kernel, self._rng.choice((0.0, 0.0005, 0.002, 0.05, 0.4))
        for _, step in steps:
            if pace_s:
                await asyncio.sleep(pace_s)
            if kernel is not self._node.kernel or not is_possible():
                return False
            step()
        return True

    def _choose(self) -> Address:
        """Any free address, but for those that it takes for free or its own by a mistake that is its own."""
        if self._is_unseen():
            return Address("")
        node = self._node
        owned = {address for eni in node.instance.enis.values() for address in eni.secondaries}
        free = [
            one
            for one in self._free()
            if one in owned and one not in self.lost and not self._watcher.is_living(node, one)
        ]
        return self._rng.choice(free) if free else Address("")

    @staticmethod
    def _interfaces(sandbox: Sandbox, pod: PodRef) -> list[dict[str, str]]:
        name = host_veth_name(VETH_PREFIX, pod.namespace, pod.name)
        return [
            {"name": name},
            {"name": "eth0", "sandbox": sandbox.netns},
            {"name": f"dummy{name[3:]}", "mac": "0", "sandbox": "0"},
        ]

    async def delete(self, sandbox: Sandbox) -> bool:
        """A DEL by its executable. Whether it was answered with success."""
        row = next((row for row in self.rows.values() if row.key == sandbox.key), None)
        if self.is_serving and row is not None:
            del self.rows[row.address]
            self._rested[row.address] = self._node.loop.time()
            self._write()
            await self._unwire(row.address, self.pool.get(row.address, sandbox.table))
        elif not self.is_serving and sandbox.table and sandbox.address:
            # By the result of its own ADD. That of another plugin tells it nothing: success, and all is left.
            await self._unwire(sandbox.address, sandbox.table)
        return True

    async def _unwire(self, address: Address, table: int) -> None:
        # Killed in the middle now and then: what it has not removed stays.
        until = self._rng.choice(kernel_original.UNWIRING) if self._rng.random() < 0.06 else "done"
        await asyncio.sleep(self._rng.choice((0.0, 0.002, 0.1)))
        self._node.kernel.unwire_as_original(address=address, table=table, until=until)


def foreign_content(rows: Sequence[Row]) -> bytes:
    """A checkpoint file as the original writes it."""
    return render_checkpoint([msgspec.structs.replace(row, card=0) for row in rows], None)

"""Taking over from amazon-vpc-cni-k8s and handing back while connections run through its pods.

The far side filters strictly by source, as the VPC does. No connection dies, and none loses more than one segment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.contract.kernel_worlds import RealWorld, sh
from tests.integration.talk import Talk, talking
from tests.original import wiring
from tests.original.host import Eni, Settings, missing_program
from tests.original.node import OriginalNode, Pod
from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.adapters import kernel_firewall
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.checkpoint import render_checkpoint
from vpccni.datapath.convert import farewell
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference, sweep, unwire, wire
from vpccni.datapath.names import alias_of
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import Applied, Desired, LeaseWiring, Observed
from vpccni.evidence import Row
from vpccni.model import Mac

pytestmark = [pytest.mark.netns, pytest.mark.slow]

INTERNET = "8.8.8.8"
IN_VPC = "10.0.9.9"
ENIS = [eni(0), eni(1)]
WORDS = 20
"""How many go there and back before a conversation counts as going on."""
FLAVOURS = {
    "iptables-nft": Settings(connmark="iptables"),
    "iptables-nft and nftables": Settings(),
    "iptables-legacy": Settings(iptables="legacy"),
}


class Scene:
    """A node of the original with a pod on each of two ENIs, the VPC around it, and conversations through both."""

    def __init__(self, world: RealWorld, kernel: NetlinkKernel, directory: Path, settings: Settings) -> None:
        self.world = world
        self.kernel = kernel
        self.numbers = {0: [1, 3, 5], 1: [2, 4, 6]}
        self.enis = [
            Eni(
                mac=each.mac,
                device=each.device,
                primary=each.primary,
                subnet=each.subnet_cidr,
                addresses=tuple(address_of(self.lease(number)) for number in self.numbers[each.device]),
            )
            for each in ENIS
        ]
        self.original = OriginalNode(world.node, enis=self.enis, run_directory=directory, settings=settings)
        self.known: list[LeaseWiring] = []
        self.ended: list[LeaseWiring] = []

    def lease(self, number: int) -> LeaseWiring:
        device = next(device for device, numbers in self.numbers.items() if number in numbers)
        return lease(number, device=device)

    def plug_in(self) -> None:
        node, vpc = self.world.node, self.world.outside
        for each in ENIS:
            self.world.plug(each.mac, f"eth{each.device}")
        far = sh(vpc, "ip -br link | grep -o '^far[0-9]*' | sort").split()
        sh(
            node,
            "ip addr add 10.0.0.10/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.0.1\n"
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 2 >/proc/sys/net/ipv4/conf/eth0/rp_filter",
        )
        script = [f"ip addr add {address}/32 dev lo" for address in (INTERNET, IN_VPC)] + [
            "ip link set lo up"
        ]
        for device, name in enumerate(far):
            script += [
                f"ip link set {name} mtu 9001",
                f"ip addr add 10.0.{device}.1/24 dev {name}",
                f"echo 1 > /proc/sys/net/ipv4/conf/{name}/rp_filter",
                *(
                    f"ip route add {address}/32 via 10.0.{device}.10"
                    for address in self.enis[device].addresses
                ),
            ]
        sh(vpc, "\n".join([*script, "echo 1 > /proc/sys/net/ipv4/ip_forward"]))

    def add_as_original(self, number: int) -> Pod:
        one = self.lease(number)
        return self.original.add(
            one.pod.namespace,
            one.pod.name,
            netns=self.world.add_netns(),
            container_id=one.key.container_id,
            address=address_of(one),
        )

    def talks(self, pods: dict[int, Pod]) -> list[Talk]:
        """For each pod: to the internet, to the VPC, from the VPC and from the node; and from one to the other."""
        vpc, node = self.world.outside, self.world.node
        made: list[Talk] = []
        for number, pod in pods.items():
            made += [
                Talk(
                    f"pod {number} to the internet",
                    client=pod.netns,
                    server=vpc,
                    address=INTERNET,
                    port=5000 + number,
                ),
                Talk(
                    f"pod {number} to the VPC",
                    client=pod.netns,
                    server=vpc,
                    address=IN_VPC,
                    port=5000 + number,
                ),
                Talk(
                    f"the VPC to pod {number}",
                    client=vpc,
                    server=pod.netns,
                    address=pod.address,
                    port=6000,
                    source=IN_VPC,
                ),
                Talk(
                    f"the node to pod {number}", client=node, server=pod.netns, address=pod.address, port=6001
                ),
            ]
            assert [talk.seen for talk in made[-4:-2]] == [eni(0).primary, pod.address]
        first, second = pods.values()
        made.append(
            Talk("pod to pod", client=first.netns, server=second.netns, address=second.address, port=6002)
        )
        made.append(
            Talk("pod to pod", client=second.netns, server=first.netns, address=first.address, port=6002)
        )
        return made

    async def find(self, number: int, pod: Pod) -> LeaseWiring:
        """The pod's lease, as a search of the node brings it into the log."""
        (veth,) = [
            veth
            for veth in (await self.kernel.survey("eni", [pod.netns])).veths
            if veth.ifname == pod.host_ifname
        ]
        assert veth.routed == (pod.address,)
        one = self.lease(number)
        return msgspec.structs.replace(
            one,
            netns=pod.netns,
            host_ifname=veth.ifname,
            host_ifindex=veth.ifindex,
            alias=alias_of(one.key),
            host_mac=Mac(veth.mac),
            pod_mac=veth.pod_mac,
            is_found=True,
        )

    def wanted(self, *, as_original: bool = False) -> Desired:
        return desired(self.known, ENIS, SETTINGS, VPC, ended=self.ended, as_original=as_original)

    def export(self) -> None:
        """What the original finds of our leases; it forgets the rules of a pod of its own rows that has no veth."""
        rows = [Row(key=one.key, address=one.bindings[0].address, pod=one.pod) for one in self.known]
        self.original.checkpoint_path.write_bytes(render_checkpoint(rows, None))

    async def converge(self, *, as_original: bool = False) -> Applied:
        """Bring the kernel in line; a second look finds nothing more to do."""
        wanted = self.wanted(as_original=as_original)
        applied = await self.kernel.apply(difference(wanted, await self.kernel.observe()))
        again = difference(wanted, await self.kernel.observe())
        assert again.is_empty, again
        assert applied.notes == ()
        return applied


def address_of(one: LeaseWiring) -> str:
    return one.bindings[0].address


def of_original(observed: Observed) -> list[object]:
    """Everything in the kernel that only the original makes."""
    rules = [rule for rule in observed.rules if rule.priority == 512 and rule.dst]
    routes = [route for route in observed.routes if route.table == 254 and route.dst.endswith("/32")]
    return [*rules, *routes, *observed.firewall.parts]


@pytest.fixture(params=list(FLAVOURS.values()), ids=list(FLAVOURS))
async def scene(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    settings = request.param
    lacking = missing_program(settings)
    if lacking:
        pytest.skip(f"{lacking} is not installed")
    lock = tmp_path / "xtables.lock"
    lock.touch()
    monkeypatch.setattr(kernel_firewall, "LOCK", lock)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    world = RealWorld()
    try:
        made = Scene(world, await world.open(), tmp_path, settings)
        made.plug_in()
        try:
            yield made
        finally:
            made.original.stop()
    finally:
        await world.close()


async def test_no_connection_dies_from_the_take_over_to_the_return(scene):
    """1. Take-over.  2. A late plugin.  3. Ends and re-use.  4. Hand-back.  5. The original's turn.  6. Return."""
    await asyncio.to_thread(scene.original.start)
    pods = {number: await asyncio.to_thread(scene.add_as_original, number) for number in (1, 2)}
    other = await asyncio.to_thread(scene.add_as_original, 4)
    with talking(await asyncio.to_thread(scene.talks, pods)) as talks:

        async def all_go_on(step: str, lost: int = 1) -> None:
            for talk, count in [(talk, talk.words + WORDS) for talk in talks]:
                await asyncio.to_thread(talk.wait_words, count)
            worst = {talk.name: talk.retransmissions() for talk in talks}
            assert max(worst.values()) <= lost, f"{step}: {worst}"

        await all_go_on("before", lost=0)
        scene.original.stop()

        # 1. Take-over: ours first, then its rules, its routes and its firewall.
        assert of_original(await scene.kernel.observe())
        scene.known = [await scene.find(number, pod) for number, pod in ((*pods.items(), (4, other)))]
        applied = await scene.converge()
        assert of_original(await scene.kernel.observe()) == []
        assert {removed.kind for removed in applied.removed} >= {"rule", "route", "iptables"}
        await all_go_on("take-over")

        # 2. A plugin process of the original that was still under way, with an address on each ENI.
        for number in (3, 6):
            one = scene.lease(number)
            late = one.bindings[0]
            path = scene.world.add_netns()
            veth = await asyncio.to_thread(
                wiring.wire,
                scene.world.node,
                "default",
                one.pod.name,
                netns=path,
                address=late.address,
                table=late.table,
            )
            before = of_original(await scene.kernel.observe())
            await scene.converge()
            assert of_original(await scene.kernel.observe()) == before, "nobody has found it yet"
            pod = replace(other, netns=path, host_ifname=veth, row=replace(other.row, address=late.address))
            scene.known.append(await scene.find(number, pod))
            await scene.converge()
            assert of_original(await scene.kernel.observe()) == []
        await all_go_on("a late plugin")

        # 3. The end of a pod of the original, and its address in use again by ours, beside a stale rule.
        gone = next(one for one in scene.known if one.lease == 4)
        scene.known.remove(gone)
        scene.ended.append(gone)
        await scene.kernel.apply(unwire(gone))
        await scene.converge()
        await scene.kernel.apply(sweep([gone]))
        scene.world.remove_netns(other.netns)
        scene.ended.clear()
        sh(scene.world.node, f"ip rule add pref 512 to {address_of(gone)} lookup main")
        new = msgspec.structs.replace(
            lease(14, device=1, address=address_of(gone)), netns=scene.world.add_netns()
        )
        seen = (await scene.kernel.apply(wire(new, ENIS, SETTINGS))).sandboxes[new.lease]
        new = msgspec.structs.replace(new, host_ifindex=seen.host_ifindex, host_ifname=seen.host_ifname)
        scene.known.append(new)
        await scene.converge()
        talks.append(
            await asyncio.to_thread(
                lambda: Talk(
                    "the new pod", client=new.netns, server=scene.world.outside, address=IN_VPC, port=5014
                )
            )
        )
        assert talks[-1].seen == address_of(new)
        await all_go_on("ends and re-use")

        # 4. Hand-back: each pod also gets the original's route, and then its rule.
        await scene.converge(as_original=True)
        assert len(of_original(await scene.kernel.observe())) == 2 * len(scene.known)
        assert farewell(scene.wanted(as_original=True), await scene.kernel.observe()).objections
        await all_go_on("hand-back")

        # 5. The original starts. It sets the ENIs up anew, so that what is lost from here on is its own doing.
        lost = max(talk.retransmissions() for talk in talks)
        scene.export()
        await asyncio.to_thread(scene.original.start)
        await all_go_on("the original's start", lost=1000)
        lost = max(lost, *(talk.retransmissions() for talk in talks))
        scene.kernel = await scene.world.open()  # As the command does it, and later the next agent.
        bye = farewell(scene.wanted(as_original=True), await scene.kernel.observe())
        assert bye.objections == ()
        await scene.kernel.apply(bye.difference)
        observed = await scene.kernel.observe()
        assert POD_TABLE not in {route.table for route in observed.routes}
        assert observed.nft.digest == ""
        await all_go_on("the farewell", lost=lost + 1)

        # 6. And back: its daemon goes, ours takes over again.
        scene.original.stop()
        await scene.converge()
        assert of_original(await scene.kernel.observe()) == []
        await all_go_on("the return", lost=lost + 1)

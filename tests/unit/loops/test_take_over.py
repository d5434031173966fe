"""An agent's first start on a node that it must not take over, and on one that it may."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.fakes.kubernetes import FakeKubernetesNode
from tests.unit.loops.rig import Rig
from vpccni.datapath.names import host_veth_name
from vpccni.errors import Reason
from vpccni.evidence import PodSeen
from vpccni.lab.ec2 import Ec2Fault, ImdsFault
from vpccni.lab.sim.loop import run_virtual
from vpccni.model import PodRef

WEB = PodRef("default", "web-5d4f-abcde")
MINUTE = 60.0
BRANCH_MAC = "0a:00:00:00:00:01"
PIN = "web-5d4f@default_handle_ingress"


def assigned(rig: Rig, **params: Any) -> Any:
    """What the original had EC2 give to the primary ENI."""
    (eni,) = rig.instance.enis
    made = rig.region.perform("AssignPrivateIpAddresses", {"NetworkInterfaceId": eni, **params}, rig.now())
    assert not isinstance(made, Ec2Fault)
    return made


def in_prefix(rig: Rig) -> str:
    """An address out of a /28 of the node."""
    made = assigned(rig, Ipv4PrefixCount=1)
    return str(ip_network(made["AssignedIpv4Prefixes"][0]["Ipv4Prefix"])[3])


def single(rig: Rig) -> str:
    made = assigned(rig, SecondaryPrivateIpAddressCount=1)
    address: str = made["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    return address


def live_as_original(rig: Rig, address: str) -> None:
    rig.kernel.wire_as_original(WEB, netns="/run/netns/web", address=address)


def make_prefix(rig: Rig) -> None:
    live_as_original(rig, in_prefix(rig))


def make_policies(rig: Rig) -> None:
    live_as_original(rig, single(rig))
    rig.predecessor.pins = {PIN}
    rig.kubernetes = FakeKubernetesNode()
    rig.kubernetes.policies = {"default/web-x2x"}


def make_branch(rig: Rig) -> None:
    live_as_original(rig, single(rig))
    rig.kubernetes = FakeKubernetesNode()
    rig.kubernetes.put(PodSeen(pod=WEB, has_branch_eni=True))


def make_strict_branch(rig: Rig) -> None:
    """With security groups enforced strictly: the interface is called otherwise, and no rule names the pod."""
    rig.kernel.plug(BRANCH_MAC, host_veth_name("vlan", WEB.namespace, WEB.name), kind="veth")
    rig.kubernetes = FakeKubernetesNode()
    rig.kubernetes.is_down = True


def remedy(rig: Rig) -> None:
    """Somebody does what the message says."""
    rig.kernel.unplug(BRANCH_MAC)
    rig.predecessor.pins.clear()
    rig.kernel.remove_netns("/run/netns/web")
    if rig.kubernetes is not None:
        rig.kubernetes.uids.clear()


@pytest.mark.parametrize("make", [make_prefix, make_policies, make_branch, make_strict_branch])
def test_what_we_cannot_serve_is_refused_before_anything_is_changed(make):
    async def scenario():
        rig = Rig()
        make(rig)
        kernel, calls = rig.kernel.dump(), rig.calls()
        await rig.start()
        await asyncio.sleep(MINUTE)
        refused = rig.live.readiness.refusal()
        assert refused is not None
        assert refused.reason is Reason.TAKE_OVER_REFUSED
        if make not in (make_prefix, make_strict_branch):  # Nothing names these pods here.
            assert "default/web-5d4f-abcde" in refused.detail or PIN in refused.detail
        status, answer = await rig.cni("ADD", "new")
        assert (status, answer["reason"]) == (503, "take_over_refused")
        rig.kernel.remove_netns("/run/netns/new")
        assert rig.kernel.dump() == kernel
        assert 0 not in rig.checkpoints.files
        assert "node_surveyed" not in rig.kinds()
        changed = {action for action, count in rig.calls().items() if count != calls.get(action)}
        assert not {action for action in changed if not action.startswith("Describe")}

        remedy(rig)
        await rig.ready(60)
        await rig.add("new")
        await rig.stop()

    run_virtual(scenario())


def test_a_single_address_beside_an_empty_prefix_is_taken_over():
    async def scenario():
        rig = Rig()
        in_prefix(rig)
        live_as_original(rig, single(rig))
        await rig.start()
        await rig.ready(60)
        assert len(rig.state.leases) == 1
        await rig.stop()

    run_virtual(scenario())


def test_imds_that_is_slow_delays_a_recovery_by_half_a_second_only():
    """The prefixes are not known then; the pods are, and they come first."""

    async def scenario():
        rig = Rig()
        live_as_original(rig, single(rig))
        rig.region.imds.inject(ImdsFault(kind="latency", seconds=30.0))
        await rig.start()
        async with asyncio.timeout(1.0):
            while not rig.live.recovery.is_done:
                await asyncio.sleep(0.01)
        assert len(rig.state.leases) == 1
        await rig.stop()

    run_virtual(scenario())


def test_our_own_pods_in_a_prefix_do_not_keep_us_from_our_node():
    """1. We serve out of a /28 that was there. 2. Our log is lost."""

    async def scenario():
        rig = Rig()
        prefix = ip_network(assigned(rig, Ipv4PrefixCount=1)["AssignedIpv4Prefixes"][0]["Ipv4Prefix"])
        await rig.up()
        mine = {await rig.add(f"pod-{number}") for number in range(16)}
        assert any(ip_address(address) in prefix for address in mine)
        await rig.stop()
        rig.store.events.clear()
        rig.store.snapshots.clear()
        await rig.start()
        await rig.ready(60)
        assert {lease.bindings[0].address for lease in rig.state.leases.values()} == mine
        await rig.stop()

    run_virtual(scenario())

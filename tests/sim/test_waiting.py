"""An ADD waits while something can satisfy it, and is told at once when nothing can."""

from __future__ import annotations

import asyncio

from tests.sim.stage import Stage, play
from vpccni.errors import PermanentError, Reason


def test_a_full_node_does_not_wait_for_addresses_that_nobody_can_have():
    """1. An ENI has served pods and serves no more: its link is gone. 2. All else is in use. 3. An ADD comes."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 9)
        lost = stage.eni_of(pods[-1])
        assert lost is not stage.primary_of(node)
        await stage.delete(node, *[pod for pod in pods if stage.eni_of(pod) is lost])
        node.kernel.unplug(lost.mac)
        await asyncio.sleep(90)
        began = stage.loop.time()
        kubelet = stage.kubelets[node.name]
        assert not await kubelet._add(kubelet._new_sandbox("one-too-many"))
        assert kubelet._refusal in ("instance_full", "eni_link_missing")
        assert stage.loop.time() - began < 2

    play(scenario)


def test_a_full_node_waits_for_an_address_that_rests():
    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 9)
        await stage.delete(node, pods[0])
        began = stage.loop.time()
        await stage.pods(node, 1)
        assert 20 < stage.loop.time() - began < 40

    play(scenario)


def test_an_agent_that_may_not_change_the_kernel_says_so_and_recovers(monkeypatch):
    """1. The container lacks CAP_NET_ADMIN. 2. An ADD comes. 3. The container is given it."""

    async def scenario(stage: Stage):
        node = stage.machine()

        def refuse(setup):
            raise PermanentError(Reason.KERNEL_REFUSED, "eni: Operation not permitted [EPERM]")

        monkeypatch.setattr(node.kernel, "_set_up_eni", refuse)
        node.start()
        await asyncio.sleep(30)
        refusal = stage.agent(node).readiness.refusal()
        assert refusal is not None
        assert (refusal.reason, "EPERM" in refusal.detail) == (Reason.KERNEL_REFUSED, True)
        began = stage.loop.time()
        kubelet = stage.kubelets[node.name]
        assert not await kubelet._add(kubelet._new_sandbox("too-early"))
        assert kubelet._refusal == "kernel_refused"
        assert stage.loop.time() - began < 2
        monkeypatch.undo()
        await stage.ready(node, 30)
        await stage.pods(node, 3)

    play(scenario)


def test_no_pod_is_put_on_an_eni_whose_link_has_gone():
    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 4)
        lost = stage.eni_of(pods[-1])
        assert lost is not stage.primary_of(node)
        node.kernel.unplug(lost.mac)
        await asyncio.sleep(1)  # before the look to which the routes lead that have gone with it
        later = await stage.pods(node, 2)
        assert all(stage.eni_of(pod) is not lost for pod in later)

    play(scenario)


def test_an_eni_on_its_way_out_is_not_taken_back_because_nobody_says_how_far_it_is():
    """1. A detach is accepted. 2. What became of it cannot be asked. 3. Pods come and need every address."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large", {"WARM_IP_TARGET": "1"})
        pods = await stage.pods(node, 12)
        leaving = stage.eni_of(pods[-1])
        assert leaving is not stage.primary_of(node)
        await stage.delete(node, *pods[:2], *[pod for pod in pods if stage.eni_of(pod) is leaving])
        async with asyncio.timeout(300):
            while not stage.calls("DetachNetworkInterface"):
                await asyncio.sleep(0.02)
        stage.strike(
            node,
            kind="ec2_call",
            action="DescribeNetworkInterfaces",
            how="error",
            code="InternalError",
            count=3,
        )
        await asyncio.sleep(2)
        more = await stage.pods(node, 5)
        assert all(stage.eni_of(pod) is not leaving for pod in more)

    play(scenario)

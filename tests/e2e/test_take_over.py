"""The whole agent takes a node over from amazon-vpc-cni-k8s, hands it back and returns, under traffic."""

from __future__ import annotations

import signal
import time
from functools import partial

import pytest

from tests.e2e.handover import FLOWING, Handover, handover
from tests.e2e.waiting import wait_until
from tests.original import wiring
from tests.original.host import Settings
from vpccni.lab.audit import replay, secondaries
from vpccni.lab.ledger import Sandbox

pytestmark = [pytest.mark.netns, pytest.mark.slow]

COOLDOWN_S = 2
SETTINGS = {"MAX_ENI": "2", "IP_COOLDOWN_PERIOD": str(COOLDOWN_S)}
FIREWALLS = {
    "iptables-nft": Settings(connmark="iptables"),
    "iptables-nft and nftables": Settings(connmark="nft"),
}


@pytest.mark.parametrize("settings", FIREWALLS.values(), ids=FIREWALLS)
async def test_connections_live_through_take_over_hand_back_and_return(settings):
    """1. The original stops, our agent starts with an empty log. 2. Pods come, late plugins end, pods of the original
    go, their addresses are used again. 3. The node is handed back, the original serves. 4. Our agent returns."""
    async with handover(settings) as it:
        owned = set(secondaries(it.lab, it.node))
        await take_over(it)
        async with it.phase("ADDs"):
            new = await it.add("new", 8)
            assert not {pod.address for pod in new} & {pod.address for pod in it.stage.pods.values()}
        await finish_late_plugins(it)
        freed = await delete_pods_of_the_original(it)
        again = await use_again(it, freed)
        await hand_back(it)
        await start_original(it, [*new, *again])
        await serve_by_original(it, gone=new[0], replaced=new[1])
        await clean_up(it)
        await come_back(it, gone=new[0], replaced=new[1])

        it.flows.finish()
        assert set(secondaries(it.lab, it.node)) == owned
        assert it.ec2_changes() == []
        assert (await replay(it.node.places.events, "verify"))[0] == 0


async def take_over(it: Handover) -> None:
    async with it.phase("take-over"):
        it.stage.original.stop()
        await it.lab.start_agent(it.node, SETTINGS)
        await it.lab.wait_ready(it.node)
    status = await it.status()
    assert (status["recovery"]["leases"], status["recovery"]["holds"]) == (len(it.stage.pods), 0)
    assert status["problems"]["unexplained"] == status["problems"]["datapath"] == []
    assert it.lines_with("AWS-SNAT-CHAIN-0") == it.lines_with("aws-cni") == []
    for name in (*FLOWING, "db-0", "db-1", "db-2", "db-3"):
        assert it.is_ours(it.stage.pods[name].address), name


async def finish_late_plugins(it: Handover) -> None:
    """Processes of the original's plugin end only now: what they wire is converted, too."""
    async with it.phase("late plugins"):
        late = [it.finish_late(name) for name in list(it.late)]
        for pod in late:
            await wait_until(partial(it.is_ours, pod.address), f"conversion of {pod.row.name}")
        await it.check_reachable((it.stage.sandboxes[pod.row.name], pod.address) for pod in late)


async def delete_pods_of_the_original(it: Handover) -> dict[str, float]:
    """One of each ENI by containerd, one of each by CRI-O: nothing is left of them. When each address was freed."""
    ways = {
        "db-0": it.delete_as_containerd,
        "db-1": it.delete_as_containerd,
        "db-2": it.delete_as_crio,
        "db-3": it.delete_as_crio,
    }
    freed: dict[str, float] = {}
    async with it.phase("DELs"):
        for name, delete in ways.items():
            pod = it.stage.pods.pop(name)
            freed[pod.address] = time.time()
            await delete(pod)
            assert it.paths_of(pod.address) == [], name
    return freed


async def use_again(it: Handover, freed: dict[str, float]) -> list[Sandbox]:
    """Nothing else is free, so they wait for the cooldown. A rule that the original left is found and healed."""
    async with it.phase("re-use"):
        again = await it.add("again", len(freed))
        assert {pod.address for pod in again} == set(freed)
        assert min(pod.added_at - freed[pod.address] for pod in again) >= COOLDOWN_S
        stale = again[0].address
        wiring.run_in(it.node.namespace.path, f"ip rule add pref 512 to {stale} lookup main")
        await wait_until(lambda: it.is_ours(stale), "the stale rule goes")
        await it.check_reachable((pod.netns, pod.address) for pod in again)
    return again


async def hand_back(it: Handover) -> None:
    async with it.phase("hand-back"):
        assert "Ready. Start the original now" in await it.command("hand-back")
        for address in [
            lease["addresses"][0] for lease in (await it.pods()).values() if lease["host_ifname"]
        ]:
            told = it.paths_of(address)
            assert any(path.endswith(f"to {address} lookup main") for path in told), told
            assert any("table 51200" in path for path in told), told
        assert await it.lab.kill_agent(it.node, signal.SIGTERM) == 0


async def start_original(it: Handover, ours: list[Sandbox]) -> None:
    """It restores every pod that lives, by our export."""
    names = {pod.pod: pod.address for pod in ours}
    names |= {name: it.stage.pods[name].address for name in (*FLOWING, "late-0", "late-1")}
    async with it.phase("the original starts", is_original_at_work=True):
        it.stage.start_original()
        assert {row.name: row.address for row in it.stage.original.rows.values()} == names


async def serve_by_original(it: Handover, *, gone: Sandbox, replaced: Sandbox) -> None:
    """DELs of our pods; ADDs with the address of one of them, and with that of a pod that was dead before."""
    async with it.phase("the original serves"):
        for pod in (gone, replaced):
            await it.delete_by_original(pod)
            assert [path for path in it.paths_of(pod.address) if "51200" not in path] == []
        for name, address in (("back-0", it.stage.pods["dead-0"].address), ("back-1", replaced.address)):
            await it.stage.add_pod(name, address=address)
            await it.check_reachable([(it.stage.sandboxes[name], address)])


async def clean_up(it: Handover) -> None:
    places = it.node.places
    async with it.phase("the end of the hand-back"):
        finish = ("hand-back", "--finish", "--state-dir", str(places.state), "--run-dir", str(places.run))
        done = await it.stage.vpccni(*finish)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        assert it.lines_with("51200") == it.lines_with("vpccni") == it.lines_with("alias") == []
        assert len(it.lines_with("512:")) == len(it.stage.original.rows)


async def come_back(it: Handover, *, gone: Sandbox, replaced: Sandbox) -> None:
    """Its new pods are found. Of ours, those end that it has ended, by what it lists and by the kernel."""
    async with it.phase("return"):
        it.stage.original.stop()
        await it.lab.start_agent(it.node)
        await it.lab.wait_ready(it.node)
        pods = await it.pods()
        for name in ("back-0", "back-1"):
            assert (pods[name]["addresses"], pods[name]["origin"]) == (
                [it.stage.pods[name].address],
                "recovered",
            )
            await wait_until(partial(it.is_ours, it.stage.pods[name].address), f"conversion of {name}")
        assert {"dead-0", replaced.pod} & set(pods) == set()

        async def has_ended() -> bool:
            return not {gone.pod, "dead-1"} & set(await it.pods())

        await wait_until(has_ended, "the end of what the original no longer lists")
        status = await it.status()
        assert (status["mode"], status["problems"]["datapath"], status["recovery"]["holds"]) == (
            "serve",
            [],
            0,
        )
        assert it.lines_with("AWS-SNAT-CHAIN-0") == it.lines_with("aws-cni") == []

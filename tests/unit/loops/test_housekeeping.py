"""The lease sweep, the spool and the log's upkeep, on virtual time."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes.kubernetes import FakeKubernetesNode
from tests.unit.loops.rig import NETWORK, Rig
from vpccni.adapters.log_format import LogFault
from vpccni.errors import Reason, TransientError
from vpccni.lab.sim.loop import run_virtual
from vpccni.loops.housekeeping import SECOND_SIGHT_S, SNAPSHOT_AFTER, SWEEP_PERIOD_S
from vpccni.loops.serve_cni import GC_LATE_S
from vpccni.model import Stamp

HOUR = 3600.0


async def with_dead_pod(**witnesses):
    """A node with a pod ``alive``, and one ``dead`` whose namespace is gone without a DEL."""
    rig = Rig()
    if witnesses.get("api"):
        rig.kubernetes = FakeKubernetesNode(uids=frozenset({"uid-alive"}))
    if witnesses.get("runtime"):
        rig.runtime.is_readable = True
        rig.runtime.known.add((NETWORK, "alive", "eth0"))
    await rig.up()
    for pod in ("alive", "dead"):
        await rig.add(pod)
    rig.kernel.remove_netns("/run/netns/dead")
    return rig


@pytest.mark.parametrize("witness", ["api", "runtime"])
def test_two_witnesses_end_a_lease_after_two_sights_of_the_kernel(witness):
    async def scenario():
        rig = await with_dead_pod(**{witness: True})
        await asyncio.sleep(SWEEP_PERIOD_S)
        assert rig.held("dead").source == "kernel"
        quarantined_at = rig.now()
        await asyncio.sleep(SECOND_SIGHT_S - 10)
        assert rig.lease("dead") is not None
        await asyncio.sleep(20)
        assert rig.lease("dead") is None
        assert rig.now() - quarantined_at < 2 * SECOND_SIGHT_S
        assert rig.held("alive").suspected is None
        ended = json.loads(
            next(stored.body for stored in rig.store.events if stored.kind == "lease_ended").decode()
        )
        assert "kernel" in str(ended)
        await rig.stop()

    run_virtual(scenario())


def test_the_kernel_alone_never_ends_a_lease():
    async def scenario():
        rig = await with_dead_pod()
        await asyncio.sleep(HOUR)
        assert rig.held("dead").source == "kernel"
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("witness", ["api", "runtime", "gc"])
def test_any_other_witness_alone_never_ends_a_lease(witness):
    async def scenario():
        rig = Rig()
        if witness == "api":
            rig.kubernetes = FakeKubernetesNode()
        if witness == "runtime":
            rig.runtime.is_readable = True
        await rig.up()
        address = await rig.add("web")
        if witness == "gc":
            await rig.gc()
        await asyncio.sleep(HOUR)
        assert rig.held("web").bindings[0].address == address
        await rig.stop()

    run_virtual(scenario())


def test_an_api_server_or_a_runtime_that_cannot_be_asked_is_no_witness():
    async def scenario():
        rig = await with_dead_pod(api=True)
        assert rig.kubernetes is not None
        rig.kubernetes.is_down = True
        await asyncio.sleep(HOUR)
        assert rig.lease("dead") is not None
        await rig.stop()

    run_virtual(scenario())


def test_a_pod_without_a_uid_is_not_ended_by_the_api_server():
    async def scenario():
        rig = Rig()
        rig.kubernetes = FakeKubernetesNode()
        await rig.up()
        rig.kernel.add_netns("/run/netns/raw")
        assert (await rig.verb("ADD", "raw"))[0] == 200  # No CNI_ARGS at all.
        rig.kernel.remove_netns("/run/netns/raw")
        await asyncio.sleep(HOUR)
        assert rig.lease("raw") is not None
        await rig.stop()

    run_virtual(scenario())


def test_a_sandbox_that_is_seen_again_is_doubted_no_longer():
    """1. Namespace gone: quarantined.  2. An ADD for it wires it anew.  3. It is never ended."""

    async def scenario():
        rig = await with_dead_pod(api=True)
        await asyncio.sleep(SWEEP_PERIOD_S)
        assert rig.held("dead").source == "kernel"
        await rig.add("dead")
        await asyncio.sleep(HOUR)
        assert rig.held("dead").suspected is None
        await rig.stop()

    run_virtual(scenario())


def test_the_runtimes_list_and_two_sights_of_the_kernel_end_a_lease():
    async def scenario():
        rig = await with_dead_pod()
        await asyncio.sleep(SECOND_SIGHT_S + 1)  # Young leases are not doubted.
        await rig.gc("alive")
        assert rig.held("dead").source == "gc_list"
        await asyncio.sleep(SECOND_SIGHT_S - 5)
        assert rig.lease("dead") is not None
        await asyncio.sleep(20)
        assert rig.lease("dead") is None
        assert rig.lease("alive") is not None
        await rig.stop()

    run_virtual(scenario())


def test_a_list_from_long_ago_and_one_sight_of_the_kernel_do_not_end_a_lease():
    """1. GC leaves a live pod out.  2. An hour later its namespace goes.  3. The next look is the first sight."""

    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        await asyncio.sleep(GC_LATE_S + 1)
        await rig.gc()
        await asyncio.sleep(HOUR)
        rig.kernel.remove_netns("/run/netns/web")
        await asyncio.sleep(SECOND_SIGHT_S + 5)
        assert rig.lease("web") is not None
        await asyncio.sleep(2 * SECOND_SIGHT_S)
        assert rig.lease("web") is None
        await rig.stop()

    run_virtual(scenario())


def test_a_list_that_comes_after_the_kernels_doubt_is_the_second_witness():
    async def scenario():
        rig = await with_dead_pod()
        await asyncio.sleep(SWEEP_PERIOD_S + 10)
        assert rig.held("dead").source == "kernel"
        await rig.gc("alive")
        await asyncio.sleep(2 * SECOND_SIGHT_S)
        assert rig.lease("dead") is None
        await rig.stop()

    run_virtual(scenario())


def test_an_add_that_is_served_while_the_api_server_is_asked_keeps_its_lease():
    """1. Two sights: gone.  2. The API server is asked.  3. An ADD wires the sandbox anew and is acknowledged.
    4. The API server answers: not there.  The lease stays."""

    async def scenario():
        rig = await with_dead_pod(api=True)
        assert rig.kubernetes is not None
        ask = rig.kubernetes.pod_uids

        async def slowly():
            await asyncio.sleep(20)
            return await ask()

        rig.kubernetes.pod_uids = slowly
        asked = rig.kubernetes.questions
        while rig.kubernetes.questions < asked + 1:
            await asyncio.sleep(1)
        await asyncio.sleep(SECOND_SIGHT_S + 5)  # The second question is under way.
        address = await rig.add("dead")
        await asyncio.sleep(30)
        assert rig.held("dead").bindings[0].address == address
        await rig.stop()

    run_virtual(scenario())


def test_a_sweep_over_a_failing_log_ends_nothing_and_goes_on_later():
    async def scenario():
        rig = await with_dead_pod(api=True)
        await asyncio.sleep(SWEEP_PERIOD_S)
        rig.store.faults.plan(LogFault.DISK_FULL, LogFault.DISK_FULL)
        await asyncio.sleep(4 * SECOND_SIGHT_S)
        assert rig.lease("dead") is None
        await rig.stop()

    run_virtual(scenario())


# -- the spool --------------------------------------------------------------------------------------


def spooled(pod: str, **changes) -> bytes:
    config = {"cniVersion": "1.0.0", "name": NETWORK}
    return json.dumps(
        {"command": "DEL", "containerId": pod, "ifname": "eth0", "config": config} | changes
    ).encode()


def test_dels_from_while_the_agent_was_away_are_carried_out_before_it_serves():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        await rig.add("stays")
        await rig.stop()
        await asyncio.sleep(5)
        await rig.spool.write(spooled("web"), rig.clock.now())
        await rig.spool.write(spooled("never-seen"), rig.clock.now())
        await rig.start()
        assert rig.lease("web") is None
        assert rig.lease("stays") is not None
        assert not await rig.spool.entries()
        await asyncio.sleep(10)
        assert not rig.state.standing  # Its veth is taken down as after any DEL.
        await rig.stop()

    run_virtual(scenario())


def test_a_del_that_is_spooled_while_the_agent_runs_is_carried_out_soon():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        await rig.spool.write(spooled("web"), rig.clock.now())
        await asyncio.sleep(1)
        assert rig.lease("web") is None
        await rig.stop()

    run_virtual(scenario())


def test_a_spooled_del_older_than_the_lease_is_ignored_and_forgotten():
    async def scenario():
        rig = await Rig().up()
        before = rig.clock.now()
        await asyncio.sleep(1)
        address = await rig.add("web")
        await rig.spool.write(spooled("web"), before)
        await rig.spool.write(
            spooled("web"), Stamp(before.wall_ns, before.boottime_ns * 100, "an-older-boot")
        )
        await asyncio.sleep(1)
        assert rig.held("web").bindings[0].address == address
        assert not await rig.spool.entries()
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"\x00" * 100, b"[" * 5000, spooled("web", containerId="../x"), spooled("web", ifname="")],
    ids=["empty", "no command", "nul", "deep", "bad id", "no ifname"],
)
def test_a_spool_entry_of_nonsense_is_set_aside_and_does_not_hold_up_the_others(body):
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        await rig.spool.write(body, rig.clock.now())
        await rig.spool.write(spooled("web"), rig.clock.now())
        await asyncio.sleep(10)
        assert rig.lease("web") is None
        assert not await rig.spool.entries()
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
def test_a_spool_entry_that_is_no_del_ends_nothing(command):
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        body = json.loads(spooled("web", command=command, netns="/run/netns/web"))
        body["config"]["cniVersion"] = "1.1.0"
        await rig.spool.write(json.dumps(body).encode(), rig.clock.now())
        await asyncio.sleep(10)
        assert rig.lease("web") is not None
        assert not await rig.spool.entries()
        await rig.stop()

    run_virtual(scenario())


def test_a_spool_entry_stays_until_the_log_takes_it():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        rig.store.faults.plan(*[LogFault.DISK_FULL] * 4)
        await rig.spool.write(spooled("web"), rig.clock.now())
        await asyncio.sleep(1)
        assert len(await rig.spool.entries()) == 1
        assert rig.lease("web") is not None
        await asyncio.sleep(30)
        assert not await rig.spool.entries()
        assert rig.lease("web") is None
        await rig.stop()

    run_virtual(scenario())


def test_a_spool_that_cannot_be_read_does_not_end_the_agent():
    async def scenario():
        rig = await Rig().up()
        read = rig.spool.entries

        async def broken():
            raise TransientError(Reason.SPOOL_UNREADABLE, "I/O error")

        rig.spool.entries = broken  # type: ignore[method-assign]
        await rig.spool.write(spooled("web"), rig.clock.now())
        await asyncio.sleep(20)
        assert await rig.add("other")
        await rig.stop()
        await rig.start()  # Nor does it keep an agent from starting.
        assert await rig.add("web")
        rig.spool.entries = read  # type: ignore[method-assign]
        await asyncio.sleep(20)
        assert not await rig.spool.entries()
        await rig.stop()

    run_virtual(scenario())


# -- the log ----------------------------------------------------------------------------------------


def test_a_snapshot_is_written_when_idle_and_the_next_start_folds_from_it():
    async def scenario():
        rig = await Rig().up()
        number = 0
        while rig.state.head < SNAPSHOT_AFTER + 50:
            await rig.add(f"pod-{number % 5}")
            await rig.cni("DEL", f"pod-{number % 5}")
            rig.kernel.remove_netns(f"/run/netns/pod-{number % 5}")
            await asyncio.sleep(3)
            number += 1
        assert not rig.store.snapshots  # Never while there is work.
        await rig.add("stays")
        await asyncio.sleep(60)
        assert len(rig.store.snapshots) == 1
        held = rig.held("stays")
        await rig.stop()
        await rig.start()
        assert rig.held("stays") == held
        await rig.stop()

    run_virtual(scenario())

"""A log whose files are removed under the writer: put back, told, and nothing promised meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.loops.rig import Rig
from tests.unit.loops.test_write import (
    Bench,
    add,
    end,
    fail,
    parked,
    reason_of,
    running,
    subnet,
    together,
    turns,
)
from tests.unit.projections.node import key_of
from vpccni.adapters.log_format import LogFault
from vpccni.adapters.log_memory import MemoryLog
from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError
from vpccni.events.node import LogRestored
from vpccni.events.sandbox import AddressAssigned, LeaseEnded
from vpccni.lab.sim.loop import run_virtual
from vpccni.loops.housekeeping import LOG_LOOK_S
from vpccni.loops.write import fold_start
from vpccni.model import SubnetId
from vpccni.projections.snapshot import picture


async def look(bench: Bench) -> None:
    """The regular look, and the turn that it asks for."""
    await bench.writer.look_after_log()
    await turns(30)


def what_a_restart_finds(bench: Bench):
    return bench.folded()


async def test_a_removed_log_is_put_back_whole_and_the_event_says_so():
    async with running() as bench:
        await bench.writer.submit(add("a"))
        before, head = picture(bench.writer.state), bench.writer.state.head
        bench.store.remove()
        await look(bench)
        assert picture(bench.writer.state)["leases"] == before["leases"]
        (event,) = bench.events(LogRestored)
        assert event.event == LogRestored(missing=("store",), events=head)
        assert event.seq == head + 1
        assert bench.told[-1] == event
        await bench.writer.submit(end("a"))
        bench.check()


async def test_a_look_that_finds_everything_in_place_changes_nothing():
    async with running() as bench:
        await bench.writer.submit(add("a"))
        commits = bench.writer.commits
        await look(bench)
        assert bench.writer.commits == commits
        assert bench.writer.log_health.problem() == ""
        assert bench.writer.log_health.refusal() is None


async def test_an_add_that_went_into_removed_files_is_answered_when_its_lease_is_at_the_path():
    async with running() as bench:
        bench.store.remove()
        one, two = await together(bench.writer.submit(add("a")), bench.writer.submit(add("b")))
        assert {one.lease, two.lease} == set(what_a_restart_finds(bench).leases)
        assert len({bench.address("a"), bench.address("b")}) == 2
        assert len(bench.events(AddressAssigned)) == 2
        await turns(30)
        assert len(bench.events(LogRestored)) == 1
        bench.check()


async def test_a_del_that_went_into_removed_files_ends_its_lease_once():
    async with running() as bench:
        await bench.writer.submit(add("a"))
        bench.store.remove()
        await bench.writer.submit(end("a"))
        assert len(bench.events(LeaseEnded)) == 1
        assert not what_a_restart_finds(bench).leases
        await turns(30)
        bench.check()


async def test_others_are_told_that_the_outcome_is_unknown_and_it_is_recorded_all_the_same():
    async with running() as bench:
        bench.store.remove()
        (answer,) = await together(bench.writer.submit(subnet(7)))
        assert isinstance(answer, OutcomeUnknownError)
        assert answer.reason is Reason.LOG_REMOVED
        await turns(30)
        assert what_a_restart_finds(bench).subnets[SubnetId("subnet-1")].free == 7
        assert len(bench.events(LogRestored)) == 1
        bench.check()


async def test_while_the_log_cannot_be_put_back_nothing_is_promised():
    """1. The files go, and none can be made. 2. ADDs and DELs are refused by name, also those of leases that were
    acknowledged before. 3. Files can be made again: the next look puts everything back."""
    async with running() as bench:
        lease = (await bench.writer.submit(add("a"))).lease
        bench.store.remove()
        bench.store.is_read_only = True
        await look(bench)
        answers = []
        for asked in (add("a"), add("b"), end("a"), end("never-seen"), subnet(3)):
            answers += await together(bench.writer.submit(asked))
        assert [type(answer) for answer in answers] == [TransientError] * 5
        assert {reason_of(answer) for answer in answers} == {Reason.LOG_REMOVED}
        refused = bench.writer.log_health.refusal()
        assert refused is not None
        assert refused.reason is Reason.LOG_REMOVED
        assert "since 20" in bench.writer.log_health.problem()
        assert "read-only" in bench.writer.log_health.problem()
        assert set(bench.writer.state.leases) == {lease}
        assert not bench.store.events
        await look(bench)  # in vain
        bench.store.is_read_only = False
        await look(bench)
        assert bench.writer.log_health.refusal() is None
        assert (await bench.writer.submit(add("a"))).lease == lease
        assert (await bench.writer.submit(add("b"))).is_new
        assert len(bench.events(LogRestored)) == 1
        bench.check()


async def test_what_nobody_waits_for_is_recorded_when_the_log_is_put_back():
    async with running() as bench:
        bench.store.remove()
        bench.store.is_read_only = True
        await look(bench)
        bench.writer.post(subnet(3))
        await together(bench.writer.submit(subnet(4)))
        bench.store.is_read_only = False
        await look(bench)
        assert bench.writer.state.subnets[SubnetId("subnet-1")].free == 3
        bench.check()


async def test_what_went_into_files_that_cannot_be_put_back_yet_does_not_count():
    async with running() as bench:
        bench.store.remove()
        bench.store.is_read_only = True
        for kind in (OutcomeUnknownError, TransientError, TransientError):
            (answer,) = await together(bench.writer.submit(subnet(7)))
            assert isinstance(answer, kind), answer


async def test_files_that_come_back_by_themselves_are_used_again_and_told_of():
    """Somebody moves the directory away, puts something in its place, and moves it back."""
    async with running() as bench:
        lease = (await bench.writer.submit(add("a"))).lease
        events, snapshots = bench.store.events, bench.store.snapshots
        bench.store.remove()
        bench.store.is_read_only = True
        await look(bench)
        assert bench.writer.log_health.removed is not None
        bench.store.events, bench.store.snapshots = events, snapshots
        await look(bench)
        assert bench.writer.log_health.refusal() is None
        assert (await bench.writer.submit(add("a"))).lease == lease
        (event,) = bench.events(LogRestored)
        assert event.event == LogRestored(missing=("store",), events=len(events) - 1)
        bench.check()


async def test_a_batch_in_files_that_cannot_be_put_back_yet_is_told_when_they_are():
    """1. An ADD's lease goes into removed files. 2. They cannot be put back: the ADD is refused, and nobody else
    gets the address. 3. They are put back: the lease is there, and the ADD's next try gets it."""
    async with running() as bench:
        bench.store.remove()
        bench.store.is_read_only = True
        (answer,) = await together(bench.writer.submit(add("a")))
        assert isinstance(answer, OutcomeUnknownError)
        assert answer.reason is Reason.LOG_REMOVED
        assert not bench.writer.state.leases
        assert reason_of(*await together(bench.writer.submit(add("a")))) is Reason.LOG_REMOVED
        bench.store.is_read_only = False
        told = len(bench.told)
        await look(bench)
        (lease,) = bench.writer.state.leases
        assert [type(record.event) for record in bench.told[told:]][-2:] == [AddressAssigned, LogRestored]
        assert (await bench.writer.submit(add("a"))).lease == lease
        assert (await bench.writer.submit(add("b"))).lease != lease
        bench.check()


@pytest.mark.parametrize("fault", [LogFault.LOST, LogFault.APPLIED])
async def test_a_failed_sync_of_removed_files_is_settled_by_what_is_put_back(fault):
    async with running() as bench:
        bench.store.faults.plan(fault)
        bench.store.remove()
        one, two = await together(bench.writer.submit(add("a")), bench.writer.submit(add("b")))
        assert {one.lease, two.lease} == set(what_a_restart_finds(bench).leases)
        await turns(30)
        bench.check()


async def test_those_who_wait_go_on_waiting_when_the_log_is_put_back():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (task,) = await parked(bench, "waiting")
        bench.store.remove()
        await look(bench)
        assert not task.done()
        await bench.writer.submit(fail("holder"))
        async with asyncio.timeout(1):
            await task
        bench.check()


async def test_those_who_wait_are_refused_when_it_cannot_be_put_back():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (task,) = await parked(bench, "waiting")
        bench.store.remove()
        bench.store.is_read_only = True
        await look(bench)
        (answer,) = await together(task)
        assert reason_of(answer) is Reason.LOG_REMOVED
        assert bench.writer.waiting == 0


async def test_status_tells_when_and_which_files_and_how_often():
    async with running() as bench:
        for count in (1, 2):
            bench.store.remove(instead=bench.store.events[:1])
            await look(bench)
            said = bench.writer.log_health.problem()
            assert "put back at 20" in said
            assert "store.replaced-" in said
            assert (f"{count} times" in said) == (count > 1)


async def test_a_log_that_is_gone_at_the_very_end_is_put_back_before_the_process_ends():
    bench = Bench(2, 1)
    await bench.begin()
    asked = bench.ask(add("a"))
    await turns(2)
    bench.store.remove()
    await bench.writer.drain()
    assert (await asked).is_new
    assert what_a_restart_finds(bench).lease_of(key_of("a")) is not None
    assert len(bench.events(LogRestored)) == 1
    bench.check()


async def test_a_log_that_goes_away_under_the_last_batch_is_put_back_too(monkeypatch):
    bench = Bench(2, 1)
    await bench.begin()
    asked = bench.ask(add("a"))
    await turns(2)
    append = MemoryLog.append

    async def remove_first(self, records):
        monkeypatch.undo()
        bench.store.remove()
        await append(self, records)

    monkeypatch.setattr(MemoryLog, "append", remove_first)
    await bench.writer.drain()
    assert (await asked).lease in what_a_restart_finds(bench).leases
    assert len(bench.events(LogRestored)) == 1


async def test_another_agent_that_has_taken_the_path_ends_the_writer_and_everybody_is_told(monkeypatch):
    bench = Bench(addresses=1, enis_max=2)
    await bench.begin()
    writing = asyncio.get_running_loop().create_task(bench.writer.run())
    await bench.writer.submit(add("a"))
    waiting = bench.ask(add("b"), wait_s=60)
    await turns()

    async def taken(self):
        raise PermanentError(Reason.LOG_IN_USE, "locked by another process")

    monkeypatch.setattr(MemoryLog, "restore", taken)
    bench.store.remove()
    await bench.writer.log_health.look()
    asked = bench.ask(add("c"))  # in the batch of the turn that finds it out
    with pytest.raises(PermanentError):
        await writing
    for told in (waiting, asked, bench.ask(add("d"))):
        with pytest.raises(PermanentError) as ended:
            async with asyncio.timeout(5):
                await told
        assert ended.value.reason is Reason.LOG_IN_USE


# -- a whole node -----------------------------------------------------------------------------------


def test_a_node_puts_its_log_back_within_seconds_and_says_so():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        rig.store.remove()
        await asyncio.sleep(LOG_LOOK_S + 0.5)
        assert rig.kinds().count("log_restored") == 1
        said = rig.live.status()
        assert said["ready"] is True
        assert "store" in said["problems"]["log"]
        rig.store.crash()
        again = MemoryLog(rig.store)
        state = fold_start(await again.open())
        assert [lease.key.container_id for lease in state.leases.values()] == ["web"]
        await again.close()

    run_virtual(scenario())


def test_while_the_log_cannot_be_put_back_adds_are_refused_and_dels_are_kept():
    """1. The log is removed and cannot be put back. 2. An ADD is refused by name, so is readiness; a DEL succeeds, it
    lies in the spool. 3. The log is put back: the DEL is carried out, the ADD is served."""

    async def scenario():
        rig = await Rig().up()
        address = await rig.add("old")
        rig.store.remove()
        rig.store.is_read_only = True
        await asyncio.sleep(LOG_LOOK_S + 0.5)
        said = rig.live.status()
        assert (said["ready"], said["reason"]) == (False, "log_removed")
        assert "Do not restart" in said["problems"]["log"]
        rig.kernel.add_netns("/run/netns/new")
        status, answer = await rig.verb("ADD", "new")
        assert (status, answer["code"], answer["reason"]) == (503, 11, "log_removed")
        status, answer = await rig.verb("STATUS")
        assert (status, answer["code"], answer["reason"]) == (503, 50, "log_removed")
        assert (await rig.verb("DEL", "old"))[0] == 200
        assert len(await rig.spool.entries()) == 1
        assert rig.held("old").bindings[0].address == address
        await asyncio.sleep(60)
        assert not rig.store.events
        rig.store.is_read_only = False
        await asyncio.sleep(LOG_LOOK_S + 10)
        assert rig.lease("old") is None
        assert not await rig.spool.entries()
        assert (await rig.verb("ADD", "new"))[0] == 200
        assert rig.kinds().count("log_restored") == 1
        await rig.stop()

    run_virtual(scenario())

"""The one writer: what a batch means, who waits and who does not, and a log that fails."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

from tests.unit.projections.node import MORNING, SECOND, Node, eni_facts, key_of, pod_of
from vpccni.adapters.log_format import LogFault
from vpccni.adapters.log_memory import MemoryLog, MemoryStore
from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError, VpccniError
from vpccni.events.codec import Record, open_stored
from vpccni.events.effect import EffectIntended
from vpccni.events.eni import EniGone
from vpccni.events.node import MaxPodsObserved, SubnetObserved
from vpccni.events.sandbox import AddRequested, AddressAssigned, LeaseEnded
from vpccni.loops import write
from vpccni.loops.write import Writer
from vpccni.model import Cidr, LeaseId, Stamp, SubnetId
from vpccni.planner import commands as c
from vpccni.projections.snapshot import picture
from vpccni.projections.state import State

COOLDOWN_S = 0.03


class LoopClock:
    """Both clocks follow the loop's time."""

    def now(self) -> Stamp:
        passed = round(asyncio.get_running_loop().time() * SECOND)
        return Stamp(MORNING + passed, passed, "boot-1")


def add(name: str) -> c.Add:
    return c.Add(key=key_of(name), pod=pod_of(name), netns=f"/netns/{name}")


def end(name: str) -> c.EndLease:
    return c.EndLease(key=key_of(name), cause="del", sources=("runtime",))


def fail(name: str) -> c.RefuseAdd:
    """Undone before a packet left: the address needs no rest."""
    return c.RefuseAdd(key=key_of(name), pod=pod_of(name), reason=Reason.KERNEL_REFUSED)


class Bench:
    """A writer over a log in memory, of a node with one ENI."""

    def __init__(self, addresses: int, enis_max: int, capacity_bytes: int | None = None) -> None:
        self.store = MemoryStore(capacity_bytes=capacity_bytes)
        self.node = Node(enis_max=enis_max, slots=addresses)
        context = msgspec.structs.replace(self.node.context, cooldown_s=COOLDOWN_S)
        self.context = context
        self.writer = Writer(MemoryLog(self.store), LoopClock(), lambda: self.context)
        self.facts = eni_facts(0, *range(10, 10 + addresses))
        self.told: list[Record] = []
        self.tasks: list[asyncio.Task[c.Decision]] = []

    def ask(self, command: c.Command, wait_s: float = 0.0) -> asyncio.Task[c.Decision]:
        """Ask without waiting; whoever still waits at the end is cancelled."""
        loop = asyncio.get_running_loop()
        self.tasks.append(loop.create_task(self.writer.submit(command, wait_s=wait_s)))
        return self.tasks[-1]

    async def begin(self) -> None:
        await self.writer.open()
        prepared = Node().start(self.facts)
        for record in prepared.records:
            self.writer.state.evolve(record)
            self.writer._ahead.evolve(record)
        await self.writer._log.append(prepared.records)
        self.writer.subscribe(self.told.extend)

    @property
    def log(self) -> list[Record]:
        return [open_stored(one) for one in self.store.events]

    def folded(self) -> State:
        state = State()
        state.evolve_all(self.log)
        return state

    def check(self) -> None:
        """The durable state is the log, and so is the speculative one when nothing is under way."""
        assert picture(self.writer.state) == picture(self.folded())
        assert picture(self.writer._ahead) == picture(self.folded())

    def address(self, name: str) -> str:
        lease = self.writer.state.lease_of(key_of(name))
        assert lease is not None
        return lease.bindings[0].address

    def events(self, kind: type) -> list[Record]:
        return [record for record in self.log if isinstance(record.event, kind)]


@contextlib.asynccontextmanager
async def running(addresses: int = 4, enis_max: int = 1, capacity_bytes: int | None = None):
    bench = Bench(addresses, enis_max, capacity_bytes)
    await bench.begin()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.writer.run())
        try:
            yield bench
        finally:
            task.cancel()
            await cancel(*bench.tasks)
    await bench.writer.drain()


async def together(*asked):
    """Ask all at once, in this order; exceptions are answers, too."""

    async def one(coroutine):
        try:
            return await coroutine
        except VpccniError as error:
            return error

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(coroutine)) for coroutine in asked]
    return [task.result() for task in tasks]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def reason_of(answer) -> Reason:
    assert isinstance(answer, VpccniError), answer
    return answer.reason


# -- a batch ----------------------------------------------------------------------------------------


async def test_two_adds_of_one_batch_get_two_addresses_in_one_commit():
    async with running() as bench:
        before = bench.writer.commits
        answers = await together(bench.writer.submit(add("a")), bench.writer.submit(add("b")))
        assert bench.writer.commits == before + 1
        assert len({answer.lease for answer in answers}) == 2
        assert len({bench.address("a"), bench.address("b")}) == 2
        bench.check()


async def test_an_add_twice_in_one_batch_is_one_lease():
    async with running() as bench:
        first, second = await together(bench.writer.submit(add("a")), bench.writer.submit(add("a")))
        assert (first.lease, second.lease) == (first.lease, first.lease)
        assert (first.is_new, second.is_new) == (True, False)
        assert len(bench.events(AddressAssigned)) == 1


async def test_an_add_and_its_del_in_one_batch_leave_nothing():
    async with running() as bench:
        added, ended = await together(bench.writer.submit(add("a")), bench.writer.submit(end("a")))
        assert added.lease == ended.lease
        assert not bench.writer.state.leases
        bench.check()


async def test_a_lease_is_caused_by_its_request_and_its_end_by_the_lease():
    async with running() as bench:
        await bench.writer.submit(add("a"))
        await bench.writer.submit(end("a"))
        asked, assigned, ended = bench.log[-3:]
        assert [type(one.event) for one in (asked, assigned, ended)] == [
            AddRequested,
            AddressAssigned,
            LeaseEnded,
        ]
        assert (assigned.cause, ended.cause) == (asked.seq, assigned.seq)


async def test_what_changes_nothing_costs_no_commit():
    async with running() as bench:
        before = bench.writer.commits
        await bench.writer.submit(end("nobody"))
        await bench.writer.submit(c.Observe(MaxPodsObserved(max_pods=20, source="node")))
        assert bench.writer.commits == before


# -- waiting ----------------------------------------------------------------------------------------


async def parked(bench: Bench, *names: str, wait_s: float = 5.0) -> list[asyncio.Task[c.Decision]]:
    """ADDs that wait, in this order. The pool must be empty."""
    tasks = []
    for name in names:
        tasks.append(bench.ask(add(name), wait_s))
        await turns()
    assert bench.writer.waiting == len(names)
    return tasks


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, VpccniError):
            await task


async def test_parked_adds_are_served_first_come_first_served():
    async with running(addresses=1, enis_max=5) as bench:
        await bench.writer.submit(add("holder"))
        first, second, third = tasks = await parked(bench, "first", "second", "third")
        served = []
        for name, task in (("holder", first), ("first", second), ("second", third)):
            await bench.writer.submit(fail(name))
            await turns()
            assert task.done()
            served.append(task)
        assert served == tasks
        bench.check()


async def test_a_new_add_does_not_overtake_one_that_waits():
    async with running(addresses=1, enis_max=5) as bench:
        await bench.writer.submit(add("holder"))
        (early,) = await parked(bench, "early")
        late = bench.ask(add("late"), 5)
        # One batch: the address comes free, and somebody new asks before the one that waits is looked at.
        await together(bench.writer.submit(fail("holder")))
        await turns()
        assert (early.done(), late.done()) == (True, False)


async def test_an_add_that_was_served_already_is_answered_also_while_others_wait():
    async with running(addresses=1, enis_max=5) as bench:
        lease = (await bench.writer.submit(add("holder"))).lease
        await parked(bench, "waiting")
        assert (await bench.writer.submit(add("holder"))).lease == lease


async def test_an_add_waits_for_the_end_of_a_rest_without_being_woken():
    async with running(addresses=1) as bench:
        lease = (await bench.writer.submit(add("old"))).lease
        await bench.writer.submit(end("old"))
        await bench.writer.submit(c.NoteUnwired((lease,)))
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(2):
            await bench.writer.submit(add("new"), wait_s=1.0)
        assert loop.time() - started >= COOLDOWN_S * 0.5
        ended, assigned = bench.events(LeaseEnded)[-1], bench.events(AddressAssigned)[-1]
        assert assigned.stamp.boottime_ns - ended.stamp.boottime_ns >= COOLDOWN_S * SECOND


async def test_an_add_that_waited_long_enough_is_refused():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (answer,) = await together(bench.writer.submit(add("patient"), wait_s=0.05))
        assert reason_of(answer) is Reason.WAIT_TIMED_OUT
        assert bench.writer.waiting == 0
        assert [record.event.pod.name for record in bench.events(AddRequested)] == ["holder", "patient"]


async def test_an_add_that_nothing_can_satisfy_is_refused_at_once():
    async with running(addresses=1, enis_max=1) as bench:
        await bench.writer.submit(add("holder"))
        head = bench.writer.state.head
        async with asyncio.timeout(1):
            (answer,) = await together(bench.writer.submit(add("hopeless"), wait_s=60))
        assert reason_of(answer) is Reason.INSTANCE_FULL
        assert bench.writer.state.head == head, "nothing was recorded"


async def test_waiting_ends_when_the_outlook_does():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (task,) = await parked(bench, "hopeful")
        blocked = msgspec.structs.replace(bench.context.constraints, create_blocked="subnet_exhausted")
        bench.context = msgspec.structs.replace(bench.context, constraints=blocked)
        bench.writer.look_again()
        (answer,) = await together(task)
        assert reason_of(answer) is Reason.SUBNET_EXHAUSTED


async def test_a_caller_that_went_away_is_dropped_and_the_next_is_served():
    async with running(addresses=1, enis_max=5) as bench:
        await bench.writer.submit(add("holder"))
        gone, next_one = await parked(bench, "gone", "next")
        await cancel(gone)
        assert bench.writer.waiting == 1
        await bench.writer.submit(fail("holder"))
        async with asyncio.timeout(1):
            await next_one
        assert bench.writer.state.lease_of(key_of("gone")) is None
        bench.check()


async def test_a_caller_that_went_away_before_its_turn_gets_nothing():
    async with running() as bench:
        task = bench.ask(add("gone"))
        await asyncio.sleep(0)
        await cancel(task)
        await bench.writer.submit(add("here"))
        assert [lease.pod.name for lease in bench.writer.state.leases.values()] == ["here"]


async def test_a_full_queue_is_told():
    bench = Bench(4, 1)
    await bench.begin()
    for number in range(write.QUEUE_MAX):
        bench.writer.post(c.NoteUnwired((LeaseId(number),)))
    with pytest.raises(TransientError, match="too_busy"):
        await bench.writer.submit(add("a"))


# -- riding along -----------------------------------------------------------------------------------


def subnet(free: int) -> c.Observe:
    observed = SubnetObserved(subnet=SubnetId("subnet-1"), cidr=Cidr("10.0.0.0/20"), az="a", free=free)
    return c.Observe(observed)


async def test_what_nobody_waits_for_rides_along_with_the_next_batch():
    async with running() as bench:
        before = bench.writer.commits
        bench.writer.post(subnet(1))
        await turns()
        assert bench.writer.commits == before, "alone it is not worth a commit"
        await bench.writer.submit(add("a"))
        assert bench.writer.commits == before + 1
        assert bench.writer.state.subnets[SubnetId("subnet-1")].free == 1


async def test_what_nobody_waits_for_goes_alone_after_a_while():
    async with running() as bench:
        before = bench.writer.commits
        bench.writer.post(subnet(1))
        bench.writer.post(subnet(2))
        await asyncio.sleep(write.RIDE_ALONG_S + 0.1)
        assert bench.writer.commits == before + 1
        assert bench.writer.state.subnets[SubnetId("subnet-1")].free == 2


# -- subscribers ------------------------------------------------------------------------------------


async def test_subscribers_see_every_durable_record_once_and_in_order_before_the_answer():
    async with running() as bench:
        durable_then = []
        bench.writer.subscribe(
            lambda records: durable_then.append(records[-1].seq <= len(bench.store.events))
        )
        lease = (await bench.writer.submit(add("a"))).lease
        assert bench.told[-1].seq == lease
        await together(bench.writer.submit(add("b")), bench.writer.submit(end("a")))
        assert [record.seq for record in bench.told] == list(
            range(bench.told[0].seq, len(bench.store.events) + 1)
        )
        assert durable_then
        assert all(durable_then)


async def test_a_subscriber_that_left_is_told_no_more():
    async with running() as bench:
        told: list[Record] = []
        leave = bench.writer.subscribe(told.extend)
        await bench.writer.submit(add("a"))
        leave()
        count = len(told)
        await bench.writer.submit(add("b"))
        assert len(told) == count


async def test_nobody_is_told_of_what_was_lost():
    async with running() as bench:
        bench.store.faults.plan(LogFault.LOST)
        await bench.writer.submit(add("a"))
        assert [(one.seq, one.event) for one in bench.told] == [
            (one.seq, one.event) for one in bench.log[-len(bench.told) :]
        ]


# -- a log that fails -------------------------------------------------------------------------------


async def test_on_a_full_disk_an_add_is_refused_and_a_del_goes_on():
    async with running() as bench:
        await bench.writer.submit(add("old"))
        bench.store.faults.plan(LogFault.DISK_FULL)
        added, ended = await together(bench.writer.submit(add("new")), bench.writer.submit(end("old")))
        assert reason_of(added) is Reason.LOG_DISK_FULL
        assert ended.lease
        assert not bench.writer.state.leases
        bench.check()
        assert (await bench.writer.submit(add("later"))).is_new
        bench.check()


async def test_a_disk_that_stays_full_refuses_everybody_and_changes_nothing():
    async with running() as bench:
        await bench.writer.submit(add("old"))
        bench.store.faults.plan(LogFault.DISK_FULL, LogFault.DISK_FULL)
        answers = await together(bench.writer.submit(add("new")), bench.writer.submit(end("old")))
        assert [reason_of(answer) for answer in answers] == [Reason.LOG_DISK_FULL] * 2
        assert bench.writer.state.lease_of(key_of("old")) is not None
        bench.check()


async def test_a_full_disk_refuses_those_who_wait():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (task,) = await parked(bench, "waiting")
        bench.store.faults.plan(LogFault.DISK_FULL)
        await bench.writer.submit(end("holder"))
        (answer,) = await together(task)
        assert reason_of(answer) is Reason.LOG_DISK_FULL
        assert bench.writer.waiting == 0


async def test_the_reserve_of_a_full_disk_is_for_dels_alone():
    async with running(addresses=4, capacity_bytes=4 * 1024 * 1024 + 9_000) as bench:
        held: list[str] = []
        for number in range(60):
            (answer,) = await together(bench.writer.submit(add(f"pod{number}")))
            if isinstance(answer, VpccniError):
                continue
            assert bench.store.is_reserve_held, "an ADD was taken while the reserve was let go"
            held.append(f"pod{number}")
            if len(held) > 1:
                await bench.writer.submit(fail(held.pop(0)))
        for name in held:
            assert (await bench.writer.submit(end(name))).lease
        bench.check()


@pytest.mark.parametrize("fault", [LogFault.LOST, LogFault.APPLIED])
async def test_after_an_unknown_outcome_an_add_is_asked_again_and_is_one_lease(fault):
    async with running() as bench:
        bench.store.faults.plan(fault)
        one, two = await together(bench.writer.submit(add("a")), bench.writer.submit(add("b")))
        assert {one.lease, two.lease} == set(bench.writer.state.leases)
        assert len({bench.address("a"), bench.address("b")}) == 2
        assert len(bench.events(AddressAssigned)) == 2
        bench.check()


@pytest.mark.parametrize("fault", [LogFault.LOST, LogFault.APPLIED])
async def test_after_an_unknown_outcome_a_del_is_asked_again_and_ends_once(fault):
    async with running() as bench:
        await bench.writer.submit(add("a"))
        bench.store.faults.plan(fault)
        await bench.writer.submit(end("a"))
        assert len(bench.events(LeaseEnded)) == 1
        assert not bench.writer.state.leases
        bench.check()


async def test_what_is_not_idempotent_is_told_that_its_outcome_is_unknown():
    async with running() as bench:
        bench.store.faults.plan(LogFault.APPLIED)
        (answer,) = await together(bench.writer.submit(subnet(7)))
        assert isinstance(answer, OutcomeUnknownError)
        assert bench.writer.state.subnets[SubnetId("subnet-1")].free == 7
        bench.check()


async def test_a_log_that_fails_twice_is_not_asked_a_third_time():
    async with running() as bench:
        bench.store.faults.plan(LogFault.LOST, LogFault.LOST)
        (answer,) = await together(bench.writer.submit(add("a")))
        assert isinstance(answer, OutcomeUnknownError)
        assert not bench.writer.state.leases
        bench.check()


async def test_a_log_that_does_not_open_again_leaves_nobody_without_an_answer(monkeypatch):
    """1. A batch fails. 2. So does the reopening: the writer ends. 3. Who asked, waits or asks later is told."""
    bench = Bench(addresses=1, enis_max=2)
    await bench.begin()
    await asyncio.sleep(0)
    writing = asyncio.get_running_loop().create_task(bench.writer.run())
    await bench.writer.submit(add("a"))
    parked = bench.ask(add("b"), wait_s=60)
    await turns()

    async def refuse():
        raise PermanentError(Reason.LOG_WRITE_FAILED, "the disk is gone")

    monkeypatch.setattr(bench.writer._log, "reopen", refuse)
    bench.store.faults.plan(LogFault.LOST)
    answers = await together(bench.writer.submit(end("a")), bench.writer.submit(subnet(7)))
    assert [type(answer) for answer in answers] == [OutcomeUnknownError, OutcomeUnknownError]
    with pytest.raises(PermanentError):
        await writing
    for late in (parked, bench.ask(add("c"))):
        with pytest.raises(PermanentError) as told:
            await late
        assert told.value.reason is Reason.LOG_WRITE_FAILED


async def test_those_who_wait_go_on_waiting_after_an_unknown_outcome():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (task,) = await parked(bench, "waiting")
        bench.store.faults.plan(LogFault.LOST)
        await bench.writer.submit(end("holder"))
        assert not task.done()
        lease = next(iter(bench.writer.state.standing))
        await bench.writer.submit(c.NoteUnwired((lease,)))
        async with asyncio.timeout(1):
            await task
        bench.check()


async def test_subscribers_hear_of_a_batch_that_turned_out_to_be_in_the_log():
    async with running() as bench:
        bench.store.faults.plan(LogFault.APPLIED)
        await together(bench.writer.submit(subnet(7)))
        assert [record.seq for record in bench.told] == [bench.writer.state.head]


async def test_one_that_was_parked_in_a_lost_batch_is_caused_by_its_own_request():
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        bench.store.faults.plan(LogFault.LOST)
        task = bench.ask(add("waiting"), 5)
        await turns()
        await bench.writer.submit(subnet(1))
        await bench.writer.submit(fail("holder"))
        async with asyncio.timeout(1):
            await task
        assigned = bench.events(AddressAssigned)[-1]
        cause = bench.log[assigned.cause - 1].event
        assert isinstance(cause, AddRequested)
        assert cause.key == key_of("waiting")


# -- our own bugs -----------------------------------------------------------------------------------


async def test_a_broken_invariant_is_recorded_without_anybody_asking_again():
    async with running() as bench:
        lease = (await bench.writer.submit(add("a"))).lease
        contradiction = EniGone(eni=bench.facts.id, source="test")  # which has an open lease
        (answer,) = await together(bench.writer.submit(c.Observe(contradiction)))
        assert reason_of(answer) is Reason.INVARIANT_BROKEN
        await asyncio.sleep(write.RIDE_ALONG_S + 0.1)
        assert bench.writer.state.broken is not None
        assert lease in bench.writer.state.leases


async def test_a_broken_invariant_stops_changes_and_not_service():
    async with running() as bench:
        await bench.writer.submit(add("a"))
        await together(bench.writer.submit(c.Observe(EniGone(eni=bench.facts.id, source="test"))))
        wanted = c.Intend(EffectIntended(kind="assign", eni=bench.facts.id, count=1))
        served, intended = await together(bench.writer.submit(add("b")), bench.writer.submit(wanted))
        assert served.is_new
        assert reason_of(intended) is Reason.INVARIANT_BROKEN
        bench.check()


async def test_those_who_went_away_do_not_stand_in_the_way_of_a_new_add():
    """One place is left to grow into.

    1. ``gone`` parks for it. 2. Its caller goes away. 3. ``next`` asks: it is the only one, and may wait.
    """
    async with running(addresses=1, enis_max=2) as bench:
        await bench.writer.submit(add("holder"))
        (gone,) = await parked(bench, "gone")
        await cancel(gone)
        await parked(bench, "next")


# -- stopping ---------------------------------------------------------------------------------------


async def test_at_the_end_what_is_queued_is_committed_and_what_waits_is_refused():
    bench = Bench(1, 2)
    await bench.begin()
    served = bench.ask(add("served"))
    waiting = bench.ask(add("waiting"), 60)
    bench.writer.post(subnet(3))
    await turns(2)
    await bench.writer.drain()
    assert (await served).is_new
    (answer,) = await together(waiting)
    assert reason_of(answer) is Reason.STOPPING
    assert bench.folded().subnets[SubnetId("subnet-1")].free == 3
    with pytest.raises(TransientError, match="stopping"):
        await bench.writer.submit(add("late"))
    bench.check()


async def test_a_batch_that_was_begun_is_finished_when_the_writer_is_cancelled():
    bench = Bench(2, 1)
    await bench.begin()
    bench.store.sync_s = 0.05
    loop = asyncio.get_running_loop()
    run = loop.create_task(bench.writer.run())
    asked = bench.ask(add("a"))
    await asyncio.sleep(0.02)
    run.cancel()
    await cancel(run)
    assert asked.done()
    assert (await asked).is_new
    assert bench.folded().lease_of(key_of("a")) is not None


async def test_a_log_is_folded_at_the_start_from_its_snapshot_and_what_follows():
    async with running() as bench:
        await bench.writer.submit(add("a"))
        await bench.writer.write_snapshot()
        await bench.writer.submit(add("b"))
        await bench.writer.submit(end("a"))
        bench.store.crash()
        again = Writer(MemoryLog(bench.store), LoopClock(), lambda: bench.context)
        start = await again.open()
        assert len(start.tail) == 3
        assert picture(again.state) == picture(bench.writer.state)
        assert again.state.head == bench.writer.state.head

"""The one writer.

One task takes all queued commands, asks ``decide`` for each against a *speculative* state that it evolves at
once, commits the batch in one transaction, and only then evolves the *durable* state, resolves the waiting
futures and tells the subscribers. So two ADDs of one batch cannot get one address, and nobody ever acts on
what is not on the disk.

============================  =================================================================
the commit                    then
============================  =================================================================
succeeds                      answers go out, the durable state moves on
finds the disk full           nothing was written: the speculative state is dropped, ADDs are refused,
                              everything else is tried once more in a batch of its own (the reserve)
fails, outcome unknown        the log is reopened and folded again; ADD and DEL, which are idempotent,
                              are asked again; the others are told that the outcome is unknown
went into removed files       the log is put back at its path, with the batch; then as above
============================  =================================================================

Files that somebody removes are also noticed while nothing is written (``look_after_log``). A log that cannot be
put back takes nothing: ADDs are refused, DELs go to the spool, and each look tries again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import msgspec
import structlog

from vpccni.adapters.finish import finish
from vpccni.errors import (
    InvariantBrokenError,
    OutcomeUnknownError,
    Reason,
    Refused,
    TransientError,
    VpccniError,
)
from vpccni.events.codec import Record
from vpccni.loops.asked import AddRefusedError, Asked, refuse
from vpccni.loops.log_health import LogHealth
from vpccni.model import Seq, Stamp
from vpccni.planner import commands as c
from vpccni.planner.commands import PREVIOUS
from vpccni.planner.decide import decide
from vpccni.ports import Clock, EventLog, LogStart, Restored
from vpccni.projections.snapshot import restore, snapshot_of
from vpccni.projections.state import State

_log = structlog.get_logger("write")

BATCH_MAX: Final = 512
QUEUE_MAX: Final = 4096
PARKED_MAX: Final = 1024
"""More ADDs than any node runs pods: beyond it something is wrong and waiting would only pile up."""
RIDE_ALONG_S: Final = 0.25
"""Events that nobody waits for join the next batch, or go alone after this long."""

Subscriber = Callable[[Sequence[Record]], None]


class Writer:
    """Owner of the event log, of the speculative and of the durable state.

    Attributes:
        state: The durable state. Read it freely, change it never.
        log_health: What keeps the log from taking more, if anything does.
    """

    def __init__(self, log: EventLog, clock: Clock, context: Callable[[], c.Context]) -> None:
        self._log = log
        self._clock = clock
        self._context = context
        self._queue: deque[Asked] = deque()
        self._parked: deque[Asked] = deque()
        self._wake = asyncio.Event()
        self._ride_along_at: float | None = None
        self._subscribers: list[Subscriber] = []
        self.state = State()
        self._ahead = State()
        self._closed: VpccniError | None = None
        self._is_outlook_new = False
        self._is_ending = False
        self.log_health = LogHealth(log, clock)
        self.commits = 0

    # -- for everybody ----------------------------------------------------------------------------

    async def open(self) -> LogStart:
        """Open the log and fold it. Raises what ``EventLog.open`` raises."""
        start = await self._log.open()
        self._adopt(start)
        return start

    async def submit(self, command: c.Command, *, wait_s: float = 0.0) -> c.Decision:
        """Ask for a decision and wait until it is durable.

        Args:
            command: What is asked.
            wait_s: How long an ADD may be parked.

        Raises:
            AddRefusedError: the core refused; nothing was recorded.
            TransientError: ``too_busy`` (the queue is full) or ``log_disk_full``; nothing was recorded.
            OutcomeUnknownError: the log failed; ask again.
        """
        if self._closed is not None:
            raise self._closed
        if len(self._queue) >= QUEUE_MAX:
            raise TransientError(Reason.TOO_BUSY, "the writer's queue is full")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[c.Decision] = loop.create_future()
        self._queue.append(Asked(command, future, loop.time() + wait_s))
        self._wake.set()
        return await future

    def post(self, command: c.Command) -> None:
        """Record something that nobody waits for: it rides along with the next batch."""
        if len(self._queue) >= QUEUE_MAX or self._closed is not None:
            return  # History is lost, never a lease: what must not be lost is submitted.
        self._queue.append(Asked(command, None))
        if self._ride_along_at is None:
            # An ADD that waits may wait for just this.
            delay_s = 0.0 if self._parked else RIDE_ALONG_S
            self._ride_along_at = asyncio.get_running_loop().time() + delay_s
            self._wake.set()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Be told of durable records, in order, in the writer's turn; be quick. Returns how to stop it."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def look_again(self) -> None:
        """What holds the planner back has changed: parked ADDs are decided anew."""
        if self._parked:
            self._is_outlook_new = True
            self._wake.set()

    async def look_after_log(self) -> None:
        """See whether the log's files are at their path; if not, they are put back in the writer's turn."""
        if self._closed is None and await self.log_health.look():
            self._wake.set()

    @property
    def waiting(self) -> int:
        """How many ADDs are parked."""
        return sum(1 for asked in self._parked if asked.future is not None and not asked.future.done())

    async def write_snapshot(self) -> int:
        """Store a snapshot of the durable state. Returns how many records it holds."""
        records = snapshot_of(self.state)
        await self._log.write_snapshot(self.state.head, records)
        return len(records)

    # -- the loop ---------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Decide and commit until cancelled. A batch that was begun is finished first.

        Raises:
            PermanentError: The log cannot be opened again after a failure. Everybody was told.
        """
        try:
            await self._run()
        except VpccniError as error:
            self._closed = error
            for asked in (*self._queue, *self._parked):
                refuse(asked, error)
            raise

    async def _run(self) -> NoReturn:
        while True:
            await self._wait_for_work()
            self._ride_along_at = None
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_MAX))]
            if self._queue:
                self._wake.set()
            # Whole, also when cancelled: nothing cancels a half-written batch.
            await finish(self._turn(batch), "write a batch")

    def refuse_waiting(self) -> None:
        """At the end: no ADD waits any more, neither those that are parked nor those that would be."""
        self._is_ending = True
        self._refuse_parked(AddRefusedError(Reason.STOPPING))

    async def drain(self) -> None:
        """At the end: commit what is queued, refuse what is parked, take nothing more."""
        # The last chance: what only removed files hold is lost with the process.
        await self.log_health.look()
        try:
            for _ in range(2):  # What a failing log leaves to be asked again has its second try.
                batch = list(self._queue)
                self._queue.clear()
                if batch or self.log_health.is_in_doubt:
                    await self._turn(batch)
        finally:
            self._closed = TransientError(Reason.STOPPING, "the agent is stopping")
            for asked in (*self._queue, *self._parked):
                refuse(asked, AddRefusedError(Reason.STOPPING))
            self._queue.clear()
            self._parked.clear()

    async def _wait_for_work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if self.log_health.is_in_doubt or any(asked.future is not None for asked in self._queue):
                return
            due = self._next_due(loop.time())
            if due is not None and due <= loop.time():
                return
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            except TimeoutError:
                return
            if self._parked:
                return

    def _next_due(self, now: float) -> float | None:
        """When to look again without being woken: a ride-along batch, a deadline, the end of a rest."""
        dues: list[float] = []
        if self._queue and self._ride_along_at is not None:
            dues.append(self._ride_along_at)
        if self._parked:
            dues.append(min(asked.deadline for asked in self._parked))
            stamp = self._clock.now()
            cooldown_s = self._context().cooldown_s
            rests = [
                self.state.rest_left_s(rest, stamp, cooldown_s)
                for rest in self.state.rests.values()
                if not rest.is_standing
            ]
            coming = [left for left in rests if left > 0]
            inherited = self.state.inherited_s(stamp, cooldown_s)
            if inherited > 0:
                coming.append(inherited)
            if coming:
                dues.append(now + min(coming) + 0.001)
        return min(dues) if dues else None

    async def _turn(self, batch: list[Asked]) -> None:
        """Decide a batch, commit it, answer it."""
        if self.log_health.is_in_doubt:
            batch = [*await self._restore_log(batch), *batch]
        context, stamp = self._context(), self._clock.now()
        # Who went away waits no longer, and stands in nobody's way.
        self._parked = deque(asked for asked in self._parked if asked.future and not asked.future.done())
        records: list[Record] = []
        answered: list[tuple[Asked, c.Decision]] = []
        for asked in batch:
            if asked.future is not None and asked.future.done():
                continue  # The caller went away before anything was decided.
            if self._is_refused(asked):
                continue
            ahead = 0
            if isinstance(asked.command, c.Add) and self._parked:
                if self._ahead.lease_of(asked.command.key) is None:
                    ahead = len(self._parked)
                if ahead >= PARKED_MAX:
                    refuse(asked, AddRefusedError(Reason.TOO_MANY_WAITING))
                    continue
            self._decide(asked, stamp, _behind(context, ahead), records, answered)
        self._retry_parked(stamp, context, records, answered)
        if records:
            if self.log_health.removed is not None:
                self._after_removed(self.log_health.removed, answered)
                return
            try:
                await self._log.append(records)
            except TransientError as error:
                await self._after_full(error, answered)
                return
            except OutcomeUnknownError as error:
                await self._after_unknown(error, answered)
                return
            self._publish(records)
        for asked, decision in answered:
            if asked.future is not None and not asked.future.done():
                asked.future.set_result(decision)

    def _is_refused(self, asked: Asked) -> bool:
        """On a full disk the reserve is for ending leases: new ones are refused until it is there again.

        While the log is not at its path nothing is known for sure: the last batch may be in it or not. So an ADD
        is refused, also one that was answered before, and a DEL, which its asker then writes down elsewhere.
        """
        if not isinstance(asked.command, (c.Add, c.EndLease)):
            return False
        removed = self.log_health.removed
        if removed is not None:
            refuse(asked, TransientError(removed.reason, removed.detail))
            return True
        full = self.log_health.full() if isinstance(asked.command, c.Add) else None
        if full is None or self._ahead.lease_of(asked.command.key) is not None:
            return False
        refuse(asked, TransientError(full.reason, full.detail))
        return True

    def _decide(
        self,
        asked: Asked,
        stamp: Stamp,
        context: c.Context,
        records: list[Record],
        answered: list[tuple[Asked, c.Decision]],
    ) -> c.Answer | None:
        decided = len(records)
        try:
            answer = decide(self._ahead, asked.command, stamp, context)
            match answer:
                case c.Decision():
                    self._evolve(answer.events, stamp, records)
                    answered.append((asked, answer))
                case Refused():
                    refuse(asked, AddRefusedError(answer.reason, answer.detail))
                case c.Park() if self._is_ending:
                    refuse(asked, AddRefusedError(Reason.STOPPING))
                case c.Park():
                    self._evolve(answer.events, stamp, records)
                    if answer.events and isinstance(asked.command, c.Add):
                        asked.command = msgspec.structs.replace(asked.command, request=self._ahead.head)
                    asked.parked_for, asked.parked_reason = answer.detail, answer.reason
                    self._parked.append(asked)
        except InvariantBrokenError as error:
            _log.error("invariant_broken", detail=error.detail)
            refuse(asked, error)
            # Not half a decision: what it had evolved is taken back.
            del records[decided:]
            self._roll_back()
            self._ahead.evolve_all(records)
            self.post(c.ReportBroken(name="fold", detail=error.detail))
            return None
        return answer

    def _evolve(self, events: Sequence[c.Caused], stamp: Stamp, records: list[Record]) -> None:
        for event, cause in events:
            seq = Seq(self._ahead.head + 1)
            record = Record(seq, stamp, event, seq - 1 if cause == PREVIOUS else cause)
            self._ahead.evolve(record)
            records.append(record)

    def _retry_parked(
        self,
        stamp: Stamp,
        context: c.Context,
        records: list[Record],
        answered: list[tuple[Asked, c.Decision]],
    ) -> None:
        now = asyncio.get_running_loop().time()
        waiting, self._parked = self._parked, deque()
        is_blocked, is_outlook_new, self._is_outlook_new = False, self._is_outlook_new, False
        while waiting:
            asked = waiting.popleft()
            if asked.future is None or asked.future.done():
                continue
            if asked.deadline <= now:
                reason = asked.parked_reason
                if reason is Reason.NO_ADDRESS:
                    reason = Reason.WAIT_TIMED_OUT
                refuse(asked, AddRefusedError(reason, asked.parked_for))
            elif is_blocked and not is_outlook_new:
                self._parked.append(asked)
            else:
                behind = _behind(context, len(self._parked))
                is_blocked |= isinstance(self._decide(asked, stamp, behind, records, answered), c.Park)

    def _publish(self, records: list[Record]) -> None:
        self.commits += 1
        self.state.evolve_all(records)
        for subscriber in tuple(self._subscribers):
            subscriber(records)

    # -- when the log fails -----------------------------------------------------------------------

    async def _after_full(self, error: TransientError, answered: list[tuple[Asked, c.Decision]]) -> None:
        """Nothing was appended. ADDs are refused; the rest has one more try: the reserve is free now."""
        _log.error("log_disk_full", detail=error.detail)
        self.log_health.note_full(error)
        self._roll_back()
        again: list[Asked] = []
        for asked, _ in answered:
            if isinstance(asked.command, c.Add) or asked.is_second_try:
                refuse(asked, TransientError(error.reason, error.detail))
            elif asked.future is not None or isinstance(asked.command, (c.EndLease, c.RefuseAdd)):
                asked.is_second_try = True
                again.append(asked)
        self._refuse_parked(error)
        if again:
            await self._turn(again)

    async def _after_unknown(
        self, error: OutcomeUnknownError, answered: list[tuple[Asked, c.Decision]]
    ) -> None:
        """The batch may or may not be in the log: what is in it after reopening is what happened."""
        _log.error(str(error.reason), detail=error.detail)
        try:
            await self._open_anew(error)
        except VpccniError as failed:
            for asked, _ in answered:
                refuse(asked, OutcomeUnknownError(error.reason, error.detail))
            if failed.reason is not Reason.LOG_REMOVED:
                raise
            # The files still hold what they held, the batch perhaps too: it is told when they are put back.
            self._roll_back()
            self._refuse_parked(failed)
            return
        for asked, _ in reversed(answered):
            if isinstance(asked.command, (c.Add, c.EndLease)) and not asked.is_second_try:
                asked.is_second_try = True
                if isinstance(asked.command, c.Add):
                    asked.command = msgspec.structs.replace(asked.command, request=0)
                self._queue.appendleft(asked)
            else:
                refuse(asked, OutcomeUnknownError(error.reason, error.detail))
        self._wake.set()

    async def _open_anew(self, error: OutcomeUnknownError) -> None:
        """Raises ``log_removed`` when the files are not at their path and cannot be put back now."""
        if error.reason is not Reason.LOG_REMOVED:
            try:
                self._follow(await self._log.reopen())
            except TransientError as refused:
                if refused.reason is not Reason.LOG_REMOVED:
                    raise
            else:
                return
        restored = await self.log_health.restore()
        self._follow(restored.start)
        self._queue.extendleft(self._told_of(restored))
        self._ride_along_at = asyncio.get_running_loop().time()

    # -- when the log's files are gone ------------------------------------------------------------

    async def _restore_log(self, batch: list[Asked]) -> list[Asked]:
        """Put the log back at its path, if it can be done now. What is to be recorded before the batch."""
        try:
            restored = await self.log_health.restore()
        except TransientError as error:
            self._refuse_parked(error)
            return []
        except VpccniError as error:
            for asked in batch:
                refuse(asked, error)
            raise
        self._follow(restored.start)
        return self._told_of(restored)

    def _told_of(self, restored: Restored) -> list[Asked]:
        event = self.log_health.take_event(restored)
        return [] if event is None else [Asked(c.Observe(event), None)]

    def _after_removed(self, error: TransientError, answered: list[tuple[Asked, c.Decision]]) -> None:
        """Nothing is written until the log is put back. What nobody waits for is kept until then."""
        self._roll_back()
        self._refuse_parked(error)
        for asked, _ in reversed(answered):
            if asked.future is None:
                self._queue.appendleft(asked)
            refuse(asked, TransientError(error.reason, error.detail))

    def _follow(self, start: LogStart) -> None:
        """Take over what a log says that was opened anew, and tell of what nobody was told of."""
        told = self.state.head
        self._adopt(start)
        found = [record for record in start.tail if record.seq > told]
        for subscriber in tuple(self._subscribers) if found else ():
            subscriber(found)
        for asked in self._parked:
            # The number of a request that may be lost is not its cause.
            if isinstance(asked.command, c.Add) and asked.command.request > told:
                asked.command = msgspec.structs.replace(asked.command, request=0)

    def _refuse_parked(self, error: VpccniError) -> None:
        for asked in self._parked:
            refuse(asked, type(error)(error.reason, error.detail))
        self._parked.clear()

    def _roll_back(self) -> None:
        self._ahead = restore(snapshot_of(self.state))
        self._ahead.head, self._ahead.stamp = self.state.head, self.state.stamp

    def _adopt(self, start: LogStart) -> None:
        self.state, self._ahead = fold_start(start), fold_start(start)


def fold_start(start: LogStart) -> State:
    """The state that an opened log stands for."""
    state = restore(start.snapshot)
    if start.tail:
        state.evolve_all(start.tail)
    state.head = start.head
    return state


def _behind(context: c.Context, ahead: int) -> c.Context:
    return msgspec.structs.replace(context, ahead=ahead) if ahead else context

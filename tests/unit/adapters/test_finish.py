"""Work that is not left half done."""

from __future__ import annotations

import asyncio

import pytest

from vpccni.adapters.finish import finish
from vpccni.lab.sim.loop import run_virtual


def test_the_outcome_is_handed_on():
    async def scenario():
        async def work():
            return 7

        async def fail():
            raise KeyError("x")

        assert await finish(work(), "work") == 7
        with pytest.raises(KeyError):
            await finish(fail(), "fail")

    run_virtual(scenario())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cancels", [1, 5])
def test_a_cancelled_asker_waits_for_the_end_however_often_it_is_cancelled(cancels, fails):
    async def scenario():
        done = []

        async def work():
            await asyncio.sleep(10)
            done.append(asyncio.get_running_loop().time())
            if fails:
                raise KeyError("seen by nobody, and not complained about")

        task = asyncio.get_running_loop().create_task(finish(work(), "work"))
        for _ in range(cancels):
            await asyncio.sleep(1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == [10.0]

    run_virtual(scenario())

"""A subnet that is nearly full: what it still has is used, and what it has not is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.loops.rig import Rig
from vpccni.lab.ec2 import FOR_EVER, Fault
from vpccni.lab.sim.loop import run_virtual

CREATE = "CreateNetworkInterface"
ASSIGN = "AssignPrivateIpAddresses"
DENIED = "UnauthorizedOperation"

ON_PRIMARY = {"MINIMUM_IP_TARGET": "2"}
"""A pool of two addresses: all the others are asked for on ENIs that have room."""


def leave(rig: Rig, free: int) -> None:
    """Somebody else takes all but so many addresses of the subnet."""
    book = rig.subnet.addresses
    book.take(book.free_count - free, "somebody else")


async def burst(rig: Rig, count: int) -> list[tuple[int, dict[str, str]]]:
    async with asyncio.TaskGroup() as group:
        adds = [group.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(count)]
    return [add.result() for add in adds]


@pytest.mark.parametrize("may_describe", [True, False], ids=["counted", "by halves"])
@pytest.mark.parametrize(
    ("environ", "stock", "usable"),
    [
        pytest.param(ON_PRIMARY, 2, 5, id="assign"),
        # The new ENI's own address is one of the five.
        pytest.param({}, 9, 4, id="create"),
    ],
)
def test_the_last_addresses_of_a_subnet_are_used_within_seconds(environ, stock, usable, may_describe):
    """1. Five addresses are left. 2. More is asked for, and EC2 gives nothing. 3. The count shrinks, soon."""

    async def scenario():
        rig = await Rig(environ=environ).up(settle_s=20)
        if not may_describe:
            rig.region.faults.inject(
                Fault(action="DescribeSubnets", kind="error", code=DENIED, times=FOR_EVER)
            )
        leave(rig, 5)
        began = rig.now()
        answers = await burst(rig, stock + usable + 2)
        assert sum(status == 200 for status, _ in answers) == stock + usable
        assert rig.now() - began < 30
        assert rig.subnet.addresses.free_count <= (0 if environ else 1)
        refused = [answer for status, answer in answers if status != 200]
        assert {answer["reason"] for answer in refused} == {"subnet_exhausted"}
        await rig.stop()

    run_virtual(scenario())


def test_the_refusal_names_the_subnet_and_how_many_addresses_it_has():
    async def scenario():
        rig = await Rig(environ=ON_PRIMARY).up(settle_s=20)
        leave(rig, 0)
        answers = await burst(rig, 4)
        (first, *_) = [answer for status, answer in answers if status != 200]
        assert f"{rig.subnet.id} has 0 free addresses" in first["details"], first
        await rig.stop()

    run_virtual(scenario())


def test_addresses_that_somebody_gives_back_are_used_after_two_minutes_at_most():
    async def scenario():
        rig = await Rig(environ=ON_PRIMARY).up(settle_s=20)
        leave(rig, 0)
        await burst(rig, 4)
        rig.subnet.addresses.give_back([f"10.0.1.{number}" for number in range(64)])
        await asyncio.sleep(120)
        await rig.add("late")
        await rig.stop()

    run_virtual(scenario())


def test_a_full_subnet_is_asked_a_few_times_in_two_minutes():
    async def scenario():
        rig = await Rig().up(settle_s=20)
        leave(rig, 0)
        loop = asyncio.get_running_loop()
        until = loop.time() + 600
        before = sum(rig.calls().values())
        number = 0
        while loop.time() < until:
            number += 1
            await rig.cni("ADD", f"pod-{number}")
            await asyncio.sleep(5)
        assert sum(rig.calls().values()) - before < 60, rig.calls()
        await rig.stop()

    run_virtual(scenario())

"""What becomes of EC2 calls that fail, are refused, or whose reply is lost, on the whole agent."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.unit.loops.rig import Rig
from vpccni.lab.ec2 import FOR_EVER, Fault
from vpccni.lab.sim.loop import run_virtual

CREATE = "CreateNetworkInterface"
ATTACH = "AttachNetworkInterface"
ASSIGN = "AssignPrivateIpAddresses"
UNASSIGN = "UnassignPrivateIpAddresses"
DETACH = "DetachNetworkInterface"
DELETE = "DeleteNetworkInterface"
MODIFY = "ModifyNetworkInterfaceAttribute"
DESCRIBE = "DescribeNetworkInterfaces"

IP_TARGETS = {"WARM_IP_TARGET": "2", "MINIMUM_IP_TARGET": "2", "WARM_ENI_TARGET": "0"}


def assert_books_are_true(rig: Rig) -> None:
    """The books hold exactly the ENIs and addresses that EC2 has for this instance, and no intent is open."""
    assert not rig.state.intents
    world = rig.region.world.enis
    assert set(rig.state.enis) == set(world)
    for eni_id, held in rig.state.enis.items():
        secondary = set(world[eni_id].addresses[1:])
        assert {cidr.removesuffix("/32") for cidr in held.cidrs} == secondary
        assert (held.phase == "attached") == (world[eni_id].attachment is not None)


def calls_since(rig: Rig, before: dict[str, int]) -> Counter[str]:
    now = Counter(rig.calls())
    now.subtract(before)
    return +now


async def make_room(rig: Rig, count: int) -> None:
    """Start and delete pods, so that the pool grows and then shrinks."""
    for number in range(count):
        await rig.add(f"pod-{number}")
    await asyncio.sleep(30)
    for number in range(count):
        await rig.cni("DEL", f"pod-{number}")
        rig.kernel.remove_netns(f"/run/netns/pod-{number}")


# -- lost replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lost_reply", "dropped_request", "hang", "applied hang"])
@pytest.mark.parametrize("action", [CREATE, ATTACH, ASSIGN, MODIFY])
def test_growth_whose_reply_is_lost_settles_to_what_happened(action, kind):
    async def scenario():
        rig = Rig()
        rig.region.faults.inject(
            Fault(action=action, kind=kind.split()[-1], applied=kind.startswith("applied"))
        )
        await rig.up(settle_s=0)
        for number in range(9):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(180)
        assert_books_are_true(rig)
        assert rig.kinds().count("effect_unknown") == 1
        assert rig.calls()[CREATE] <= 3
        assert len(rig.state.enis) >= 2
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("kind", ["lost_reply", "dropped_request", "hang", "applied hang"])
@pytest.mark.parametrize("action", [DETACH, DELETE])
def test_the_removal_of_an_eni_whose_reply_is_lost_settles_to_what_happened(action, kind):
    async def scenario():
        rig = await Rig().up()
        rig.region.faults.inject(
            Fault(action=action, kind=kind.split()[-1], applied=kind.startswith("applied"))
        )
        await make_room(rig, 12)
        await asyncio.sleep(400)
        assert_books_are_true(rig)
        assert rig.calls().get(DELETE, 0) >= 1
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("kind", ["lost_reply", "dropped_request", "hang", "applied hang"])
def test_an_unassign_whose_reply_is_lost_settles_to_what_happened(kind):
    async def scenario():
        rig = await Rig(environ=IP_TARGETS).up()
        rig.region.faults.inject(
            Fault(action=UNASSIGN, kind=kind.split()[-1], applied=kind.startswith("applied"))
        )
        await make_room(rig, 5)
        await asyncio.sleep(300)
        assert_books_are_true(rig)
        assert sum(len(held.cidrs) for held in rig.state.enis.values()) == 2
        await rig.stop()

    run_virtual(scenario())


def test_a_lost_create_is_found_again_even_where_the_token_is_ignored():
    async def scenario():
        rig = Rig()
        call = rig.region.arrive

        def without_token(action, params, now):
            return call(action, {name: value for name, value in params.items() if name != "ClientToken"}, now)

        rig.region.arrive = without_token  # type: ignore[method-assign]
        rig.region.faults.inject(Fault(action=CREATE, kind="lost_reply"))
        await rig.up(settle_s=0)
        await rig.add("web")
        await asyncio.sleep(120)
        assert_books_are_true(rig)
        assert rig.calls()[CREATE] == 1
        await rig.stop()

    run_virtual(scenario())


def test_a_lost_assign_is_believed_only_when_two_readings_agree():
    """1. Assign is applied, its reply lost.  2. Describe lags behind.  3. Nothing is assigned twice."""

    async def scenario():
        rig = Rig()
        rig.region.world.describe_lag_s = 1.5
        rig.region.faults.inject(Fault(action=ASSIGN, kind="lost_reply"))
        await rig.up(settle_s=120)
        assert_books_are_true(rig)
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("after_s", [0.3, 0.7, 1.5, 2.5, 4.0])
def test_a_kill_in_the_middle_of_growth_leaves_no_orphan_and_no_open_intent(after_s):
    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=30)
        loop = asyncio.get_running_loop()
        burst = [loop.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(30)]
        await asyncio.sleep(after_s)
        await rig.kill()
        assert len(burst) == 30
        await asyncio.sleep(1)
        await rig.start()
        await rig.ready()
        await asyncio.sleep(120)
        assert_books_are_true(rig)
        await rig.stop()

    run_virtual(scenario())


def test_an_intent_that_waits_for_its_next_try_is_not_carried_out_once_the_node_is_another_agents():
    """1. A create is lost, and its second try waits.  2. The original is started.  3. It is gone again."""

    async def scenario():
        rig = Rig()
        rig.region.faults.inject(Fault(action=CREATE, kind="dropped_request"))
        rig.region.faults.inject(Fault(action=CREATE, kind="error", code="Unavailable", times=FOR_EVER))
        await rig.up(settle_s=0)
        await rig.add("web")  # Now an ENI in reserve is wanted.
        await asyncio.sleep(20)
        assert rig.state.intents
        rig.predecessor.is_alive = True
        await asyncio.sleep(3)
        before = rig.calls()
        await asyncio.sleep(120)
        assert set(calls_since(rig, before)) <= {DESCRIBE}
        assert rig.state.intents
        rig.region.faults.clear()
        rig.predecessor.is_alive = False
        await asyncio.sleep(120)
        assert_books_are_true(rig)
        await rig.stop()

    run_virtual(scenario())


# -- a detach that is accepted and cannot be watched -------------------------------------------------


def test_an_eni_that_is_detaching_serves_nobody_although_describe_fails():
    """1. Detach is accepted.  2. Describe is throttled.  3. The ENI must not count as attached and usable."""

    async def scenario():
        rig = await Rig().up()
        await make_room(rig, 12)
        while not any(intent.intended.kind == "detach" for intent in rig.state.intents.values()):
            await asyncio.sleep(0.1)
        (going,) = [i.intended.eni for i in rig.state.intents.values() if i.intended.kind == "detach"]
        rig.region.faults.inject(Fault(action=DESCRIBE, kind="throttle", times=20))
        for _ in range(100):
            await asyncio.sleep(0.5)
            held = rig.state.enis.get(going)
            assert held is None or held.phase == "detached" or held.is_retiring
        rig.region.faults.clear()
        await asyncio.sleep(200)
        assert_books_are_true(rig)
        assert "effect_failed" not in rig.kinds()
        await rig.stop()

    run_virtual(scenario())


async def detach_two(rig: Rig) -> None:
    """Two ENIs become empty and are detached side by side."""
    await make_room(rig, 100)
    async with asyncio.timeout(200):
        while sum(intent.intended.kind == "detach" for intent in rig.state.intents.values()) < 2:
            await asyncio.sleep(0.1)


def test_a_new_eni_is_protected_at_once_while_detaches_take_long():
    """1. Two ENIs are detached, each for half a minute.  2. A burst brings a new one.  3. The machine ends."""

    async def scenario():
        rig = await Rig("m5.4xlarge", timing={"detach_settle_s": 30.0}).up()
        await detach_two(rig)
        before = set(rig.state.enis)
        async with asyncio.TaskGroup() as group:
            for number in range(80):
                group.create_task(rig.cni("ADD", f"more-{number}"))
        (fresh, *_) = set(rig.state.enis) - before
        await asyncio.sleep(1.0)
        assert any(intent.intended.kind == "detach" for intent in rig.state.intents.values())
        attachment = rig.region.world.enis[fresh].attachment
        assert attachment is not None
        assert attachment.delete_on_termination
        await rig.stop()

    run_virtual(scenario())


def test_how_far_detaches_are_is_asked_once_a_second_for_all():
    async def scenario():
        rig = await Rig("m5.4xlarge", timing={"detach_settle_s": 10.0}).up()
        await detach_two(rig)
        before = rig.calls()
        await asyncio.sleep(20)
        assert calls_since(rig, before)[DESCRIBE] <= 12
        await asyncio.sleep(100)
        assert_books_are_true(rig)
        await rig.stop()

    run_virtual(scenario())


# -- refusals and throttling --------------------------------------------------------------------------


REFUSALS = [
    (action, code)
    for action in (CREATE, ATTACH, ASSIGN, MODIFY)
    for code in ("UnauthorizedOperation", "InvalidParameterValue", "OperationNotPermitted")
] + [(CREATE, "InsufficientFreeAddressesInSubnet"), (ASSIGN, "InsufficientFreeAddressesInSubnet"),
     (ATTACH, "AttachmentLimitExceeded"), (CREATE, "NetworkInterfaceLimitExceeded")]  # fmt: skip


@pytest.mark.parametrize(("action", "code"), REFUSALS)
def test_what_ec2_refuses_for_good_is_asked_for_a_few_times_a_minute_at_most(action, code):
    async def scenario():
        rig = Rig()
        rig.region.faults.inject(Fault(action=action, kind="error", code=code, times=FOR_EVER))
        await rig.up(settle_s=0)
        await rig.add("web")
        await asyncio.sleep(120)
        before = rig.calls()
        await asyncio.sleep(600)
        made = calls_since(rig, before)
        assert made[action] <= 12
        assert sum(made.values()) <= 60, made
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("action", [UNASSIGN, DETACH, DELETE])
@pytest.mark.parametrize("code", ["UnauthorizedOperation", "InvalidParameterValue"])
@pytest.mark.parametrize("first_is_lost", [False, True], ids=["refused", "lost, then refused"])
def test_shrinking_that_ec2_refuses_is_asked_for_a_few_times_a_minute_at_most(action, code, first_is_lost):
    async def scenario():
        rig = await Rig(environ=IP_TARGETS if action == UNASSIGN else None).up()
        if first_is_lost:
            rig.region.faults.inject(Fault(action=action, kind="dropped_request"))
        rig.region.faults.inject(Fault(action=action, kind="error", code=code, times=FOR_EVER))
        await make_room(rig, 12)
        await asyncio.sleep(300)
        before = rig.calls()
        await asyncio.sleep(600)
        made = calls_since(rig, before)
        assert made[action] <= 12
        assert sum(made.values()) <= 60, made
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("action", [CREATE, ATTACH, ASSIGN, "*"])
@pytest.mark.parametrize("code", ["RequestLimitExceeded", "InternalError", "Unavailable"])
def test_backing_off_is_bounded_doubling_and_jittered(action, code):
    async def scenario():
        rig = Rig()
        fault = Fault(action=action, kind="error", code=code, times=FOR_EVER)
        if action == ASSIGN:  # Only the primary ENI needs it, at the very start.
            rig.region.faults.inject(fault)
        await rig.up(settle_s=20)
        if action != ASSIGN:
            rig.region.faults.inject(fault)
        loop = asyncio.get_running_loop()
        adds = [loop.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(12)]
        await asyncio.sleep(120)
        before = rig.calls()
        await asyncio.sleep(300)
        made = calls_since(rig, before)
        assert 4 <= sum(made.values()) <= 90, made  # 18 a minute; an unknown outcome needs three calls.
        rig.region.faults.clear()
        await asyncio.sleep(60)  # It recovers by itself.
        assert_books_are_true(rig)
        assert len(rig.state.enis) >= 2
        for add in adds:
            assert add.done()
        await rig.stop()

    run_virtual(scenario())


def test_an_unknown_outcome_with_a_failing_describe_is_asked_about_ever_more_slowly():
    async def scenario():
        rig = await Rig().up()
        rig.region.faults.inject(Fault(action=CREATE, kind="lost_reply"))
        rig.region.faults.inject(Fault(action=DESCRIBE, kind="throttle", times=FOR_EVER))
        await rig.add("web")
        await asyncio.sleep(300)
        before = rig.calls()
        await asyncio.sleep(600)
        assert sum(calls_since(rig, before).values()) <= 60
        rig.region.faults.clear()
        await asyncio.sleep(120)
        assert_books_are_true(rig)
        assert rig.calls()[CREATE] == 1
        await rig.stop()

    run_virtual(scenario())


# -- waiting ADDs -----------------------------------------------------------------------------------


async def full(rig: Rig) -> None:
    """Take every address of the first ENI; nothing else is attached."""
    for number in range(9):
        await rig.add(f"pod-{number}")


@pytest.mark.parametrize(
    ("code", "reason", "soon_s"),
    [
        # EC2's own count says that there are thousands: less and less is asked for, in four calls.
        ("InsufficientFreeAddressesInSubnet", "subnet_exhausted", 5),
        ("UnauthorizedOperation", "ec2_unauthorized", 3),
    ],
)
def test_an_add_that_nothing_can_satisfy_is_refused_at_once_with_the_reason(code, reason, soon_s):
    async def scenario():
        rig = Rig()
        for action in (CREATE, ASSIGN):
            rig.region.faults.inject(
                Fault(action=action, kind="error", code=code, times=FOR_EVER, skip=action == ASSIGN)
            )
        await rig.up(settle_s=10)
        await full(rig)
        began = rig.now()
        status, answer = await rig.cni("ADD", "late")
        assert (status, answer["reason"], answer["code"]) == (503, reason, 11)
        assert rig.now() - began < soon_s
        began = rig.now()
        status, answer = await rig.cni("ADD", "later")
        assert answer["reason"] == reason
        assert rig.now() - began < 0.5
        await rig.stop()

    run_virtual(scenario())


def test_a_waiting_add_is_refused_when_the_last_hope_is_gone():
    """1. ADDs wait for growth.  2. EC2 says that the subnet is exhausted.  3. They are told at once."""

    async def scenario():
        rig = Rig()
        rig.region.faults.inject(
            Fault(action=CREATE, kind="error", code="InsufficientFreeAddressesInSubnet", times=FOR_EVER)
        )
        await rig.up(settle_s=0)
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(12)]
        answers = [add.result() for add in adds]
        assert sum(status == 200 for status, _ in answers) == 9
        assert {answer["reason"] for status, answer in answers if status != 200} == {"subnet_exhausted"}
        assert rig.now() < 10
        await rig.stop()

    run_virtual(scenario())


def test_a_throttled_node_keeps_its_adds_waiting_and_serves_them():
    async def scenario():
        rig = Rig()
        await rig.up(settle_s=0.6)
        rig.region.faults.inject(Fault(action=CREATE, kind="throttle", times=3))
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(12)]
        assert {add.result()[0] for add in adds} == {200}
        await rig.stop()

    run_virtual(scenario())


def test_a_burst_of_calls_that_is_throttled_refuses_no_add():
    """1. Six ENIs are asked for side by side. 2. Each call is throttled, most of them twice. 3. All pods wait."""

    async def scenario():
        rig = await Rig("m5.4xlarge").up()
        rig.region.faults.inject(Fault(action=CREATE, kind="throttle", times=12))
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(150)]
        assert {add.result()[0] for add in adds} == {200}
        await rig.stop()

    run_virtual(scenario())


def test_calls_that_wait_for_their_turn_look_again_before_they_are_made():
    """1. Six ENIs are wanted, two calls are made at a time. 2. EC2 forbids the first. 3. The others are not made."""

    async def scenario():
        rig = await Rig("m5.4xlarge", environ={"EC2_PARALLEL_MAX": "3"}).up()
        before = rig.calls().get(CREATE, 0)
        rig.region.faults.inject(
            Fault(action=CREATE, kind="error", code="UnauthorizedOperation", times=FOR_EVER)
        )
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(200)]
        assert rig.calls()[CREATE] - before <= 2
        refused = [add.result()[1] for add in adds if add.result()[0] != 200]
        assert {answer["reason"] for answer in refused} == {"ec2_unauthorized"}
        assert all(CREATE in answer["details"] for answer in refused)
        await rig.stop()

    run_virtual(scenario())


def test_a_node_that_may_not_attach_does_not_create_and_delete_an_eni_every_minute():
    async def scenario():
        rig = Rig()
        rig.region.faults.inject(
            Fault(action=ATTACH, kind="error", code="AttachmentLimitExceeded", times=FOR_EVER)
        )
        await rig.up(settle_s=0)
        await rig.add("web")
        await asyncio.sleep(4 * 3600)
        assert rig.calls()[CREATE] <= 4 * 12 + 6, rig.calls()
        assert rig.calls()[CREATE] == rig.calls()[DELETE]
        await rig.stop()

    run_virtual(scenario())


# -- what EC2 has just made ---------------------------------------------------------------------------

NOT_FOUND = "InvalidNetworkInterfaceID.NotFound"


@pytest.mark.parametrize("tries", [2, 6])
def test_an_eni_that_attach_does_not_know_yet_is_attached_a_little_later(tries):
    """1. Create. 2. Attach says: no such ENI. 3. EC2 is eventually consistent: the ENI is not given up."""

    async def scenario():
        rig = await Rig().up(settle_s=0.4)
        rig.region.faults.inject(Fault(action=ATTACH, kind="error", code=NOT_FOUND, times=tries))
        began = rig.now()
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(15)]
        assert {add.result()[0] for add in adds} == {200}
        assert rig.now() - began < 30
        assert rig.calls().get(DELETE, 0) == 0
        assert rig.calls()[CREATE] <= 2
        await rig.stop()

    run_virtual(scenario())


def test_an_eni_that_ec2_does_not_know_after_a_minute_is_believed_to_be_gone():
    async def scenario():
        rig = await Rig().up(settle_s=0.4)
        rig.region.faults.inject(Fault(action=ATTACH, kind="error", code=NOT_FOUND, times=FOR_EVER))
        await rig.add("web")
        await asyncio.sleep(50)
        assert rig.calls().get(DELETE, 0) == 0
        assert 5 <= rig.calls()[ATTACH] <= 40
        await asyncio.sleep(40)
        assert rig.calls()[DELETE] >= 1
        rig.region.faults.clear()
        await asyncio.sleep(300)
        assert_books_are_true(rig)
        assert len(rig.state.enis) == 2
        await rig.stop()

    run_virtual(scenario())


def test_an_add_waits_no_longer_than_its_time_and_then_says_so():
    async def scenario():
        rig = Rig(environ={"ADD_WAIT_S": "20"})
        await rig.up(settle_s=0)
        rig.region.faults.inject(Fault(action=CREATE, kind="latency", seconds=300, times=FOR_EVER))
        await full(rig)
        began = rig.now()
        status, answer = await rig.cni("ADD", "late")
        assert (status, answer["code"], answer["reason"]) == (503, 11, "wait_timed_out")
        assert 19.9 <= rig.now() - began <= 20.5
        assert rig.lease("late") is None
        await rig.stop()

    run_virtual(scenario())

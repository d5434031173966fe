"""Laws of the planner, for any pool that can be described."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.simulated_pool import SimulatedPool, applied, eni, rest_all
from vpccni.errors import Reason
from vpccni.model import EniId, SubnetId
from vpccni.planner.constraints import HeldEni, Shortage
from vpccni.planner.sizing import size_of, sum_room, tally_of
from vpccni.planner.warm_pool import (
    Constraints,
    CreateEni,
    Demand,
    EniView,
    GrowEni,
    Plan,
    PoolPolicy,
    ReleaseCidrs,
    RemoveEni,
    plan,
    prospect,
)

LAW = settings(deadline=None)  # a law is about results; a busy machine must not fail it
FREE_HANDS = Constraints()
WAITING = st.integers(0, 40)


@st.composite
def policies(draw) -> PoolPolicy:
    has_ip_targets = draw(st.booleans())
    return PoolPolicy(
        slots_per_eni=draw(st.integers(1, 9)),
        enis_max=draw(st.integers(1, 6)),
        max_pods=draw(st.integers(1, 60)),
        reserved_slots=draw(st.integers(0, 1)),
        unmanaged_enis=draw(st.integers(0, 1)),
        warm_eni_target=draw(st.integers(0, 3)),
        warm_ip_target=draw(st.integers(0, 12)) if has_ip_targets else 0,
        minimum_ip_target=draw(st.integers(0, 20)) if has_ip_targets else 0,
    )


@st.composite
def views(draw, device: int, slots: int, is_calm: bool) -> EniView:
    """One ENI; a calm one is usable, nothing is open on it, and nothing of it rests or is blocked."""
    owned = draw(st.just(slots) | st.just(0) | st.integers(0, slots))
    assigned = draw(st.just(0) | st.integers(0, owned))
    if is_calm:
        return eni(device, owned, assigned, slots=slots)
    state = draw(
        st.sampled_from(["usable", "usable", "usable", "coming", "suspected", "excluded", "leaving"])
    )
    resting = draw(st.integers(0, owned - assigned))
    is_usable = state == "usable"
    return eni(
        device,
        owned,
        assigned,
        slots=slots,
        resting=resting,
        resting_soon=draw(st.integers(0, resting)),
        blocked=draw(st.integers(0, owned - assigned - resting)),
        pending=draw(st.integers(0, slots - owned)) if state in ("usable", "coming") else 0,
        is_usable=is_usable,
        is_coming=state == "coming",
        is_excluded=state == "excluded",
        is_leaving=state == "leaving",
        is_busy=draw(st.booleans()),
        can_grow=is_usable and draw(st.booleans()),
        can_shrink=draw(st.booleans()),
        age_s=draw(st.sampled_from([0.0, 59.9, 60.0, 1e9])),
    )


@st.composite
def pools(draw, is_calm: bool = False) -> tuple[PoolPolicy, list[EniView]]:
    policy = draw(policies())
    count = draw(st.integers(1, policy.enis_max))
    return policy, [draw(views(device, policy.slots_per_eni, is_calm)) for device in range(count)]


CALM = pools(is_calm=True)


@st.composite
def constraints(draw) -> Constraints:
    code = st.sampled_from(["", "", "ec2_throttled"])
    return Constraints(create_blocked=draw(code), assign_blocked=draw(code), shrink_blocked=draw(code))


@st.composite
def tight(draw) -> Constraints:
    """Also trials, a subnet with few addresses, and ENIs about which EC2 refused a call."""
    code = st.sampled_from(["", "", "ec2_refused"])
    enis = draw(st.lists(st.integers(0, 5), unique=True, max_size=3))
    held: Constraints = draw(constraints())
    return msgspec.structs.replace(
        held,
        release_blocked=draw(code),
        remove_blocked=draw(code),
        create_once=draw(st.booleans()),
        assign_once=draw(st.booleans()),
        shortages=tuple(
            Shortage(call=call, subnet=SubnetId(""), left=draw(st.integers(0, 9)))
            for call in ("assign", "create")
            if draw(st.booleans())
        ),
        enis=tuple(
            HeldEni(eni=EniId(f"eni-{device}"), growth=draw(code), shrink=draw(code)) for device in enis
        ),
    )


def brought(made: Plan) -> int:
    return sum(step.count for step in made.steps if isinstance(step, GrowEni | CreateEni))


def given_back(made: Plan) -> int:
    return sum(len(step.cidrs) for step in made.steps if isinstance(step, ReleaseCidrs | RemoveEni))


def created(made: Plan) -> int:
    return sum(isinstance(step, CreateEni) for step in made.steps)


@LAW
@given(pools(), WAITING, constraints() | tight())
def test_no_plan_exceeds_a_limit_or_does_what_is_held_back(pool, waiting, held):
    policy, enis = pool
    made = plan(enis, policy, Demand(waiting), held)
    by_id = {view.id: view for view in enis}
    limit = policy.enis_max - policy.reserved_slots - policy.unmanaged_enis
    assert created(made) <= max(limit - len(enis), 0)
    assert not (created(made) and held.create_blocked)
    assert len({step.eni for step in made.steps if not isinstance(step, CreateEni)}) == len(
        made.steps
    ) - created(made)
    held_eni = {one.eni: one for one in held.enis}
    grown = [step for step in made.steps if isinstance(step, GrowEni)]
    short = {one.call: one.left for one in held.shortages}
    assert len(grown) <= 1 or not (held.assign_once or "assign" in short)
    assert created(made) <= 1 or not (held.create_once or "create" in short)
    assert not (grown and created(made) and "assign" in short)
    for step in made.steps:
        match step:
            case GrowEni(eni=name, count=count):
                view = by_id[name]
                assert count <= short.get("assign", count)
                assert not (name in held_eni and held_eni[name].growth)
                assert view.is_usable
                assert view.can_grow
                assert not held.assign_blocked
                assert 0 < count <= view.slots - view.owned - view.pending
            case CreateEni(count=count):
                assert 0 < count <= policy.slots_per_eni
                assert count <= short.get("create", count)
            case _:
                assert not held.shrink_blocked
                assert not (step.eni in held_eni and held_eni[step.eni].shrink)
                assert not (held.remove_blocked if isinstance(step, RemoveEni) else held.release_blocked)


@LAW
@given(pools(), WAITING, constraints() | tight())
def test_no_step_gives_back_an_address_that_is_leased_or_rests(pool, waiting, held):
    policy, enis = pool
    by_id = {view.id: view for view in enis}
    for step in plan(enis, policy, Demand(waiting), held).steps:
        if isinstance(step, ReleaseCidrs | RemoveEni):
            listed = by_id[step.eni].rested
            assert [cidr.cidr for cidr in step.cidrs] == list(listed[: len(step.cidrs)])
        if isinstance(step, RemoveEni):
            view = by_id[step.eni]
            assert view.assigned == view.resting == view.blocked == view.pending == 0
            assert len(step.cidrs) == view.owned
            assert not view.is_primary
            assert view.age_s >= policy.min_eni_age_s


@LAW
@given(CALM | pools(), st.just(0) | WAITING, constraints())
def test_no_plan_leaves_less_than_the_targets_by_giving_back(pool, waiting, held):
    policy, enis = pool
    made = plan(enis, policy, Demand(waiting), held)
    usable = {view.id for view in enis if view.is_usable}
    back = [step for step in made.steps if isinstance(step, ReleaseCidrs | RemoveEni) and step.eni in usable]
    lost = sum(len(step.cidrs) for step in back)
    tally = tally_of(enis, policy)
    if back:
        assert tally.free_now - waiting - lost >= policy.free_target
        assert not policy.has_ip_targets or tally.total_now - lost >= policy.minimum_ip_target


@LAW
@given(CALM, WAITING)
def test_no_plan_follows_its_inverse(pool, waiting):
    policy, enis = pool
    first = plan(enis, policy, Demand(waiting), FREE_HANDS)
    after = applied(enis, first)
    second = plan(after, policy, Demand(waiting), FREE_HANDS)
    grown = {step.eni for step in first.steps if isinstance(step, GrowEni)}
    if brought(first):
        assert not any(isinstance(step, ReleaseCidrs) for step in second.steps)
        assert not any(isinstance(step, RemoveEni) and step.eni in grown for step in second.steps)
    if created(first):
        assert not any(isinstance(step, RemoveEni) for step in second.steps)
    if any(isinstance(step, ReleaseCidrs | RemoveEni) for step in first.steps):
        assert brought(second) == 0


@LAW
@given(CALM)
def test_what_was_given_back_is_not_wanted_after_one_more_add(pool):
    """With ENI targets not at all; with IP targets, which are exact, it costs an address but never an ENI."""
    policy, enis = pool
    first = plan(enis, policy, Demand(), FREE_HANDS)
    second = plan(applied(enis, first), policy, Demand(1), FREE_HANDS)
    if any(isinstance(step, ReleaseCidrs | RemoveEni) for step in first.steps):
        assert created(second) == 0
        assert policy.has_ip_targets or brought(second) == 0
        assert brought(second) <= 1


@LAW
@given(CALM, WAITING)
def test_plans_settle_within_three_rounds(pool, waiting):
    policy, enis = pool
    for _ in range(3):
        enis = applied(enis, plan(enis, policy, Demand(waiting), FREE_HANDS))
    assert plan(enis, policy, Demand(waiting), FREE_HANDS).steps == ()


@LAW
@given(pools(), WAITING, st.integers(1, 5), constraints())
def test_more_demand_never_brings_less_nor_gives_back_more(pool, waiting, more, held):
    policy, enis = pool
    less, greater = (plan(enis, policy, Demand(count), held) for count in (waiting, waiting + more))
    assert brought(greater) >= brought(less)
    assert created(greater) >= created(less)
    assert given_back(greater) <= given_back(less)


@LAW
@given(pools(), st.integers(1, 40), constraints())
def test_adds_that_wait_are_supplied_at_once_as_far_as_there_is_room(pool, waiting, held):
    """Also: what plan can do and what prospect promises are the same, where nothing is awaited."""
    policy, enis = pool
    enis = [msgspec.structs.replace(view, is_leaving=False) for view in enis]
    made = plan(enis, policy, Demand(waiting), held)
    supply = tally_of(enis, policy).supply
    for ahead in range(waiting):
        if supply + brought(made) > ahead:
            expected = prospect(enis, policy, held, ahead)
            assert expected.possible or expected.reason == Reason.MAX_PODS_REACHED
    is_settled = all(view.resting == 0 and (view.can_grow or not sum_room([view])) for view in enis)
    if is_settled and prospect(enis, policy, held, waiting - 1).possible:
        assert supply + brought(made) >= waiting


@LAW
@given(pools(), WAITING, constraints() | tight(), st.randoms())
def test_the_order_of_the_enis_does_not_matter(pool, waiting, held, random):
    policy, enis = pool
    shuffled = list(enis)
    random.shuffle(shuffled)
    first = plan(enis, policy, Demand(waiting), held)
    assert first == plan(enis, policy, Demand(waiting), held)
    assert first == plan(shuffled, policy, Demand(waiting), held)


@LAW
@given(pools(), WAITING, constraints() | tight())
def test_a_plan_always_says_why(pool, waiting, held):
    policy, enis = pool
    made = plan(enis, policy, Demand(waiting), held)
    assert made.reason
    assert made.short >= 0
    assert made.over >= 0
    assert not (made.short and made.over)
    size = size_of(tally_of(enis, policy), policy, waiting)
    assert size.is_low or brought(made) == 0


@settings(LAW, max_examples=40)
@given(policies(), st.lists(st.booleans(), max_size=40))
def test_a_node_serves_every_pod_that_its_limits_allow(policy, moves):
    """Pods come and go: none is refused while the instance could hold it, and ENIs never flap."""
    policy = msgspec.structs.replace(policy, max_pods=1000, reserved_slots=0, unmanaged_enis=0)
    pool = SimulatedPool(policy)
    pods = 0
    for is_add in moves:
        if is_add and pods < policy.enis_max * policy.slots_per_eni:
            pool.add()
            pods += 1
        elif pods and not is_add:
            pool.delete()
            pool.settle()
            pods -= 1
    assert pool.refused == 0
    assert sum(view.assigned for view in pool.enis) == pods


@LAW
@given(CALM)
def test_views_of_the_simulation_are_consistent(pool):
    for view in pool[1]:
        assert rest_all(view) == view
        assert len(view.rested) == view.owned - view.assigned

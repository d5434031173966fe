"""Commands become events, refusals or waiting; checked against the state of that very instant."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.projections.node import COOLDOWN_S, SECOND, Node, eni_facts, instance, key_of, pod_of
from vpccni.errors import Reason, Refused
from vpccni.events import address, effect, eni, sandbox
from vpccni.events import node as n
from vpccni.events.decision import PlanMade
from vpccni.events.effect import EffectIntended
from vpccni.model import Address, Binding, Cidr, EniId, InstanceLimits, IntentId, LeaseId, SubnetId
from vpccni.planner import commands as c
from vpccni.planner.warm_pool import Constraints

ZERO, ONE = EniId("eni-0"), EniId("eni-1")
TEN, ELEVEN = Cidr("10.0.0.10/32"), Cidr("10.0.0.11/32")


@pytest.fixture
def node() -> Node:
    return Node().start(eni_facts(0, 10, 11))


@pytest.fixture
def two() -> Node:
    """Two ENIs; the second one is old enough and free."""
    made = Node().start(eni_facts(0, 10, 11), eni_facts(1, 20))
    made.wait(100)
    return made


def kinds(answer: c.Answer) -> list[type]:
    assert isinstance(answer, c.Decision), answer
    return [type(event) for event, _ in answer.events]


def created(number: int) -> eni.EniAdopted:
    facts = eni_facts(number, device=-1, attachment="", instance="")
    return eni.EniAdopted(facts=facts, managed=True, origin="created")


def objection(answer: c.Answer) -> str:
    assert isinstance(answer, Refused), answer
    assert answer.reason is Reason.CANCELLED
    return answer.detail


def test_nothing_is_changed_by_asking(node):
    before = node.state.head
    assert node.decide(c.Add(key=key_of("a"), pod=pod_of("a"), netns="")) == node.decide(
        c.Add(key=key_of("a"), pod=pod_of("a"), netns="")
    )
    assert node.state.head == before


# -- ADD --------------------------------------------------------------------------------------------


def test_an_add_is_demand_and_an_address_in_one_decision(node):
    answer = node.add("a")
    assert kinds(answer) == [sandbox.AddRequested, sandbox.AddressAssigned]
    assert (answer.lease, answer.is_new) == (node.lease("a").id, True)
    assert node.records[-1].cause == node.records[-2].seq
    assert node.lease("a").netns == "/netns/a"


def test_a_request_that_was_recorded_is_not_recorded_again(node):
    request = node.append(sandbox.AddRequested(key=key_of("a"), pod=pod_of("a"))).seq
    answer = node.ask(c.Add(key=key_of("a"), pod=pod_of("a"), netns="/netns/a", request=request))
    assert kinds(answer) == [sandbox.AddressAssigned]
    assert node.records[-1].cause == request
    assert answer.lease == node.lease("a").id


def test_an_add_for_a_sandbox_with_a_lease_answers_with_it_whatever_holds_others_back(node):
    lease = node.add("a").lease
    stopped = Refused(Reason.NODE_NOT_INITIALIZED)
    assert node.add("a", ahead=5, not_serving=stopped, must_not_change=("new",)) == c.Decision((), lease)


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"must_not_change": ("new",)}, Refused(Reason.LOG_NEWER, "new")),
        ({"not_serving": Refused(Reason.NOT_THE_SAME_MACHINE, "m")}, (Reason.NOT_THE_SAME_MACHINE, "m")),
    ],
)
def test_an_add_before_the_node_serves(node, context, expected):
    answer = node.add("a", **context)
    if isinstance(answer, c.Park):
        assert (answer.reason, answer.detail) == expected
        assert [type(event) for event, _ in answer.events] == [sandbox.AddRequested]
    else:
        assert answer == expected


def test_what_is_free_belongs_to_those_who_wait_already(node):
    assert isinstance(node.add("late", ahead=1), c.Park)


def test_an_add_waits_for_an_address_that_rests(node):
    node.context = msgspec.structs.replace(node.context, constraints=Constraints(no_change="stopping"))
    for name in "ab":
        node.run_pod(name)
    node.delete("a")
    answer = node.add("next")
    assert isinstance(answer, c.Park)
    assert answer.detail == "waiting for the end of a cooldown"
    assert isinstance(node.add("another", ahead=1), Refused)


def test_an_add_does_not_wait_for_a_rest_that_is_too_long():
    node = Node(enis_max=1, slots=1).start(eni_facts(0, 10))
    node.run_pod("a")
    node.end_pod("a")
    assert isinstance(
        node.decide(c.Add(key=key_of("b"), pod=pod_of("b"), netns=""), cooldown_s=120.0), c.Park
    )
    blocked = Constraints(no_change="invariant_broken")
    answer = node.decide(
        c.Add(key=key_of("b"), pod=pod_of("b"), netns=""), cooldown_s=120.0, constraints=blocked
    )
    assert isinstance(answer, c.Park), "the address is there, only not yet: the caller bounds the wait"


@pytest.mark.parametrize(
    ("enis_max", "constraints", "reason"),
    [
        (1, Constraints(), Reason.INSTANCE_FULL),
        (3, Constraints(create_blocked="subnet_exhausted"), Reason.SUBNET_EXHAUSTED),
        (3, Constraints(no_change="invariant_broken"), Reason.INVARIANT_BROKEN),
    ],
)
def test_an_add_that_nothing_can_satisfy_is_refused_with_the_reason(enis_max, constraints, reason):
    node = Node(enis_max=enis_max, slots=1).start(eni_facts(0, 10))
    node.run_pod("a")
    head = node.state.head
    assert node.add("b", constraints=constraints) == Refused(reason)
    assert node.state.head == head


def test_an_add_waits_while_the_pool_can_grow():
    node = Node(enis_max=2, slots=1).start(eni_facts(0, 10))
    node.run_pod("a")
    answer = node.add("b")
    assert isinstance(answer, c.Park)
    assert (answer.reason, answer.detail) == (Reason.NO_ADDRESS, "waiting for EC2")


def test_an_add_waits_until_the_limits_are_known(node):
    for name in "ab":
        node.run_pod(name)
    answer = node.add("c", policy=None)
    assert isinstance(answer, c.Park)
    assert answer.reason is Reason.NODE_NOT_INITIALIZED


# -- the end of a lease -----------------------------------------------------------------------------


def test_a_del_ends_the_lease_and_names_its_witness(node):
    lease = node.add("a").lease
    answer = node.ask(c.EndLease(key=key_of("a"), cause="del", sources=("runtime",)))
    ((event, cause),) = answer.events
    assert (event.lease, event.cause, event.sources, cause) == (lease, "del", ("runtime",), lease)
    assert answer.lease == lease


def test_a_del_with_nothing_left_to_do_succeeds(node):
    assert node.ask(c.EndLease(key=key_of("nobody"), cause="del")) == c.Decision()


def test_a_del_is_refused_when_the_log_is_newer(node):
    node.add("a")
    answer = node.decide(c.EndLease(key=key_of("a"), cause="del"), must_not_change=("new",))
    assert answer == Refused(Reason.LOG_NEWER, "new")


@pytest.mark.parametrize(
    ("boot", "age_s", "ends"),
    [("boot-1", 1, True), ("boot-1", 20, False), ("boot-0", 1, False)],
    ids=["younger than the lease", "older than the lease", "of an earlier boot"],
)
def test_a_spooled_del_ends_no_lease_that_is_younger(node, boot, age_s, ends):
    node.run_pod("a")
    node.wait(10)
    command = c.EndLease(
        key=key_of("a"),
        cause="del",
        sources=("spool",),
        written_boot_id=boot,
        written_boottime_ns=node.now.boottime_ns - age_s * SECOND,
    )
    node.ask(command)
    assert (node.state.lease_of(key_of("a")) is None) == ends


@pytest.mark.parametrize(
    ("is_wired", "was_wired", "rests"),
    [(False, False, False), (False, True, True), (True, False, True)],
    ids=["never", "the caller says so", "the log says so"],
)
def test_an_undone_add_rests_when_a_packet_may_have_carried_its_address(node, is_wired, was_wired, rests):
    node.add("a")
    if is_wired:
        node.wire("a")
    answer = node.ask(
        c.RefuseAdd(key=key_of("a"), pod=pod_of("a"), reason=Reason.KERNEL_REFUSED, was_wired=was_wired)
    )
    assert kinds(answer) == [sandbox.AddFailed, sandbox.LeaseEnded]
    assert bool(node.state.rests) == rests


def test_the_failure_of_a_repeated_add_ends_nothing(node):
    lease = node.add("a").lease
    refuse = c.RefuseAdd(key=key_of("a"), pod=pod_of("a"), reason=Reason.KERNEL_REFUSED, ends_lease=False)
    assert kinds(node.ask(refuse)) == [sandbox.AddFailed]
    assert lease in node.state.leases


def test_the_failure_of_an_add_that_names_a_hold_ends_nothing(node):
    """1. An ADD names a hold.  2. Its caller goes away before anybody knows what became of it."""
    binding = Binding(family=4, address=Address("10.0.0.5"), eni=EniId("eni-0"), card=0, device=0, table=254)
    held = sandbox.AddressHeld(bindings=(binding,), netns="/run/netns/a", ifname="eth0")
    node.ask(c.Note((held,)))
    lease = node.ask(c.Add(key=key_of("a"), pod=pod_of("a"), netns="/run/netns/a")).lease
    refuse = c.RefuseAdd(key=key_of("a"), pod=pod_of("a"), reason=Reason.CANCELLED, was_wired=True)
    assert kinds(node.ask(refuse)) == [sandbox.AddFailed]
    assert node.state.lease_of(key_of("a")).id == lease


def test_a_refused_add_leaves_no_trace_in_a_log_that_is_newer(node):
    refuse = c.RefuseAdd(key=key_of("a"), pod=pod_of("a"), reason=Reason.LOG_NEWER)
    assert node.decide(refuse, must_not_change=("new",)) == c.Decision()


def test_one_witness_quarantines_and_two_end(node):
    lease = node.add("a").lease
    gone = c.NoteEvidence(lease=lease, source="kernel", is_alive=False)
    alive = c.NoteEvidence(lease=lease, source="kernel", is_alive=True)
    assert kinds(node.ask(alive)) == []
    assert kinds(node.ask(gone)) == [sandbox.LeaseSuspected]
    assert kinds(node.ask(gone)) == [], "said once"
    assert lease in node.state.leases
    assert kinds(node.ask(alive)) == [sandbox.LeaseCleared]
    assert kinds(node.ask(gone)) == [sandbox.LeaseSuspected]
    assert kinds(node.ask(c.EndBySources(lease=lease, sources=("kernel", "api")))) == [sandbox.LeaseEnded]
    assert kinds(node.ask(c.EndBySources(lease=lease, sources=("kernel", "api")))) == []


def test_what_is_not_standing_is_not_unwired_twice(node):
    node.run_pod("a")
    lease = node.delete("a")
    assert kinds(node.ask(c.NoteUnwired((lease, LeaseId(99))))) == [sandbox.SandboxUnwired]
    assert kinds(node.ask(c.NoteUnwired((lease,)))) == []


# -- intents ----------------------------------------------------------------------------------------


def test_an_intent_is_named_by_its_event(node):
    answer = node.intend(kind="assign", eni=ZERO, count=1)
    assert answer.intent == node.state.head
    assert answer.intent in node.state.intents


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"constraints": Constraints(no_change="stopping")}, Reason.STOPPING),
        ({"must_not_change": ("new",)}, Reason.LOG_NEWER),
    ],
)
def test_nothing_is_intended_while_nothing_may_be_changed(node, context, reason):
    answer = node.decide(c.Intend(EffectIntended(kind="assign", eni=ZERO, count=1)), **context)
    assert isinstance(answer, Refused)
    assert answer.reason is reason


def test_nothing_is_intended_after_a_broken_invariant_until_the_next_start(node):
    assert kinds(node.ask(c.ReportBroken(name="x", detail="y"))) == [n.InvariantBroken]
    assert kinds(node.ask(c.ReportBroken(name="x", detail="y"))) == []
    answer = node.intend(kind="assign", eni=ZERO, count=1)
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.INVARIANT_BROKEN
    node.ask(c.StartAgent(boot_id=node.now.boot_id, version="1"))
    assert isinstance(node.intend(kind="assign", eni=ZERO, count=1), c.Decision)


def test_a_release_of_a_leased_a_resting_a_standing_or_a_foreign_address_is_refused(node):
    node.run_pod("a")
    release = EffectIntended(kind="unassign", eni=ZERO, cidrs=(ELEVEN, TEN))
    assert objection(node.decide(c.Intend(release))) == "stale plan: 10.0.0.10/32 is leased or resting"
    node.delete("a")
    node.wait(COOLDOWN_S)
    assert "leased or resting" in objection(node.decide(c.Intend(release))), "its veth stands"
    node.unwire_all()
    assert isinstance(node.decide(c.Intend(release)), c.Decision)
    foreign = EffectIntended(kind="unassign", eni=ZERO, cidrs=(Cidr("10.0.0.99/32"),))
    assert "not owned" in objection(node.decide(c.Intend(foreign)))


def test_a_prefix_with_one_leased_address_is_not_released():
    prefix = Cidr("10.0.0.32/28")
    node = Node().start(eni_facts(0, cidrs=(prefix,)))
    node.run_pod("a")
    assert "leased" in objection(node.intend(kind="unassign", eni=ZERO, cidrs=(prefix,)))


def test_an_address_under_release_is_assigned_to_nobody_and_comes_back_when_that_fails(node):
    intent = node.intend(kind="unassign", eni=ZERO, cidrs=(TEN,)).intent
    assert node.run_pod("a") == "10.0.0.11"
    node.end_pod("a")
    node.settle(intent, c.Failed(reason=Reason.EC2_THROTTLED, is_transient=True))
    assert node.run_pod("b") == "10.0.0.10"


@pytest.mark.parametrize("first", ["assign", "unassign"])
@pytest.mark.parametrize("second", ["assign", "unassign"])
def test_one_change_of_addresses_at_a_time_for_each_eni(two, first, second):
    def wanted(kind, cidr):
        return EffectIntended(kind=kind, eni=ZERO, count=1, cidrs=(cidr,) if kind == "unassign" else ())

    two.ask(c.Intend(wanted(first, TEN)))
    assert objection(two.ask(c.Intend(wanted(second, ELEVEN)))) == "stale plan: busy"
    assert isinstance(two.intend(kind="assign", eni=ONE, count=1), c.Decision)


def test_an_eni_with_a_lease_or_a_resting_address_is_not_detached(two):
    two.ready(ONE)
    for name in "abc":
        two.run_pod(name)
    assert "open leases" in objection(two.intend(kind="detach", eni=ONE))
    two.end_pod("c")
    assert "cooldown" in objection(two.intend(kind="detach", eni=ONE))
    two.wait(COOLDOWN_S)
    assert isinstance(two.intend(kind="detach", eni=ONE), c.Decision)
    assert two.state.enis[ONE].is_retiring


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (eni_facts(0, 10), "not ours to detach"),
        (eni_facts(1, tags={"node.k8s.amazonaws.com/no_manage": "true"}), "not ours to detach"),
        (eni_facts(1, type="trunk"), "not ours to detach"),
    ],
    ids=["primary", "unmanaged", "trunk"],
)
def test_what_is_not_ours_to_detach(facts, said):
    node = Node().start(*({eni_facts(0).id: eni_facts(0)} | {facts.id: facts}).values())
    assert said in objection(node.intend(kind="detach", eni=facts.id))


def test_an_eni_being_detached_gets_no_pod_and_no_address(two):
    for name in "ab":
        two.run_pod(name)
    two.intend(kind="detach", eni=ONE)
    assert isinstance(two.add("c"), c.Park)
    assert objection(two.intend(kind="assign", eni=ONE, count=1)) == "stale plan: busy"
    assert objection(two.intend(kind="detach", eni=ONE)) == "stale plan: busy"


def test_only_a_detached_eni_is_deleted(two):
    assert "busy" in objection(two.intend(kind="delete", eni=ONE))
    two.settle(two.intend(kind="detach", eni=ONE).intent, c.Confirmed())
    intent = two.intend(kind="delete", eni=ONE).intent
    assert objection(two.intend(kind="delete", eni=ONE)) == "stale plan: busy"
    assert kinds(two.settle(intent, c.Confirmed())) == [effect.EffectConfirmed, eni.EniGone]
    assert ONE not in two.state.enis


def test_an_attach_reserves_its_device_index():
    node = Node(enis_max=5).start(eni_facts(0, 10), eni_facts(1, 20))
    for number in (2, 3):
        node.append(
            eni.EniAdopted(
                facts=eni_facts(number, device=-1, attachment="", instance=""), managed=True, origin="created"
            )
        )
    assert (
        objection(node.intend(kind="attach", eni=EniId("eni-2"), device=1))
        == "stale plan: device 1 is in use"
    )
    assert isinstance(node.intend(kind="attach", eni=EniId("eni-2"), device=2), c.Decision)
    assert "device 2 is reserved" in objection(node.intend(kind="attach", eni=EniId("eni-3"), device=2))
    assert "busy" in objection(node.intend(kind="attach", eni=ONE, device=4)), "attached already"
    assert "not in the books" in objection(node.intend(kind="attach", eni=EniId("eni-9"), device=4))


def test_creates_stop_at_the_instances_limit_those_under_way_included():
    node = Node(enis_max=3).start(eni_facts(0, 10))
    for _ in range(2):
        assert isinstance(node.intend(kind="create", count=1), c.Decision)
    assert "no ENI slot left" in objection(node.intend(kind="create", count=1))
    create = EffectIntended(kind="create", count=1)
    assert "limits unknown" in objection(node.decide(c.Intend(create), policy=None))


def test_what_an_earlier_agent_left_behind_takes_no_place_of_the_instance():
    """A bug: left-behind ENIs that could not be deleted ended all growth."""
    node = Node(enis_max=2).start(eni_facts(0, 10))
    loose = eni_facts(7, attachment="", instance="", device=-1)
    node.ask(c.AdoptLeftBehind((loose,)))
    assert loose.id in node.state.enis
    assert isinstance(node.intend(kind="create", count=1), c.Decision)


# -- outcomes ---------------------------------------------------------------------------------------


def test_a_created_eni_is_taken_into_the_books_with_its_addresses(node):
    intent = node.intend(kind="create", count=2, token="t").intent
    facts = eni_facts(1, 20, 21, attachment="", instance="", device=-1)
    answer = node.settle(intent, c.Confirmed(facts=facts))
    assert kinds(answer) == [effect.EffectConfirmed, eni.EniAdopted, address.CidrsOwned]
    held = node.state.enis[ONE]
    assert (held.phase, held.origin, sorted(held.cidrs)) == (
        "detached",
        "created",
        ["10.0.1.20/32", "10.0.1.21/32"],
    )
    assert not node.state.intents


def test_an_attach_that_is_confirmed_makes_the_eni_attached(node):
    node.append(
        eni.EniAdopted(
            facts=eni_facts(1, device=-1, attachment="", instance=""), managed=True, origin="created"
        )
    )
    intent = node.intend(kind="attach", eni=ONE, device=1).intent
    node.settle(intent, c.Confirmed(attachment="attach-9"))
    held = node.state.enis[ONE]
    assert (held.phase, held.attachment, held.device, held.table) == ("attached", "attach-9", 1, 2)


def test_an_assign_brings_only_what_is_new(node):
    intent = node.intend(kind="assign", eni=ZERO, count=2, known=(TEN, ELEVEN)).intent
    answer = node.settle(intent, c.Confirmed(cidrs=(TEN, Cidr("10.0.0.12/32"))))
    owned = answer.events[1][0]
    assert owned == address.CidrsOwned(eni=ZERO, cidrs=(Cidr("10.0.0.12/32"),), source="reply")


def test_an_unassign_releases_what_is_still_owned(node):
    intent = node.intend(kind="unassign", eni=ZERO, cidrs=(TEN, ELEVEN)).intent
    node.append(address.CidrsReleased(eni=ZERO, cidrs=(TEN,), source="describe"))
    answer = node.settle(intent, c.Confirmed(how="observed"))
    assert answer.events[1][0] == address.CidrsReleased(eni=ZERO, cidrs=(ELEVEN,), source="observed")


@pytest.mark.parametrize(
    ("outcome", "kind", "is_open"),
    [
        (
            c.Failed(reason=Reason.EC2_THROTTLED, code="Throttling", is_transient=True),
            effect.EffectFailed,
            False,
        ),
        (c.Unknown(detail="no reply"), effect.EffectUnknown, True),
        (c.Abandoned(reason="gone"), effect.EffectAbandoned, False),
        (c.Confirmed(), effect.EffectConfirmed, False),
    ],
)
@pytest.mark.parametrize("wanted", ["create", "assign", "unassign", "modify", "tag"])
def test_every_effect_has_every_outcome(node, wanted, outcome, kind, is_open):
    cidrs = (TEN,) if wanted == "unassign" else ()
    eni_id = EniId("") if wanted == "create" else ZERO
    intent = node.intend(kind=wanted, eni=eni_id, cidrs=cidrs, count=1).intent
    answer = node.settle(intent, outcome)
    assert kinds(answer)[0] is kind
    assert answer.events[0][1] == intent, "caused by its intent"
    assert (intent in node.state.intents) == is_open
    assert kinds(node.settle(intent, outcome)) == [], "settled once"


def test_the_outcome_of_an_intent_that_nobody_knows_is_nothing(node):
    assert node.settle(IntentId(77), c.Confirmed()) == c.Decision()


# -- the machine ------------------------------------------------------------------------------------


def test_a_start_in_the_same_boot_keeps_everything(node):
    node.run_pod("a")
    answer = node.ask(c.StartAgent(boot_id=node.now.boot_id, version="2"))
    assert kinds(answer) == [n.AgentStarted]
    assert node.state.leases


def test_a_boot_ends_every_lease_and_every_veth(node):
    node.run_pod("a")
    node.run_pod("b")
    node.delete("b")
    last = node.records[-1].stamp
    node.boot("boot-2")
    changed, ended, unwired, started = node.records[-4:]
    assert changed.event == n.BootChanged(old="boot-1", new="boot-2", last=last)
    assert (ended.event.cause, ended.cause) == ("reboot", changed.seq)
    assert (type(unwired.event), unwired.cause) == (sandbox.SandboxUnwired, changed.seq)
    assert type(started.event) is n.AgentStarted
    assert not node.state.leases
    assert not node.state.standing


def test_another_machine_starts_the_books_over(two):
    two.boot("boot-2")
    two.run_pod("a")
    two.intend(kind="create", count=1)
    two.intend(kind="detach", eni=ONE)
    two.ask(c.ObserveInstance(instance(2), has_other_primary=True))
    state = two.state
    assert (state.enis, state.leases, state.intents, state.rests, state.standing) == ({}, {}, {}, {}, {})
    assert state.instance == instance(2)
    ended = next(r for r in two.records if isinstance(r.event, sandbox.LeaseEnded))
    assert isinstance(ended.event, sandbox.LeaseEnded)
    assert ended.event.cause == "machine_changed"


@pytest.mark.parametrize("readings", [1, 2, 50])
@pytest.mark.parametrize("has_other_primary", [False, True])
def test_a_machine_does_not_change_while_it_runs(two, readings, has_other_primary):
    """One wrong answer of IMDS ended every lease once. Within one boot no answer does."""
    two.run_pod("a")
    before = dict(two.state.leases)
    other = c.ObserveInstance(instance(2), readings=readings, has_other_primary=has_other_primary)
    assert kinds(two.ask(other)) == [n.InstanceDoubted]
    assert kinds(two.ask(other)) == []
    assert two.state.leases == before
    assert two.state.instance == instance()
    assert two.state.doubted is not None
    assert kinds(two.ask(c.ObserveInstance(instance()))) == [n.InstanceObserved]
    assert two.state.doubted is None


@pytest.mark.parametrize(
    ("readings", "has_other_primary", "is_believed"),
    [(1, True, True), (1, False, False), (2, False, True)],
    ids=["another MAC, one reading", "same MAC, one reading", "same MAC, two readings"],
)
def test_in_a_new_boot_another_machine_needs_another_mac_or_two_readings(
    two, readings, has_other_primary, is_believed
):
    two.boot("boot-2")
    other = c.ObserveInstance(instance(2), readings=readings, has_other_primary=has_other_primary)
    two.ask(other)
    assert (two.state.instance == instance(2)) is is_believed
    assert (two.state.doubted is None) is is_believed


def test_an_instance_that_is_confirmed_in_a_boot_is_not_changed_in_it(two):
    two.boot("boot-2")
    assert kinds(two.ask(c.ObserveInstance(instance()))) == [n.InstanceObserved]
    assert kinds(two.ask(c.ObserveInstance(instance()))) == []
    two.ask(c.ObserveInstance(instance(2), readings=9, has_other_primary=True))
    assert two.state.instance == instance()


def test_the_same_machine_is_recorded_when_something_about_it_changed(node):
    assert kinds(node.ask(c.ObserveInstance(instance()))) == []
    bigger = msgspec.structs.replace(instance(), vpc_cidrs=(Cidr("10.0.0.0/16"), Cidr("100.64.0.0/16")))
    assert kinds(node.ask(c.ObserveInstance(bigger))) == [n.InstanceObserved]
    assert node.state.vpc_cidrs == bigger.vpc_cidrs
    assert node.state.enis


@pytest.mark.parametrize(
    "observed",
    [
        n.LimitsObserved(type="m5.xlarge", limits=InstanceLimits(enis_max=4, ipv4_per_eni=15)),
        n.PolicyObserved(settings={"WARM_IP_TARGET": "7"}),
        n.MaxPodsObserved(max_pods=58, source="node"),
        n.SchedulingObserved(schedulable=False),
        n.SubnetObserved(subnet=SubnetId("subnet-1"), cidr=Cidr("10.0.0.0/20"), az="a", free=5),
        n.NetworkConfigObserved(vpc_cidrs=(Cidr("10.0.0.0/8"),)),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_observation_is_recorded_when_it_is_news(node, observed):
    assert kinds(node.ask(c.Observe(observed))) == [type(observed)]
    assert kinds(node.ask(c.Observe(observed))) == []


VPC, MORE = Cidr("10.0.0.0/16"), Cidr("100.64.0.0/16")


def observe_vpc(node: Node, *cidrs: Cidr, previous: tuple[Cidr, ...] = ()) -> tuple[Cidr, ...]:
    node.ask(c.ObserveVpc(cidrs=cidrs, previous=previous))
    return node.state.vpc_cidrs


def test_a_cidr_that_the_vpc_gets_is_believed_at_once(node):
    head = node.state.head
    assert observe_vpc(node, VPC) == (VPC,)
    assert node.state.head == head, "no news, no event"
    assert observe_vpc(node, MORE, VPC) == (VPC, MORE)
    assert node.restored().vpc_cidrs == (VPC, MORE)


def test_a_cidr_that_the_vpc_loses_is_believed_when_two_readings_agree(node):
    """One short answer of IMDS would send pods' traffic inside the VPC out under the node's address."""
    observe_vpc(node, VPC, MORE)
    assert observe_vpc(node, VPC, previous=(VPC, MORE)) == (VPC, MORE)
    assert observe_vpc(node, VPC, previous=(VPC,)) == (VPC,)


def test_a_vpc_without_any_cidr_is_no_answer(node):
    assert observe_vpc(node) == (VPC,)
    assert observe_vpc(node) == (VPC,)


def test_a_machine_that_is_as_before_is_observed_again_where_its_vpc_is_not(node):
    """1. The VPC gets a CIDR while we run.  2. It loses it while we do not.  3. IMDS says what it said at first."""
    observe_vpc(node, VPC, MORE)
    assert kinds(node.ask(c.ObserveInstance(instance()))) == [n.InstanceObserved]
    assert node.state.vpc_cidrs == (VPC,)


def test_subnets_are_observed_each_for_itself(node):
    for name in ("subnet-1", "subnet-2"):
        event = n.SubnetObserved(subnet=SubnetId(name), cidr=Cidr("10.0.0.0/20"), az="a", free=5)
        assert kinds(node.ask(c.Observe(event))) == [n.SubnetObserved]
    assert len(node.state.subnets) == 2


def test_links_are_noted_when_they_change(node):
    ready = c.NoteLinks(ready=((ZERO, "ens5", 2),))
    assert kinds(node.ask(ready)) == [eni.EniLinkReady], "another name than before"
    assert kinds(node.ask(ready)) == []
    assert kinds(node.ask(c.NoteLinks(lost=((ZERO, "gone"),)))) == [eni.EniLinkLost]
    assert kinds(node.ask(c.NoteLinks(lost=((ZERO, "gone"),)))) == []
    assert kinds(node.ask(c.NoteLinks(ready=((EniId("eni-9"), "x", 1),), lost=((EniId("eni-9"), ""),)))) == []


def test_a_plan_is_recorded_when_it_acts_or_its_reason_changes(node):
    idle, acts = PlanMade(reason="met"), PlanMade(reason="met", steps=("grow",))
    assert [len(kinds(node.ask(c.NotePlan(plan)))) for plan in (idle, idle, acts, idle)] == [1, 0, 1, 0]
    assert len(kinds(node.ask(c.NotePlan(PlanMade(reason="full"))))) == 1

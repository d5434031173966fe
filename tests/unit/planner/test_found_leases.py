"""Leases that were found and not given: what another agent may have changed meanwhile is not taken for granted."""

from __future__ import annotations

import msgspec

from tests.unit.projections.node import Node, eni_facts, instance, key_of, pod_of
from vpccni.errors import Reason, Refused
from vpccni.events import effect, eni, sandbox
from vpccni.evidence import KERNEL, RUNTIME_CACHE, Claim, Verdict
from vpccni.model import Address, Cidr, EniId, IntentId
from vpccni.planner import commands as c
from vpccni.planner.doctor import examine
from vpccni.planner.lifecycle import next_effects

ONE, TWO = EniId("eni-1"), EniId("eni-2")


def served() -> Node:
    """A primary ENI with two addresses, and two others: one with one address, one with none."""
    return Node(enis_max=4).start(eni_facts(0, 10, 11), eni_facts(1, 20), eni_facts(2))


def claim(name: str, where: str, table: int = 254, evidence: tuple[str, ...] = (KERNEL,), **fields) -> Claim:
    return Claim(
        key=key_of(name), pod=pod_of(name), address=Address(where), table=table, evidence=evidence, **fields
    )


def found(node: Node, *claims: Claim, why: str = "foreign_checkpoint") -> None:
    node.ask(c.TakeSurvey(why=why, verdict=Verdict(claims=claims)))


def suspected(node: Node) -> set[str]:
    return {
        cidr for held in node.state.enis.values() for cidr, owned in held.cidrs.items() if owned.suspected
    }


def intended(node: Node, **fields) -> IntentId:
    answer = node.intend(**fields)
    assert isinstance(answer, c.Decision)
    return answer.intent


def read(node: Node, *enis) -> c.Answer:
    return node.read(*enis)


def test_after_another_agent_no_address_is_assigned_before_ec2_lists_it():
    node = served()
    found(node, claim("old", "10.0.0.11"))
    assert suspected(node) == {"10.0.0.10/32", "10.0.1.20/32"}
    waiting = node.add("new")
    assert isinstance(waiting, c.Park)
    assert waiting.reason is Reason.NO_ADDRESS
    node.wait(61)
    read(node, eni_facts(0, 10, 11), eni_facts(1), eni_facts(2))
    assert suspected(node) == set()
    assert Cidr("10.0.1.20/32") not in node.state.enis[ONE].cidrs, "it was given back"
    assert node.run_pod("new") == "10.0.0.10"


def test_an_address_of_which_only_a_file_speaks_is_not_assigned_after_its_lease_before_ec2_lists_it():
    """A bug: a cached result named an address that was given back long ago; after a reboot it was assigned."""
    node = served()
    found(node, claim("old", "10.0.0.10", evidence=(RUNTIME_CACHE,)))
    node.delete("old")
    node.unwire_all()
    node.wait(61)
    assert isinstance(node.add("new"), c.Park)
    read(node, eni_facts(0, 11), eni_facts(1, 20), eni_facts(2))
    assert node.run_pod("new") == "10.0.0.11"


def test_an_address_of_an_old_lease_is_not_assigned_after_its_end_before_ec2_lists_it():
    node = served()
    node.run_pod("old")
    found(node)
    assert suspected(node) == {"10.0.0.10/32", "10.0.0.11/32", "10.0.1.20/32"}
    read(node, eni_facts(0, 10, 11), eni_facts(1, 20), eni_facts(2))
    assert suspected(node) == set()


def test_on_a_full_node_an_add_waits_for_the_addresses_that_ec2_is_asked_about():
    node = Node(enis_max=1, slots=3).start(eni_facts(0, 10, 11, 12))
    found(node, claim("old", "10.0.0.10"))
    for name in ("one", "two"):
        waiting = node.decide(
            c.Add(key=key_of(name), pod=pod_of(name), netns="/netns/x"), ahead=1 if name == "two" else 0
        )
        assert isinstance(waiting, c.Park)
    assert isinstance(
        node.decide(c.Add(key=key_of("three"), pod=pod_of("three"), netns="/netns/x"), ahead=2), Refused
    )


def test_an_address_is_read_again_while_something_else_about_its_eni_is_under_way():
    node = served()
    node.intend(kind="modify", eni=EniId("eni-0"), attribute="delete_on_termination")
    found(node)
    read(node, eni_facts(0, 10, 11), eni_facts(1, 20), eni_facts(2))
    assert suspected(node) == set()


def test_a_look_at_what_is_known_doubts_nothing():
    node = served()
    found(node, why="new_log")
    assert suspected(node) == set()
    found(node, claim("a", "10.0.0.10"), why="unknown_veth")
    assert suspected(node) == {"10.0.0.11/32", "10.0.1.20/32"}


def test_a_release_of_an_address_that_is_found_in_use_is_abandoned():
    node = served()
    covered = intended(node, kind="unassign", eni=EniId("eni-0"), cidrs=(Cidr("10.0.0.10/32"),))
    other = intended(node, kind="unassign", eni=ONE, cidrs=(Cidr("10.0.1.20/32"),))
    found(node, claim("old", "10.0.0.10"))
    assert (covered in node.state.intents, other in node.state.intents) == (False, True)
    assert examine(node.state) == []


def test_a_detach_of_the_eni_whose_table_a_found_pod_uses_is_abandoned():
    node = served()
    node.intend(kind="detach", eni=TWO)
    found(node, claim("old", "10.0.2.99", table=3))
    assert node.state.intents == {}
    assert not node.state.enis[TWO].is_retiring


def test_an_eni_under_a_found_pod_is_not_detached_before_ec2_tells_its_addresses():
    node = served()
    found(node, claim("old", "10.0.2.99", table=3))
    refused = node.decide(c.Intend(effect.EffectIntended(kind="detach", eni=TWO)))
    assert isinstance(refused, Refused)
    assert "recovered lease" in refused.detail
    node.delete("old")
    node.unwire_all()
    refused = node.decide(c.Intend(effect.EffectIntended(kind="detach", eni=TWO)))
    assert isinstance(refused, Refused)
    assert "cooldown" in refused.detail
    node.wait(31)
    assert isinstance(node.decide(c.Intend(effect.EffectIntended(kind="detach", eni=TWO))), c.Decision)


def test_an_eni_with_an_address_that_was_found_is_not_deleted_while_its_lease_is_open():
    node = served()
    node.append(eni.EniDetached(eni=ONE))
    found(node, claim("old", "10.0.1.20"))
    assert isinstance(node.decide(c.Intend(effect.EffectIntended(kind="delete", eni=ONE))), Refused)
    loose = eni_facts(3, 30, attachment="", instance="", device=-1)
    found(node, claim("other", "10.0.3.30"))
    node.ask(c.AdoptLeftBehind((loose,)))
    assert loose.id not in node.state.enis
    node.delete("other")
    node.ask(c.AdoptLeftBehind((loose,)))
    assert loose.id in node.state.enis


def test_an_eni_that_was_left_behind_is_not_deleted_when_a_search_finds_a_user_of_its_address():
    """A bug: it was taken in before the node could be searched, and its addresses were not remembered."""
    node = served()
    loose = eni_facts(3, 30, attachment="", instance="", device=-1)
    node.ask(c.AdoptLeftBehind((loose,)))
    found(node, claim("other", "10.0.3.30"))
    delete = c.Intend(effect.EffectIntended(kind="delete", eni=loose.id))
    assert isinstance(node.decide(delete), Refused)
    node.delete("other")
    node.unwire_all()
    assert isinstance(node.decide(delete), Refused), (
        "its address is in cooldown, and another node could get it"
    )
    node.wait(31)
    assert isinstance(node.decide(delete), c.Decision)


def test_a_found_lease_is_located_when_its_eni_turns_out_to_be_attached():
    """1. We create an ENI. 2. Another agent attaches and uses it. 3. We find its pod, and then the attachment."""
    node = served()
    node.append(eni.EniDetached(eni=ONE))
    found(node, claim("old", "10.0.1.20", table=2))
    assert node.lease("old").bindings[0].eni == ""
    intent = intended(node, kind="attach", eni=ONE, device=1)
    node.settle(intent, c.Confirmed(attachment="attach-1", how="observed"))
    assert node.lease("old").bindings[0].eni == ONE
    assert node.state.unlocated == {}
    assert examine(node.state) == []


def test_a_lease_of_an_old_log_moves_with_its_address_to_another_eni():
    """1. A copy of the log is put back. 2. EC2 has since given an address of it to another ENI of the node."""
    node = served()
    node.run_pod("stale")
    moved = node.address("stale")
    assert node.lease("stale").bindings[0].eni == "eni-0"
    intent = intended(node, kind="assign", eni=TWO, count=1)
    node.settle(intent, c.Confirmed(cidrs=(Cidr(f"{moved}/32"),)))
    assert node.lease("stale").bindings[0].eni == TWO
    assert examine(node.state) == []


def test_a_lease_of_which_only_a_file_tells_is_not_wired_before_its_eni_is_known():
    node = served()
    found(node, claim("old", "10.0.2.99"))
    refused = node.add("old")
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.RECOVERING
    for _ in range(2):
        read(node, eni_facts(0, 10, 11), eni_facts(1, 20), eni_facts(2, 99))
    answer = node.add("old")
    assert isinstance(answer, c.Decision)
    assert answer.lease == node.lease("old").id


def test_what_describe_shows_in_place_of_an_answer_counts_as_used():
    """An address that another agent has brought here may be taken for the outcome of a call of ours."""
    node = served()
    intent = intended(node, kind="assign", eni=ONE, count=2)
    last_use_ns = node.now.wall_ns - 10**9
    node.ask(c.TakeSurvey(why="foreign_checkpoint", verdict=Verdict(last_use_ns=last_use_ns)))
    node.settle(intent, c.Confirmed(cidrs=(Cidr("10.0.1.30/32"),), how="observed"))
    again = intended(node, kind="assign", eni=ONE, count=1)
    node.settle(again, c.Confirmed(cidrs=(Cidr("10.0.1.31/32"),)))
    owned = node.state.enis[ONE].cidrs
    assert node.state.is_inherited(owned[Cidr("10.0.1.30/32")])
    assert not node.state.is_inherited(owned[Cidr("10.0.1.31/32")])


def test_what_the_same_call_again_brings_counts_as_used():
    """1. A copy of the log is put back. 2. Its open create is repeated; its first answer came long ago."""
    node = served()
    intent = intended(node, kind="create", count=2)
    node.ask(c.TakeSurvey(why="older_log", verdict=Verdict(last_use_ns=node.now.wall_ns - 10**9)))
    node.settle(intent, c.Confirmed(facts=eni_facts(3, 30, attachment="", instance="", device=-1)))
    assert node.state.is_inherited(node.state.enis[EniId("eni-3")].cidrs[Cidr("10.0.3.30/32")])


def test_leases_that_were_found_in_this_boot_outlive_a_log_of_another_machine():
    node = served()
    node.run_pod("theirs")
    node.boot("boot-2")
    found(node, claim("ours", "10.0.0.10"))
    assert node.lease("ours").bindings[0].eni == "eni-0"
    node.ask(c.ObserveInstance(instance(2), has_other_primary=True))
    assert {lease.key for lease in node.state.leases.values()} == {key_of("ours")}
    assert node.lease("ours").bindings[0].eni == ""
    assert list(node.state.unlocated) == [node.lease("ours").id]
    assert examine(node.state) == []
    assert node.state.survey is None


def test_a_survey_that_finds_nobody_is_recorded_but_for_a_repeated_look():
    node = served()
    found(node, why="unknown_veth")
    head = node.state.head
    found(node, why="unknown_veth")
    assert node.state.head == head
    last_use_ns = node.now.wall_ns - 5 * 10**9
    node.ask(c.TakeSurvey(why="foreign_checkpoint", verdict=Verdict(last_use_ns=last_use_ns)))
    assert node.state.survey is not None
    assert node.state.survey.last_use is not None
    assert node.state.survey.last_use.wall_ns == last_use_ns


def test_an_eni_of_this_machine_that_was_found_is_made_to_go_away_with_it():
    node = served()
    bare = eni_facts(3)
    stranger = msgspec.structs.replace(bare, tags={})
    for facts in (bare, msgspec.structs.replace(stranger, id=EniId("eni-4"), device=4)):
        node.append(eni.EniAdopted(facts=facts, managed=True, origin="found", table=4))
    wanted = [(one.kind, one.eni) for one in next_effects(node.state, frozenset())]
    assert ("modify", "eni-3") in wanted
    assert ("modify", "eni-4") not in wanted
    assert ("modify", "eni-0") not in wanted
    node.append(
        effect.EffectConfirmed(
            intent=IntentId(0), kind="modify", eni=EniId("eni-3"), attribute="delete_on_termination"
        )
    )
    assert ("modify", "eni-3") not in [(one.kind, one.eni) for one in next_effects(node.state, frozenset())]


def test_a_del_finds_a_lease_of_a_damaged_row_by_its_container_id():
    node = served()
    key = msgspec.structs.replace(key_of("old"), network="")
    found(node, msgspec.structs.replace(claim("old", "10.0.0.10"), key=key))
    node.delete("old")
    assert node.state.leases == {}
    assert isinstance(node.records[-1].event, sandbox.LeaseEnded)


def test_an_address_that_describe_no_longer_lists_is_not_assigned():
    """1. The log is lost just after addresses were given back. 2. The first reading of EC2 is older than that."""
    node = Node(enis_max=4).start()
    node.read(eni_facts(0, 10), is_second=False)
    node.ready("eni-0")
    node.wait(15)
    node.read(eni_facts(0), previous=(eni_facts(0, 10),))
    assert suspected(node) == {"10.0.0.10/32"}
    assert isinstance(node.add("web"), c.Park)

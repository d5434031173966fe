"""Every rule by which evidence becomes leases, holds and endings."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.projections.node import MORNING, SECOND, Node, eni_facts, key_of
from vpccni.checkpoint import HOLD_NETWORK
from vpccni.datapath.names import alias_of, host_mac_of, host_veth_name
from vpccni.errors import Reason, Refused
from vpccni.events import sandbox
from vpccni.events.adoption import NodeSurveyed
from vpccni.events.effect import EffectIntended
from vpccni.evidence import (
    CachedResult,
    CacheEvidence,
    CheckpointFile,
    Evidence,
    HostVeth,
    KernelEvidence,
    PodSeen,
    Row,
)
from vpccni.model import Address, Cidr, EniId, LeaseId, Mac, PodRef, SandboxKey, Stamp
from vpccni.planner import commands as c
from vpccni.planner.doctor import examine
from vpccni.projections.snapshot import picture
from vpccni.projections.state import State
from vpccni.recovery import KnownVeths, judge

NOW = Stamp(MORNING, 3600 * SECOND, "boot-1")
THIS_BOOT_NS = MORNING - 600 * SECOND
LAST_BOOT_NS = MORNING - 7200 * SECOND
WEB = PodRef("default", "web-0")
ADDRESS = Address("10.0.0.17")
KEY = key_of("web")


def original(pod: PodRef = WEB, address: str = ADDRESS, **fields) -> HostVeth:
    """The host end of a pod that amazon-vpc-cni-k8s wired."""
    found = HostVeth(
        ifindex=7,
        ifname=host_veth_name("eni", pod.namespace, pod.name),
        mac=Mac("0a:58:00:00:00:01"),
        netns="/var/run/netns/cni-1",
        netns_inode=42,
        pod_ifname="eth0",
        inside=(Address(address),),
        routed=(Address(address),),
    )
    return msgspec.structs.replace(found, **fields)


def is_known(veth: HostVeth, state: State) -> bool:
    return KnownVeths(state).explains(veth)


def ours(name: str = "web", address: str = ADDRESS, **fields) -> HostVeth:
    return original(address=address, alias=alias_of(key_of(name)), **fields)


def cached(name: str = "web", address: str = ADDRESS, **fields) -> CachedResult:
    found = CachedResult(
        file=f"aws-cni-{name}-eth0",
        key=key_of(name),
        pod=PodRef("default", "web-0", "uid-1"),
        netns="/var/run/netns/cni-1",
        addresses=(Address(address),),
        host_ifnames=(host_veth_name("eni", "default", "web-0"),),
        modified_ns=THIS_BOOT_NS,
        plugin_types=("aws-cni", "egress-cni", "portmap"),
    )
    return msgspec.structs.replace(found, **fields)


def row(name: str = "web", address: str = ADDRESS, **fields) -> Row:
    found = Row(key=key_of(name), address=Address(address), pod=WEB, allocated_ns=THIS_BOOT_NS)
    return msgspec.structs.replace(found, **fields)


def evidence(*, veths=(), results=(), rows=(), pods=None, tables=None, cards=(), **file) -> Evidence:
    files: tuple[CheckpointFile, ...] = ()
    if rows or file:
        one = CheckpointFile(path="ipam.json", rows=tuple(rows), modified_ns=THIS_BOOT_NS, digest="d", **file)
        files = (one,)
    return Evidence(
        kernel=KernelEvidence(veths=tuple(veths), from_tables=tables or {}),
        cache=CacheEvidence(status="read", entries=tuple(results)) if results else CacheEvidence(),
        checkpoints=files + tuple(cards),
        pods=pods,
    )


def judged(found: Evidence, state: State | None = None):
    return judge(state or State(), found, NOW, "eni")


def only(found: Evidence):
    (claim,) = judged(found).claims
    return claim


# -- what the kernel shows --------------------------------------------------------------------------


def test_a_veth_whose_key_the_cache_tells_becomes_a_lease():
    claim = only(evidence(veths=[original()], results=[cached()], tables={ADDRESS: 3}))
    assert (claim.key, claim.address, claim.table) == (KEY, ADDRESS, 3)
    assert claim.pod == PodRef("default", "web-0", "uid-1")
    assert claim.evidence == ("kernel", "runtime_cache")
    assert claim.since_ns == THIS_BOOT_NS
    assert claim.veth is not None
    assert (claim.veth.host_ifindex, claim.veth.alias) == (7, alias_of(KEY))


def test_a_veth_whose_key_a_row_tells_becomes_a_lease():
    claim = only(evidence(veths=[original()], rows=[row()]))
    assert (claim.key, claim.evidence) == (KEY, ("kernel", "checkpoint"))


def test_a_veth_of_ours_tells_its_key_by_its_alias():
    claim = only(evidence(veths=[ours()]))
    assert (claim.key, claim.evidence) == (KEY, ("kernel", "alias"))


def test_a_veth_whose_key_nothing_tells_is_a_hold_that_the_api_server_names():
    pods = (PodSeen(pod=PodRef("default", "web-0", "uid-7"), addresses=(ADDRESS,)),)
    claim = only(evidence(veths=[original()], pods=pods))
    assert claim.key is None
    assert claim.pod.uid == "uid-7"
    assert claim.evidence == ("kernel", "api_server")
    assert claim.veth is not None
    assert claim.veth.alias == "vpccni:held-10.0.0.17:eth0"


def test_the_address_inside_the_namespace_counts_where_there_is_no_route():
    assert only(evidence(veths=[original(routed=())])).address == ADDRESS


def test_a_route_is_believed_over_what_the_pod_gave_itself():
    """A pod with CAP_NET_ADMIN may add any address to its own interface."""
    veth = original(inside=(Address("10.0.0.99"), ADDRESS))
    assert only(evidence(veths=[veth])).address == ADDRESS


def test_of_several_addresses_inside_that_of_the_cached_result_counts():
    veth = original(routed=(), inside=(Address("10.0.0.99"), ADDRESS))
    assert only(evidence(veths=[veth], results=[cached()])).address == ADDRESS


def test_of_several_addresses_inside_that_nothing_tells_apart_each_is_held():
    veth = original(routed=(), inside=(Address("10.0.0.99"), ADDRESS))
    assert [claim.address for claim in judged(evidence(veths=[veth])).claims] == [ADDRESS, "10.0.0.99"]


@pytest.mark.parametrize("address", ["169.254.172.3", "127.0.0.1", "fd00::7"])
def test_addresses_that_every_namespace_may_have_are_nobodys(address):
    veth = original(routed=(), inside=(Address(address),))
    assert judged(evidence(veths=[veth])).claims == ()


def test_a_veth_whose_address_neither_route_nor_namespace_tells_is_unexplained():
    verdict = judged(evidence(veths=[original(routed=(), inside=())]))
    assert [veth.ifindex for veth in verdict.unexplained] == [7]
    assert verdict.claims == ()


def test_a_veth_that_is_half_wired_is_explained_by_its_row():
    verdict = judged(evidence(veths=[original(routed=(), inside=())], rows=[row()]))
    assert verdict.unexplained == ()
    assert [claim.address for claim in verdict.claims] == [ADDRESS]


# -- what only files tell ---------------------------------------------------------------------------


def test_a_cached_result_without_a_veth_is_held_until_two_sources_end_it():
    claim = only(evidence(results=[cached()]))
    assert (claim.key, claim.veth, claim.evidence) == (KEY, None, ("runtime_cache",))


def test_a_row_without_a_veth_is_imported():
    claim = only(evidence(rows=[row()]))
    assert (claim.key, claim.origin, claim.evidence) == (KEY, "imported", ("checkpoint",))


def test_a_cached_result_and_a_row_of_one_sandbox_are_one_claim():
    claim = only(evidence(results=[cached()], rows=[row()]))
    assert claim.evidence == ("runtime_cache", "checkpoint")


def test_evidence_from_before_this_boot_proves_no_life():
    """The runtime's cache survives a reboot; the sandboxes do not."""
    verdict = judged(
        evidence(
            results=[cached(modified_ns=LAST_BOOT_NS)],
            rows=[row("b", "10.0.0.18", allocated_ns=LAST_BOOT_NS)],
        )
    )
    assert verdict.claims == ()
    assert len(verdict.notes) == 2


def test_evidence_that_a_clock_made_old_counts_where_an_interface_of_ours_carries_its_id():
    """A bug: the clock was set forward, and an old log kept for ever what an earlier sandbox of this key had."""
    node = surveyed(evidence(results=[cached(address="10.0.0.10")]))
    found = evidence(veths=[ours()], results=[cached(modified_ns=LAST_BOOT_NS)])
    verdict = judged(found, node.state)
    assert [(one.key, one.evidence) for one in verdict.claims] == [(KEY, ("kernel", "runtime_cache"))]
    assert [ending.cause for ending in verdict.endings] == ["superseded"]
    (claim,) = judged(evidence(veths=[ours()], rows=[row(allocated_ns=LAST_BOOT_NS)])).claims
    assert claim.evidence == ("kernel", "checkpoint")


def test_an_export_of_ours_from_another_boot_proves_no_life():
    assert judged(evidence(rows=[row()], log_id="l", seq=9, boot_id="boot-0")).claims == ()
    assert len(judged(evidence(rows=[row()], log_id="l", seq=9, boot_id="boot-1")).claims) == 1


def test_a_cached_result_of_another_plugin_is_not_ours():
    """Multus and others add entries of their own."""
    assert judged(evidence(results=[cached(plugin_types=("macvlan",))])).claims == ()


def test_a_cached_result_whose_configuration_is_lost_is_known_by_its_network():
    other = SandboxKey("other-net", "c", "net1")
    assert len(judged(evidence(results=[cached(plugin_types=())])).claims) == 1
    assert judged(evidence(results=[cached(plugin_types=(), key=other)])).claims == ()


def test_the_api_server_alone_holds_nothing():
    """After a reboot it still lists the addresses of yesterday's pods."""
    pods = (PodSeen(pod=PodRef("default", "web-0", "uid-7"), addresses=(ADDRESS,)),)
    assert judged(evidence(pods=pods)).claims == ()


def test_a_row_that_we_exported_for_a_hold_is_a_hold_again():
    held = row(key=SandboxKey(HOLD_NETWORK, "held-10.0.0.17", "eth0"), pod=PodRef())
    assert only(evidence(rows=[held])).key is None
    assert only(evidence(rows=[held], veths=[original()])).key is None


# -- contradictions ---------------------------------------------------------------------------------


def test_the_kernels_present_user_has_the_address_and_the_other_row_is_superseded():
    stale = row("old", pod=PodRef("default", "old-0"))
    verdict = judged(evidence(veths=[original()], results=[cached()], rows=[stale]))
    (claim,) = verdict.claims
    assert claim.key == KEY
    assert any("another sandbox uses it" in note for note in verdict.notes)


def test_an_address_whose_present_user_no_second_source_names_is_held_without_owner():
    stale = row("old", pod=PodRef("default", "old-0"))
    claim = only(evidence(veths=[original()], rows=[stale]))
    assert claim.key is None


def test_of_two_cached_results_of_a_name_that_of_the_living_namespace_counts():
    """A pod of a StatefulSet was re-created with its name and its address; the old entry stayed."""
    old = cached("old", netns="/var/run/netns/cni-0", modified_ns=THIS_BOOT_NS + SECOND)
    claim = only(evidence(veths=[original()], results=[old, cached()]))
    assert claim.key == KEY


def test_two_veths_with_one_address_give_it_to_the_one_that_the_route_leads_to():
    other = original(PodRef("default", "old-0"), ifindex=5, routed=())
    verdict = judged(evidence(veths=[other, original()], results=[cached()]))
    assert [claim.key for claim in verdict.claims] == [KEY]
    assert any("at once" in note for note in verdict.notes)


# -- against a log ----------------------------------------------------------------------------------


@pytest.fixture
def node() -> Node:
    node = Node().start(eni_facts(0, 10, 11, 12))
    node.now = NOW
    node.append(NodeSurveyed(why="new_log"))
    return node


def lease(node: Node, name: str, address: str = "10.0.0.10", **fields):
    """An open lease whose veth is that of ``ours(name)``."""
    assert not isinstance(node.add(name), c.Park)
    found = node.lease(name)
    link = sandbox.SandboxLink(ifname="eth0", host_ifname="x", host_ifindex=7, alias=alias_of(key_of(name)))
    node.append(sandbox.SandboxWired(lease=found.id, links=(link,), netns="/var/run/netns/cni-1"))
    return found


def test_what_the_log_knows_is_not_found_again(node):
    held = lease(node, "web")
    address = held.bindings[0].address
    verdict = judged(evidence(veths=[ours("web", address)], results=[cached("web", address)]), node.state)
    assert (verdict.claims, verdict.endings) == ((), ())


def test_a_lease_of_an_old_log_ends_when_two_sources_name_another_user(node):
    """1. A log of yesterday is brought back.  2. Its lease's address has another sandbox since."""
    held = lease(node, "old")
    address = held.bindings[0].address
    veth = ours("web", address, ifindex=9, netns="/var/run/netns/cni-9")
    found = evidence(veths=[veth], results=[cached("web", address, netns="/var/run/netns/cni-9")])
    verdict = judged(found, node.state)
    assert [(ending.lease, ending.cause, ending.sources) for ending in verdict.endings] == [
        (held.id, "superseded", ("kernel", "runtime_cache"))
    ]
    node.ask(c.TakeSurvey(why="older_log", verdict=verdict))
    assert node.state.lease_of(key_of("old")) is None
    now_held = node.state.lease_of(KEY)
    assert now_held is not None
    assert now_held.bindings[0].address == address
    assert examine(node.state) == []


def test_a_lease_whose_own_veth_still_has_the_route_is_not_superseded(node):
    held = lease(node, "web")
    address = held.bindings[0].address
    thief = original(PodRef("x", "y"), address, ifindex=99, routed=(), netns="/var/run/netns/cni-5")
    verdict = judged(evidence(veths=[thief, ours("web", address)]), node.state)
    assert verdict.endings == ()


def test_a_lease_that_a_newer_checkpoint_no_longer_lists_has_one_source_against_it(node):
    held = lease(node, "web")
    node.now = Stamp(NOW.wall_ns + 60 * SECOND, NOW.boottime_ns + 60 * SECOND, "boot-1")
    node.state.log_id = "ours"
    file = CheckpointFile(path="ipam.json", rows=(), modified_ns=node.now.wall_ns, digest="d")
    found = msgspec.structs.replace(evidence(), checkpoints=(file,))
    assert judge(node.state, found, node.now, "eni").unlisted == {held.id}
    mine = msgspec.structs.replace(file, log_id="ours", boot_id="boot-1")
    found = msgspec.structs.replace(evidence(), checkpoints=(mine,))
    assert judge(node.state, found, node.now, "eni").unlisted == frozenset()


def test_a_pod_that_the_kernel_shows_has_no_source_against_it_whoever_lost_its_row(node):
    held = lease(node, "web")
    node.now = Stamp(NOW.wall_ns + 60 * SECOND, NOW.boottime_ns + 60 * SECOND, "boot-1")
    node.state.log_id = "ours"
    file = CheckpointFile(path="ipam.json", rows=(), modified_ns=node.now.wall_ns, digest="d")
    veth = ours("web", address=held.bindings[0].address)
    found = msgspec.structs.replace(evidence(veths=[veth]), checkpoints=(file,))
    verdict = judge(node.state, found, node.now, "eni")
    assert verdict.unlisted == frozenset()
    assert not verdict.endings


def test_a_lease_that_is_younger_than_the_checkpoint_has_no_source_against_it(node):
    node.state.log_id = "ours"
    file = CheckpointFile(path="ipam.json", rows=(), modified_ns=NOW.wall_ns - SECOND, digest="d")
    lease(node, "web")
    found = msgspec.structs.replace(evidence(), checkpoints=(file,))
    assert judge(node.state, found, node.now, "eni").unlisted == frozenset()


def test_a_veth_is_known_by_its_alias_its_index_or_while_it_is_wired_by_its_mac(node):
    lease(node, "web")
    assert is_known(ours("web"), node.state)
    assert is_known(original(ifindex=7), node.state)
    assert not is_known(original(ifindex=8), node.state)
    node.add("next")
    assert is_known(original(ifindex=8, mac=host_mac_of(key_of("next"))), node.state)
    assert not is_known(ours("other"), node.state)


# -- plugins of the original that are still at work -------------------------------------------------


def half_made(pod: PodRef = WEB) -> HostVeth:
    """A veth whose plugin has come no further than making it."""
    return original(pod, inside=(), routed=())


def imported(node: Node, address: str = "10.0.0.10", **fields) -> LeaseId:
    """A lease that a row of the original's file opened; the pod has no interface yet."""
    verdict = judge(node.state, evidence(rows=[row(address=address, **fields)]), node.now, "eni")
    node.ask(c.TakeSurvey(why="new_log", verdict=verdict))
    return node.lease("web").id


def test_a_half_made_interface_stays_explained_when_our_own_export_has_replaced_the_file(node):
    """1. A row names the veth, so that it is explained. 2. Our export is in the place of the row's file."""
    imported(node)
    verdict = judge(node.state, evidence(veths=[half_made()]), node.now, "eni")
    assert (verdict.unexplained, verdict.wired) == ((), ())
    other = half_made(PodRef("default", "other"))
    assert judge(node.state, evidence(veths=[other]), node.now, "eni").unexplained == (other,)


@pytest.mark.parametrize("results", [(), (cached(address="10.0.0.10"),)], ids=["by its name", "by its key"])
def test_a_lease_that_a_file_opened_gets_its_interface_when_the_late_plugin_is_done(node, results):
    lease_id = imported(node)
    found = evidence(veths=[original(address="10.0.0.10")], results=results)
    verdict = judge(node.state, found, node.now, "eni")
    assert (verdict.claims, verdict.endings) == ((), ())
    node.ask(c.TakeSurvey(why="unknown_veth", verdict=verdict))
    held = node.state.leases[lease_id]
    assert (held.key, held.netns, held.netns_inode) == (KEY, "/var/run/netns/cni-1", 42)
    assert held.wired.links == (
        sandbox.SandboxLink(
            ifname="eth0",
            host_ifname=original().ifname,
            host_ifindex=7,
            alias=alias_of(KEY),
            host_mac=original().mac,
        ),
    )
    assert is_known(original(), node.state)
    assert judge(node.state, found, node.now, "eni").wired == ()
    head = node.state.head
    node.ask(c.TakeSurvey(why="unknown_veth", verdict=verdict))  # of a second search at the same time
    assert node.state.head == head
    assert examine(node.state) == []


def test_a_lease_of_a_pod_of_the_same_name_and_another_sandbox_does_not_get_its_interface(node):
    """1. The plugin of the first sandbox died. 2. A second sandbox of the pod was given the same address."""
    first = imported(node)
    second = cached("again", "10.0.0.10")
    verdict = judge(
        node.state, evidence(veths=[original(address="10.0.0.10")], results=[second]), node.now, "eni"
    )
    assert verdict.wired == ()
    assert [(ending.lease, ending.cause) for ending in verdict.endings] == [(first, "superseded")]


def test_a_lease_that_an_add_opened_gets_its_interface_from_nobody_but_the_add(node):
    assert not isinstance(node.add("web"), c.Park)
    address = node.lease("web").bindings[0].address
    veth = original(address=address, mac=host_mac_of(KEY))
    verdict = judge(node.state, evidence(veths=[veth], results=[cached(address=address)]), node.now, "eni")
    assert (verdict.wired, verdict.endings, verdict.unexplained) == ((), (), ())


# -- when it was used last --------------------------------------------------------------------------


def test_the_latest_trace_of_use_is_that_of_any_source():
    found = evidence(rows=[row()])
    spooled = msgspec.structs.replace(found, newest_spool_ns=THIS_BOOT_NS + SECOND)
    cache = CacheEvidence(status="read", modified_ns=THIS_BOOT_NS + 2 * SECOND)
    assert judged(found).last_use_ns == THIS_BOOT_NS
    assert judged(spooled).last_use_ns == THIS_BOOT_NS + SECOND
    assert judged(msgspec.structs.replace(spooled, cache=cache)).last_use_ns == THIS_BOOT_NS + 2 * SECOND


def test_life_without_any_trace_of_its_time_is_as_young_as_the_boot():
    assert judged(evidence(veths=[original()])).last_use_ns == NOW.wall_ns - NOW.boottime_ns


def test_a_truly_new_node_has_no_trace_and_serves_at_once():
    assert judged(evidence()).last_use_ns is None


# -- taking it into the log -------------------------------------------------------------------------


def surveyed(found: Evidence, **fields) -> Node:
    """A new log on a node where this was found, before EC2 told of any ENI."""
    node = Node(**fields)
    node.now = NOW
    node.ask(c.StartAgent(boot_id="boot-1", version="1", log_id="l" * 32))
    node.ask(c.TakeSurvey(why="new_log", verdict=judged(found, node.state)))
    return node


def objection(node: Node, wanted: EffectIntended) -> str:
    answer = node.decide(c.Intend(wanted))
    assert isinstance(answer, Refused)
    return answer.detail


def with_enis(node: Node, *facts) -> Node:
    from tests.unit.projections.node import instance

    node.ask(c.ObserveInstance(instance()))
    node.read(*facts, is_second=False)
    node.ready(*(one.id for one in facts))
    return node


def test_a_recovered_lease_is_open_before_its_eni_is_known_and_found_on_it_later():
    node = surveyed(evidence(veths=[original(address="10.0.0.10")], results=[cached(address="10.0.0.10")]))
    (held,) = node.state.leases.values()
    assert (held.origin, held.is_located, held.key) == ("recovered", False, KEY)
    assert examine(node.state) == []
    with_enis(node, eni_facts(0, 10, 11))
    assert (held.bindings[0].eni, held.is_located) == ("eni-0", True)
    assert node.state.enis[EniId("eni-0")].lease_count == 1
    assert examine(node.state) == []
    assert node.restored().enis[EniId("eni-0")].lease_count == 1


def test_the_address_of_a_recovered_pod_is_given_to_nobody():
    """The incident: an empty log on a node with living pods gave 20 of 20 pods an address in use."""
    node = surveyed(evidence(veths=[original(address="10.0.0.10")]))
    with_enis(node, eni_facts(0, 10, 11))
    node.wait(3600)
    answer = node.add("next")
    assert node.lease("next").bindings[0].address == "10.0.0.11", answer
    assert isinstance(node.add("third"), c.Park) or node.state.lease_of(key_of("third")) is None


def test_the_eni_of_a_recovered_pod_is_not_detached():
    node = surveyed(evidence(veths=[original(address="10.0.1.10")], tables={Address("10.0.1.10"): 2}))
    with_enis(node, eni_facts(0, 10), eni_facts(1, 10, 11))
    node.wait(3600)
    detach = EffectIntended(kind="detach", eni=eni_facts(1).id, attachment="attach-1")
    assert "open leases" in objection(node, detach)
    unassign = EffectIntended(kind="unassign", eni=eni_facts(1).id, cidrs=(Cidr("10.0.1.10/32"),))
    assert "leased" in objection(node, unassign)


def test_an_eni_may_not_go_while_a_recovered_lease_that_ec2_does_not_list_points_to_its_table():
    node = surveyed(evidence(veths=[original(address="10.0.1.77")], tables={Address("10.0.1.77"): 2}))
    with_enis(node, eni_facts(0, 10), eni_facts(1, 10, 11))
    node.wait(3600)
    detach = EffectIntended(kind="detach", eni=eni_facts(1).id, attachment="attach-1")
    assert "recovered lease" in objection(node, detach)


def test_addresses_that_somebody_may_have_used_lately_are_in_cooldown_after_a_survey():
    node = surveyed(evidence(rows=[row(address="10.0.0.10")]))
    with_enis(node, eni_facts(0, 10, 11))
    node.now = Stamp(THIS_BOOT_NS + 10 * SECOND, 3010 * SECOND, "boot-1")
    assert isinstance(node.add("next"), c.Park)
    node.wait(21)
    assert isinstance(node.add("next"), c.Decision)


def test_a_new_node_serves_at_once():
    node = surveyed(evidence())
    with_enis(node, eni_facts(0, 10, 11))
    assert isinstance(node.add("first"), c.Decision)


@pytest.mark.parametrize(
    ("addresses", "netns", "ends"),
    [
        (("10.0.0.17",), "/run/netns/cni-1", True),
        (("10.0.0.17",), "/var/run/netns/cni-2", False),
        (("10.0.0.17",), "", False),
        (("10.0.0.18",), "/var/run/netns/cni-1", False),
        ((), "/var/run/netns/cni-1", False),
    ],
    ids=["address and namespace", "another namespace", "no namespace", "another address", "no address"],
)
def test_a_hold_ends_by_address_and_namespace_together(addresses, netns, ends):
    node = surveyed(evidence(veths=[original()]))
    node.ask(
        c.EndLease(
            key=SandboxKey("aws-cni", "whoever", "eth0"),
            cause="del",
            addresses=tuple(map(Address, addresses)),
            netns=netns,
        )
    )
    assert (not node.state.leases) is ends


def test_a_del_ends_the_lease_of_its_key_and_the_hold_of_its_address():
    """A bug: the runtime named another address of a sandbox than the log, and nothing ever ended that hold."""
    node = surveyed(evidence(results=[cached()]))
    node.ask(
        c.TakeSurvey(why="x", verdict=judged(evidence(results=[cached(address="10.0.0.18")]), node.state))
    )
    assert [lease.is_hold for lease in node.state.leases.values()] == [False, True]
    node.ask(
        c.EndLease(key=KEY, cause="del", addresses=(Address("10.0.0.18"),), netns="/var/run/netns/cni-1")
    )
    assert not node.state.leases


def test_a_hold_becomes_a_lease_when_a_call_names_its_namespace():
    node = surveyed(evidence(veths=[original()]))
    add = c.Add(key=KEY, pod=WEB, netns="/run/netns/cni-1")
    answer = node.ask(add)
    assert isinstance(answer, c.Decision)
    (held,) = node.state.leases.values()
    assert (held.key, held.is_hold, answer.lease, answer.is_new) == (KEY, False, held.id, False)
    assert examine(node.state) == []
    node.ask(c.EndLease(key=KEY, cause="del"))
    assert not node.state.leases


@pytest.mark.parametrize(
    "key",
    [SandboxKey("", KEY.container_id, "eth0"), SandboxKey("_migrated-from-cri", KEY.container_id, "unknown")],
    ids=["a row without its network", "a row from the container runtime"],
)
def test_the_same_add_again_finds_a_lease_of_which_only_the_container_id_was_known(key):
    """A bug: the sandbox got a second address."""
    node = surveyed(evidence(veths=[original()], rows=[row(key=key)]))
    answer = node.ask(c.Add(key=KEY, pod=WEB, netns="/var/run/netns/cni-1"))
    (held,) = node.state.leases.values()
    assert isinstance(answer, c.Decision)
    assert (held.key, answer.lease, answer.is_new) == (KEY, held.id, False)
    assert examine(node.state) == []
    node.ask(c.EndLease(key=KEY, cause="del"))
    assert not node.state.leases


@pytest.mark.parametrize(
    ("tables", "is_answered"), [({}, False), ({ADDRESS: 3}, True)], ids=["no rule", "a rule"]
)
def test_the_same_add_again_waits_for_ec2_where_no_rule_tells_the_table(tables, is_answered):
    """A bug: a kill left a sandbox half wired, its log was lost, and its packets went by the main table."""
    node = surveyed(evidence(veths=[ours()], tables=tables))
    answer = node.decide(c.Add(key=KEY, pod=WEB, netns="/var/run/netns/cni-1"))
    assert isinstance(answer, c.Decision) is is_answered


def test_a_row_from_the_container_runtime_ends_by_its_container_id():
    migrated = row(key=SandboxKey("_migrated-from-cri", "c-1", "unknown"), pod=PodRef())
    node = surveyed(evidence(rows=[migrated]))
    node.ask(c.EndLease(key=SandboxKey("aws-cni", "c-2", "eth0"), cause="del"))
    assert node.state.leases
    node.ask(c.EndLease(key=SandboxKey("aws-cni", "c-1", "eth0"), cause="del"))
    assert not node.state.leases


@pytest.mark.parametrize(("age_s", "ends"), [(599, True), (601, False)], ids=["newer", "older"])
def test_a_spooled_del_finds_a_recovered_lease_by_the_evidences_own_time(age_s, ends):
    """The pod got its address 600 s ago; its DEL was spooled while nobody was there."""
    node = surveyed(evidence(rows=[row()]))
    node.ask(
        c.EndLease(
            key=KEY,
            cause="del",
            written_boot_id="boot-1",
            written_boottime_ns=NOW.boottime_ns - age_s * SECOND,
        )
    )
    assert (not node.state.leases) is ends


def test_a_second_look_that_finds_nothing_new_writes_nothing():
    found = evidence(veths=[original(), original(PodRef("a", "b"), ifindex=9, routed=(), inside=())])
    node = surveyed(found)
    head = node.state.head
    node.ask(c.TakeSurvey(why="unknown_veth", verdict=judged(found, node.state)))
    assert node.state.head == head


def test_a_survey_that_raced_with_an_add_does_not_open_an_address_twice(node):
    verdict = judged(evidence(veths=[original(address="10.0.0.10")]), node.state)
    node.add("racer")
    node.ask(c.TakeSurvey(why="unknown_veth", verdict=verdict))
    assert len(node.state.leases) == 1
    assert examine(node.state) == []


# -- files that are damaged, logs that are old --------------------------------------------------------


def test_a_row_that_lost_a_part_of_its_key_contradicts_no_lease(node):
    """1. The runtime's cache cannot be read. 2. Of a lease's row only the container id is left, or not even that."""
    held = lease(node, "web")
    address = held.bindings[0].address
    veth = original(address=address, ifindex=9, netns="/var/run/netns/cni-9")
    half = row(address=address, key=SandboxKey("", held.key.container_id, "eth0"))
    assert judged(evidence(veths=[veth], rows=[half]), node.state).endings == ()


def test_a_file_of_which_a_row_cannot_be_read_leaves_no_lease_out(node):
    lease(node, "web")
    node.now = Stamp(NOW.wall_ns + 60 * SECOND, NOW.boottime_ns + 60 * SECOND, "boot-1")
    node.state.log_id = "ours"
    later = {"modified_ns": node.now.wall_ns}
    for file, is_left_out in (
        ({}, True),
        ({"unreadable": ("row 2: it has no address",)}, False),
    ):
        found = evidence(rows=[row("other", "10.0.0.99")], **file)
        files = (msgspec.structs.replace(found.checkpoints[0], **later),)
        found = msgspec.structs.replace(found, checkpoints=files)
        assert bool(judge(node.state, found, node.now, "eni").unlisted) is is_left_out


def test_a_row_without_a_whole_key_may_be_that_of_any_lease_of_its_address(node):
    held = lease(node, "web")
    address = held.bindings[0].address
    node.now = Stamp(NOW.wall_ns + 60 * SECOND, NOW.boottime_ns + 60 * SECOND, "boot-1")
    node.state.log_id = "ours"
    for key, is_left_out in (
        (SandboxKey("aws-cni", "other", "eth0"), True),
        (SandboxKey("aws-cni", "", "eth0"), False),
    ):
        found = evidence(rows=[row(address=address, key=key)])
        files = (msgspec.structs.replace(found.checkpoints[0], modified_ns=node.now.wall_ns),)
        found = msgspec.structs.replace(found, checkpoints=files)
        assert bool(judge(node.state, found, node.now, "eni").unlisted) is is_left_out


def test_of_a_key_that_was_used_again_the_sandbox_that_kernel_and_a_file_show_has_the_lease(node):
    """1. A copy of the log is put back. 2. The sandbox of a key of it has ended, and another one has that key."""
    held = lease(node, "web")
    veth = ours("web", "10.0.0.12", ifindex=9, netns="/var/run/netns/cni-9")
    alone = judged(evidence(veths=[veth]), node.state)
    assert alone.endings == (), "one source"
    assert [claim.key for claim in alone.claims] == [None]
    for second in (
        {"results": [cached("web", "10.0.0.12")]},
        {"rows": [row("web", "10.0.0.12")]},
    ):
        verdict = judged(evidence(veths=[veth], **second), node.state)
        assert [(one.lease, one.cause) for one in verdict.endings] == [(held.id, "superseded")]
        assert [(claim.key, claim.address) for claim in verdict.claims] == [(held.key, "10.0.0.12")]
    first = ours("web", held.bindings[0].address, ifindex=8, netns="/var/run/netns/cni-8")
    both = evidence(veths=[first, veth], results=[cached("web", "10.0.0.12")])
    assert judged(both, node.state).endings == (), "the kernel shows it, too"


# -- a log that goes on -----------------------------------------------------------------------------


def test_our_own_export_reopens_no_lease_that_the_log_has_ended(node):
    """1. A lease is exported.  2. Its DEL comes.  3. The node is searched before the next export."""
    lease(node, "web")
    address = node.lease("web").bindings[0].address
    node.state.log_id = "ours"
    node.delete("web")
    mine = evidence(
        rows=[row(address=address)], log_id="ours", seq=int(node.state.head) - 1, boot_id="boot-1"
    )
    assert judge(node.state, mine, node.now, "eni").claims == ()
    older = evidence(
        rows=[row(address=address)], log_id="ours", seq=int(node.state.head) + 9, boot_id="boot-1"
    )
    assert judge(node.state, older, node.now, "eni").claims == (), "its end is in the log"


@pytest.mark.parametrize(("age_s", "is_found"), [(60, False), (-60, True)], ids=["before", "after"])
def test_a_cached_result_is_news_only_if_it_is_younger_than_the_end_of_its_lease(node, age_s, is_found):
    """The runtime removes its entry after the last plugin's DEL; a sandbox may use its key again later."""
    lease(node, "web")
    address = node.lease("web").bindings[0].address
    node.delete("web")
    found = evidence(results=[cached(address=address, modified_ns=node.now.wall_ns - age_s * SECOND)])
    assert bool(judge(node.state, found, node.now, "eni").claims) is is_found


def test_a_veth_of_a_lease_that_has_ended_is_nobodys(node):
    lease(node, "web")
    address = node.lease("web").bindings[0].address
    node.delete("web")
    verdict = judge(node.state, evidence(veths=[ours("web", address, routed=())]), node.now, "eni")
    assert (verdict.claims, verdict.unexplained) == ((), ())
    node.ask(c.NoteUnwired(tuple(node.state.standing)))
    assert is_known(ours("web", address), node.state), "it was seen just before it was gone"


def test_a_new_interface_of_a_key_whose_lease_has_ended_is_somebodys(node):
    """1. A sandbox ends and its key is used again. 2. A copy of the log from between is put back."""
    held = lease(node, "web")
    node.delete("web")
    left, new = (ours("web", "10.0.0.12", ifindex=index) for index in (7, 9))
    assert judge(node.state, evidence(veths=[left]), node.now, "eni").claims == ()
    (claim,) = judge(node.state, evidence(veths=[new]), node.now, "eni").claims
    assert (claim.key, claim.address) == (held.key, "10.0.0.12")


def test_the_index_of_a_veth_of_an_earlier_boot_says_nothing_of_one_that_has_it_now(node):
    """1. A pod is wired.  2. The machine reboots, and its kernel counts from one again.  3. The original wires."""
    lease(node, "web")
    assert is_known(original(ifindex=7), node.state)
    node.boot("boot-2")
    assert not is_known(original(ifindex=7), node.state)
    (claim,) = judge(node.state, evidence(veths=[original(ifindex=7)]), node.now, "eni").claims
    assert claim.address == ADDRESS


# -- what an attack on it found ---------------------------------------------------------------------


def test_a_pod_without_a_rule_yet_is_routed_by_the_table_of_its_eni():
    """A plugin of the original is still at work on a secondary ENI that the log knows: 1536 comes last."""
    node = Node().start(eni_facts(0, 10), eni_facts(1, 10))
    node.now = NOW
    node.append(NodeSurveyed(why="new_log"))
    verdict = judged(evidence(rows=[row(address="10.0.1.10")]), node.state)
    node.ask(c.TakeSurvey(why="unknown_veth", verdict=verdict))
    (held,) = node.state.leases.values()
    assert (held.bindings[0].eni, held.bindings[0].table) == ("eni-1", 2)


@pytest.mark.parametrize(
    ("tables", "why", "eni", "table"),
    [
        ({"10.0.1.10": 2}, "older_log", "eni-1", 2),
        ({}, "older_log", "", 254),
        ({}, "unknown_veth", "eni-1", 2),
        ({"10.0.1.10": 3}, "unknown_veth", "", 3),
    ],
    ids=["as the log says", "no rule, old log", "no rule yet", "another rule"],
)
def test_where_the_kernel_is_against_the_books_ec2_says_which_eni_has_the_address(tables, why, eni, table):
    """1. A log is copied.  2. EC2 gives an address of one ENI to another one.  3. The copy is put back."""
    enis = (eni_facts(0, 10), eni_facts(1, 10))
    node = Node().start(*enis)
    node.now = NOW
    node.append(NodeSurveyed(why="new_log"))
    found = evidence(veths=[original(address="10.0.1.10")], tables=tables)
    node.ask(c.TakeSurvey(why=why, verdict=judged(found, node.state)))
    (held,) = node.state.leases.values()
    assert (held.bindings[0].eni, held.bindings[0].table) == (eni, table)
    assert bool(node.state.enis[EniId("eni-1")].cidrs[Cidr("10.0.1.10/32")].suspected) is not bool(eni)
    node.read(*enis)
    assert (held.bindings[0].eni, held.bindings[0].table) == ("eni-1", 2)


def test_a_row_without_a_container_id_is_a_hold_and_leaves_nothing_behind_when_it_ends():
    """It looped: a key that no lease had stayed in the index, and every search met it again."""
    half = row(key=SandboxKey("aws-cni", "", "eth0"), pod=PodRef())
    node = surveyed(evidence(rows=[half]))
    (held,) = node.state.leases.values()
    assert held.is_hold
    node.boot("boot-2")
    assert (node.state.leases, node.state.by_key) == ({}, {})
    assert examine(node.state) == []


def test_an_old_copy_of_the_log_is_told_although_the_agent_has_written_since(node):
    """1. An old copy is brought back.  2. The agent's own first events lift its head over the export's."""
    node.state.log_id = "ours"
    opened_head = int(node.state.head)
    newer = evidence(rows=[row(address="10.0.0.12")], log_id="ours", seq=opened_head + 1, boot_id="boot-1")
    node.ask(c.StartAgent(boot_id="boot-1", version="1"))
    node.ask(c.StartAgent(boot_id="boot-1", version="1"))
    assert judge(node.state, newer, NOW, "eni").claims == ()
    claims = judge(node.state, newer, NOW, "eni", known_head=opened_head).claims
    assert [claim.address for claim in claims] == ["10.0.0.12"]


def test_a_lease_that_was_opened_while_the_node_was_searched_does_not_end_by_that_search(node):
    lease(node, "old")
    address = node.lease("old").bindings[0].address
    veth = ours("web", address, ifindex=9, netns="/var/run/netns/cni-9")
    verdict = judged(evidence(veths=[veth]), node.state)
    assert verdict.endings
    node.ask(c.TakeSurvey(why="unknown_veth", verdict=verdict, seen_head=int(node.lease("old").id) - 1))
    assert node.state.lease_of(key_of("old")) is not None


@pytest.mark.parametrize(
    "fields",
    [{}, {"alias": "", "mac": host_mac_of(key_of("web"))}, {"alias": "", "netns": "/var/run/netns/x"}],
    ids=["by its alias", "by its MAC", "by its namespace under another spelling"],
)
def test_a_lease_that_is_wired_just_now_is_not_ended_by_its_own_veth(node, fields):
    """Its ``SandboxWired`` rides along with the next batch; the network may have another name than ours."""
    key = SandboxKey("other-name", "container-web", "eth0")
    node.ask(c.Add(key=key, pod=WEB, netns="/run/netns/x"))
    held = node.state.lease_of(key)
    assert held is not None
    mac = {"mac": host_mac_of(key)} if fields.get("mac") else {}
    address = held.bindings[0].address
    veth = msgspec.structs.replace(ours("web", address), **(fields | mac))
    assert judged(evidence(veths=[veth]), node.state).endings == ()


def test_a_snapshot_keeps_the_veths_of_ended_leases_whose_address_is_in_use_again(node):
    lease(node, "web")
    address = node.lease("web").bindings[0].address
    node.delete("web")
    assert node.state.standing
    node.ask(c.TakeSurvey(why="older_log", verdict=judged(evidence(veths=[ours("b", address)]), node.state)))
    assert address in node.state.by_address
    assert node.restored().standing.keys() == node.state.standing.keys()
    assert picture(node.restored()) == picture(node.state)


def test_beside_another_agent_no_add_is_answered_with_a_lease(node):
    lease(node, "web")
    node.ask(c.NoteOtherAgent(is_alive=True, detail="its socket answers"))
    refused = Refused(Reason.ANOTHER_AGENT, "its socket answers")
    answer = node.decide(c.Add(key=KEY, pod=WEB, netns="/n"), refusing=refused)
    assert answer == refused


def test_a_time_that_is_after_now_says_nothing_and_a_spooled_del_still_finds_the_lease():
    """1. A pod gets its address.  2. The wall clock is set back.  3. Its DEL is spooled."""
    node = surveyed(evidence(rows=[row(allocated_ns=NOW.wall_ns + 900 * SECOND)]))
    node.ask(
        c.EndLease(
            key=KEY,
            cause="del",
            written_boot_id="boot-1",
            written_boottime_ns=NOW.boottime_ns - 5 * SECOND,
        )
    )
    assert not node.state.leases


def test_what_another_one_wrote_is_imported_and_its_time_counts_also_when_nobody_new_is_found(node):
    found = evidence(rows=[], log_id="", seq=0)
    node.ask(c.TakeSurvey(why="foreign_checkpoint", verdict=judged(found, node.state)))
    assert node.state.imported is not None
    assert node.state.survey is not None
    assert node.state.survey.last_use is not None

"""What stands in the way of taking a node over, and what does not, from what was found on it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vpccni.datapath.names import alias_of, host_veth_name
from vpccni.errors import Reason, Refused
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
from vpccni.model import Address, Cidr, EniFacts, EniId, Mac, PodRef, SandboxKey, Stamp
from vpccni.projections.state import State
from vpccni.recovery import judge
from vpccni.takeover import check

BOOT_S, NOW_S = 1_000_000, 1_003_600
NOW = Stamp(NOW_S * 10**9, (NOW_S - BOOT_S) * 10**9, "boot-1")
DURING_NS, BEFORE_NS = (BOOT_S + 60) * 10**9, (BOOT_S - 60) * 10**9
IPAM = "/var/run/aws-node/ipam.json"
PRIMARY = EniFacts(
    id=EniId("eni-0"),
    mac=Mac("02:00:00:00:00:00"),
    primary=Address("10.0.0.4"),
    cidrs=(Cidr("10.0.0.11/32"),),
)
WEB, DB = PodRef("default", "web-5d4f-abcde"), PodRef("prod", "db-0")


def key_of(pod, ifname="eth0"):
    return SandboxKey("aws-cni", f"sandbox-of-{pod.name}", ifname)


def row(pod, address, **more):
    return Row(key=key_of(pod), address=Address(address), pod=pod, **{"allocated_ns": DURING_NS} | more)


def veth(pod, *routed, prefix="eni", ifindex=7, **more):
    return HostVeth(
        ifindex=ifindex,
        ifname=host_veth_name(prefix, pod.namespace, pod.name),
        mac=Mac("0a:00:00:00:00:07"),
        routed=tuple(Address(one) for one in routed),
        **more,
    )


def cached(pod, *addresses, modified_ns=DURING_NS, **more):
    more.setdefault("plugin_types", ("aws-cni", "portmap"))
    return CachedResult(
        file=f"aws-cni-{pod.name}-eth0",
        key=key_of(pod),
        pod=pod,
        addresses=tuple(Address(one) for one in addresses),
        modified_ns=modified_ns,
        **more,
    )


def found(*, veths=(), tables=None, entries=(), rows=(), files=(), pods=None, **sources):
    return Evidence(
        kernel=KernelEvidence(veths=tuple(veths), from_tables=tables or {}),
        cache=CacheEvidence(status="read", entries=tuple(entries)),
        checkpoints=(CheckpointFile(path=IPAM, rows=tuple(rows), modified_ns=DURING_NS), *files),
        pods=None if pods is None else tuple(pods),
        sources={"kernel": "read"} | sources,
    )


def answer(evidence, **more):
    verdict = judge(State(), evidence, NOW, "eni")
    given: dict[str, Any] = {"pins": (), "policy_endpoints": (), "now": NOW, "enis": (PRIMARY,)} | more
    return check(evidence=evidence, verdict=verdict, **given)


def kinds(findings):
    return [one.kind for one in findings.objections]


def one_pod(**more):
    """A node with one ordinary pod of the original."""
    return found(veths=[veth(WEB, "10.0.0.11")], rows=[row(WEB, "10.0.0.11")], **more)


# -- an ordinary node ---------------------------------------------------------------------------------


def test_an_ordinary_node_is_taken_over_with_all_its_pods():
    findings = answer(
        one_pod(entries=[cached(WEB, "10.0.0.11")], pods=[PodSeen(pod=WEB)]), living="it answers"
    )
    assert findings.refused() is None
    assert (findings.objections, findings.cautions, findings.gaps) == ((), (), ())
    (one,) = findings.found
    assert (one.address, one.pod, one.key, one.is_hold) == ("10.0.0.11", WEB, key_of(WEB), False)
    assert one.sources[0] == "kernel"
    assert set(one.sources) >= {"kernel", "runtime_cache", "checkpoint"}
    assert one.host_ifname == host_veth_name("eni", "default", WEB.name)
    assert findings.living == "it answers"


def test_an_empty_node_has_nothing_to_take_over_and_nothing_in_the_way():
    findings = answer(found(), enis=None)
    assert findings == check(
        evidence=found(), verdict=judge(State(), found(), NOW, "eni"), pins=(), policy_endpoints=()
    )
    assert (findings.found, findings.objections, findings.cautions, findings.gaps) == ((), (), (), ())


def test_a_pod_that_only_the_api_server_names_is_named_in_the_answer():
    evidence = found(
        veths=[veth(PodRef(), "10.0.0.11")], pods=[PodSeen(pod=WEB, addresses=(Address("10.0.0.11"),))]
    )
    (one,) = answer(evidence).found
    assert one.is_hold
    assert one.pod == WEB


def test_addresses_are_told_in_their_order_as_numbers():
    rows = [row(PodRef("default", f"web-{octet}"), f"10.0.0.{octet}") for octet in (10, 9, 100)]
    assert [one.address for one in answer(found(rows=rows)).found] == ["10.0.0.9", "10.0.0.10", "10.0.0.100"]


# -- branch ENIs --------------------------------------------------------------------------------------


def test_a_pod_that_is_annotated_with_a_branch_eni_is_refused_by_name():
    findings = answer(one_pod(pods=[PodSeen(pod=DB, addresses=(Address("10.0.9.9"),), has_branch_eni=True)]))
    (objection,) = findings.objections
    assert (objection.reason, objection.kind) == (Reason.TAKE_OVER_REFUSED, "branch_enis")
    assert objection.pods == ("prod/db-0",)
    assert objection.sentence.startswith("1 pod has a branch ENI")
    assert objection.sentence.endswith(": prod/db-0.")
    assert objection.next_action


def test_a_pod_that_has_finished_needs_its_branch_eni_no_more():
    done = PodSeen(pod=DB, addresses=(Address("2001:db8::7"),), has_branch_eni=True, is_finished=True)
    assert kinds(answer(one_pod(pods=[done]))) == []


@pytest.mark.parametrize("vlan", [1, 4094])
def test_a_rule_that_names_the_table_of_a_vlan_shows_a_branch_eni_without_the_api_server(vlan):
    evidence = found(
        veths=[veth(WEB, "10.0.0.11")],
        rows=[row(WEB, "10.0.0.11")],
        tables={Address("10.0.0.11"): 100 + vlan},
    )
    (objection,) = answer(evidence).objections
    assert (objection.kind, objection.pods) == ("branch_enis", ("default/web-5d4f-abcde",))


@pytest.mark.parametrize("table", [2, 15, 64, 254])
def test_a_rule_that_names_the_table_of_a_secondary_eni_shows_none(table):
    evidence = found(
        veths=[veth(WEB, "10.0.0.11")], rows=[row(WEB, "10.0.0.11")], tables={Address("10.0.0.11"): table}
    )
    assert kinds(answer(evidence)) == []


def test_a_rule_that_nobody_uses_shows_no_branch_eni():
    """A DEL that was cut short leaves the rule of a pod that is gone."""
    assert kinds(answer(one_pod(tables={Address("10.0.0.99"): 101}))) == []


def test_a_host_veth_that_begins_with_vlan_shows_a_branch_eni_and_its_pod_is_found_by_the_hash():
    branch = veth(DB, prefix="vlan")
    (objection,) = answer(one_pod(pods=[PodSeen(pod=DB)]), branch_veths=(branch,)).objections
    assert (objection.kind, objection.pods) == ("branch_enis", ("prod/db-0",))
    (objection,) = answer(one_pod(), branch_veths=(branch,)).objections
    assert objection.pods == (f"the pod of {branch.ifname}",)


@pytest.mark.parametrize("ifname", ["vlan.eth.7", "vlan0", "vlanbridge-of-us", "eni0123456789a"])
def test_other_interfaces_of_that_survey_are_passed_over(ifname):
    other = msgspec.structs.replace(veth(DB), ifname=ifname)
    assert kinds(answer(one_pod(), branch_veths=(other,))) == []


def test_a_cached_result_whose_host_veth_begins_with_vlan_shows_a_branch_eni():
    name = host_veth_name("vlan", DB.namespace, DB.name)
    (objection,) = answer(one_pod(entries=[cached(DB, "10.0.9.9", host_ifnames=(name,))])).objections
    assert (objection.kind, objection.pods) == ("branch_enis", ("prod/db-0",))


# -- other cards --------------------------------------------------------------------------------------


def test_a_pod_with_a_row_of_another_card_is_refused():
    other = CheckpointFile(
        path="/var/run/aws-node/ipam-nic-1.json",
        card=1,
        rows=(row(DB, "10.0.0.12", card=1),),
        modified_ns=DURING_NS,
    )
    (objection,) = answer(one_pod(files=[other])).objections
    assert (objection.kind, objection.pods) == ("other_cards", ("prod/db-0",))


def test_a_pod_with_several_interfaces_is_refused():
    evidence = found(veths=[veth(WEB, "10.0.0.11")], rows=[row(WEB, "10.0.0.11", interfaces_count=2)])
    assert kinds(answer(evidence)) == ["other_cards"]


def test_a_rule_that_names_the_table_of_another_card_shows_it_without_the_file():
    evidence = found(veths=[veth(WEB, "10.0.0.11")], tables={Address("10.0.0.11"): 10_101})
    (objection,) = answer(evidence).objections
    assert (objection.kind, objection.pods) == ("other_cards", ("the pod at 10.0.0.11",))


def test_rows_of_another_card_from_before_this_boot_are_no_obstacle():
    old = row(DB, "10.0.0.12", card=1, allocated_ns=BEFORE_NS)
    other = CheckpointFile(path="/x/ipam-nic-1.json", card=1, rows=(old,), modified_ns=BEFORE_NS)
    assert kinds(answer(one_pod(files=[other]))) == []


# -- IPv6 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence",
    [
        found(rows=[row(DB, "2001:db8::7")]),
        found(entries=[cached(DB, "2001:db8::7")]),
        found(veths=[veth(DB, inside=(Address("2001:db8::7"),))], pods=[PodSeen(pod=DB)]),
        found(pods=[PodSeen(pod=DB, addresses=(Address("2001:db8::7"),))]),
    ],
    ids=["row", "cached result", "namespace", "API server"],
)
def test_a_pod_with_an_ipv6_address_alone_is_refused(evidence):
    findings = answer(evidence)
    (objection,) = findings.objections
    assert (objection.kind, objection.pods) == ("ipv6", ("prod/db-0",))
    assert [one.kind for one in findings.cautions] == []


@pytest.mark.parametrize(
    "evidence",
    [
        found(rows=[row(DB, "2001:db8::7", allocated_ns=BEFORE_NS)]),
        found(entries=[cached(DB, "2001:db8::7", modified_ns=BEFORE_NS)]),
        found(entries=[cached(DB, "2001:db8::7", plugin_types=("macvlan",))]),
        found(entries=[cached(DB, "10.0.0.11", "2001:db8::7")]),
        found(veths=[veth(DB, "10.0.0.11", inside=(Address("2001:db8::7"),))]),
        found(pods=[PodSeen(pod=DB, addresses=(Address("2001:db8::7"),), is_host_network=True)]),
        found(pods=[PodSeen(pod=DB, addresses=(Address("10.0.0.11"), Address("2001:db8::7")))]),
    ],
    ids=[
        "old row",
        "old result",
        "other plugin",
        "both",
        "both in the kernel",
        "host network",
        "both at the API",
    ],
)
def test_ipv6_that_is_old_or_somebody_elses_or_not_alone_is_no_obstacle(evidence):
    assert kinds(answer(evidence)) == []


def test_an_ipv6_prefix_on_an_eni_is_refused_without_any_pod():
    eni = msgspec.structs.replace(PRIMARY, cidrs=(Cidr("2001:db8:0:0:1::/80"),))
    (objection,) = answer(found(), enis=(eni,)).objections
    assert (objection.kind, objection.pods) == ("ipv6", ())
    assert "2001:db8:0:0:1::/80" in objection.sentence


# -- prefixes -----------------------------------------------------------------------------------------

PREFIXED = msgspec.structs.replace(PRIMARY, cidrs=(Cidr("10.0.0.0/28"),))


def test_a_pod_in_a_prefix_is_refused():
    (objection,) = answer(one_pod(), enis=(PREFIXED,)).objections
    assert (objection.kind, objection.pods) == ("prefixes", ("default/web-5d4f-abcde",))


def test_a_prefix_without_a_pod_in_it_is_told_and_does_not_refuse():
    other = msgspec.structs.replace(PRIMARY, cidrs=(Cidr("10.0.0.11/32"), Cidr("10.0.1.0/28")))
    findings = answer(one_pod(), enis=(other,))
    assert kinds(findings) == []
    assert [one.kind for one in findings.cautions] == ["prefixes"]


def test_without_the_enis_there_is_a_gap_where_pods_live():
    findings = answer(one_pod(), enis=None)
    assert len(findings.gaps) == 1
    assert findings.refused() is None
    assert answer(found(), enis=None).gaps == ()


# -- network policies ---------------------------------------------------------------------------------

PIN = "web-5d4f@default_handle_ingress"


def test_enforced_network_policies_are_refused_and_their_pods_named():
    evidence = found(
        veths=[veth(WEB, "10.0.0.11"), veth(DB, "10.0.0.12", ifindex=8)],
        rows=[row(WEB, "10.0.0.11"), row(DB, "10.0.0.12")],
    )
    findings = answer(evidence, pins=(PIN,), policy_endpoints=("default/web-x2x",), enis=None)
    (objection,) = findings.objections
    assert (objection.reason, objection.kind) == (Reason.TAKE_OVER_REFUSED, "network_policies")
    assert objection.pods == ("default/web-5d4f-abcde",)
    assert "default/web-x2x" in objection.sentence
    assert objection.sentence.endswith(" Pods: default/web-5d4f-abcde.")


def test_a_pin_without_a_policy_refuses_nothing():
    findings = answer(one_pod(), pins=(PIN,))
    assert kinds(findings) == []
    assert [one.kind for one in findings.cautions] == ["network_policies"]


# -- our own pods -------------------------------------------------------------------------------------


def our_pod(pod, address, **more):
    return veth(pod, address, alias=alias_of(key_of(pod)), **more)


def test_an_agent_that_has_lost_its_log_does_not_refuse_its_own_node():
    """1. We took an address out of a /28. 2. Our log is lost. 3. Policies have come to the cluster since."""
    evidence = found(
        veths=[our_pod(WEB, "10.0.0.11")],
        entries=[cached(WEB, "10.0.0.11")],
        pods=[PodSeen(pod=WEB, addresses=(Address("10.0.0.11"),), has_branch_eni=True)],
    )
    findings = answer(evidence, enis=(PREFIXED,), pins=(PIN,), policy_endpoints=("default/web-x2x",))
    assert findings.refused() is None
    assert "network_policies" in [one.kind for one in findings.cautions]
    assert [one.is_ours for one in findings.found] == [True]


def test_a_pod_of_ours_that_has_given_itself_an_ipv6_address_is_no_ipv6_pod():
    half_wired = veth(WEB, alias=alias_of(key_of(WEB)), inside=(Address("2001:db8::7"),))
    assert kinds(answer(found(veths=[half_wired]))) == []


def test_a_pod_of_the_original_beside_ours_is_refused():
    evidence = found(
        veths=[our_pod(WEB, "10.0.0.11"), veth(DB, "10.0.0.12", ifindex=8)],
        rows=[row(DB, "10.0.0.12")],
    )
    (objection,) = answer(evidence, enis=(PREFIXED,)).objections
    assert (objection.kind, objection.pods) == ("prefixes", ("prod/db-0",))


# -- cautions and gaps --------------------------------------------------------------------------------


def test_an_interface_whose_address_nothing_tells_is_a_caution():
    findings = answer(found(veths=[veth(WEB)]))
    assert findings.refused() is None
    (caution,) = findings.cautions
    assert (caution.kind, caution.names) == ("unexplained", (host_veth_name("eni", WEB.namespace, WEB.name),))
    assert caution.next_action


def test_an_address_in_use_that_no_eni_has_is_a_caution():
    lost = msgspec.structs.replace(PRIMARY, cidrs=())
    (caution,) = answer(one_pod(), enis=(lost,)).cautions
    assert (caution.kind, caution.names) == ("without_eni", ("10.0.0.11",))
    own = msgspec.structs.replace(PRIMARY, primary=Address("10.0.0.11"), cidrs=())
    assert answer(one_pod(), enis=(own,)).cautions == ()


def test_a_trunk_is_a_caution():
    trunk = msgspec.structs.replace(PRIMARY, id=EniId("eni-1"), type="trunk")
    assert [one.kind for one in answer(one_pod(), enis=(PRIMARY, trunk)).cautions] == ["trunk"]


def test_a_source_that_could_not_be_read_is_told_of():
    findings = answer(one_pod(checkpoint="unreadable: it is no JSON", runtime_cache="absent"))
    assert findings.refused() is None
    (caution,) = findings.cautions
    assert caution.kind == "sources"
    assert "checkpoint (it is no JSON)" in caution.sentence
    assert "runtime_cache" not in caution.sentence


def test_entries_that_could_not_be_read_are_told_of():
    evidence = one_pod()
    evidence = msgspec.structs.replace(
        evidence,
        kernel=msgspec.structs.replace(evidence.kernel, unreadable=("/run/netns/a cannot be entered",)),
        cache=msgspec.structs.replace(evidence.cache, unreadable=("aws-cni-x-eth0: it is empty",)),
    )
    damaged = msgspec.structs.replace(evidence.checkpoints[0], unreadable=("row 3: it has no address",))
    evidence = msgspec.structs.replace(evidence, checkpoints=(damaged,))
    (caution,) = answer(evidence).cautions
    assert (caution.kind, len(caution.names)) == ("unreadable", 3)
    assert f"{IPAM}: row 3: it has no address" in caution.names


def test_without_the_kernel_nobody_can_say_yes():
    evidence = Evidence(sources={"kernel": "unreadable: Operation not permitted"})
    findings = answer(evidence)
    assert findings.gaps
    refused = findings.refused()
    assert refused is not None
    assert refused.reason is Reason.KERNEL_REFUSED
    assert "Operation not permitted" in refused.detail


def test_settings_that_are_refused_stand_in_the_way_with_their_own_reason():
    refused = Refused(Reason.FEATURE_NOT_SUPPORTED, "ENABLE_POD_ENI='true' is not built yet")
    (objection,) = answer(one_pod(), settings_refused=refused).objections
    assert (objection.reason, objection.kind) == (Reason.FEATURE_NOT_SUPPORTED, "settings")
    assert "ENABLE_POD_ENI" in objection.sentence


# -- the form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "end"), [(10, "default/web-09."), (12, "default/web-09 and 2 more.")])
def test_a_sentence_names_ten_pods_and_the_objection_all_of_them(count, end):
    pods = [
        PodSeen(pod=PodRef("default", f"web-{number:02}"), has_branch_eni=True) for number in range(count)
    ]
    (objection,) = answer(one_pod(pods=pods)).objections
    assert len(objection.pods) == count
    assert f"{count} pods have" in objection.sentence
    assert objection.sentence.endswith(end)


def test_a_pod_that_several_sources_show_is_named_once():
    name = host_veth_name("vlan", DB.namespace, DB.name)
    evidence = one_pod(
        entries=[cached(DB, "10.0.9.9", host_ifnames=(name,))], pods=[PodSeen(pod=DB, has_branch_eni=True)]
    )
    (objection,) = answer(evidence, branch_veths=(veth(DB, prefix="vlan"),)).objections
    assert objection.pods == ("prod/db-0",)


def test_the_refusal_says_everything_at_once():
    findings = answer(
        one_pod(pods=[PodSeen(pod=DB, has_branch_eni=True)]),
        enis=(PREFIXED,),
        pins=(PIN,),
        policy_endpoints=("a/b",),
    )
    refused = findings.refused()
    assert refused is not None
    assert refused.reason is Reason.TAKE_OVER_REFUSED
    assert kinds(findings) == ["branch_enis", "network_policies", "prefixes"]
    for objection in findings.objections:
        assert objection.sentence in refused.detail
        assert objection.next_action in refused.detail

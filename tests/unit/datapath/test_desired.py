"""From leases, ENIs and settings to what the kernel should hold."""

import msgspec
import pytest

from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.datapath.desired import collapse, desired, gateway_of, pod_wiring
from vpccni.datapath.difference import probe
from vpccni.datapath.names import host_mac_of, pod_mac_of
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import DatapathSettings, Rule, VethRemoval
from vpccni.errors import PermanentError, Reason
from vpccni.model import Cidr, SandboxKey


def rules_of(*, leases=(), enis=(), settings=SETTINGS):
    return set(desired(leases, enis, settings, VPC).rules)


def test_one_rule_leads_to_all_pods_however_many_there_are():
    rules = rules_of(leases=[lease(number, device=0) for number in range(50)], enis=[eni(0)])
    assert rules == {
        Rule(priority=512, table=POD_TABLE),
        Rule(priority=1024, table=254, mark=0x80, mask=0x80),
    }


def test_only_pods_of_secondary_enis_have_a_from_rule():
    rules = rules_of(leases=[lease(1, device=1), lease(2, device=0)], enis=[eni(0), eni(1)])
    assert {rule for rule in rules if rule.priority == 1536} == {
        Rule(priority=1536, table=2, src=Cidr("10.0.1.21/32"))
    }


def test_a_secondary_enis_own_address_has_a_rule_and_the_primarys_has_none():
    assert {rule for rule in rules_of(enis=[eni(0), eni(2)]) if rule.priority == 32765} == {
        Rule(priority=32765, table=3, src=Cidr("10.0.2.10/32"))
    }


@pytest.mark.parametrize(
    ("external_snat", "node_port", "is_there"),
    [(False, True, True), (False, False, True), (True, True, True), (True, False, False)],
)
def test_the_mark_rule_is_there_while_something_sets_the_mark(external_snat, node_port, is_there):
    settings = DatapathSettings(external_snat=external_snat, node_port=node_port, connmark=0x40)
    found = [rule for rule in rules_of(settings=settings) if rule.priority == 1024]
    assert found == ([Rule(priority=1024, table=254, mark=0x40, mask=0x40)] if is_there else [])


def test_the_address_of_the_primary_eni_belongs_to_the_operating_system():
    setups = desired([], [eni(0), eni(1)], SETTINGS, VPC).enis
    assert [setup.owns_address for setup in setups] == [False, True]


def test_the_vpc_router_is_the_second_address_of_the_subnet():
    assert gateway_of(Cidr("10.0.96.0/19")) == "10.0.96.1"


def test_what_the_log_knows_of_the_veth_wins_over_what_would_be_computed():
    known = msgspec.structs.replace(lease(1), host_ifname="eniold", alias="vpccni:other:eth0", host_ifindex=7)
    (pod,) = desired([known], [], SETTINGS, VPC).pods
    assert (pod.host_ifname, pod.alias, pod.host_ifindex) == ("eniold", "vpccni:other:eth0", 7)


def test_sysctls_are_left_alone_when_they_are_not_ours():
    wanted = desired([lease(1)], [eni(1)], DatapathSettings(manage_sysctls=False), VPC)
    assert (wanted.ip_forward, wanted.pods[0].rp_filter, wanted.enis[0].rp_filter) == (False, -1, -1)


def test_overlapping_cidrs_are_merged_and_ipv6_is_left_out():
    cidrs = [Cidr(text) for text in ("10.0.0.0/16", "10.0.3.0/24", "fd00::/8", "10.1.0.0/16")]
    assert collapse(cidrs) == ("10.0.0.0/15",)


def test_the_nft_table_is_left_alone_while_the_vpc_or_the_primary_is_unknown():
    assert desired([], [eni(0)], SETTINGS, ()).nft is None
    assert desired([], [eni(1)], SETTINGS, VPC).nft is None


def changed(**fields):
    only = lease(1)
    return msgspec.structs.replace(only, bindings=(msgspec.structs.replace(only.bindings[0], **fields),))


ODD = [
    changed(family=6, address="2001:db8::5"),
    changed(kind="branch"),
    msgspec.structs.replace(lease(1), bindings=()),
    msgspec.structs.replace(lease(1), bindings=lease(1).bindings * 2),
]
ODD_IDS = ["ipv6", "branch", "no address", "two addresses"]


@pytest.mark.parametrize("refused", ODD, ids=ODD_IDS)
def test_a_binding_that_cannot_be_wired_yet_is_refused(refused):
    with pytest.raises(PermanentError) as caught:
        pod_wiring(refused, SETTINGS)
    assert caught.value.reason == Reason.FEATURE_NOT_SUPPORTED
    assert probe(refused, SETTINGS).is_empty
    assert probe(refused, SETTINGS).probe == ()


@pytest.mark.parametrize("odd", ODD, ids=ODD_IDS)
def test_one_lease_that_cannot_be_wired_stops_no_other(odd):
    other = lease(7)
    wanted = desired([odd, other], [eni(1)], SETTINGS, VPC)
    assert [pod.lease for pod in wanted.pods] == [other.lease]
    assert wanted.left_alone == tuple(each.address for each in odd.bindings if each.family == 4)
    (note,) = wanted.notes
    assert f"lease {odd.lease} " in note


def test_a_hold_without_an_interface_is_left_alone_and_is_no_problem():
    hold = msgspec.structs.replace(lease(1), key=SandboxKey("", "", "eth0"))
    wanted = desired([hold], [eni(1)], SETTINGS, VPC)
    assert (wanted.pods, wanted.left_alone, wanted.notes) == ((), ("10.0.1.21",), ())


def found(**fields):
    known = {"host_ifname": "eni0d7763386da", "host_ifindex": 7, "alias": "vpccni:held-10.0.1.21:eth0"}
    macs = {"host_mac": "0a:00:00:00:00:01", "pod_mac": "0a:00:00:00:00:02"}
    return msgspec.structs.replace(lease(1), is_found=True, **{**known, **macs, **fields})


def test_a_hold_with_an_interface_is_wired_like_any_lease():
    (pod,) = desired([found(key=SandboxKey("", "", "eth0"))], [], SETTINGS, VPC).pods
    assert (pod.alias, pod.host_ifindex, pod.is_found) == ("vpccni:held-10.0.1.21:eth0", 7, True)


def test_what_was_found_keeps_its_macs_and_its_rp_filter():
    (pod,) = desired([found()], [], SETTINGS, VPC).pods
    assert (pod.host_mac, pod.pod_mac, pod.rp_filter) == ("0a:00:00:00:00:01", "0a:00:00:00:00:02", -1)
    assert desired([lease(1)], [], SETTINGS, VPC).pods[0].rp_filter == 1


def test_macs_that_the_log_does_not_know_follow_from_the_sandbox():
    (pod,) = desired([found(host_mac="", pod_mac="")], [], SETTINGS, VPC).pods
    assert (pod.host_mac, pod.pod_mac) == (
        host_mac_of(pod_key := lease(1).key),
        pod_mac_of(pod_key, pod.address),
    )


def test_an_ended_lease_that_was_found_is_told_by_name_and_mac_until_it_has_our_alias():
    (removal,) = desired([], [], SETTINGS, VPC, ended=[found()]).ended
    assert removal == VethRemoval(
        ifindex=7, alias="vpccni:held-10.0.1.21:eth0", ifname="eni0d7763386da", mac="0a:00:00:00:00:01"
    )

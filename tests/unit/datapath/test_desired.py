"""From leases, ENIs and settings to what the kernel should hold."""

import msgspec
import pytest

from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.datapath.desired import collapse, desired, gateway_of
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import DatapathSettings, Rule
from vpccni.errors import PermanentError, Reason
from vpccni.model import Binding, Cidr


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


@pytest.mark.parametrize(
    "refused",
    [
        changed(family=6, address="2001:db8::5"),
        changed(kind="branch"),
        msgspec.structs.replace(lease(1), bindings=()),
        msgspec.structs.replace(lease(1), bindings=lease(1).bindings * 2),
    ],
    ids=["ipv6", "branch", "no address", "two addresses"],
)
def test_a_binding_that_cannot_be_wired_yet_is_refused(refused):
    with pytest.raises(PermanentError) as caught:
        desired([refused], [], SETTINGS, VPC)
    assert caught.value.reason == Reason.FEATURE_NOT_SUPPORTED
    assert all(isinstance(binding, Binding) for binding in refused.bindings)

"""The text of the nft table."""

import re

import msgspec
import pytest

from tests.unit.datapath.builders import SETTINGS, VPC, eni
from vpccni.datapath.desired import desired
from vpccni.datapath.nft import ABSENT, nft_table
from vpccni.datapath.objects import DatapathSettings, NftPolicy
from vpccni.model import Cidr


def policy(**settings) -> NftPolicy:
    found = desired([], [eni(0)], DatapathSettings(**settings), VPC).nft
    assert found is not None
    return found


def test_the_table_is_replaced_in_one_transaction():
    text = nft_table(policy(), "eth0").text
    assert text.startswith("table ip vpccni\ndelete table ip vpccni\ntable ip vpccni {\n")


def test_every_mark_write_is_masked():
    writes = re.findall(r"mark set (.*)", nft_table(policy(), "eth0").text)
    assert len(writes) == 3
    assert all(write in ("ct mark | 0x80", "meta mark | 0x80") for write in writes)


def test_connections_are_classified_in_a_filter_chain_after_dnat():
    text = nft_table(policy(), "eth0").text
    assert "type filter hook prerouting priority -90;" in text
    assert re.findall(r"type nat hook (\w+)", text) == ["postrouting"]


def test_external_snat_leaves_only_what_node_ports_need():
    text = nft_table(policy(external_snat=True), "eth0").text
    assert "snat to" not in text
    assert "ct state new" not in text
    assert 'iifname "eth0"' in text
    assert nft_table(policy(external_snat=True, node_port=False), "eth0") == ABSENT


@pytest.mark.parametrize(
    ("random_snat", "ending"),
    [
        ("prng", "snat to 10.0.0.10 fully-random"),
        ("hashrandom", "snat to 10.0.0.10 random"),
        ("none", "snat to 10.0.0.10"),
    ],
)
def test_snat_picks_ports_as_it_is_told(random_snat, ending):
    lines = [line.strip() for line in nft_table(policy(random_snat=random_snat), "eth0").text.splitlines()]
    assert ending in lines


def test_excluded_destinations_see_the_pods_own_address():
    text = nft_table(policy(exclude_snat_cidrs=(Cidr("192.168.0.0/24"),)), "eth0").text
    assert "elements = { 10.0.0.0/16, 192.168.0.0/24 }" in text


def test_the_node_port_rule_waits_for_the_name_of_the_primary_link():
    named, unnamed = nft_table(policy(), "ens5"), nft_table(policy(), "")
    assert 'iifname "ens5"' in named.text
    assert "fib daddr . iif type local" not in unnamed.text
    assert named.seen.digest != unnamed.seen.digest


def test_the_digest_and_the_counts_follow_the_content():
    one = nft_table(policy(), "eth0")
    other = nft_table(msgspec.structs.replace(policy(), direct=(Cidr("10.0.0.0/15"),)), "eth0")
    assert one.seen.digest != other.seen.digest
    assert one.seen.digest in one.text
    assert (one.seen.rules, one.seen.elements) == (8, 1)
    assert nft_table(policy(), "eth0") == one
    assert SETTINGS.connmark == 0x80

"""The packaged table of instance types: it is what the script prints, and what others publish."""

import importlib.util
from pathlib import Path

import pytest

from tests.data.published_max_pods import MAX_PODS, NOT_RECORDED
from vpccni.adapters.ec2.facts import instance_limits
from vpccni.instance_types import instance_types, nearest
from vpccni.lab.ec2.types import render_instance_type
from vpccni.model import CardLimits

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("script", REPO / "scripts" / "instance_types.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_script_prints_from_motos_recording(script):
    written = (REPO / "vpccni" / "instance_types.txt").read_text().splitlines()
    printed = script.table(script.recorded().values(), "whichever").splitlines()
    is_row = [not text.startswith("#") for text in written]
    assert sum(is_row) > 1300
    assert [t for t in written if t[0] != "#"] == [t for t in printed if t[0] != "#"], "run `make docs`"


def test_every_row_gives_the_limits_that_the_agent_would_read_from_ec2(script):
    for name, described in script.recorded().items():
        kind = instance_types()[name]
        limits = instance_limits(described)
        if not described["NetworkInfo"]["Ipv6Supported"]:
            assert kind.ipv6_per_eni == 0
        assert kind.limits == limits, name


def test_the_emulated_ec2_describes_a_type_as_the_table_has_it():
    for kind in instance_types().values():
        assert instance_limits(render_instance_type(kind)) == kind.limits, kind.name


def test_cards_may_differ_and_card_0_is_the_one_that_counts():
    kind = instance_types()["i7ie.48xlarge"]
    assert (kind.enis_by_card, kind.enis, kind.cards) == ((8, 7), 15, 2)
    assert kind.limits.enis_max == 8
    assert kind.limits.cards == (CardLimits(card=0, enis_max=8), CardLimits(card=1, enis_max=7))


@pytest.mark.parametrize(
    ("name", "is_nitro", "is_bare_metal"),
    [("m5.large", True, False), ("m5.metal", True, True), ("m4.large", False, False)],
)
def test_bare_metal_takes_prefixes_as_nitro_does(name, is_nitro, is_bare_metal):
    kind = instance_types()[name]
    assert (kind.limits.is_nitro, kind.is_bare_metal) == (is_nitro, is_bare_metal)


def test_a_card_numbered_otherwise_stops_the_script(script):
    described = script.recorded()["m5.large"]
    described["NetworkInfo"]["DefaultNetworkCardIndex"] = 1
    with pytest.raises(ValueError, match=r"m5\.large"):
        script.line(described)


def test_a_misspelt_type_is_answered_with_the_likest():
    assert nearest("M5.Xlarge")[0] == "m5.xlarge"
    assert "m5.4xlarge" in nearest("m5.4large")
    assert nearest("?") == ()


def test_of_what_is_published_only_what_ec2_no_longer_describes_is_missing():
    assert set(MAX_PODS) <= set(instance_types())
    assert not set(NOT_RECORDED) & set(instance_types())

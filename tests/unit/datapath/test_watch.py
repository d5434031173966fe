"""Which changes of rules and routes deserve a look, and which are our own doing."""

import pytest

from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import PathChange, Route, Rule
from vpccni.datapath.watch import is_amiss
from vpccni.model import Address, Cidr

LEASED, FREE, OUTSIDE = "10.0.1.21", "10.0.1.22", "172.16.0.9"
SUBNETS = (Cidr("10.0.1.0/24"),)


def table_of(address: Address) -> int | None:
    return {LEASED: 2}.get(address)


def to(address: str) -> Rule:
    return Rule(priority=512, table=254, dst=Cidr(f"{address}/32"))


def from_(address: str, table: int = 2, dst: str = "") -> Rule:
    return Rule(priority=1536, table=table, src=Cidr(f"{address}/32"), dst=Cidr(dst))


def ours(address: str) -> Route:
    return Route(table=POD_TABLE, dst=Cidr(f"{address}/32"), ifindex=4)


def theirs(address: str) -> Route:
    return Route(table=254, dst=Cidr(f"{address}/32"), ifindex=4)


APPEARED, VANISHED, BOTH, NEITHER = "appeared", "vanished", "both", "neither"


@pytest.mark.parametrize(
    ("what", "serving", "handing_back"),
    [
        (to(LEASED), APPEARED, VANISHED),
        (to(FREE), APPEARED, APPEARED),
        (to(OUTSIDE), NEITHER, NEITHER),
        (from_(LEASED), VANISHED, VANISHED),
        (from_(LEASED, 3), APPEARED, APPEARED),
        (from_(FREE), APPEARED, APPEARED),
        (from_(OUTSIDE), NEITHER, NEITHER),
        (from_(LEASED, dst="10.0.0.0/16"), APPEARED, APPEARED),
        (Rule(priority=512, table=POD_TABLE), VANISHED, VANISHED),
        (Rule(priority=1024, table=254, mark=0x80, mask=0x80), VANISHED, VANISHED),
        (Rule(priority=32765, table=2, src=Cidr("10.0.1.10/32")), VANISHED, VANISHED),
        (Rule(priority=100, table=50, src=Cidr(f"{LEASED}/32")), NEITHER, NEITHER),
        (Rule(priority=512, table=254, dst=Cidr(f"{LEASED}/32"), exotic=True), NEITHER, NEITHER),
        (Rule(priority=1024, table=254, mark=0x80, mask=0x80, iif="eth9"), NEITHER, NEITHER),
        (ours(LEASED), VANISHED, VANISHED),
        (ours(FREE), APPEARED, APPEARED),
        (theirs(LEASED), APPEARED, VANISHED),
        (theirs(FREE), APPEARED, APPEARED),
        (theirs(OUTSIDE), NEITHER, NEITHER),
        (Route(table=254, dst=Cidr("10.0.1.0/24"), ifindex=4), NEITHER, NEITHER),
        (Route(table=254, dst=Cidr(f"{FREE}/32"), ifindex=4, gateway=Address("10.0.1.1")), NEITHER, NEITHER),
        (Route(table=2, dst=Cidr("10.0.1.1/32"), ifindex=3), NEITHER, NEITHER),
    ],
    ids=str,
)
def test_a_change_is_amiss_when_it_contradicts_the_leases(what, serving, handing_back):
    for expected, as_original in ((serving, False), (handing_back, True)):
        fields = {"rule": what} if isinstance(what, Rule) else {"route": what}
        told = {
            is_removed: is_amiss(
                PathChange(is_removed=is_removed, **fields), table_of, SUBNETS, as_original=as_original
            )
            for is_removed in (False, True)
        }
        assert told == {False: expected in (APPEARED, BOTH), True: expected in (VANISHED, BOTH)}


def test_lost_changes_may_have_been_anything():
    assert is_amiss(PathChange(), table_of, SUBNETS, as_original=False)

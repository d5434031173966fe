"""Laws of the datapath, on the kernel in memory: one application converges and touches nothing foreign."""

from __future__ import annotations

import asyncio

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.kernel import FakeKernel
from tests.unit.datapath.builders import VPC, eni, lease
from vpccni.datapath.desired import collapse, desired
from vpccni.datapath.difference import difference, is_our_rule, unwire, wire
from vpccni.datapath.names import alias_of, is_our_alias
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import DatapathSettings, Desired, LeaseWiring, Observed, Route, Rule
from vpccni.model import Address, Cidr, host_cidr, is_inside

DEVICES = st.integers(0, 3)
NUMBERS = st.sets(st.integers(1, 8), max_size=6)
SUBNET_ADDRESSES = st.builds(
    lambda device, last: Cidr(f"10.0.{device}.{last}/32"), DEVICES, st.integers(2, 60)
)
ADDRESSES = st.one_of(
    SUBNET_ADDRESSES, st.sampled_from([Cidr("172.16.0.9/32"), Cidr("10.0.1.0/24"), Cidr("")])
)
RULES = st.builds(
    Rule,
    priority=st.sampled_from([10, 512, 1024, 1536, 1536, 30400, 32765]),
    table=st.sampled_from([2, 3, 4, 254, POD_TABLE, 30400]),
    src=ADDRESSES,
    dst=st.sampled_from([Cidr(""), Cidr(""), Cidr("10.0.1.21/32")]),
    mark=st.sampled_from([0, 0, 0x80]),
    mask=st.sampled_from([0, 0, 0x80, 0xFF]),
    exotic=st.sampled_from([False, False, True]),
)
ROUTES = st.builds(
    Route,
    table=st.sampled_from([POD_TABLE, POD_TABLE, 2, 254]),
    dst=SUBNET_ADDRESSES,
    ifindex=st.sampled_from([2, 3, 99]),
)
SETTINGS = st.builds(
    DatapathSettings,
    external_snat=st.booleans(),
    node_port=st.booleans(),
    manage_sysctls=st.booleans(),
    random_snat=st.sampled_from(["prng", "hashrandom", "none"]),
    exclude_snat_cidrs=st.sampled_from([(), (Cidr("10.0.128.0/17"),), (Cidr("0.0.0.0/0"),)]),
)


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A node somewhere between what it was and what it should be."""

    leases: tuple[LeaseWiring, ...]
    enis: tuple[int, ...]
    plugged: tuple[int, ...]
    wired: frozenset[int]
    ended: frozenset[int]
    rules: tuple[Rule, ...]
    routes: tuple[Route, ...]
    settings: DatapathSettings

    def desired(self) -> Desired:
        gone = [lease(number) for number in sorted(self.ended)]
        enis = [eni(device) for device in self.enis]
        return desired(self.leases, enis, self.settings, VPC, ended=gone)


@st.composite
def scenes(draw) -> Scene:
    open_numbers = draw(NUMBERS)
    enis = draw(st.sets(DEVICES, min_size=1))
    return Scene(
        leases=tuple(lease(number, device=draw(DEVICES)) for number in sorted(open_numbers)),
        enis=tuple(sorted(enis)),
        plugged=tuple(sorted(draw(st.sets(st.sampled_from(sorted(enis)))))),
        wired=frozenset(
            draw(st.sets(st.sampled_from(sorted(open_numbers))) if open_numbers else st.just(set()))
        ),
        ended=frozenset(draw(st.sets(st.integers(11, 14), max_size=2))),
        rules=tuple(draw(st.lists(RULES, max_size=6, unique=True))),
        routes=tuple(draw(st.lists(ROUTES, max_size=4, unique_by=lambda route: (route.table, route.dst)))),
        settings=draw(SETTINGS),
    )


async def node_of(scene: Scene) -> FakeKernel:
    kernel = FakeKernel(netns_on_demand=True)
    for device in scene.plugged:
        kernel.plug(eni(device).mac, f"eth{device}")
    kernel.plug("02:00:00:00:ee:01", "foreign0", kind="veth", alias="not ours")
    for one in scene.leases:
        if one.lease in scene.wired:
            await kernel.apply(wire(one, [], scene.settings))
    for number in sorted(scene.ended):
        await kernel.apply(wire(lease(number), [], scene.settings))
    kernel.state.routes |= set(scene.routes)
    kernel.state.rules += [rule for rule in scene.rules if rule not in kernel.state.rules]
    return kernel


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_one_application_converges_and_a_second_changes_nothing(scene):
    async def scenario():
        kernel = await node_of(scene)
        wanted = scene.desired()
        await kernel.apply(difference(wanted, await kernel.observe()))
        again = difference(wanted, await kernel.observe())
        assert again.is_empty, again
        assert_converged(wanted, await kernel.observe(), scene)
        before = kernel.dump()
        await kernel.apply(again)
        assert kernel.dump() == before

    asyncio.run(scenario())


def assert_converged(wanted: Desired, observed: Observed, scene: Scene) -> None:
    """What must hold, without asking ``difference``."""
    assert set(wanted.rules) <= set(observed.rules)
    veths = {link.alias: link.ifindex for link in observed.links if is_our_alias(link.alias)}
    assert veths.keys() == {alias_of(one.key) for one in scene.leases if one.lease in scene.wired}
    pod_table = {route.dst: route.ifindex for route in observed.routes if route.table == POD_TABLE}
    leased = {host_cidr(one.bindings[0].address) for one in scene.leases}
    assert pod_table.keys() <= leased
    for one in scene.leases:
        if one.lease in scene.wired:
            assert pod_table[host_cidr(one.bindings[0].address)] == veths[alias_of(one.key)]
    for device in scene.plugged:
        tables = [route.dst for route in observed.routes if route.table == eni(device).table]
        assert device == 0 or "0.0.0.0/0" in tables


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_nothing_foreign_is_ever_touched(scene):
    async def scenario():
        kernel = await node_of(scene)
        wanted = scene.desired()
        before = await kernel.observe()
        await kernel.apply(difference(wanted, before))
        after = await kernel.observe()
        assert {link.ifname for link in before.links} - {link.ifname for link in after.links} == {
            link.ifname
            for link in before.links
            if link.alias in {alias_of(lease(n).key) for n in scene.ended}
        }
        assert foreign_rules(before, wanted) == foreign_rules(after, wanted)
        assert foreign_routes(before) == foreign_routes(after)

    asyncio.run(scenario())


def foreign_rules(observed: Observed, wanted: Desired) -> set[Rule]:
    """By a definition of its own: no from-rule for an address of ours, none of the original's, nothing wanted."""
    found = set()
    for rule in observed.rules:
        address, _, length = rule.src.partition("/")
        is_single = length == "32" and any(is_inside(Address(address), subnet) for subnet in wanted.subnets)
        is_plain = not (rule.exotic or rule.dst or rule.iif)
        is_marked = rule.priority == 1024 and rule.mark and rule.mark == rule.mask and not rule.src
        address = Address(rule.dst.partition("/")[0])
        is_to_pod = rule == Rule(priority=512, table=254, dst=rule.dst) and any(
            is_inside(address, subnet) for subnet in wanted.subnets if rule.dst
        )
        is_narrow = is_single and rule == Rule(priority=1536, table=rule.table, src=rule.src, dst=rule.dst)
        if (
            not is_to_pod
            and not is_narrow
            and not (is_plain and (is_single or is_marked or rule in wanted.rules))
        ):
            found.add(rule)
    return found


def foreign_routes(observed: Observed) -> set[Route]:
    links = {link.ifindex for link in observed.links if not is_our_alias(link.alias)}
    return {
        route
        for route in observed.routes
        if route.table == 254 and not route.dst.endswith("/24") and route.ifindex in links
    }


@given(RULES, st.lists(DEVICES, unique=True))
def test_a_rule_of_ours_is_plain_and_of_one_address_or_of_the_mark(rule, devices):
    subnets = [eni(device).subnet_cidr for device in devices]
    if is_our_rule(rule, subnets):
        assert not rule.exotic
        assert not rule.dst
        assert rule.priority in (1024, 1536, 32765)
        assert rule.src.endswith("/32") or rule.mark == rule.mask == 0x80


@settings(max_examples=40, deadline=None)
@given(scenes(), st.integers(1, 8))
def test_wiring_and_unwiring_leave_the_routes_and_rules_of_others(scene, number):
    async def scenario():
        kernel = await node_of(scene)
        await kernel.apply(difference(scene.desired(), await kernel.observe()))
        one = lease(20 + number, device=number % 4)
        before = await kernel.observe()
        await kernel.apply(wire(one, [], scene.settings))
        await kernel.apply(unwire(one))
        after = await kernel.observe()
        assert after.routes == before.routes
        # From-rules of the pod's own address are another holder's left-overs, whoever made them.
        source = host_cidr(one.bindings[0].address)
        kept = [rule for rule in before.rules if (rule.priority, rule.src) != (1536, source)]
        assert list(after.rules) == kept

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(8, 32)), max_size=8))
def test_collapsed_cidrs_do_not_overlap_and_cover_the_same(pairs):
    given_cidrs = [Cidr(f"10.{octet}.0.0/{length}") for octet, length in pairs]
    collapsed = collapse(given_cidrs)
    for octet, _ in pairs:
        covering = [cidr for cidr in collapsed if is_inside(Address(f"10.{octet}.0.0"), cidr)]
        assert len(covering) == 1
    assert list(collapsed) == sorted(
        set(collapsed), key=lambda cidr: tuple(map(int, cidr.split("/")[0].split(".")))
    )

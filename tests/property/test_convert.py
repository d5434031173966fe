"""Laws of taking over and handing back, on the kernel in memory: no living pod is cut off at any instant."""

from __future__ import annotations

import asyncio

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.kernel import FakeKernel
from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.datapath.convert import farewell
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference, unwire, wire
from vpccni.datapath.names import alias_of, host_veth_name
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import Applied, Desired, LeaseWiring, Observed, PathChange, Route, Rule
from vpccni.lab.sim.kernel_original import WIRING
from vpccni.model import MAIN_TABLE, Address, Cidr, Mac, is_inside

ENIS = [eni(0), eni(1), eni(2)]
DEVICES = st.sampled_from([0, 1, 2])
OURS, FOUND, STRANGERS, DEAD = range(1, 5), range(11, 15), range(21, 24), range(31, 35)


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """Who lives on a node, and who did.

    Attributes:
        ours: Pods that we wired, each with the device of its ENI.
        found: Pods of the original that the log has.
        strangers: Pods of the original that the log does not have, and before which step its plugin is.
        dead: Pods of the original that are gone, and whose rules are not.
        ended: Pods of the original whose lease has ended while their veth stands.
        narrow: Pods of the original with a from-rule for a CIDR besides.
    """

    ours: dict[int, int]
    found: dict[int, int]
    strangers: dict[int, str]
    dead: dict[int, int]
    ended: frozenset[int]
    narrow: frozenset[int]

    def leases(self) -> list[LeaseWiring]:
        return [lease(number, device=device) for number, device in {**self.ours, **self.found}.items()]


@st.composite
def scenes(draw) -> Scene:
    def some(numbers, values):
        chosen = draw(st.sets(st.sampled_from(list(numbers))))
        return {number: draw(values) for number in sorted(chosen)}

    found = some(FOUND, DEVICES)
    of_found = st.sets(st.sampled_from(sorted(found))) if found else st.just(set())
    return Scene(
        ours=some(OURS, DEVICES),
        found=found,
        strangers=some(STRANGERS, st.sampled_from([step for step in WIRING if step != "create_veth"])),
        dead=some(DEAD, DEVICES),
        ended=frozenset(draw(of_found)),
        narrow=frozenset(draw(of_found)),
    )


class Watched(FakeKernel):
    """A kernel that looks after each change of a rule or route whether packets still reach whom they must.

    Attributes:
        ways: Address and host veth of everybody who is reached now, and must be at every later instant.
    """

    def __init__(self) -> None:
        super().__init__(netns_on_demand=True)
        self.ways: dict[Address, int] = {}

    def tell_path(self, change: PathChange) -> None:
        for address, ifindex in self.ways.items():
            assert self.way_to(address) == ifindex, f"{address} is cut off by {change}"

    def way_to(self, address: Address) -> int:
        """The link by which a packet from elsewhere to this address leaves; 0 for none."""
        for rule in sorted(self.state.rules, key=lambda rule: rule.priority):
            if (
                rule.exotic
                or rule.iif
                or rule.mark
                or rule.src
                or (rule.dst and not is_inside(address, rule.dst))
            ):
                continue
            fitting = [
                route
                for route in self.state.routes
                if route.table == rule.table and is_inside(address, route.dst)
            ]
            if fitting:
                return max(fitting, key=lambda route: int(route.dst.partition("/")[2])).ifindex
        return 0

    def watch(self) -> None:
        """From here on everybody who has a veth and is reached by it stays reached."""
        shown = {
            (Address(route.dst.partition("/")[0]), route.ifindex)
            for route in self.state.routes
            if route.dst.endswith("/32") and self.state.links[route.ifindex].kind == "veth"
        }
        self.ways = {address: ifindex for address, ifindex in shown if self.way_to(address) == ifindex}


def found_wiring(kernel: FakeKernel, number: int, device: int) -> LeaseWiring:
    """A pod of the original, as a search of the node brings it into the log."""
    one = lease(number, device=device)
    name = host_veth_name("eni", one.pod.namespace, one.pod.name)
    link = next(link for link in kernel.state.links.values() if link.ifname == name)
    return msgspec.structs.replace(
        one,
        host_ifname=name,
        host_ifindex=link.ifindex,
        alias=alias_of(one.key),
        host_mac=Mac(link.mac),
        is_found=True,
    )


async def node_of(scene: Scene) -> tuple[Watched, list[LeaseWiring], list[LeaseWiring]]:
    """The node, its open leases, and those that have ended."""
    kernel = Watched()
    for each in ENIS:
        kernel.plug(each.mac, f"eth{each.device}")
    kernel.set_route(Route(table=MAIN_TABLE, dst=Cidr("0.0.0.0/0"), ifindex=2, gateway=ENIS[0].primary))
    await kernel.apply(difference(desired([], ENIS, SETTINGS, VPC), await kernel.observe()))
    original = {**scene.found, **scene.dead, **dict.fromkeys(scene.strangers, 1)}
    for number, device in original.items():
        one = lease(number, device=device)
        binding = one.bindings[0]
        kernel.wire_as_original(
            one.pod,
            netns=one.netns,
            address=binding.address,
            table=binding.table,
            until=scene.strangers.get(number, "done"),
        )
    for number in sorted(scene.narrow):
        src = Cidr(f"{lease(number, device=scene.found[number]).bindings[0].address}/32")
        kernel.add_rule(Rule(priority=1536, table=2, src=src, dst=Cidr("100.64.0.0/16")))
    for number in scene.dead:
        kernel.remove_netns(lease(number).netns)
    known = [found_wiring(kernel, number, device) for number, device in scene.found.items()]
    for number, device in scene.ours.items():
        one = lease(number, device=device)
        seen = (await kernel.apply(wire(one, ENIS, SETTINGS))).sandboxes[one.lease]
        known.append(
            msgspec.structs.replace(one, host_ifindex=seen.host_ifindex, host_ifname=seen.host_ifname)
        )
    return (
        kernel,
        [one for one in known if one.lease not in scene.ended],
        [one for one in known if one.lease in scene.ended],
    )


async def converge(kernel: FakeKernel, wanted: Desired) -> Applied:
    applied = await kernel.apply(difference(wanted, await kernel.observe()))
    again = difference(wanted, await kernel.observe())
    assert again.is_empty, again
    return applied


def objects_of(observed: Observed, address: Address) -> set[Rule | Route]:
    """The rules and host routes that name an address."""
    cidr = f"{address}/32"
    rules = [rule for rule in observed.rules if cidr in (rule.src, rule.dst)]
    routes = [route for route in observed.routes if route.dst == cidr]
    return {*rules, *routes}


def shape(observed: Observed, one: LeaseWiring) -> list[tuple[int, int]]:
    """Priority and table of its rules, 0 and table of its routes; all routes lead to its veth."""
    found = objects_of(observed, one.bindings[0].address)
    links = {each.ifindex for each in found if isinstance(each, Route)}
    assert links <= {one.host_ifindex}
    return sorted((each.priority if isinstance(each, Rule) else 0, each.table) for each in found)


def expected_shape(one: LeaseWiring, *, as_original: bool) -> list[tuple[int, int]]:
    table = one.bindings[0].table
    ours = [(0, POD_TABLE), *([(1536, table)] if table != MAIN_TABLE else [])]
    return sorted([*ours, *([(0, MAIN_TABLE), (512, MAIN_TABLE)] if as_original else [])])


@settings(max_examples=80, deadline=None)
@given(scenes())
def test_a_take_over_cuts_nobody_off_and_touches_no_stranger(scene):
    async def scenario():
        kernel, known, ended = await node_of(scene)
        strangers = [lease(number).bindings[0].address for number in scene.strangers]
        before = {address: objects_of(await kernel.observe(), address) for address in strangers}
        links = {link.ifname: link.alias for link in (await kernel.observe()).links}
        # Packets to a pod whose lease has ended need not arrive.
        kernel.watch()
        for one in ended:
            kernel.ways.pop(one.bindings[0].address, None)
        applied = await converge(kernel, desired(known, ENIS, SETTINGS, VPC, ended=ended))
        observed = await kernel.observe()
        for one in known:
            assert shape(observed, one) == expected_shape(one, as_original=False)
        for address in strangers:
            assert objects_of(observed, address) == before[address]
        names = {host_veth_name("eni", "default", f"pod-{number}") for number in scene.strangers}
        assert all(link.alias == links[link.ifname] for link in observed.links if link.ifname in names)
        is_blind = any(WIRING.index(step) <= WIRING.index("host_route") for step in scene.strangers.values())
        for number in scene.dead:
            left = objects_of(observed, lease(number, device=scene.dead[number]).bindings[0].address)
            assert bool(left) == is_blind
        assert len(applied.removed) == len(set(applied.removed))

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_hand_back_cuts_nobody_off_and_takes_nothing_of_the_original_away(scene):
    async def scenario():
        kernel, known, ended = await node_of(scene)
        kernel.watch()
        for one in ended:
            kernel.ways.pop(one.bindings[0].address, None)
        theirs = {
            rule
            for rule in (await kernel.observe()).rules
            if rule.priority == 512 and rule.table == MAIN_TABLE
        }
        wanted = desired(known, ENIS, SETTINGS, VPC, ended=ended, as_original=True)
        await converge(kernel, wanted)
        observed = await kernel.observe()
        assert theirs <= set(observed.rules)
        for one in known:
            have = set(shape(observed, one)) - {(1536, 2)}
            assert have == set(expected_shape(one, as_original=True)) - {(1536, 2)}
        # The original serves now, and ours goes.
        kernel.watch()
        bye = farewell(wanted, await kernel.observe())
        if [said for said in bye.objections if "firewall" not in said]:
            return
        await kernel.apply(bye.difference)
        observed = await kernel.observe()
        tables = {route.table for route in observed.routes} | {rule.table for rule in observed.rules}
        assert POD_TABLE not in tables
        # And we come back.
        await converge(kernel, desired(known, ENIS, SETTINGS, VPC, ended=ended))

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(scenes(), st.data())
def test_the_end_of_one_pod_cuts_no_other_off_and_leaves_nothing_of_it(scene, data):
    async def scenario():
        kernel, known, _ = await node_of(scene)
        if not known:
            return
        one = data.draw(st.sampled_from(known))
        kernel.watch()
        kernel.ways.pop(one.bindings[0].address, None)
        await kernel.apply(unwire(one))
        assert objects_of(await kernel.observe(), one.bindings[0].address) == set()

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(scenes(), DEVICES)
def test_an_address_that_is_used_again_reaches_its_new_pod_whatever_its_old_ones_left(scene, device):
    async def scenario():
        kernel, _, _ = await node_of(scene)
        one = lease(31, device=scene.dead.get(31, device))
        kernel.watch()
        kernel.ways.pop(one.bindings[0].address, None)
        seen = (await kernel.apply(wire(one, ENIS, SETTINGS))).sandboxes[one.lease]
        assert kernel.way_to(one.bindings[0].address) == seen.host_ifindex
        tables = [
            rule.table
            for rule in kernel.state.rules
            if rule.priority == 1536 and rule.src == f"{one.bindings[0].address}/32"
        ]
        assert tables == [table for table in (one.bindings[0].table,) if table != MAIN_TABLE]

    asyncio.run(scenario())

"""The kernel in memory beyond the contract: faults that tests draw, and the start of the original."""

from __future__ import annotations

import pytest

from tests.fakes.kernel import FakeKernel
from tests.original import wiring
from tests.unit.datapath.builders import SETTINGS, eni
from vpccni.datapath.desired import eni_setup
from vpccni.datapath.difference import setup_eni
from vpccni.datapath.objects import AddressSeen, Route, Rule
from vpccni.errors import PermanentError, Reason
from vpccni.evidence import HostVeth
from vpccni.lab.sim import kernel_original
from vpccni.model import Address, Cidr, PodRef

POD = PodRef("default", "web-0")
PATH = "/run/netns/web"
ADDRESS = "10.0.1.77"


def wired(*, until: str = "done") -> FakeKernel:
    kernel = FakeKernel()
    kernel.wire_as_original(POD, netns=PATH, address=ADDRESS, table=2, until=until)
    return kernel


async def only_veth(kernel: FakeKernel, *paths: str) -> HostVeth:
    (veth,) = (await kernel.survey("eni", paths)).veths
    return veth


async def test_a_blind_survey_finds_no_namespace_and_still_the_veth():
    kernel = wired()
    kernel.is_blind = True
    veth = await only_veth(kernel, PATH)
    assert (veth.has_peer, veth.netns, veth.inside, veth.routed) == (True, "", (), (ADDRESS,))


async def test_a_sealed_namespace_is_known_and_not_read():
    kernel = wired()
    kernel.sealed.add(PATH)
    kernel.add_netns("/run/netns/other")
    kernel.sealed.add("/run/netns/other")
    found = await kernel.survey("eni", [PATH])
    assert found.unreadable == (f"{PATH} cannot be entered: Operation not permitted",)
    (veth,) = found.veths
    assert (veth.netns, veth.netns_inode) == (PATH, kernel.state.netns[PATH].inode)
    assert (veth.pod_ifname, veth.pod_mac, veth.inside) == ("", "", ())


async def test_a_hidden_namespace_is_found_by_its_path():
    kernel = wired()
    kernel.hidden.add(PATH)
    assert (await only_veth(kernel)).netns == ""
    assert (await only_veth(kernel, PATH)).netns == PATH


async def test_a_kernel_that_refuses_can_be_told_nothing():
    kernel = wired()
    kernel.survey_refusal = "Operation not permitted"
    with pytest.raises(PermanentError) as caught:
        await kernel.survey("eni", [])
    assert caught.value.reason == Reason.KERNEL_REFUSED
    assert caught.value.detail == "survey: Operation not permitted"


async def test_a_veth_outlives_its_namespace_for_a_moment():
    kernel = wired()
    kernel.remove_netns(PATH, leaves_veths=True)
    veth = await only_veth(kernel, PATH)
    assert (veth.has_peer, veth.netns, veth.routed) == (False, "", (ADDRESS,))
    kernel.unplug(veth.mac)
    assert (await kernel.survey("eni", [])).veths == ()
    assert kernel.state.peerless == set()


async def test_routes_and_addresses_can_be_lost():
    kernel = wired()
    kernel.lose_routes(ADDRESS)
    kernel.lose_inside(ADDRESS)
    veth = await only_veth(kernel)
    assert (veth.routed, veth.inside) == ((), ())


async def test_a_pod_of_the_same_name_replaces_the_veth():
    kernel = wired()
    first = await only_veth(kernel)
    kernel.wire_as_original(POD, netns="/run/netns/again", address="10.0.1.78")
    again = await only_veth(kernel)
    assert (again.ifname, again.netns, again.inside) == (first.ifname, "/run/netns/again", ("10.0.1.78",))
    assert again.ifindex != first.ifindex
    assert again.mac != first.mac
    assert kernel.state.netns[PATH].interfaces == {}


async def test_the_steps_are_those_of_the_script_for_real_namespaces():
    assert wiring.WIRING == kernel_original.WIRING
    assert wiring.UNWIRING == kernel_original.UNWIRING
    with pytest.raises(ValueError, match="no step"):
        wired(until="lunch")


async def test_the_originals_start_sets_its_enis_up_anew_and_nothing_of_the_pods():
    kernel = wired()
    for device in (0, 1):
        kernel.plug(eni(device).mac, f"eth{device}")
    await kernel.apply(setup_eni(eni(1), SETTINGS))
    index = next(link.ifindex for link in kernel.state.links.values() if link.ifname == "eth1")
    extra = AddressSeen(ifindex=index, address=Address("10.0.1.200"), prefix_length=32)
    stray = Route(table=9, dst=Cidr("10.9.0.0/16"), ifindex=index)
    kernel.state.addresses.add(extra)
    kernel.state.routes.add(stray)
    before = await kernel.observe()
    kernel.start_as_original([eni_setup(eni(device), SETTINGS) for device in (0, 1)], [])
    after = await kernel.observe()
    assert set(before.addresses) - set(after.addresses) == {extra}
    assert set(before.routes) - set(after.routes) == {stray}
    assert Rule(priority=1024, table=254, mark=0x80, mask=0x80) in after.rules
    assert set(before.rules) <= set(after.rules)
    assert not set(after.routes) - set(before.routes)


async def test_the_originals_start_replaces_every_rule_whose_source_begins_with_a_pods_address():
    """A from-rule for a /28 that begins with a pod's address becomes a rule for that address alone."""
    kernel = wired()
    prefix = Rule(priority=1536, table=5, src=Cidr(f"{ADDRESS}/28"))
    other = Rule(priority=1536, table=6, src=Cidr("10.0.1.78/32"))
    kernel.state.rules += [prefix, other]
    kernel.start_as_original([], [ADDRESS, "10.0.1.200"])
    found = await kernel.survey("eni", [])
    assert found.from_tables == {ADDRESS: 5, "10.0.1.78": 6}
    assert found.ruled == (ADDRESS,)
    assert prefix not in kernel.state.rules
    assert not any("10.0.1.200" in rule.src for rule in kernel.state.rules)

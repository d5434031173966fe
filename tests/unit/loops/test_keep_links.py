"""The kernel is kept as the log wants it: beside what the original left, and what its last plugins still wire."""

from __future__ import annotations

import asyncio
import errno
import json
from typing import Any

import msgspec
import pytest

from tests.unit.loops.rig import Rig
from tests.unit.loops.test_recover import key_of, live_as_original, secondaries, with_predecessor
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import FirewallPart, FirewallSeen, Route, Rule
from vpccni.errors import PermanentError, Reason
from vpccni.events.adoption import ForeignObjectRemoved
from vpccni.events.codec import Record
from vpccni.events.sandbox import AddressAssigned
from vpccni.lab.sim.loop import run_virtual
from vpccni.model import Address, Binding, Cidr, EniId, PodRef
from vpccni.planner import commands as c

MINUTE = 60.0
SETTLED_S = 5.0
"""After this nothing that was begun is under way."""


def to(address: str) -> Rule:
    return Rule(priority=512, table=254, dst=Cidr(f"{address}/32"))


def rules_of(rig: Rig, address: str) -> list[tuple[int, int]]:
    cidr = f"{address}/32"
    return [(rule.priority, rule.table) for rule in rig.kernel.state.rules if cidr in (rule.src, rule.dst)]


def tables_to(rig: Rig, address: str) -> dict[int, int]:
    dst = f"{address}/32"
    return {route.table: route.ifindex for route in rig.kernel.state.routes if route.dst == dst}


def follow(rig: Rig) -> list[Record]:
    """Every record from here on."""
    heard: list[Record] = []
    rig.live.writer.subscribe(heard.extend)
    return heard


def texts(records: list[Record]) -> list[str]:
    return [record.event.text for record in records if isinstance(record.event, ForeignObjectRemoved)]


def free_addresses(rig: Rig) -> list[str]:
    return [address for address in secondaries(rig) if address not in rig.state.by_address]


async def wait_until(condition) -> float:
    """Wait, and tell how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(3 * MINUTE):
        while not condition():
            await asyncio.sleep(0.01)
    return loop.time() - began


async def after_regular_look(rig: Rig) -> None:
    """The next one is in a minute: what is looked at before that has another cause."""
    before = rig.kernel.observed_count
    await wait_until(lambda: rig.kernel.observed_count > before)
    await asyncio.sleep(SETTLED_S)


def prev_result(address: str, netns: str) -> dict[str, Any]:
    """As the original prints it."""
    return {
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": "eni0d7763386da"},
            {"name": "eth0", "mac": "2", "sandbox": netns},
            {"name": "dummy0d7763386da", "mac": "0", "sandbox": "1"},
        ],
        "ips": [{"version": "4", "interface": 1, "address": f"{address}/32"}],
        "dns": {},
    }


async def call(rig: Rig, command: str, pod: str, address: str, *, netns: str = "") -> tuple[int, Any]:
    return await rig.send(
        {
            "command": command,
            "containerId": pod,
            "netns": netns,
            "ifname": "eth0",
            "config": {
                "cniVersion": "0.4.0",
                "name": "aws-cni",
                "type": "aws-cni",
                "prevResult": prev_result(address, f"/run/netns/{pod}"),
            },
        }
    )


# --- conversion ---------------------------------------------------------------------------------------------


def test_pods_of_the_original_are_converted_at_the_start_and_what_goes_is_on_record_once():
    async def scenario():
        rig = await with_predecessor(3)
        addresses = secondaries(rig)[:3]
        await rig.start()
        heard = follow(rig)
        await rig.ready(120)
        await asyncio.sleep(SETTLED_S)
        for address in addresses:
            assert list(tables_to(rig, address)) == [POD_TABLE]
            assert rules_of(rig, address) == []
        assert {link.alias[:7] for link in rig.kernel.state.links.values() if link.kind == "veth"} == {
            "vpccni:"
        }
        await asyncio.sleep(3 * MINUTE)
        told = texts(heard)
        assert sorted(told) == sorted(
            text
            for number, address in enumerate(addresses)
            for text in (
                f"512:\tfrom all to {address} lookup main",
                f"{address} dev {rig.held(f'old-{number}').wired.host_ifname} scope link",
            )
        )
        await rig.stop()

    run_virtual(scenario())


def test_what_a_late_plugin_of_the_original_wires_is_converted_within_a_second():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = free_addresses(rig)[0]
        live_as_original(rig, "late", address)
        took = await wait_until(
            lambda: rules_of(rig, address) == [] and list(tables_to(rig, address)) == [POD_TABLE]
        )
        assert took < 1.0
        assert rig.held("late").bindings[0].address == address
        await rig.stop()

    run_virtual(scenario())


def test_a_stale_rule_on_a_leased_address_is_healed_within_a_second():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = await rig.add("web")
        await asyncio.sleep(SETTLED_S)
        heard = follow(rig)
        rig.kernel.add_rule(to(address))
        assert await wait_until(lambda: rules_of(rig, address) == []) < 1.0
        await asyncio.sleep(SETTLED_S)
        assert texts(heard) == [f"512:\tfrom all to {address} lookup main"]
        await rig.stop()

    run_virtual(scenario())


def test_of_two_that_look_at_once_one_removes_what_is_in_the_way_and_the_other_does_not_miss_it():
    """1. The loop of the kernel and the start both look. 2. One removes the firewall. 3. The other has seen it."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        apply, removals = rig.kernel.apply, []

        async def recorded(difference):
            removals.extend(difference.firewall)
            return await apply(difference)

        rig.kernel.apply = recorded  # type: ignore[method-assign]
        rig.kernel.latency_s = 0.01
        part = FirewallPart(tool="nft", lines=("table ip aws-cni",))
        rig.kernel.state.firewall = FirewallSeen(parts=(part,))
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(rig.live.links.converge())
        assert removals == [part]
        await rig.stop()

    run_virtual(scenario())


def test_what_was_just_seen_is_not_read_again_unless_the_kernel_was_changed_since():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        before = rig.kernel.observed_count
        seen = await rig.live.links.look()
        await rig.live.links.converge(seen)
        assert rig.kernel.observed_count == before + 1
        await rig.live.links.converge(seen)
        assert rig.kernel.observed_count == before + 2
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("what", ["rule", "route"])
def test_what_somebody_takes_away_from_us_is_back_within_a_second(what):
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = await rig.add("web")
        await asyncio.sleep(SETTLED_S)
        if what == "rule":
            ours = Rule(priority=512, table=POD_TABLE)
            rig.kernel.delete_rules(lambda rule: rule == ours)
            assert await wait_until(lambda: ours in rig.kernel.state.rules) < 1.0
        else:
            rig.kernel.delete_route(POD_TABLE, f"{address}/32", 0)
            assert await wait_until(lambda: POD_TABLE in tables_to(rig, address)) < 1.0
        await rig.stop()

    run_virtual(scenario())


def test_our_own_adds_and_dels_lead_to_no_look():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        before = rig.kernel.observed_count
        await wait_until(
            lambda: rig.kernel.observed_count > before
        )  # The regular look: the next is in a minute.
        before = rig.kernel.observed_count
        for number in range(8):
            await rig.add(f"pod-{number}")
            await asyncio.sleep(0.5)
        for number in range(8):
            await rig.cni("DEL", f"pod-{number}")
            rig.kernel.remove_netns(f"/run/netns/pod-{number}")
            await asyncio.sleep(0.5)
        assert rig.kernel.observed_count == before
        await rig.stop()

    run_virtual(scenario())


def test_a_storm_of_changes_leads_to_no_more_than_a_look_a_second():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        foreign = Route(table=254, dst=Cidr(f"{free_addresses(rig)[0]}/32"), ifindex=2)
        before = rig.kernel.observed_count
        for _ in range(1000):
            rig.kernel.set_route(foreign)
            rig.kernel.delete_route(254, foreign.dst, 0)
            rig.kernel.set_route(foreign)
            await asyncio.sleep(0.01)
        assert 5 <= rig.kernel.observed_count - before <= 11
        await rig.stop()

    run_virtual(scenario())


def test_a_pod_that_the_log_does_not_know_is_taken_in_and_not_cut_off_at_a_regular_look():
    """Nobody has told of it: the notification was lost."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = free_addresses(rig)[0]
        listeners, rig.kernel.path_listeners = rig.kernel.path_listeners, []
        live_as_original(rig, "quiet", address)
        await asyncio.sleep(2 * MINUTE)
        assert rig.held("quiet").bindings[0].address == address
        assert list(tables_to(rig, address)) == [POD_TABLE]
        rig.kernel.path_listeners = listeners
        await rig.stop()

    run_virtual(scenario())


def test_a_lease_of_a_later_release_stops_nobody_and_is_told():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        mine = await rig.add("web")
        address = free_addresses(rig)[0]
        binding = Binding(
            family=4,
            address=Address(address),
            eni=EniId(""),
            card=0,
            device=1,
            table=107,
            kind="branch",
            vlan=7,
        )
        odd = AddressAssigned(
            key=key_of("branch"), pod=PodRef(), bindings=(binding,), netns="/run/netns/branch"
        )
        await rig.live.writer.submit(c.Note(events=(odd,)))
        rule = Rule(priority=512, table=254, dst=Cidr(f"{address}/32"))
        rig.kernel.add_rule(rule)
        rig.kernel.add_rule(Rule(priority=1536, table=2, src=Cidr(f"{address}/32")))
        rig.kernel.lose_routes(mine)
        await asyncio.sleep(10 * MINUTE)
        assert list(tables_to(rig, mine)) == [POD_TABLE]
        assert rules_of(rig, address) == [(512, 254), (1536, 2)]
        problems = rig.live.status()["problems"]
        assert problems["kernel"] == ""
        assert any("kind branch" in note for note in problems["datapath"])
        assert rig.lease("web").suspected is None
        await rig.stop()

    run_virtual(scenario())


def test_its_firewall_goes_and_is_on_record_and_what_cannot_be_read_is_told():
    async def scenario():
        rig = await with_predecessor(1)
        part = FirewallPart(tool="iptables-nft", lines=("-t nat -N AWS-SNAT-CHAIN-0",))
        rig.kernel.state.firewall = FirewallSeen(parts=(part,), problems=("iptables-legacy is hidden",))
        await rig.start()
        heard = follow(rig)
        await rig.ready(120)
        await asyncio.sleep(2 * MINUTE)
        assert rig.kernel.state.firewall.parts == ()
        assert texts(heard).count("iptables-nft -t nat -N AWS-SNAT-CHAIN-0") == 1
        assert "iptables-legacy is hidden" in rig.live.status()["problems"]["datapath"]
        await rig.stop()

    run_virtual(scenario())


def test_a_firewall_that_cannot_be_read_is_no_problem_of_a_node_that_the_original_never_served():
    async def scenario():
        rig = Rig()
        rig.kernel.state.firewall = FirewallSeen(problems=("iptables-legacy is hidden",))
        await rig.up(settle_s=2 * MINUTE)
        assert rig.live.status()["problems"]["datapath"] == []
        await rig.stop()

    run_virtual(scenario())


def test_while_another_agent_lives_the_kernel_is_not_brought_in_line():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = await rig.add("web")
        rig.predecessor.is_alive = True
        await asyncio.sleep(10)
        rig.kernel.add_rule(to(address))
        rig.kernel.delete_route(POD_TABLE, f"{address}/32", 0)
        mac = next(iter(rig.state.enis.values())).facts.mac
        rig.kernel.unplug(mac)
        await asyncio.sleep(1.0)
        rig.kernel.plug(mac, "ens5")
        await asyncio.sleep(3 * MINUTE)
        assert (512, 254) in rules_of(rig, address)
        assert tables_to(rig, address) == {}
        assert [link.is_up for link in rig.kernel.state.links.values() if link.mac == mac] == [False]
        rig.predecessor.is_alive = False
        await wait_until(lambda: list(tables_to(rig, address)) == [POD_TABLE])
        assert (512, 254) not in rules_of(rig, address)
        await rig.stop()

    run_virtual(scenario())


# --- the ends of pods of the original -----------------------------------------------------------------------


@pytest.mark.parametrize("named_by", ["key", "address"])
def test_the_del_of_a_pod_of_the_original_leaves_nothing(named_by):
    """Its key may not be known: then its address and its namespace name it, as the runtime keeps them."""

    async def scenario():
        rig = await with_predecessor(0)
        address = secondaries(rig)[0]
        live_as_original(rig, "old", address, cached=named_by == "key")
        await rig.start()
        await rig.ready(120)
        (lease,) = rig.state.leases.values()
        assert lease.is_hold == (named_by == "address")
        rig.kernel.add_rule(to(address))
        status, _ = await call(rig, "DEL", "old", address)
        assert status == 200
        assert (rules_of(rig, address), tables_to(rig, address)) == ([], {})
        assert not rig.state.leases
        await asyncio.sleep(SETTLED_S)
        assert not [link for link in rig.kernel.state.links.values() if link.kind == "veth"]
        assert not rig.state.standing
        await rig.stop()

    run_virtual(scenario())


def test_a_spooled_del_finds_a_hold_and_what_it_left_goes_too():
    async def scenario():
        rig = await with_predecessor(0)
        address = secondaries(rig)[0]
        live_as_original(rig, "old", address, cached=False, table=2)
        await rig.start()
        await rig.ready(120)
        assert [lease.is_hold for lease in rig.state.leases.values()] == [True]
        body = {
            "command": "DEL",
            "containerId": "old",
            "netns": "",
            "ifname": "eth0",
            "config": {
                "cniVersion": "0.4.0",
                "name": "aws-cni",
                "type": "aws-cni",
                "prevResult": prev_result(address, "/var/run/netns/old"),
            },
        }
        await after_regular_look(rig)
        # What its ADD made, and only a DEL to a living agent takes away; nobody was listening.
        rig.kernel.state.rules.append(Rule(priority=1536, table=2, src=Cidr(f"{address}/32")))
        rig.kernel.remove_netns("/run/netns/old")
        await rig.spool.write(json.dumps(body).encode(), rig.clock.now())
        await wait_until(lambda: not rig.state.leases)
        await asyncio.sleep(SETTLED_S)
        assert (rules_of(rig, address), tables_to(rig, address)) == ([], {})
        await rig.stop()

    run_virtual(scenario())


def test_a_del_of_a_sandbox_that_the_log_never_had_clears_what_it_left():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        pod = await rig.add("web")
        await after_regular_look(rig)
        dead = free_addresses(rig)[-1]
        rig.kernel.state.rules.append(to(dead))  # Nobody was listening.
        assert (await call(rig, "DEL", "gone", dead))[0] == 200
        assert await wait_until(lambda: rules_of(rig, dead) == []) < 1.0
        # A repeated DEL of a sandbox whose address another one has by now is nobody's business.
        await asyncio.sleep(SETTLED_S)
        looks = rig.kernel.observed_count
        assert (await call(rig, "DEL", "gone", pod))[0] == 200
        await asyncio.sleep(SETTLED_S)
        assert rig.kernel.observed_count == looks
        assert rig.held("web").bindings[0].address == pod
        assert list(tables_to(rig, pod)) == [POD_TABLE]
        await rig.stop()

    run_virtual(scenario())


def test_a_veth_without_our_alias_stands_until_it_is_gone():
    """The DEL comes before a look has given the veth our alias: its address waits for its end all the same."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = free_addresses(rig)[0]
        live_as_original(rig, "late", address)
        await wait_until(lambda: rig.lease("late"))
        index = rig.held("late").wired.host_ifindex
        link = rig.kernel.state.links[index]
        rig.kernel.state.links[index] = msgspec.structs.replace(link, alias="")
        await rig.cni("DEL", "late")
        rig.live.links.converge_soon()
        await asyncio.sleep(1.0)
        assert rig.state.standing
        await asyncio.sleep(SETTLED_S)
        assert index not in rig.kernel.state.links
        assert not rig.state.standing
        await rig.stop()

    run_virtual(scenario())


# --- a kernel that refuses at the start ---------------------------------------------------------------------


def refuse_repairs(rig: Rig) -> list[bool]:
    """From now on only sandboxes can be wired, until the one cell is set to False."""
    refuses, apply = [True], rig.kernel.apply

    async def some(difference):
        if refuses[0] and not difference.wire:
            raise PermanentError(Reason.KERNEL_REFUSED, "nft: Operation not permitted [EPERM]")
        return await apply(difference)

    rig.kernel.apply = some  # type: ignore[method-assign]
    return refuses


@pytest.mark.parametrize("comes_back", [False, True], ids=["the link is gone", "the link is another one"])
def test_an_eni_whose_link_vanished_serves_nobody_also_where_the_kernel_refuses_the_repair(comes_back):
    """1. The agent is killed.  2. A link vanishes, or is made anew.  3. The kernel refuses the repair."""

    async def scenario():
        rig = await Rig().up()
        for number in range(10):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(SETTLED_S)
        second = rig.held("pod-9").bindings[0].eni
        held = rig.state.enis[second]
        assert not held.is_primary
        await rig.kill()
        rig.kernel.unplug(held.facts.mac)
        if comes_back:
            rig.kernel.plug(held.facts.mac, held.ifname)
        refuses = refuse_repairs(rig)
        await rig.start()
        assert not rig.state.enis[second].is_link_ready
        await rig.add("late")
        assert rig.held("late").bindings[0].eni != second, "the fullest of those that could serve"
        await asyncio.sleep(MINUTE)
        assert not rig.state.enis[second].is_link_ready
        refuses[0] = False
        if not comes_back:
            rig.kernel.plug(held.facts.mac, held.ifname)
        await asyncio.sleep(15)
        assert rig.state.enis[second].is_link_ready
        await rig.stop()

    run_virtual(scenario())


# --- holds that get a name ----------------------------------------------------------------------------------


async def with_hold(rig: Rig) -> str:
    address = secondaries(rig)[0]
    live_as_original(rig, "old", address, cached=False)
    await rig.start()
    await rig.ready(120)
    (lease,) = rig.state.leases.values()
    assert lease.is_hold
    return address


def test_a_failed_add_for_a_hold_does_not_end_it():
    async def scenario():
        rig = await with_predecessor(0)
        address = await with_hold(rig)
        rig.kernel.fail("host_link", code=errno.ENOBUFS)
        status, answer = await rig.cni("ADD", "old")
        assert (status, answer["reason"]) == (503, str(Reason.KERNEL_REFUSED))
        assert rig.held("old").bindings[0].address == address
        assert list(tables_to(rig, address)) == [POD_TABLE]
        assert await rig.add("old") == address
        await rig.stop()

    run_virtual(scenario())


def test_a_check_names_a_hold():
    async def scenario():
        rig = await with_predecessor(0)
        address = await with_hold(rig)
        status, answer = await call(rig, "CHECK", "old", address, netns="/run/netns/old")
        assert status == 200, answer
        assert rig.held("old").bindings[0].address == address
        status, _ = await call(rig, "CHECK", "other", address, netns="/run/netns/other")
        assert status != 200
        await rig.stop()

    run_virtual(scenario())


# --- handing back -------------------------------------------------------------------------------------------


def test_a_hand_back_gives_every_pod_the_originals_path_and_takes_it_away_with_the_pod():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        old = await rig.add("old")
        heard = follow(rig)
        await after_regular_look(rig)
        await rig.live.writer.submit(c.SetMode("hand_back"))
        assert await wait_until(lambda: rig.live.links.converged_mode == "hand_back") < 1.0
        new = await rig.add("new")
        for address in (old, new):
            assert sorted(tables_to(rig, address)) == [254, POD_TABLE]
            assert rules_of(rig, address) == [(512, 254)]
        await asyncio.sleep(2 * MINUTE)
        assert rules_of(rig, old) == [(512, 254)]
        await rig.cni("DEL", "new")
        assert (rules_of(rig, new), tables_to(rig, new)) == ([], {})
        await asyncio.sleep(SETTLED_S)
        assert texts(heard) == []
        assert rig.live.status()["problems"]["kernel"] == ""
        await rig.live.writer.submit(c.SetMode("serve"))
        await wait_until(lambda: rules_of(rig, old) == [])
        assert list(tables_to(rig, old)) == [POD_TABLE]
        await rig.stop()

    run_virtual(scenario())


def test_while_handing_back_a_lost_path_is_made_again_within_a_second():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = await rig.add("old")
        await rig.live.writer.submit(c.SetMode("hand_back"))
        await wait_until(lambda: rules_of(rig, address) == [(512, 254)])
        await asyncio.sleep(SETTLED_S)
        rig.kernel.delete_route(254, f"{address}/32", 0)
        assert await wait_until(lambda: 254 in tables_to(rig, address)) < 1.0
        await rig.stop()

    run_virtual(scenario())


def test_a_kernel_that_refuses_ours_keeps_the_originals(monkeypatch):
    async def scenario():
        rig = await with_predecessor(2)
        address = secondaries(rig)[0]
        real = rig.kernel.apply

        gone = Route(table=POD_TABLE, dst=Cidr("10.0.0.99/32"), ifindex=999)

        async def refusing(difference):
            return await real(msgspec.structs.replace(difference, routes_set=(*difference.routes_set, gone)))

        monkeypatch.setattr(rig.kernel, "apply", refusing)
        await rig.start()
        await asyncio.sleep(SETTLED_S)
        assert (512, 254) in rules_of(rig, address)
        assert 254 in tables_to(rig, address)
        assert "No such device" in rig.live.status()["problems"]["kernel"]
        await rig.stop()

    run_virtual(scenario())

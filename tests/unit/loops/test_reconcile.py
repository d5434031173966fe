"""What IMDS and EC2 say is an observation: it frees nothing, and it costs little to ask."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.loops.rig import Rig
from vpccni.lab.ec2 import FOR_EVER, Fault, ImdsFault
from vpccni.lab.sim.loop import run_virtual
from vpccni.model import EniId, InstanceId

MINUTE = 60.0
HOUR = 3600.0


def imds_reads(rig: Rig) -> list[int]:
    """Count the requests to IMDS from now on, in the one cell of the list."""
    counted, request = [0], rig.region.imds.request

    def counting(*arguments, **more):
        counted[0] += 1
        return request(*arguments, **more)

    rig.region.imds.request = counting  # type: ignore[method-assign]
    return counted


def test_an_idle_node_asks_ec2_nothing_and_imds_at_most_eight_times_a_minute():
    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=0)
        for number in range(20):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(5 * MINUTE)
        before, reads = rig.calls(), imds_reads(rig)
        head = rig.state.head
        await asyncio.sleep(10 * MINUTE)
        assert rig.calls() == before
        assert 20 <= reads[0] <= 80
        assert rig.state.head == head  # Nor does it write.
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("lag_s", [5.0, 60.0])
def test_an_imds_that_lags_frees_and_changes_nothing(lag_s):
    async def scenario():
        rig = Rig("m5.xlarge")
        rig.region.imds.lag_s = lag_s
        await rig.up(settle_s=0)
        held = {f"pod-{number}": await rig.add(f"pod-{number}") for number in range(20)}
        await asyncio.sleep(10 * MINUTE)
        assert {lease.bindings[0].address for lease in rig.state.leases.values()} == set(held.values())
        assert "eni_gone" not in rig.kinds()
        assert "cidrs_released" not in rig.kinds()
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("what", ["missing eni", "missing address", "resurrected", "down", "error"])
def test_an_imds_that_tells_tales_frees_nothing_and_gives_nothing(what):
    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=0)
        addresses = {f"pod-{number}": await rig.add(f"pod-{number}") for number in range(16)}
        await asyncio.sleep(MINUTE)
        owned = {eni: tuple(held.cidrs) for eni, held in rig.state.enis.items()}
        second = next(eni for eni, held in rig.state.enis.items() if not held.is_primary)
        address = next(iter(rig.state.enis[second].cidrs)).removesuffix("/32")
        fault = {
            "missing eni": ImdsFault(kind="missing_eni", eni_id=second, times=FOR_EVER),
            "missing address": ImdsFault(
                kind="missing_address", eni_id=second, address=address, times=FOR_EVER
            ),
            "resurrected": ImdsFault(
                kind="resurrected_address", eni_id=second, address="10.0.15.99", times=FOR_EVER
            ),
            "down": ImdsFault(kind="hang", times=FOR_EVER),
            "error": ImdsFault(kind="status", status=500, times=FOR_EVER),
        }[what]
        rig.region.imds.inject(fault)
        calls = rig.calls()
        await asyncio.sleep(20 * MINUTE)
        assert {eni: tuple(held.cidrs) for eni, held in rig.state.enis.items()} == owned
        for pod, given in addresses.items():
            assert rig.held(pod).bindings[0].address == given
        assert sum(rig.calls().values()) - sum(calls.values()) <= 20  # One look in five minutes at most.
        assert await rig.add("late")
        await rig.stop()

    run_virtual(scenario())


def test_an_eni_missing_from_one_describe_stays_with_its_leases():
    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=0)
        for number in range(16):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(2 * MINUTE)
        second = next(eni for eni, held in rig.state.enis.items() if not held.is_primary)
        ec2 = await rig.live.reconcile._ec2()
        describe = ec2.describe_attached

        async def without(instance):
            ec2.describe_attached = describe
            return tuple(facts for facts in await describe(instance) if facts.id != second)

        ec2.describe_attached = without
        rig.live.reconcile.compare_soon()
        await asyncio.sleep(5 * MINUTE)
        assert second in rig.state.enis
        assert rig.state.enis[second].suspected == 0
        assert len(rig.state.leases) == 16
        assert "eni_gone" not in rig.kinds()
        await rig.stop()

    run_virtual(scenario())


def test_an_eni_that_we_deleted_meanwhile_does_not_come_back_with_an_answer_that_took_long():
    """1. EC2 lists an ENI.  2. It is asked again.  3. The ENI is deleted.  4. The second answer lists it."""

    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=0)
        for number in range(16):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(2 * MINUTE)
        before = set(rig.state.enis)
        ec2 = await rig.live.reconcile._ec2()
        describe, is_slow = ec2.describe_attached, [False]

        async def slowly(instance):
            listed = await describe(instance)
            await asyncio.sleep(100 if is_slow[0] else 0)
            return listed

        ec2.describe_attached = slowly
        rig.live.reconcile.compare_soon()
        await asyncio.sleep(10)
        is_slow[0] = True
        rig.live.reconcile.compare_soon()
        for number in range(16):
            await rig.cni("DEL", f"pod-{number}")
            rig.kernel.remove_netns(f"/run/netns/pod-{number}")
        await asyncio.sleep(99)
        (gone,) = before - set(rig.state.enis)
        is_slow[0] = False
        await asyncio.sleep(5)
        assert gone not in rig.state.enis
        assert rig.kinds().count("eni_adopted") == 3
        await rig.stop()

    run_virtual(scenario())


def test_an_eni_that_describe_never_shows_again_keeps_its_leases_and_serves_nobody_new():
    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=0)
        for number in range(16):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(2 * MINUTE)
        second = next(eni for eni, held in rig.state.enis.items() if held.lease_count and not held.is_primary)
        leases = {lease.id for lease in rig.state.leases.values()}
        attachment = rig.state.enis[second].attachment
        rig.region.handle("DetachNetworkInterface", {"AttachmentId": attachment, "Force": True}, rig.now())
        await asyncio.sleep(3 * MINUTE)
        assert set(rig.state.leases) == leases
        assert second in rig.state.enis
        late = await rig.add("late")
        assert rig.held("late").bindings[0].eni != second, late
        await rig.stop()

    run_virtual(scenario())


def attach_foreign(rig: Rig, device: int, tags=(), card: int = 0) -> EniId:
    made = rig.region.handle(
        "CreateNetworkInterface",
        {"SubnetId": rig.subnet.id, "SecondaryPrivateIpAddressCount": 2,
         "TagSpecifications": [{"ResourceType": "network-interface", "Tags": list(tags)}]},
        rig.now(),
    )  # fmt: skip
    eni = EniId(made["NetworkInterface"]["NetworkInterfaceId"])  # type: ignore[index]
    rig.region.handle(
        "AttachNetworkInterface",
        {
            "NetworkInterfaceId": eni,
            "InstanceId": rig.instance.id,
            "DeviceIndex": device,
            "NetworkCardIndex": card,
        },
        rig.now(),
    )
    return eni


def test_an_eni_that_somebody_else_attached_and_marked_is_left_alone():
    async def scenario():
        rig = await Rig("m5.xlarge").up(settle_s=30)
        eni = attach_foreign(rig, 3, [{"Key": "node.k8s.amazonaws.com/no_manage", "Value": "true"}])
        await asyncio.sleep(5 * MINUTE)
        assert not rig.state.enis[eni].managed
        assert not rig.state.enis[eni].cidrs
        for number in range(40):
            await rig.add(f"pod-{number}")
        assert all(lease.bindings[0].eni != eni for lease in rig.state.leases.values())
        for number in range(40):
            await rig.cni("DEL", f"pod-{number}")
            rig.kernel.remove_netns(f"/run/netns/pod-{number}")
        await asyncio.sleep(20 * MINUTE)
        attachment = rig.region.world.enis[eni].attachment
        assert attachment is not None
        assert len(rig.region.world.enis[eni].addresses) == 3
        await rig.stop()

    run_virtual(scenario())


def test_no_pod_is_put_on_an_eni_of_another_network_card_and_card_0_keeps_all_its_places():
    """A p4d: somebody attached untagged ENIs for EFA to cards 1 to 3; ours grow on card 0."""

    async def scenario():
        rig = Rig("p4d.24xlarge", environ={"WARM_ENI_TARGET": "0", "WARM_IP_TARGET": "1"})
        foreign = {attach_foreign(rig, 0, card=card) for card in (1, 2, 3)}
        await rig.up(settle_s=20)
        assert foreign < set(rig.state.enis)
        assert rig.live.policy().unmanaged_enis == 0
        for number in range(60):
            await rig.add(f"pod-{number}")
        used = {lease.bindings[0].eni for lease in rig.state.leases.values()}
        assert len(used) == 2
        assert not used & foreign
        assert all(len(rig.region.world.enis[eni].addresses) == 3 for eni in foreign)
        await rig.stop()

    run_virtual(scenario())


def test_an_eni_that_somebody_else_attached_takes_its_device_index_from_us_and_growth_goes_on():
    """1. A foreign ENI takes index 1.  2. Our attach to index 1 is refused.  3. The books learn, and we take 2."""

    async def scenario():
        rig = Rig("m5.xlarge", environ={"MANAGE_UNTAGGED_ENI": "false"})
        await rig.up(settle_s=0)
        attach_foreign(rig, 1)
        for number in range(10):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(5 * MINUTE)
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", f"more-{number}")) for number in range(10)]
        assert {add.result()[0] for add in adds} == {200}
        assert not rig.state.intents
        assert set(rig.region.world.enis) == set(rig.state.enis)
        await rig.stop()

    run_virtual(scenario())


def test_a_node_that_has_a_prefix_already_asks_for_nothing_that_it_has():
    """The prefix is of the original, or of another mode: 16 addresses, 6 of them more than the targets ask for."""

    async def scenario():
        rig = Rig(environ={"WARM_IP_TARGET": "2", "MINIMUM_IP_TARGET": "10"})
        primary = rig.instance.primary_eni
        params = {"NetworkInterfaceId": primary.id, "Ipv4PrefixCount": 1}
        made = rig.region.perform("AssignPrivateIpAddresses", params, rig.now())
        assert isinstance(made, dict)
        assert made["AssignedIpv4Prefixes"]
        await rig.up()
        for number in range(14):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(MINUTE)
        calls = rig.calls()
        assert "AssignPrivateIpAddresses" not in calls
        assert "UnassignPrivateIpAddresses" not in calls
        assert "CreateNetworkInterface" not in calls
        await rig.stop()

    run_virtual(scenario())


def set_vpc_cidrs(rig: Rig, *cidrs: str) -> None:
    """The VPC's owner associates or removes CIDRs; IMDS shows it at once."""
    rig.subnet.vpc.cidrs[:] = cidrs
    rig.region.world.history.record(rig.instance, rig.now())


def is_direct(rig: Rig, cidr: str) -> bool:
    """Whether the kernel leaves the source address of traffic to a CIDR alone."""
    assert rig.kernel.state.nft is not None
    return cidr in rig.kernel.state.nft_text


def test_traffic_to_a_cidr_that_the_vpc_gets_later_keeps_its_source_address_within_a_minute():
    async def scenario():
        rig = await Rig().up()
        assert not is_direct(rig, "100.64.0.0/16")
        set_vpc_cidrs(rig, "10.0.0.0/16", "100.64.0.0/16")
        await asyncio.sleep(35)
        assert is_direct(rig, "10.0.0.0/16")
        assert is_direct(rig, "100.64.0.0/16")
        set_vpc_cidrs(rig, "10.0.0.0/16")
        await asyncio.sleep(20)
        assert is_direct(rig, "100.64.0.0/16"), "not yet: two readings must agree"
        await asyncio.sleep(60)
        assert not is_direct(rig, "100.64.0.0/16")
        assert rig.kinds().count("network_config_observed") == 2
        await rig.stop()

    run_virtual(scenario())


def test_the_cidrs_of_the_vpc_stay_while_imds_does_not_tell_them():
    async def scenario():
        rig = await Rig().up()
        rig.region.imds.inject(ImdsFault(kind="status", status=404, path="vpc-ipv4-cidr", times=FOR_EVER))
        await asyncio.sleep(5 * MINUTE)
        assert is_direct(rig, "10.0.0.0/16")
        assert "network_config_observed" not in rig.kinds()
        await rig.stop()

    run_virtual(scenario())


# -- which machine is this --------------------------------------------------------------------------


def become_another_machine(rig: Rig) -> str:
    """The log goes into an image, and a new instance is launched from it. The old one lives on."""
    old = rig.instance
    for link in list(rig.kernel.state.links.values()):
        rig.kernel.unplug(link.mac)
    rig.kernel.state.netns.clear()
    rig.instance = rig.region.launch_instance(rig.subnet.id, "m5.large", now=rig.now())
    for link in list(rig.kernel.state.links.values()):
        if any(eni.mac == link.mac for eni in old.enis.values()):
            rig.kernel.unplug(link.mac)
    return str(old.id)


def enis_of(rig: Rig, instance: str) -> dict[str, tuple[str, ...]]:
    return {
        eni.id: eni.addresses
        for eni in rig.region.world.enis.values()
        if eni.instance is not None and eni.instance.id == instance
    }


@pytest.mark.parametrize("imds_is_late", [False, True], ids=["imds answers", "imds is late"])
def test_a_log_baked_into_an_image_gives_no_address_and_touches_nothing_of_the_old_machine(imds_is_late):
    async def scenario():
        rig = await Rig().up(settle_s=0)
        for number in range(12):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(MINUTE)
        for number in range(12):  # A pool that could shrink, and an intent that is open.
            await rig.cni("DEL", f"pod-{number}")
        await rig.add("old-pod")
        await rig.kill()
        old = become_another_machine(rig)
        before = enis_of(rig, old)
        assert len(before) >= 2
        rig.clock.boot_id = "boot-2"
        if imds_is_late:
            rig.region.imds.inject(ImdsFault(kind="hang", times=FOR_EVER))
        await rig.start()
        status, answer = await rig.verb("STATUS")
        assert (answer["code"], answer["reason"]) == (50, "not_the_same_machine")
        loop = asyncio.get_running_loop()
        add = loop.create_task(rig.cni("ADD", "new-pod"))
        if imds_is_late:
            await asyncio.sleep(5 * MINUTE)
            assert enis_of(rig, old) == before
            status, answer = await add
            assert (status, answer["reason"]) == (503, "not_the_same_machine")
            rig.region.imds.clear()
            add = loop.create_task(rig.cni("ADD", "new-pod"))
        await rig.ready(120)
        status, answer = await add
        assert status == 200, answer
        assert rig.lease("old-pod") is None
        assert rig.held("new-pod").bindings[0].eni in enis_of(rig, rig.instance.id)
        await asyncio.sleep(10 * MINUTE)
        assert enis_of(rig, old) == before
        assert set(rig.state.enis) == set(enis_of(rig, rig.instance.id))
        await rig.stop()

    run_virtual(scenario())


def test_one_wrong_answer_of_imds_ends_no_lease_and_ec2_is_left_alone_meanwhile():
    """1. Pods live.  2. The agent is restarted, and IMDS names another instance.  3. IMDS is right again."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        for number in range(4):
            await rig.add(f"pod-{number}")
        await rig.kill()
        another = rig.region.launch_instance(rig.subnet.id, "m5.large", now=rig.now())
        rig.imds_names = InstanceId(another.id)
        await rig.start()
        await rig.ready()
        before, leases = rig.calls(), dict(rig.state.leases)
        for number in range(4, 9):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(10 * MINUTE)
        status = rig.live.status()
        assert rig.instance.id in status["problems"]["identity"]
        assert leases.items() <= rig.state.leases.items()
        changed = {action for action, count in rig.calls().items() if count != before.get(action)}
        assert not {action for action in changed if not action.startswith("Describe")}
        await rig.kill()
        rig.imds_names = InstanceId("")
        await rig.start()
        await asyncio.sleep(MINUTE)
        assert rig.state.doubted is None
        assert rig.live.status()["problems"]["identity"] == ""
        assert leases.items() <= rig.state.leases.items()
        await rig.add("one-more")
        await rig.stop()

    run_virtual(scenario())


def test_a_reboot_of_the_same_machine_ends_the_leases_and_lets_their_addresses_rest():
    async def scenario():
        rig = await Rig().up()
        address = await rig.add("web")
        await rig.kill()
        rig.clock.boot_id = "boot-2"
        for link in list(rig.kernel.state.links.values()):
            if link.alias:
                rig.kernel.unplug(link.mac)
        rig.kernel.state.netns.clear()
        await rig.start()
        await rig.ready()
        assert rig.lease("web") is None
        assert await rig.add("web") != address
        await rig.stop()

    run_virtual(scenario())


# -- a fresh node -----------------------------------------------------------------------------------


def test_a_fresh_node_says_what_it_waits_for_and_serves_as_soon_as_it_can():
    async def scenario():
        rig = Rig()
        rig.region.imds.inject(ImdsFault(kind="hang", times=FOR_EVER))
        rig.region.faults.inject(Fault(action="*", kind="throttle", times=FOR_EVER))
        await rig.start()
        await asyncio.sleep(30)
        refused = rig.live.readiness.refusal()
        assert refused is not None
        assert refused.reason == "imds_unreachable"
        rig.region.imds.clear()
        await asyncio.sleep(18)
        refused = rig.live.readiness.refusal()
        assert refused is not None
        assert refused.reason == "node_not_initialized"
        rig.region.faults.clear()
        assert await rig.add("web")  # It waits for what is missing.
        await rig.stop()

    run_virtual(scenario())

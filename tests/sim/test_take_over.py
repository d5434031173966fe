"""A node that is alive when the agent comes: taken over, its log lost, returned to, handed back.

Each scenario is an incident that was measured on real nodes, or a bug that the simulator has found. The promises are
checked on the way for every living pod, whoever wired it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import pytest

from tests.sim.stage import Stage, play
from vpccni.checkpoint import parse_checkpoint, render_checkpoint
from vpccni.datapath.names import host_veth_name
from vpccni.evidence import KernelEvidence, Row
from vpccni.lab.sim.kernel_checks import check_reachable
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.sandbox import NAMESPACE, NETWORK
from vpccni.model import MAIN_TABLE, Address, PodRef, SandboxKey, host_cidr
from vpccni.settings import read_settings


def check_nobody_is_cut_off(stage: Stage, node: SimNode) -> None:
    for sandbox in stage.living(node).values():
        check_reachable(node, sandbox)


def left_in_the_kernel(node: SimNode, address: str) -> list[object]:
    """Rules and routes about one address."""
    state, one = node.kernel.state, host_cidr(address)
    rules = [rule for rule in state.rules if one in (rule.src, rule.dst)]
    return [*rules, *(route for route in state.routes if route.dst == one)]


def give_back(stage: Stage, node: SimNode, addresses: Sequence[str]) -> None:
    """Somebody else returns addresses to EC2."""
    for address in addresses:
        eni = next(eni for eni in node.instance.enis.values() if address in eni.secondaries)
        stage.perform("UnassignPrivateIpAddresses", NetworkInterfaceId=eni.id, PrivateIpAddresses=[address])


def drop_aliases(node: SimNode) -> None:
    """The host veths look like the original's, which have none."""
    for link in [each for each in node.kernel.state.links.values() if each.kind == "veth"]:
        node.kernel.put_link(msgspec.structs.replace(link, alias=""))


async def a_create_without_answer(stage: Stage, node: SimNode) -> None:
    """The node needs an ENI more, and EC2 never gets to hear of it."""
    stage.strike(
        node, kind="ec2_call", action="CreateNetworkInterface", how="dropped_request", count=999, seconds=900
    )
    await stage.pods(node, 8)
    async with asyncio.timeout(60):
        while not any(one.intended.kind == "create" for one in stage.state(node).intents.values()):
            await asyncio.sleep(0.05)


# -- the original first -------------------------------------------------------------------------------


def test_living_pods_of_the_original_keep_everything_when_an_agent_starts_with_an_empty_log():
    """1. 40 pods of the original live. 2. It ends, and we start with nothing. 3. 20 pods come, 20 old ones go."""

    async def scenario(stage: Stage):
        node = stage.machine("m5.xlarge")
        await stage.provide(node, 56)
        await stage.with_original(node)
        old = await stage.pods(node, 40)
        enis = set(node.instance.enis)
        addresses = {sandbox.address for sandbox in old}
        await stage.replace_original(node)
        await stage.ready(node)
        check_nobody_is_cut_off(stage, node)
        fresh = await stage.pods(node, 16)
        assert not addresses & {sandbox.address for sandbox in fresh}
        await asyncio.sleep(120)
        check_nobody_is_cut_off(stage, node)
        assert enis <= set(node.instance.enis)
        await stage.delete(node, *old[:20])
        await asyncio.sleep(40)
        for sandbox in old[:20]:
            assert left_in_the_kernel(node, sandbox.address) == []
        again = await stage.pods(node, 20)
        assert {sandbox.address for sandbox in again} & {sandbox.address for sandbox in old[:20]}
        check_nobody_is_cut_off(stage, node)

    play(scenario, subnet="10.0.0.0/23")


def test_addresses_that_the_original_released_shortly_before_rest_their_time():
    """The original forgets its cooldowns when it ends. When its file was last written tells of the latest release."""

    async def scenario(stage: Stage):
        node = stage.machine("t3.small", {"WARM_ENI_TARGET": "0"})
        await stage.provide(node, 9)
        await stage.with_original(node)
        pods = await stage.pods(node, 3)
        await stage.delete(node, *pods)
        await stage.replace_original(node, grace_s=0.1)
        began = stage.loop.time()
        await stage.ready(node)
        await stage.pods(node, 9)  # Checked at every assignment: none has been used within 30 seconds.
        assert stage.loop.time() - began > 20

    play(scenario)


def test_what_the_original_gave_back_is_not_assigned_from_a_log_of_before():
    """1. We serve. 2. The original does, and gives addresses back to EC2. 3. We return: the log has them."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        await stage.end_ours(node)
        await stage.with_original(node)
        given = sorted(stage.owned(node))[:5]
        give_back(stage, node, given)
        # So long ago that nothing of it rests: what EC2 says is all that keeps these from being assigned.
        await stage.replace_original(node, grace_s=40)
        pods = await stage.pods(node, 12)
        assert not {sandbox.address for sandbox in pods} & set(given)

    play(scenario)


def test_a_release_that_was_left_open_is_not_repeated_over_a_pod_of_the_original():
    """1. We are killed while we give an address back. 2. The original assigns it. 3. We return."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "1"})
        await stage.pods(node, 1)
        stage.strike(
            node, kind="ec2_call", action="UnassignPrivateIpAddresses", how="dropped_request", count=9
        )
        node.settings = read_settings({"WARM_IP_TARGET": "1"})
        node.stop(0.1)
        async with asyncio.timeout(120):
            while not any(
                intent.intended.kind == "unassign"
                for intent in (stage.state(node).intents.values() if node.agent else ())
            ):
                await asyncio.sleep(0.05)
        (intent,) = [one for one in stage.state(node).intents.values() if one.intended.kind == "unassign"]
        covered = {cidr.removesuffix("/32") for cidr in intent.intended.cidrs}
        node.kill(restart_s=-1, is_sent=False)
        stage.region.faults.clear()
        await stage.with_original(node)
        await stage.pods(node, len(stage.owned(node)) - 1)
        assert covered & stage.living(node).keys()
        await stage.replace_original(node)
        await stage.ready(node)
        await asyncio.sleep(120)
        check_nobody_is_cut_off(stage, node)
        assert covered & stage.living(node).keys() <= stage.owned(node)

    play(scenario)


# -- a lost log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_marker_left", [False, True], ids=["all of it", "all but the marker"])
def test_our_own_pods_survive_the_loss_of_the_state_directory(is_marker_left):
    """1. 40 pods of ours live. 2. The state directory is lost. 3. 20 pods come, 20 old ones go."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.xlarge")
        old = await stage.pods(node, 40)
        before = {sandbox: sandbox.address for sandbox in old}
        node.kill(restart_s=-1)
        stage.lose_log(node, is_marker_left=is_marker_left)
        node.start()
        await stage.ready(node)
        assert stage.survey(node).why == ("marker_without_log" if is_marker_left else "new_log")
        check_nobody_is_cut_off(stage, node)
        fresh = await stage.pods(node, 16)
        assert not set(before.values()) & {sandbox.address for sandbox in fresh}
        await stage.again(node, *old)
        await stage.delete(node, *old[:20])
        await asyncio.sleep(40)
        assert not any(left_in_the_kernel(node, sandbox.address) for sandbox in old[:20])
        await stage.pods(node, 20)
        check_nobody_is_cut_off(stage, node)

    play(scenario, subnet="10.0.0.0/23")


def test_an_agent_that_is_killed_in_the_middle_of_a_search_begins_it_anew():
    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        pods = await stage.pods(node, 8)
        node.kill(restart_s=-1)
        stage.lose_log(node)
        node.start()
        for point in ("searching", "commit", "committed", "exporting", "changing"):
            stage.strike(node, kind="crash", action=point, count=20, seconds=0.2)
            await asyncio.sleep(5)
        await stage.ready(node)
        await stage.again(node, *pods)
        assert node.starts > 3

    play(scenario)


def test_an_old_log_is_compared_with_what_lives():
    """1. Pods come and go. 2. A copy of the log is put back that was made before. 3. Nobody loses an address."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        old = await stage.pods(node, 4)
        await asyncio.sleep(5)
        copied_at = stage.loop.time()
        await stage.delete(node, *old)
        await asyncio.sleep(40)
        new = await stage.pods(node, 9)
        await asyncio.sleep(2)
        node.kill(restart_s=-1)
        assert node.store.rewind(copied_at, len(node.store.events)) > 0
        stage.checker.on_disk_changed(node)
        node.start()
        await stage.ready(node)
        assert stage.survey(node).why == "older_log"
        await stage.again(node, *new)
        await stage.pods(node, 4)

    play(scenario)


def test_a_spooled_del_finds_a_lease_that_was_recovered():
    """1. The agent is away. 2. A DEL is spooled. 3. The log is lost. 4. The veth is found, and then the DEL."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 4)
        await asyncio.sleep(2)
        node.kill(restart_s=-1)
        stage.lose_log(node)
        stage.kubelets[node.name]._give_up(pods[0])
        assert await stage.kubelets[node.name]._spool(pods[0])
        node.start()  # Its namespace still stands: the search finds it alive.
        await stage.ready(node)
        await asyncio.sleep(1)
        keys = {lease.key for lease in stage.state(node).leases.values()}
        assert keys == {sandbox.key for sandbox in pods[1:]}
        assert await node.spool.entries() == []

    play(scenario)


def test_a_repeated_del_of_an_old_sandbox_does_not_free_the_address_of_the_one_that_has_it_now():
    """1. A pod is re-created with its name. 2. All files are lost: it is held. 3. The old DEL is repeated."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "0", "MAX_ENI": "1"})
        kubelet = stage.kubelets[node.name]
        old = kubelet._new_sandbox("web-0")
        assert await kubelet._add(old)
        others = await stage.pods(node, 2)
        await stage.delete(node, old)
        await asyncio.sleep(1)
        await stage.delete(node, *others)
        await asyncio.sleep(35)
        new = kubelet._new_sandbox("web-0")
        assert await kubelet._add(new)
        assert new.address == old.address
        node.kill(restart_s=-1)
        stage.lose_files(node)
        drop_aliases(node)
        node.start()
        await stage.ready(node)
        (lease,) = stage.state(node).leases.values()
        assert lease.is_hold
        for _ in range(3):
            kubelet._remember(old)  # It comes with the result of its ADD.
            assert await kubelet._del(old)
        assert list(stage.state(node).leases.values()) == [lease]
        await stage.pods(node, 2)
        kubelet._remember(new)
        await stage.delete(node, new)  # By its address and its namespace.
        assert lease.id not in stage.state(node).leases

    play(scenario)


def test_a_pod_that_takes_anothers_address_in_its_own_namespace_gets_nothing_by_it():
    """1. A pod adds its neighbour's address to its interface. 2. The log is lost. 3. Routes tell whose is whose."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        thief, victim = await stage.pods(node, 2)
        inside = node.kernel.state.netns[thief.netns].interfaces["eth0"]
        node.kill(restart_s=-1)
        stage.lose_files(node)
        look = node.kernel.survey

        async def survey(veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
            inside.addresses.add(host_cidr(victim.address))
            found = await look(veth_prefix, netns_paths)
            inside.addresses.discard(host_cidr(victim.address))
            return found

        node.kernel.survey = survey  # type: ignore[method-assign]
        node.start()
        await stage.ready(node)
        owner = stage.leased(node)
        assert {thief.address, victim.address} == owner.keys()
        assert owner[victim.address].netns == victim.netns
        await stage.pods(node, 5)

    play(scenario)


# -- what is not known ------------------------------------------------------------------------------------


def test_an_interface_that_nothing_explains_stops_adds_and_nothing_else():
    """1. A veth with the original's prefix has no route, and its namespace cannot be entered. 2. It is told of.
    3. Its route comes."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "0"})
        mine = await stage.pods(node, 2)
        address = sorted(stage.owned(node) - {sandbox.address for sandbox in mine})[0]
        node.kernel.add_netns("/run/netns/late")
        node.kernel.sealed.add("/run/netns/late")
        node.kernel.wire_as_original(
            PodRef(NAMESPACE, "late"), netns="/run/netns/late", address=address, until="host_route"
        )
        await asyncio.sleep(15)
        calls = stage.region.journal.count_by_action.copy()
        assert stage.refusal(node) == "address_unexplained"
        kubelet = stage.kubelets[node.name]
        assert not await kubelet._add(kubelet._new_sandbox("web-1"))
        assert kubelet._refusal == "address_unexplained"
        await stage.delete(node, mine[0])
        await asyncio.sleep(60)
        changed = {
            action
            for action, count in stage.region.journal.count_by_action.items()
            if count != calls[action] and not action.startswith("Describe")
        }
        assert not changed
        node.kernel.unwire_as_original(address=address)
        node.kernel.sealed.clear()
        await stage.ready(node, within_s=5.0)
        assert address in stage.leased(node)
        await stage.pods(node, 6)

    play(scenario)


def test_while_a_search_fails_nothing_is_assigned():
    """1. The original served; its file is unreadable. 2. The kernel cannot be searched. 3. It can."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "0"})
        await stage.end_ours(node)
        await stage.provide(node, 9)
        await stage.with_original(node)
        await stage.pods(node, 4)
        await stage.end_original(node)
        node.checkpoints.is_readable = False
        node.kernel.survey_refusal = "Operation not permitted"
        node.start()
        await asyncio.sleep(10)
        assert stage.refusal(node) == "recovering"
        node.kernel.survey_refusal = ""
        await stage.ready(node, within_s=5.0)
        await asyncio.sleep(1.0)  # Our executable takes the other's place.
        await stage.pods(node, 3)

    play(scenario)


def test_imds_that_names_another_instance_ends_nothing():
    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        other = stage.machine("t3.small")
        pods = await stage.pods(node, 4)
        node.kill(restart_s=-1)
        mine, node.imds = node.imds, other.imds  # type: ignore[method-assign]
        node.start()
        await asyncio.sleep(60)
        assert stage.state(node).doubted is not None
        calls = stage.calls("AssignPrivateIpAddresses")
        await stage.again(node, *pods)
        assert len(stage.state(node).leases) == 4
        node.kill(restart_s=-1)
        node.imds = mine  # type: ignore[method-assign]
        node.start()
        await asyncio.sleep(60)
        assert stage.state(node).doubted is None
        assert stage.calls("AssignPrivateIpAddresses") == calls
        await stage.again(node, *pods)
        await stage.pods(node, 4)

    play(scenario)


# -- two of them -----------------------------------------------------------------------------------------


def test_while_the_original_serves_we_do_nothing_and_say_so():
    """Checked on the way: no assignment, no EC2 call, no change of the kernel, no export."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        mine = await stage.pods(node, 3)
        await stage.with_original(node)
        await asyncio.sleep(10)
        assert stage.refusal(node) == "another_agent"
        assert stage.state(node).other_agent is not None
        theirs = await stage.pods(node, 3)
        await stage.delete(node, mine[0], theirs[0])
        await asyncio.sleep(120)
        assert stage.refusal(node) == "another_agent"
        await stage.end_original(node)
        await stage.ready(node)
        check_nobody_is_cut_off(stage, node)
        assert {sandbox.address for sandbox in (*mine[1:], *theirs[1:])} <= stage.leased(node).keys()
        await stage.pods(node, 8)

    play(scenario)


def test_somebody_who_only_writes_the_checkpoint_file_lives_too():
    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        await stage.pods(node, 2)
        await asyncio.sleep(5)
        key = SandboxKey(NETWORK, "theirs", "eth0")
        row = Row(key=key, address=Address("10.0.0.200"), pod=PodRef(NAMESPACE, "x"), allocated_ns=1)
        for _ in range(5):
            node.checkpoints.put(render_checkpoint([row], None))
            await asyncio.sleep(2)
            assert stage.refusal(node) == "another_agent"
        await stage.ready(node)

    play(scenario)


@pytest.mark.parametrize("how", ["plain", "killed after it was ready"])
def test_a_node_that_was_handed_back_loses_no_pod(how):
    """The original keeps a row only if IMDS lists its address and a link has the name of its pod."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        pods = await stage.pods(node, 10)
        node.region.imds.lag_s = 60.0
        await stage.handed_back(node)
        late = await stage.pods(node, 2)
        await asyncio.sleep(1.2)
        if how == "plain":
            await stage.end_ours(node)
        else:
            node.kill(restart_s=-1)
        node.region.imds.lag_s = 0.0
        await stage.with_original(node)
        assert {sandbox.address for sandbox in (*pods, *late)} == node.original.rows.keys()
        check_nobody_is_cut_off(stage, node)
        theirs = await stage.pods(node, 4)
        await stage.delete(node, *pods[:5], theirs[0])
        await stage.replace_original(node)
        await stage.ready(node)
        assert stage.state(node).mode == "serve"
        check_nobody_is_cut_off(stage, node)
        async with asyncio.timeout(700):  # What ended while we were away ends here by two sources.
            while stage.leased(node).keys() != stage.living(node).keys():
                await asyncio.sleep(5)
        await stage.pods(node, 4)

    play(scenario)


def test_after_sigterm_the_file_holds_every_lease_with_its_pod():
    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        pods = await stage.pods(node, 6)
        await stage.delete(node, pods[0])
        await stage.end_ours(node)
        found = parse_checkpoint(node.checkpoints.files[0][0], path="ipam.json")
        assert {row.address for row in found.rows} == {sandbox.address for sandbox in pods[1:]}
        links = {link.ifname for link in node.kernel.state.links.values()}
        assert {host_veth_name("eni", row.pod.namespace, row.pod.name) for row in found.rows} <= links

    play(scenario)


def test_a_pod_that_the_original_had_only_while_we_were_away_leaves_an_address_that_rests():
    """1. We serve. 2. The original gives a pod an address and takes it back. 3. We return, all else is the same."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "0", "MAX_ENI": "1"})
        await stage.end_ours(node)
        await stage.with_original(node)
        (pod,) = await stage.pods(node, 1)
        await asyncio.sleep(40)
        await stage.delete(node, pod)
        await stage.end_original(node)
        node.start()
        began = stage.loop.time()
        await stage.ready(node)
        last_use = stage.survey(node).last_use
        assert last_use is not None
        assert last_use.wall_ns >= node.clock.now().wall_ns - int(30e9)
        await stage.pods(node, len(stage.owned(node)))
        assert stage.loop.time() - began > 15

    play(scenario)


def test_a_row_without_a_whole_key_contradicts_no_lease():
    """1. A file is damaged: a row of ours lacks its network. 2. The runtime's cache cannot be read. 3. We start."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        (pod,) = await stage.pods(node, 1)
        await asyncio.sleep(2)
        node.kill(restart_s=-1)
        row = Row(
            key=SandboxKey("", pod.container_id, "eth0"), address=pod.address, pod=PodRef(NAMESPACE, pod.pod)
        )
        node.checkpoints.put(render_checkpoint([row], None))
        node.cache.is_readable = False
        node.start()
        await stage.ready(node)
        await asyncio.sleep(5)
        (lease,) = stage.state(node).leases.values()
        assert lease.key == pod.key
        assert lease.origin == "add"

    play(scenario)


def test_leases_that_were_found_stay_when_the_log_turns_out_to_be_another_machines():
    """1. A machine with living pods starts on another one's log. 2. It is searched. 3. IMDS names it."""

    async def scenario(stage: Stage):
        other = await stage.started("t3.small")
        await stage.pods(other, 3)
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 3)
        node.kill(restart_s=-1)
        node.bake(other)
        stage.checker.on_disk_changed(node)
        node.start()
        await stage.ready(node)
        await stage.again(node, *pods)
        await stage.pods(node, 3)

    play(scenario)


def test_an_eni_of_ours_that_was_found_is_made_to_die_with_the_machine():
    """Whoever made it, an agent whose log is lost or the original, may have ended before he came to this."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "1"})
        await stage.pods(node, 4)
        eni = next(eni for eni in node.instance.enis.values() if eni is not stage.primary_of(node))
        assert eni.attachment is not None
        node.kill(restart_s=-1)
        stage.lose_files(node)
        eni.attachment.delete_on_termination = False
        stage.region.world.changed(eni, stage.loop.time())
        node.start()
        await asyncio.sleep(60)
        assert eni.attachment.delete_on_termination

    play(scenario)


def test_a_search_is_recorded_also_when_it_finds_nobody():
    """What another one's file tells, be it only when it was written, is not asked for again at every look."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        node.kill(restart_s=-1)
        node.checkpoints.put(render_checkpoint([], None))
        node.start()
        await stage.ready(node)
        survey = stage.survey(node)
        assert survey.why == "foreign_checkpoint"
        assert survey.last_use is not None

    play(scenario)


def test_a_row_that_has_lost_its_network_contradicts_no_pod_that_was_taken_over():
    """1. A pod of the original lives: its interface has no alias. 2. Its row loses its network. 3. We start."""

    async def scenario(stage: Stage):
        node = stage.machine("t3.small")
        await stage.provide(node, 3)
        await stage.with_original(node)
        (pod,) = await stage.pods(node, 1)
        await stage.replace_original(node)
        await stage.ready(node)
        (before,) = stage.state(node).leases.values()
        assert before.key == pod.key
        node.kill(restart_s=-1)
        drop_aliases(node)  # As if it had been killed before it could give any.
        row = Row(
            key=SandboxKey("", pod.container_id, "eth0"), address=pod.address, pod=PodRef(NAMESPACE, pod.pod)
        )
        node.checkpoints.put(render_checkpoint([row], None))
        node.cache.is_readable = False
        node.start()
        await stage.ready(node)
        (lease,) = stage.state(node).leases.values()
        assert (lease.id, lease.key) == (before.id, pod.key)

    play(scenario)


def test_where_a_row_names_another_sandbox_the_kernels_present_user_keeps_its_address():
    """1. The log is lost. 2. The file names another sandbox for a pod's address. 3. The same ADD comes again."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 2)
        node.kill(restart_s=-1)
        stage.lose_files(node)
        key, pod = SandboxKey(NETWORK, "nobody", "eth0"), PodRef(NAMESPACE, "nobody")
        row = Row(key=key, address=pods[0].address, pod=pod, allocated_ns=node.clock.now().wall_ns)
        node.checkpoints.put(render_checkpoint([row], None))
        node.start()
        await stage.ready(node)
        await stage.again(node, *pods)

    play(scenario)


def test_a_row_of_which_no_source_could_tell_that_its_pod_lives_is_kept():
    """1. A row has a key and no pod: no namespace, no interface, no name. 2. Nobody shows it, sweep after sweep."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        (pod,) = await stage.pods(node, 1)
        address = Address(sorted(stage.owned(node) - {pod.address})[0])
        node.kill(restart_s=-1)
        key = SandboxKey(NETWORK, "theirs", "eth0")
        row = Row(key=key, address=address, pod=PodRef(), allocated_ns=node.clock.now().wall_ns)
        node.checkpoints.put(render_checkpoint([row], None))
        node.start()
        await stage.ready(node)
        await asyncio.sleep(1000)
        assert address in stage.leased(node)

    play(scenario)


def test_while_a_stranger_cannot_be_searched_for_nothing_is_assigned():
    """1. The original serves, and our old file is put back. 2. The kernel shows a pod and cannot be searched."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small", {"WARM_ENI_TARGET": "0", "MAX_ENI": "1"})
        await stage.end_ours(node)
        export = dict(node.checkpoints.files)
        await stage.with_original(node)
        await stage.pods(node, 1)
        await stage.end_original(node)
        node.checkpoints.files = export
        node.kernel.survey_refusal = "Operation not permitted"
        node.plugin = "ours"
        node.start()
        kubelet = stage.kubelets[node.name]
        adds = [asyncio.create_task(kubelet._add(kubelet._new_sandbox(f"late-{n}"))) for n in range(2)]
        await asyncio.sleep(10)
        assert stage.refusal(node) == "recovering"
        node.kernel.survey_refusal = ""
        await stage.ready(node, within_s=5.0)
        assert all([await add for add in adds])

    play(scenario)


def test_while_a_search_fails_the_kernel_is_left_as_it_is():
    """1. Pods of ours live, the log is lost. 2. The node cannot be searched. 3. Nobody loses a route by that."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        await stage.pods(node, 12)
        node.kill(restart_s=-1)
        stage.lose_log(node)
        node.kernel.survey_refusal = "Operation not permitted"
        node.start()
        await asyncio.sleep(10)
        check_nobody_is_cut_off(stage, node)
        node.kernel.survey_refusal = ""
        await stage.ready(node)
        check_nobody_is_cut_off(stage, node)

    play(scenario)


async def an_old_log_starts(stage: Stage, lose_export: Callable[[SimNode], None]) -> None:
    """1. Addresses are given back to EC2. 2. A log of before is put back, and no export tells. 3. Pods come."""
    node = await stage.started("m5.large")
    copied_at = stage.loop.time()
    given = sorted(stage.owned(node))[:5]
    give_back(stage, node, given)
    await asyncio.sleep(1)
    node.kill(restart_s=-1)
    node.store.rewind(copied_at, len(node.store.events) + 1)
    stage.checker.on_disk_changed(node)
    lose_export(node)
    node.start()
    pods = await stage.pods(node, 12)
    assert stage.survey(node).why == "no_checkpoint"
    assert not {sandbox.address for sandbox in pods} & set(given)


def test_an_old_log_whose_export_is_gone_waits_for_ec2():
    play(lambda stage: an_old_log_starts(stage, lambda node: node.checkpoints.files.clear()))


def test_an_old_log_whose_export_cannot_be_read_waits_for_ec2():
    def break_it(node: SimNode) -> None:
        node.checkpoints.is_readable = False

    play(lambda stage: an_old_log_starts(stage, break_it))


def test_after_another_agent_the_books_are_not_believed_although_its_file_is_gone():
    """1. The original serves beside us, and we see it. 2. It gives addresses back. 3. Reboot: no file is left."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        await stage.with_original(node)
        await asyncio.sleep(10)
        assert stage.state(node).other_agent is not None
        node.kill(restart_s=-1)
        given = sorted(stage.owned(node))[:5]
        give_back(stage, node, given)
        await stage.end_original(node)
        node.plugin = "ours"
        node.reboot(1.0)
        await asyncio.sleep(0.5)
        pods = await stage.pods(node, 12)
        assert not {sandbox.address for sandbox in pods} & set(given)

    play(scenario)


def test_an_index_of_before_a_reboot_explains_no_interface():
    """1. Pods of ours end. 2. Reboot. 3. The original's pods get the same indexes, and its file is lost."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        ours = await stage.pods(node, 8)
        await stage.delete(node, *ours)
        await stage.end_ours(node)
        await stage.with_original(node)
        stage.strike(node, kind="reboot", seconds=1.0)
        await asyncio.sleep(2)
        async with asyncio.timeout(60):
            while not node.original.is_serving:
                await asyncio.sleep(0.1)
        pods = await stage.pods(node, 3)
        await stage.end_original(node)
        node.checkpoints.files.clear()
        for sandbox in pods:
            node.cache.drop(sandbox.key)
        node.start()
        await stage.ready(node)
        assert {sandbox.address for sandbox in pods} <= stage.leased(node).keys()
        await stage.pods(node, 4)

    play(scenario)


def test_a_spooled_del_that_came_before_a_waiting_add_does_not_end_its_lease():
    """1. The log is lost. 2. A DEL is spooled, and its key is used again: the ADD waits. 3. The old one is found."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        kubelet = stage.kubelets[node.name]
        (old,) = await stage.pods(node, 1)
        await asyncio.sleep(2)
        node.kill(restart_s=-1)
        stage.lose_log(node)
        kubelet._give_up(old)
        assert await kubelet._spool(old)
        node.kernel.survey_refusal = "Operation not permitted"
        node.start()
        await asyncio.sleep(5)
        new = kubelet._new_sandbox(old.pod, old.container_id)
        add = asyncio.create_task(kubelet._add(new))
        await asyncio.sleep(1)
        node.kernel.survey_refusal = ""
        assert await add
        await asyncio.sleep(10)
        assert await node.spool.entries() == []
        assert new.address in stage.leased(node)
        await stage.again(node, new)

    play(scenario)


def test_what_was_intended_is_not_carried_out_beside_another_agent():
    """1. EC2 does not answer when we ask for an ENI. 2. The original serves. 3. We ask no more until it is gone."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        await a_create_without_answer(stage, node)
        await stage.with_original(node)
        await asyncio.sleep(120)  # Checked at every call.
        assert stage.state(node).intents
        stage.region.faults.clear()
        await stage.end_original(node)
        await stage.ready(node)
        async with asyncio.timeout(120):
            while stage.state(node).intents:
                await asyncio.sleep(1)

    play(scenario)


def test_a_node_is_not_handed_back_while_a_call_to_ec2_is_open():
    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        await a_create_without_answer(stage, node)
        await stage.agent(node).set_mode(b'{"mode": "hand_back"}')
        for _ in range(60):
            progress = stage.agent(node).hand_back.progress()
            assert progress is not None
            assert not progress["is_ready"] or not stage.state(node).intents
            await asyncio.sleep(0.5)
        stage.region.faults.clear()
        await stage.handed_back(node)
        assert not stage.state(node).intents

    play(scenario)


def test_a_node_is_not_handed_back_before_imds_lists_every_leased_address():
    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        node.region.imds.lag_s = 60.0
        pods = await stage.pods(node, 20)
        await stage.handed_back(node)
        await stage.end_ours(node)
        await stage.with_original(node)
        assert {sandbox.address for sandbox in pods} == node.original.rows.keys()
        check_nobody_is_cut_off(stage, node)

    play(scenario)


def test_an_eni_under_a_pod_that_was_found_is_not_given_back_before_ec2_tells_its_addresses():
    """1. The original brings an address to an ENI and gives it to a pod. 2. Describe leaves it out. 3. We shrink."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        old = await stage.pods(node, 14)
        await stage.delete(node, *old)
        # Not the last that EC2 lists, which a short Describe leaves out as a whole.
        second = [eni for eni in stage.region.world.enis.values() if eni.attachment][1]
        await stage.end_ours(node)
        stage.perform(
            "UnassignPrivateIpAddresses",
            NetworkInterfaceId=second.id,
            PrivateIpAddresses=[next(iter(second.secondaries))],
        )
        stage.perform(
            "AssignPrivateIpAddresses", NetworkInterfaceId=second.id, SecondaryPrivateIpAddressCount=1
        )
        address = Address(list(second.secondaries)[-1])
        await asyncio.sleep(1)
        await stage.with_original(node)
        node.original.pool = {address: node.original.pool[address]}
        (pod,) = await stage.pods(node, 1)
        stage.strike(node, kind="describe_short", seconds=600.0)
        node.settings = read_settings({"WARM_IP_TARGET": "1"})
        await stage.replace_original(node)
        await stage.ready(node)
        await asyncio.sleep(300)
        assert pod.address in second.secondaries
        assert second.attachment is not None
        check_nobody_is_cut_off(stage, node)

    play(scenario)


def test_a_first_start_touches_nothing_of_another_machine_that_imds_names():
    """1. A new node starts, and IMDS names another one. 2. No link is that one's: nothing is served or changed."""

    async def scenario(stage: Stage):
        other = await stage.started("t3.small", {"WARM_ENI_TARGET": "0"})
        await stage.pods(other, 2)
        node = stage.machine("t3.small")
        node.imds = other.imds  # type: ignore[method-assign]
        calls = stage.calls("AssignPrivateIpAddresses") + stage.calls("CreateNetworkInterface")
        node.start()
        await asyncio.sleep(60)
        assert stage.refusal(node) == "not_the_same_machine"
        assert stage.calls("AssignPrivateIpAddresses") + stage.calls("CreateNetworkInterface") == calls

    play(scenario)


def test_what_the_runtime_has_kept_from_before_a_reboot_holds_no_address():
    """1. Pods live. 2. Reboot, and the log is lost. 3. The runtime's cache still has their results."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        await stage.pods(node, 3)
        await asyncio.sleep(20)
        node.kill(restart_s=-1)
        stage.lose_log(node)
        stage._on_reboot(node)
        node.reboot(1.0)
        await stage.ready(node)
        assert not stage.leased(node)
        await stage.pods(node, 6)

    play(scenario)


def test_what_somebody_uses_whom_no_source_names_is_assigned_to_nobody():
    """1. Pods live, all files are lost, and no alias is left. 2. Their veths and routes are all that tells."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        await stage.pods(node, 2)
        node.kill(restart_s=-1)
        stage.lose_files(node)
        drop_aliases(node)
        node.start()
        await asyncio.sleep(10)
        await stage.pods(node, 5)
        assert sum(lease.is_hold for lease in stage.state(node).leases.values()) == 2

    play(scenario)


def test_what_the_original_left_of_a_dead_pod_is_taken_away():
    """1. The original is killed while it unwires a pod. 2. The pod's namespace goes. 3. We start."""

    async def scenario(stage: Stage):
        node = stage.machine("t3.small")
        await stage.provide(node, 6)
        await stage.with_original(node)
        pods = await stage.pods(node, 6)
        await asyncio.sleep(1)
        dead = next(sandbox for sandbox in pods if sandbox.table != MAIN_TABLE)
        kubelet = stage.kubelets[node.name]
        kubelet._give_up(dead)
        kubelet._end_netns(dead)
        kubelet._forget(dead)
        del node.original.rows[dead.address]
        node.original._write()
        assert left_in_the_kernel(node, dead.address)
        await stage.replace_original(node)
        await stage.ready(node)
        await asyncio.sleep(10)
        assert left_in_the_kernel(node, dead.address) == []
        check_nobody_is_cut_off(stage, node)

    play(scenario)


def test_after_a_hand_back_the_books_are_not_believed_although_the_other_ones_file_is_gone():
    """1. The node is handed back. 2. The original gives addresses back to EC2. 3. Reboot, and we return."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        await stage.handed_back(node)
        await stage.end_ours(node)
        await stage.with_original(node)
        given = sorted(stage.owned(node))[:5]
        give_back(stage, node, given)
        await stage.end_original(node)
        node.plugin = "ours"
        node.reboot(1.0)
        await asyncio.sleep(0.5)
        pods = await stage.pods(node, 4)  # It is still to be handed back: nothing is asked of EC2.
        assert not {sandbox.address for sandbox in pods} & set(given)

    play(scenario)

"""The lab as a whole: the demo as a person runs it, a lab that stays and goes, and checks that can fail."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vpccni.adapters.cni_files import PLUGIN_PLACES
from vpccni.lab import audit, standing_file
from vpccni.lab.demo import Demo, DemoPlan, new_progress
from vpccni.lab.fabric import enter
from vpccni.lab.lab import Lab, LabError
from vpccni.lab.ledger import Ledger
from vpccni.lab.runtime import CniError, Runtime

pytestmark = pytest.mark.slow

FAST = DemoPlan(pods=6, speed=20, cooldown_s=1)
VPCCNI = [sys.executable, "-m", "vpccni"]


@pytest.fixture(autouse=True)
def lab_is_possible():
    if not any(place.is_file() for place in PLUGIN_PLACES):
        pytest.skip("the CNI executable is not built: make plugin")
    if not enter.is_inside() and (reason := enter.why_impossible()):
        pytest.skip(reason.message)


@pytest.fixture
def directory():
    """A directory of this test's own, on the checkout's disk."""
    build = Path(__file__).parents[3] / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="test-lab-", dir=build) as made:
        yield Path(made)


def vpccni(directory, *arguments, timeout=120):
    done = subprocess.run(
        [*VPCCNI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "VPCCNI_LAB_DIRECTORY": str(directory)},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def processes_that_name(text):
    """PIDs of living processes (this one excepted) with ``text`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# -- the demo ---------------------------------------------------------------------------------------------


def test_the_demo_holds_all_that_it_checks_and_leaves_nothing_running(directory):
    report = directory / "report.json"
    done = vpccni(directory, "lab", "demo", "--fast", "--pods", "8", "--json", "--report", report)
    assert done.returncode == 0, done.stderr
    said = json.loads(report.read_text())
    assert json.loads(done.stdout) == {key: value for key, value in said.items() if key != "checks"}
    assert said["nodes"] == 2
    assert said["pods"] == said["adds"] == 8 + 30 + 12
    assert said["pings_ok"] == said["pings_total"] == 8 * 7 + 50 * 49
    assert said["internet_ok"] == said["internet_total"] == 8 + 50
    assert (said["lost_leases"], said["duplicate_addresses"], said["orphan_enis"]) == (0, 0, 0)
    assert said["chain_ok"] is True
    assert said["restart_to_first_add_ms"] > 0
    assert said["add_p99_ms"] >= said["add_p50_ms"] > 0
    assert said["events"] > 4 * said["adds"]
    assert said["ec2_calls"] > 10
    run_directory = Path((directory / "demo" / ".lock").read_text())
    assert run_directory.name.startswith("vpccni-")
    assert not run_directory.exists()
    assert processes_that_name(str(directory)) == []
    assert (directory / "demo" / "a" / "state" / "events.sqlite").exists()


@pytest.mark.netns
async def test_a_demo_whose_node_has_no_way_out_fails_saying_so(directory):
    """The checks are from outside, so they see what an agent cannot: here a node without a public address."""

    class Unmapped(Lab):
        async def add_node(self, name, instance_type="m5.large", subnet=0, *, now=None):
            node = await super().add_node(name, instance_type, subnet, now=now)
            if name == "a":
                primary = self.region.world.instances[node.instance_id].primary_eni.primary
                await self.fabric.set_public(primary, None)
            return node

    async with Unmapped("t", directory=directory, latency_s=FAST.latency_s, timing=FAST.timing) as lab:
        progress = new_progress()
        report = await Demo(lab, FAST, progress).run(until="ping")
    assert not report.ok
    failed = [check for check in report.checks if not check.ok]
    assert {check.name for check in failed} == {"every pod reaches the internet"}
    assert "a/web-a-1" in failed[0].detail
    assert progress.steps["ping"].state == "failed"
    assert report.internet_ok == report.internet_total - 3


@pytest.mark.netns
async def test_a_demo_whose_agents_do_not_start_ends_with_their_last_word(directory):
    class Settings(DemoPlan, frozen=True):
        @property
        def environment(self):
            return {"ENABLE_POD_ENI": "true"}

    async with Lab("t", directory=directory) as lab:
        progress = new_progress()
        report = await Demo(lab, Settings(), progress).run()
    assert not report.ok
    assert not report.is_complete
    assert "ENABLE_POD_ENI" in report.checks[0].detail
    assert progress.steps["pods"].state == "waiting"


# -- lab and runtime --------------------------------------------------------------------------------------


@pytest.mark.netns
async def test_a_pod_is_added_checked_and_deleted_as_by_a_runtime(directory):
    async with Lab("t", directory=directory, latency_s={}) as lab:
        node = await lab.add_node("a")
        await lab.start_agent(node, {"WARM_IP_TARGET": "2"})
        await lab.wait_ready(node)
        runtime = Runtime(lab, node, Ledger())
        sandbox = await runtime.add("web")
        cached = list(node.places.results.iterdir())
        assert [path.name for path in cached] == [f"aws-cni-{sandbox.container_id}-eth0"]
        assert json.loads(cached[0].read_text())["result"] == sandbox.result
        pods = await node.client.get("/v1/pods")
        assert [(pod["name"], pod["uid"], pod["addresses"]) for pod in pods] == [
            ("web", sandbox.uid, [sandbox.address])
        ]
        assert sandbox.address in audit.secondaries(lab, node)
        assert audit.strays(lab, [sandbox]) == []
        assert await audit.lost_leases(node, [sandbox]) == []
        await runtime.check(sandbox)
        assert (await audit.ping_internet(lab, [sandbox])).ok == 1
        await runtime.delete(sandbox)
        assert not Path(sandbox.netns.path).exists()
        assert list(node.places.results.iterdir()) == []
        assert len(await audit.lost_leases(node, [sandbox])) == 1
        with pytest.raises(CniError) as refused:
            await runtime.call("CHECK", sandbox)
        assert refused.value.code == 3
    assert not lab.run_directory.exists()


@pytest.mark.netns
async def test_an_add_that_cannot_be_served_is_undone_and_recorded(directory):
    async with Lab("t", directory=directory, latency_s={}) as lab:
        node = await lab.add_node("a", "t3.small")
        await lab.start_agent(node, {"WARM_IP_TARGET": "1", "MAX_ENI": "1", "ADD_WAIT_S": "1"})
        await lab.wait_ready(node)
        runtime = Runtime(lab, node)
        results = await runtime.add_many([f"p{number}" for number in range(5)])
        failed = [result for result in results if isinstance(result, CniError)]
        assert len(failed) == 2  # an ENI of a t3.small has four addresses, its own included
        assert {error.reason for error in failed} <= {"instance_full", "wait_timed_out", "no_address"}
        assert len(runtime.ledger.failures) == 2
        assert len(list(node.places.results.iterdir())) == 3
        await runtime.delete_many(runtime.ledger.on_node("a"))


@pytest.mark.netns
async def test_two_labs_of_one_name_do_not_share_a_directory(directory):
    async with Lab("t", directory=directory) as lab:
        with pytest.raises(LabError, match="another lab named t"):
            async with Lab("t", directory=directory):
                pass
        assert lab.run_directory.exists()


@pytest.mark.netns
async def test_the_environment_of_an_agent_holds_nothing_of_the_lab(directory):
    async with Lab("t", directory=directory) as lab:
        node = await lab.add_node("a")
        await lab.start_agent(node)
        environment = lab.agent_environment(node)
        known = {"PATH", "MY_NODE_NAME", "CLUSTER_NAME", "AWS_REGION", "AWS_ENDPOINT_URL_EC2"}
        assert {name for name in environment if not name.startswith("PYTHON")} == known
        with pytest.raises(LabError, match="runs already"):
            await lab.start_agent(node)


# -- up and down ------------------------------------------------------------------------------------------


def test_a_lab_that_was_left_running_can_be_played_with_and_leaves_nothing(directory):
    if enter.is_inside():
        pytest.skip("a standing lab makes its own world, from outside")
    try:
        _play(directory)
    finally:
        note = standing_file.read(directory)
        if note is not None and note.is_running:
            os.kill(note.supervisor_pid, signal.SIGKILL)
    assert list(directory.iterdir()) == []


def _play(directory):
    up = vpccni(directory, "lab", "up", "--speed", "20", "--env", "WARM_IP_TARGET=3", "--json")
    assert up.returncode == 0, up.stderr
    note = standing_file.read(directory)
    assert note is not None
    assert [node.name for node in note.nodes] == ["a", "b"]
    assert vpccni(directory, "lab", "up").returncode == 1

    added = json.loads(vpccni(directory, "lab", "add", "a", "web", "--count", "2", "--json").stdout)[
        "started"
    ]
    assert vpccni(directory, "lab", "add", "b", "db").returncode == 0
    assert vpccni(directory, "lab", "add", "b", "db").returncode == 1
    pods = json.loads(vpccni(directory, "pods", "--node", "a", "--json").stdout)
    assert {pod["addresses"][0] for pod in pods} == {one["address"] for one in added}
    assert json.loads(vpccni(directory, "lab", "ping", "--json").stdout)["pings_ok"] == 6
    seen = vpccni(directory, "lab", "exec", "a/web-1", "--", "ip", "-o", "-4", "addr", "show", "eth0").stdout
    assert f"{added[0]['address']}/32" in seen
    assert vpccni(directory, "lab", "exec", "a", "--", "sh", "-c", "exit 7").returncode == 7

    assert vpccni(directory, "lab", "kill", "a").returncode == 0
    assert vpccni(directory, "status", "--node", "a").returncode == 3
    assert "not running" in vpccni(directory, "lab", "status").stdout
    assert vpccni(directory, "lab", "delete", "a", "web-1").returncode == 0  # into the spool
    assert vpccni(directory, "lab", "start", "a").returncode == 0
    left = json.loads(vpccni(directory, "pods", "--node", "a", "--json").stdout)
    assert [pod["name"] for pod in left] == ["web-2"]

    assert vpccni(directory, "lab", "down").returncode == 0
    assert not note.is_running
    assert not Path(note.run_directory).exists()
    assert processes_that_name(str(directory)) == []
    assert vpccni(directory, "lab", "down").stdout.strip() == "No lab was standing."


def test_a_lab_that_is_ended_while_it_boots_leaves_nothing(directory):
    if enter.is_inside():
        pytest.skip("a standing lab makes its own world, from outside")
    started = time.monotonic()
    process = subprocess.Popen(
        [*VPCCNI, "lab", "up", "--directory", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while standing_file.read(directory) is None:
        assert time.monotonic() - started < 30
        time.sleep(0.02)
    note = standing_file.read(directory)
    assert note is not None
    os.kill(note.supervisor_pid, signal.SIGTERM)  # while it boots
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"did not come up" in err
    assert processes_that_name(str(directory)) == []
    assert not Path(note.run_directory).exists()
    assert vpccni(directory, "lab", "status").returncode == 3
    assert (
        vpccni(directory, "lab", "down").stdout.strip() == "The lab is gone."
    )  # the files, for who looks at them
    assert list(directory.iterdir()) == []

"""The command line against a small fake agent on a real Unix socket."""

import json
import os
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from rich.console import Console

from vpccni.cli import main as cli
from vpccni.cli import taking_over
from vpccni.cli.output import eni_table
from vpccni.errors import EXPLANATIONS, Reason
from vpccni.events.codec import KINDS

STATUS = {
    "version": "9.9.9", "ready": True, "reason": "", "message": "", "pid": 4711,
    "instance": {"id": "i-0f", "type": "m5.large", "az": "lab-1a", "region": "lab-1"},
    "limits": {"enis_max": 3, "ipv4_per_eni": 10, "is_nitro": True}, "max_pods": 29, "waiting_adds": 2,
    "plan": {"reason": "The targets are met.", "constraints": ["ec2_throttled"], "short": 0, "over": 0},
    "open_intents": [{"intent": 7, "kind": "assign", "eni": "eni-1"}], "standing_veths": 0,
    "log": {"head": 3, "commits": 2}, "problems": {"imds": "", "settings": []},
    "pool": {"enis": 2, "owned": 18, "assigned": 13, "resting": 1, "free": 4}, "ec2_calls": {"CreateTags": 3},
}  # fmt: skip
NOT_READY = STATUS | {
    "ready": False, "reason": "node_not_initialized", "message": "It waits for IMDS.",
    "instance": None, "limits": None, "plan": None,
}  # fmt: skip
ENI = {
    "eni": "eni-0123456789abcdef0", "mac": "02:00:00:00:00:01", "subnet": "subnet-1", "primary": "10.100.200.104",
    "device": 0, "card": 0, "table": 254, "phase": "attached", "managed": True, "usable": True, "link": "ens5",
    "suspected": 0, "owned": 14, "assigned": 9, "resting": 2, "free": 3, "slots": 14, "doing": [], "cidrs": [],
}  # fmt: skip
POD = {
    "namespace": "default", "name": "web-1", "uid": "u1", "addresses": ["10.0.0.5"], "eni": "eni-1", "device": 0,
    "host_ifname": "eni12345678901", "lease": 16, "since": "2026-01-01T00:00:00Z", "age_s": 181.0, "suspected": "",
}  # fmt: skip


def event(seq, kind="eni_detached", **body):
    return {"seq": seq, "time": f"2026-01-01T00:00:{seq % 60:02}.000Z", "kind": kind, "cause": None,
            "event": body or {"eni": f"eni-{seq}"}}  # fmt: skip


EVENTS = [
    event(1),
    event(2, "eni_gone", eni="eni-2", source="reply"),
    event(3, "agent_started", boot_id="b", version="1"),
]


class FakeAgent(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers with what ``said`` holds by path; events are served as the agent's API does."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, path):
        super().__init__(str(path), Handler)
        self.path = path
        self.said = {"/v1/status": STATUS, "/v1/enis": [ENI], "/v1/pods": [POD]}
        self.events = EVENTS
        self.status = 200
        self.asked = []

    def handle_error(self, request, client_address):
        """A client may hang up."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeAgent

    def log_message(self, *_):
        """Quiet."""

    def address_string(self):
        return "unix"

    def do_GET(self):
        path, _, query = self.path.partition("?")
        self.server.asked.append(self.path)
        if path != "/v1/events":
            self._answer(json.dumps(self.server.said[path]).encode())
            return
        asked = dict(pair.split("=") for pair in query.split("&"))
        page = [e for e in self.server.events if e["seq"] > int(asked["after"])][
            : int(asked.get("limit", 1000))
        ]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for one in page:
            line = json.dumps(one).encode() + b"\n\n"  # an empty line is the beat of a followed stream
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, body):
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def agent():
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, FakeAgent(Path(directory, "s")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process; return exit code, standard output and standard error."""

    def run_it(*arguments):
        monkeypatch.setattr(sys, "argv", ["vpccni", *map(str, arguments)])
        code = cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run_it


# -- status, pods, ENIs -----------------------------------------------------------------------------------


def test_status_of_a_ready_agent_says_what_it_has_and_what_it_plans(agent, run):
    code, out, _ = run("status", "--socket", agent.path)
    assert code == 0
    for words in ("ready · vpccni 9.9.9 · pid 4711", "m5.large", "up to 3 ENIs of 9 addresses, 29 pods",
                  "18 addresses: 13 assigned, 1 resting, 4 free", "The targets are met. Held back by ec2_throttled.",
                  "2 ADDs", "assign eni-1", "3 (CreateTags 3)", "event 3"):  # fmt: skip
        assert words in out


def test_status_of_an_agent_that_is_not_ready_says_why_and_exits_with_1(agent, run):
    agent.said["/v1/status"] = NOT_READY
    code, out, _ = run("status", "--socket", agent.path)
    assert code == 1
    assert "not ready" in out
    assert "node_not_initialized: It waits for IMDS." in out


def test_problems_are_shown(agent, run):
    agent.said["/v1/status"] = STATUS | {
        "problems": {"imds": "it hangs", "settings": ["one", "two"], "ec2": ""}
    }
    _, out, _ = run("status", "--socket", agent.path)
    assert "imds: it hangs" in out
    assert "settings: one; two" in out


@pytest.mark.parametrize("view", ["status", "pods", "enis"])
def test_json_is_what_the_agent_said_and_nothing_else(agent, run, view):
    code, out, err = run(view, "--json", "--socket", agent.path)
    assert (code, json.loads(out), err) == (0, agent.said[f"/v1/{view}"], "")


def test_pods_shows_who_has_which_address(agent, run):
    agent.said["/v1/pods"] = [POD, POD | {"addresses": ["10.0.0.6"], "suspected": "kernel"}]
    code, out, _ = run("pods", "--socket", agent.path)
    assert code == 0
    assert out.splitlines()[1].split() == ["10.0.0.5", "default/web-1", "0", "eni12345678901", "3m", "16"]
    assert "in doubt: kernel" in out


def test_a_node_without_pods_is_said_to_have_none(agent, run):
    agent.said["/v1/pods"] = []
    assert "No pod has an address here." in run("pods", "--socket", agent.path)[1]


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "attached"),
        ({"phase": "retiring"}, "retiring"),
        ({"suspected": 2}, "suspected"),
        ({"doing": ["assign"]}, "assign…"),
        ({"usable": False, "link": ""}, "no link"),
        ({"usable": False, "managed": False}, "not ours"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_state_of_an_eni_is_one_word(agent, run, changed, state):
    agent.said["/v1/enis"] = [ENI | changed]
    code, out, _ = run("enis", "--socket", agent.path)
    assert code == 0
    assert out.splitlines()[1].rstrip().endswith(state)


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_of_enis_fits_the_terminal_and_cuts_nothing(width):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed below
    console.print(eni_table([ENI | {"suspected": 1}], width))
    console.file.close()
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for value in (ENI["eni"], ENI["primary"], "14", "suspected"):
        assert str(value) in text


# -- events -----------------------------------------------------------------------------------------------


def test_events_shows_the_last_ones_in_words(agent, run):
    code, out, _ = run("events", "-n", "2", "--socket", agent.path)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["2", "3"]
    assert "eni_gone" in out


def test_events_after_a_number_of_one_kind_as_lines_of_json(agent, run):
    code, out, _ = run("events", "--after", "0", "--kind", "eni", "--json", "--socket", agent.path)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == EVENTS[:2]


def test_a_log_longer_than_a_page_is_shown_whole(agent, run):
    agent.events = [event(seq) for seq in range(1, 2101)]
    _, out, _ = run("events", "--after", "0", "--socket", agent.path)
    assert [int(line.split()[0]) for line in out.splitlines()] == list(range(1, 2101))


def test_following_ends_with_a_sentence_when_the_agent_stops(agent, run):
    code, out, err = run("events", "-f", "--after", "1", "--socket", agent.path)
    assert code == 3
    assert len(out.splitlines()) == 2
    assert "it was stopped" in err


def test_an_event_of_a_newer_agent_is_shown_by_its_fields(agent, run):
    agent.events = [event(1, "moon_landed", crater="Tycho"), event(2, "eni_gone", orbit="low")]
    _, out, _ = run("events", "--after", "0", "--socket", agent.path)
    assert "Tycho" in out
    assert "low" in out


def test_nothing_in_an_event_reaches_the_terminal_as_a_command(agent, run):
    agent.events = [
        event(1, "eni_gone", eni="\x1b[2J\x07[red]", source="x"),
        event(2, "new_kind", x="\x1b]0;t"),
    ]
    _, out, _ = run("events", "--after", "0", "--socket", agent.path)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]" in out


def test_a_kind_that_does_not_exist_is_refused_with_the_list(agent, run):
    code, _, err = run("events", "--kind", "lease_eaten", "--socket", agent.path)
    assert code == 2
    assert "lease_ended" in err.replace("\n", "")


def test_every_kind_of_event_can_be_asked_for(agent, run):
    for kind in KINDS:
        assert run("events", "--kind", kind, "--socket", agent.path)[0] == 0


# -- nobody there, and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "pods", "enis", "events", "config"])
def test_without_an_agent_every_reading_command_says_so_and_exits_with_3(run, tmp_path, command):
    code, out, err = run(command, "--socket", tmp_path / "nothing")
    assert (code, out) == (3, "")
    assert "there is no such socket" in err


def test_a_socket_on_which_nobody_listens_is_told_from_a_missing_one(agent, run):
    agent.socket.close()
    code, _, err = run("status", "--socket", agent.path)
    assert code == 3
    assert "nobody listens" in err


def test_a_refusal_is_shown_in_the_agents_own_words(agent, run):
    agent.status = 403
    agent.said["/v1/pods"] = {"code": 103, "msg": "Only root may talk to this socket."}
    code, _, err = run("pods", "--socket", agent.path)
    assert code == 1
    assert "Only root may talk to this socket." in err


def test_socket_and_node_together_are_refused(run):
    code, _, err = run("status", "--socket", "/x", "--node", "a")
    assert code == 2
    assert "not both" in err


def test_without_a_standing_lab_a_node_cannot_be_asked(run, tmp_path, monkeypatch):
    monkeypatch.setenv("VPCCNI_LAB_DIRECTORY", str(tmp_path))
    for command in (
        ["status", "--node", "a"],
        ["lab", "status"],
        ["lab", "add", "a", "web"],
        ["lab", "ping"],
    ):
        code, _, err = run(*command)
        assert code == 3
        assert "vpccni lab up" in err


def test_taking_down_a_lab_that_is_not_there_is_no_failure(run, tmp_path):
    code, out, _ = run("lab", "down", "--directory", tmp_path)
    assert (code, out.strip()) == (0, "No lab was standing.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--instance-type", "z9.nano"], "m5.large"),
        (["--env", "WARM_IP_TARGET"], "NAME=VALUE"),
        (["--env", "ENABLE_POD_ENI=true"], "ENABLE_POD_ENI"),
    ],
    ids=["type", "pair", "setting"],
)
def test_a_lab_that_could_not_work_is_refused_before_it_is_started(
    run, tmp_path, arguments, words, monkeypatch
):
    monkeypatch.setattr("vpccni.cli.lab_life.require_possible", lambda: None)
    code, _, err = run("lab", "up", "--directory", tmp_path, *arguments)
    assert code == 2
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_where_no_lab_can_run_the_demo_says_what_is_missing(run, monkeypatch, tmp_path):
    from vpccni.lab.fabric.enter import Reason as Why

    monkeypatch.setattr("vpccni.adapters.cni_files.find_plugin", lambda *_: tmp_path)
    monkeypatch.setattr("vpccni.lab.fabric.enter.is_inside", lambda: False)
    monkeypatch.setattr(
        "vpccni.lab.fabric.enter.why_impossible", lambda: Why("programs_missing", "apt-get install nftables")
    )
    code, _, err = run("lab", "demo")
    assert code == 125
    assert "apt-get install nftables" in err


# -- config, why ------------------------------------------------------------------------------------------


def test_config_shows_what_this_environment_means(run, monkeypatch):
    monkeypatch.setenv("WARM_IP_TARGET", "7")
    monkeypatch.setenv("MAX_ENI", "many")
    code, out, _ = run("config", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["settings"]["WARM_IP_TARGET"] == "7"
    assert any("MAX_ENI" in warning for warning in said["warnings"])
    _, out, _ = run("config")
    assert "WARM_IP_TARGET" in out
    assert "ENABLE_POD_ENI" not in out
    assert "ENABLE_POD_ENI" in run("config", "--all")[1]


def test_config_that_an_agent_would_refuse_exits_with_1_and_names_every_offence(run, monkeypatch):
    monkeypatch.setenv("ENABLE_POD_ENI", "true")
    monkeypatch.setenv("ADD_WAIT_S", "soon")
    code, _, err = run("config")
    assert code == 1
    assert "ENABLE_POD_ENI" in err
    assert "ADD_WAIT_S" in err


def test_config_of_an_agent_is_the_last_that_its_log_holds(agent, run):
    agent.events = [
        event(1, "policy_observed", settings={"WARM_IP_TARGET": "1"}),
        event(2, "policy_observed", settings={"WARM_IP_TARGET": "2"}),
        event(3),
    ]
    _, out, _ = run("config", "--json", "--socket", agent.path)
    assert json.loads(out)["settings"] == {"WARM_IP_TARGET": "2"}


def test_why_explains_every_reason_code(run):
    for reason in Reason:
        code, out, _ = run("why", reason, "--json")
        said = json.loads(out)
        assert code == 0
        assert said["meaning"] == EXPLANATIONS[reason].meaning
        assert said["next_action"]
    listed = run("why")[1]
    assert all(reason in listed for reason in Reason)


def test_why_of_an_unknown_code_points_to_near_ones(run):
    code, _, err = run("why", "throttled")
    assert code == 2
    assert "ec2_throttled" in err


# -- install ----------------------------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "built"
    path.write_bytes(b"\x7fELF")
    return path


def test_install_puts_executable_and_conflist_in_place_and_changes_nothing_the_second_time(
    run, tmp_path, plugin
):
    arguments = ["install", "--bin", tmp_path / "bin", "--conf", tmp_path / "conf", "--plugin", plugin,
                 "--socket", "/run/x/s", "--spool", "/run/x/spool", "--json"]  # fmt: skip
    code, out, _ = run(*arguments)
    said = json.loads(out)
    assert code == 0
    assert (said["plugin"]["changed"], said["conflist"]["changed"]) == (True, True)
    assert stat.S_IMODE((tmp_path / "bin" / "aws-cni").stat().st_mode) == 0o755
    conflist = json.loads((tmp_path / "conf" / "10-aws.conflist").read_text())
    assert conflist["plugins"][0]["socket"] == "/run/x/s"
    assert conflist["plugins"][0]["spool"] == "/run/x/spool"
    said = json.loads(run(*arguments)[1])
    assert (said["plugin"]["changed"], said["conflist"]["changed"]) == (False, False)


def test_install_writes_no_conflist_when_there_is_no_executable(run, tmp_path):
    code, _, err = run(
        "install", "--bin", tmp_path / "b", "--conf", tmp_path / "c", "--plugin", tmp_path / "none"
    )
    assert code == 1
    assert "none" in err
    assert not (tmp_path / "c").exists()


# -- take-over --------------------------------------------------------------------------------------------


def test_take_over_without_check_is_wrong_usage(run):
    code, out, err = run("take-over")
    assert (code, out) == (2, "")
    assert "Say --check" in err


@pytest.mark.parametrize(
    ("asked", "words"), [((), "vpccni 9.9.9 serves this node already"), (("--json",), "9.9.9")]
)
def test_a_node_that_we_serve_needs_no_check(agent, run, monkeypatch, asked, words):
    monkeypatch.setattr(taking_over, "SOCKET_NAME", agent.path.name)
    code, out, err = run("take-over", "--check", "--run-dir", agent.path.parent, *asked)
    assert (code, err) == (0, "")
    assert words in out


@pytest.mark.parametrize("reason", ["take_over_refused", "another_agent", "recovering"])
def test_an_agent_that_waits_for_the_node_does_not_serve_it(agent, monkeypatch, reason):
    monkeypatch.setattr(taking_over, "SOCKET_NAME", agent.path.name)
    agent.said["/v1/status"] = NOT_READY | {"reason": reason}
    assert taking_over._served_by_us(agent.path.parent) == ""
    agent.said["/v1/status"] = NOT_READY
    assert taking_over._served_by_us(agent.path.parent) == "vpccni 9.9.9"


def test_an_agent_that_does_not_answer_does_not_serve_the_node(tmp_path):
    (tmp_path / "vpccni.sock").touch()
    assert taking_over._served_by_us(tmp_path) == ""
    assert taking_over._served_by_us(tmp_path / "nowhere") == ""


def test_where_to_look_is_read_from_settings_that_are_refused():
    settings, refused = taking_over._read_settings(
        {
            "ENABLE_POD_ENI": "true",
            "AWS_VPC_K8S_CNI_VETHPREFIX": "veth",
            "AWS_VPC_K8S_CNI_BACKING_STORE": "/somewhere/ipam.json",
            "MY_NODE_NAME": "node-1",
        }
    )
    assert refused is not None
    assert refused.reason is Reason.FEATURE_NOT_SUPPORTED
    assert (settings.veth_prefix, settings.backing_store) == ("veth", "/somewhere/ipam.json")
    assert settings.node_name == "node-1"


def test_a_veth_prefix_that_is_none_is_refused_and_the_rest_is_read():
    settings, refused = taking_over._read_settings(
        {"AWS_VPC_K8S_CNI_VETHPREFIX": "far-too-long", "MY_NODE_NAME": "node-1"}
    )
    assert refused is not None
    assert refused.reason is Reason.BAD_SETTING
    assert (settings.veth_prefix, settings.node_name) == ("eni", "node-1")


# -- the command line as a whole --------------------------------------------------------------------------


def test_help_teaches_the_commands_that_have_an_entry_of_their_own(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("status", "events", "install", "why", "lab", "agent", "probe", "replay"):
        assert command in out


@pytest.mark.parametrize(
    "command",
    ["status", "pods", "enis", "events", "config", "why", "install", "lab demo", "lab up", "lab exec"],
)
def test_help_of_every_command_shows_an_example(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"vpccni {command}" in out.partition("Examples")[2]


def test_a_wrong_command_exits_with_2(run):
    assert run("fly")[0] == 2


@pytest.mark.slow
def test_as_a_process_it_ends_quietly_when_its_reader_goes_away(agent):
    agent.events = [event(seq) for seq in range(1, 3000)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vpccni", "events", "--after", "0", "--socket", str(agent.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.slow
def test_the_agents_entry_does_not_import_the_command_lines_libraries():
    # Rich is not among them: structlog imports it by itself where it is installed.
    heavy = ("typer", "vpccni.cli", "vpccni.lab")
    script = f"import sys, vpccni.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_the_agent_starts_without_what_only_a_first_start_needs():
    script = (
        "import sys, vpccni.app; print([name for name in sys.modules if name.startswith('vpccni.takeover')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_command_that_only_asks_starts_without_the_adapters():
    heavy = ["aiohttp", "kubernetes_asyncio", "sqlalchemy", "vpccni.adapters.kernel", "vpccni.app"]
    script = f"import sys, vpccni.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

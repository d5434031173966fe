"""The CNI executable against a fake daemon; each test runs the release build and the one with sanitizers."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.plugin_daemon import (
    ENVIRONMENT,
    FakeDaemon,
    Outcome,
    Plugin,
    RefusesUnread,
    answer,
    appearing_after,
    die,
    ended,
    hold_open,
    http,
    send,
    trickle,
)

SOURCE = Path(__file__).parents[2] / "plugin"
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.97.30/32"}]}
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.fixture(scope="session", params=["release", "sanitized"])
def binary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target, name = {"release": ("all", "aws-cni"), "sanitized": ("sanitize", "aws-cni-asan")}[request.param]
    return build(tmp_path_factory.mktemp("plugin"), target) / name


def build(out: Path, *arguments: str) -> Path:
    subprocess.run(["make", "-s", "-C", SOURCE, f"OUT={out}", *arguments], check=True, capture_output=True)
    return out


@pytest.fixture
def plugin(binary: Path) -> Iterator[Plugin]:
    with tempfile.TemporaryDirectory(prefix="vpccni-") as home:  # short: a socket's path has 107 bytes
        yield Plugin(binary=binary, home=Path(home))


# What the runtime got wrong


@pytest.mark.parametrize(
    ("command", "absent", "named"),
    [
        ("ADD", ["CNI_CONTAINERID"], "CNI_CONTAINERID"),
        ("ADD", ["CNI_NETNS"], "CNI_NETNS"),
        ("ADD", ["CNI_IFNAME"], "CNI_IFNAME"),
        ("ADD", ["CNI_PATH"], "CNI_PATH"),
        ("ADD", list(ENVIRONMENT), "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH"),
        ("CHECK", list(ENVIRONMENT), "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH"),
        ("DEL", list(ENVIRONMENT), "CNI_CONTAINERID, CNI_IFNAME, CNI_PATH"),
        ("GC", list(ENVIRONMENT), "CNI_PATH"),
    ],
)
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_a_missing_variable_is_named(
    plugin: Plugin, command: str, absent: list[str], named: str, value: str | None
):
    error = plugin.run(command, plugin.config(cniVersion="0.4.0"), dict.fromkeys(absent, value)).error
    assert (error["code"], error["msg"], error["cniVersion"]) == (4, f"{command} needs {named}", "0.4.0")


@pytest.mark.parametrize(("command", "absent"), [("DEL", ["CNI_NETNS", "CNI_ARGS"]), ("STATUS", ENVIRONMENT)])
def test_what_a_verb_can_do_without_may_be_missing(plugin: Plugin, command: str, absent: list[str]):
    with FakeDaemon(plugin.socket, answer({})) as daemon:
        assert plugin.run(command, None, dict.fromkeys(absent)).code == 0
    assert daemon.bodies[0]["netns"] == ""


@pytest.mark.parametrize("command", ["", "add", "ADDS", "UPDATE", 'A"D\n'])
def test_an_unknown_command_is_a_bad_environment(plugin: Plugin, command: str):
    error = plugin.run(command).error
    assert (error["code"], error["details"]) == (4, command)


BAD_VALUES = [("CNI_CONTAINERID", value) for value in ["-a", ".a", "_a", "a/b", "a b", "ä", "a\n"]] + [
    ("CNI_IFNAME", value) for value in ["a" * 16, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\n"]
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_bad_name_is_refused_before_its_config_is(plugin: Plugin, name: str, value: str):
    error = plugin.run("DEL", b"{", {name: value}).error
    assert error["code"] == 4
    assert name in error["msg"]
    assert error["details"] == value


@pytest.mark.parametrize(("name", "value"), [("CNI_CONTAINERID", "9_.-Zz"), ("CNI_IFNAME", "a" * 15)])
def test_an_unusual_good_name_is_passed_on(plugin: Plugin, name: str, value: str):
    with FakeDaemon(plugin.socket, answer(RESULT)):
        assert plugin.run("ADD", None, {name: value}).code == 0


def test_without_a_command_it_says_what_it_is(plugin: Plugin):
    with ended(plugin.start(None, subprocess.DEVNULL, {})) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"")
    assert all(version.encode() in err for version in VERSIONS)


# What stands on stdin

BROKEN = [
    b"", b" ", b"null", b"[]", b'"a"', b"1", b"{", b"}", b"{}{}", b"{},", b"\xef\xbb\xbf{}", b"{}\0", b"{,}",
    b'{"a":1,}', b'{"a"}', b'{"a":}', b"{a:1}", b"{'a':1}", b'{"a":1 "b":2}', b'{"a":1}/**/',
    b'{"a":[1,]}', b'{"a":[1 2]}', b'{"a":[}', b'{"a":[1}]',
    b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":1.}', b'{"a":1e}', b'{"a":-}', b'{"a":0x1}', b'{"a":NaN}',
    b'{"a":tru}', b'{"a":truefalse}', b'{"a":nul',
    b'{"a":"', b'{"a":"\n"}', b'{"a":"\0"}', b'{"a":"\\x"}', b'{"a":"\\u12g4"}', b'{"a":"\\u12"}',
    b'{"a":"\\', b'{"a":"\\u00', b'{"a":"\\"}', b'{"a":"\xff"}', b'{"a":"\x80"}', b'{"a":"\xc0\x80"}',
    b'{"a":"\xed\xa0\x80"}', b'{"a":"\xe0\x9f\xbf"}', b'{"a":"\xf0\x8f\xbf\xbf"}',
    b'{"a":"\xf4\x90\x80\x80"}',
    b'{"a":"\xe2\x82"}', b'{"a":"\xe2\x82',
    b'{"a":' + b"[" * 128 + b"]" * 128 + b"}", b'{"a":' + b"[" * 200_000, b'{"a":' * 200_000,
]  # fmt: skip
WHOLE = [
    b"{}", b' \t\r\n{ } \n', b'{"a":[],"b":{},"c":[{}, [ ] ],"":null}', b'{"a":true,"b":false,"c":null}',
    b'{"a":[0,-0,-0.5e+10,1E-2,12345678901234567890,0.1e1]}',
    b'{"a":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\\ud800","a":2}',
    '{"ü€😀":"ü€😀\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"}'.encode(),
    b'{"a":' + b"[" * 127 + b"]" * 127 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:20]))
def test_stdin_that_is_not_one_json_object_is_undecodable(plugin: Plugin, text: bytes):
    assert plugin.run("ADD", text).error["code"] == 6


@pytest.mark.parametrize("text", WHOLE, ids=lambda text: repr(text[:20]))
def test_the_config_reaches_the_daemon_byte_for_byte(plugin: Plugin, text: bytes):
    at = text.rindex(b"}")
    text = (
        text[:at]
        + b"%s" % (b"," if b":" in text else b"")
        + json.dumps(plugin.config()).encode()[1:]
        + text[at + 1 :]
    )
    with FakeDaemon(plugin.socket, answer(RESULT)) as daemon:
        assert plugin.run("ADD", text).code == 0
    ((_, body),) = daemon.requests
    assert body.endswith(b',"config":' + text + b"}")


@pytest.mark.parametrize(("size", "code"), [(2**20, None), (2**20 + 1, 5), (2**20 + 70_000, 5)])
def test_stdin_is_bounded(plugin: Plugin, size: int, code: int | None):
    text = json.dumps(plugin.config()).encode().ljust(size)
    with FakeDaemon(plugin.socket, answer(RESULT)) as daemon:
        outcome = plugin.run("ADD", text)
    assert outcome.error["code"] == code if code else outcome.code == 0
    assert len(daemon.requests) == (0 if code else 1)


def test_stdin_that_cannot_be_read_is_an_io_failure(plugin: Plugin):
    directory = os.open(plugin.home, os.O_RDONLY)
    try:
        error = plugin.run("ADD", directory).error
    finally:
        os.close(directory)
    assert (error["code"], error["details"]) == (5, "Is a directory")


def test_stdin_may_come_in_pieces(plugin: Plugin):
    text = json.dumps(plugin.config()).encode()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with FakeDaemon(plugin.socket, answer(RESULT)), ended(plugin.start("ADD", reader, {})) as process:
        os.close(reader)
        for at in range(0, len(text), 7):
            os.write(writer, text[at : at + 7])
            time.sleep(0.0005)
        os.close(writer)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, json.loads(out), err) == (0, RESULT, b"")


@pytest.mark.parametrize("version", [None, "0.3.0", "1.0.0", "7.0.0", 'é"\\'])
def test_version_is_answered_without_a_daemon(plugin: Plugin, version: str | None):
    outcome = plugin.run(
        "VERSION", {} if version is None else {"cniVersion": version}, dict.fromkeys(ENVIRONMENT)
    )
    assert outcome.code == 0
    assert json.loads(outcome.stdout) == {"cniVersion": version or "1.1.0", "supportedVersions": VERSIONS}


def test_version_needs_no_config_but_refuses_a_broken_one(plugin: Plugin):
    assert json.loads(plugin.run("VERSION", b"").stdout)["cniVersion"] == "1.1.0"
    assert plugin.run("VERSION", b"{").error["code"] == 6


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"socket": 1}, 6), ({"socket": {}}, 6), ({"socket": None}, 6), ({"socket": "/a\0b"}, 6),
        ({"spool": ["/a"]}, 6), ({"cniVersion": 1}, 6), ({"bootIdPath": True}, 6),
        ({"socket": "a"}, 7), ({"socket": ""}, 7), ({"socket": "/" + "a" * 107}, 7),
        ({"spool": "a/b"}, 7), ({"bootIdPath": ""}, 7),
        ({"readyPath": 1}, 6), ({"readyPath": None}, 6), ({"readyPath": "a"}, 7), ({"readyPath": ""}, 7),
        ({"connectTimeoutMs": "1"}, 7), ({"connectTimeoutMs": -1}, 7), ({"connectTimeoutMs": 1.5}, 7),
        ({"answerTimeoutMs": 600_001}, 7), ({"answerTimeoutMs": 10**30}, 7), ({"answerTimeoutMs": None}, 7),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant_is_refused(plugin: Plugin, members: dict[str, Any], code: int):
    assert plugin.run("ADD", plugin.config(**members)).error["code"] == code


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("d.sock", r"d\u002esock"),
        ("é€😀", r"\u00e9\u20AC\ud83d\uDE00"),
        ('"\\/\b\f\n\r\t', r"\"\\\/\b\f\n\r\t"),
        ("�!�😀", r"\ud800!\udc00\ud83d\ude00"),
    ],
)  # fmt: skip
def test_escapes_in_the_socket_path_are_decoded(plugin: Plugin, name: str, written: str):
    path = plugin.home / name
    path.parent.mkdir(exist_ok=True)
    decoys = r'"config":{"socket":"/no"},"socket\u0000":1,"Socket":2,"socket":"/no"'
    text = rf'{{{decoys},"\u0073ocket":"{plugin.home}/{written}"}}'
    with FakeDaemon(path, answer(RESULT)):
        assert plugin.run("ADD", text.encode()).code == 0


# What is asked, and what is made of the answer


def test_the_request_is_one_that_http_servers_understand(plugin: Plugin):
    with FakeDaemon(plugin.socket, answer(RESULT)) as daemon:
        plugin.run("ADD")
    ((head, body),) = daemon.requests
    assert head.split(b"\r\n") == [
        b"POST /v1/cni HTTP/1.1",
        b"Host: vpccni",
        b"Connection: close",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    assert json.loads(body) == {
        "command": "ADD",
        "containerId": "0a1b2c",
        "netns": "/var/run/netns/cni-x",
        "ifname": "eth0",
        "args": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
        "path": "/opt/cni/bin",
        "config": plugin.config(),
    }


@pytest.mark.parametrize(
    ("raw", "arrives"),
    [
        (b'"\\/\b\f\n\r\t\x01\x1f\x7f', '"\\/\b\f\n\r\t\x01\x1f\x7f'),
        ("ü€😀".encode(), "ü€😀"),
        (b"a\xff\xfeb", "a��b"),
        (b"\xc0\x80\xed\xa0\x80", "�" * 5),
        (b"\xf0\x9f\x98", "�" * 3),
        (b"\xe2\x82a", "��a"),
        (b"x" * 100_000, "x" * 100_000),
        (b"\xff" * 30_000, "�" * 30_000),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_any_bytes_in_the_environment_make_valid_json(plugin: Plugin, raw: bytes, arrives: str):
    with FakeDaemon(plugin.socket, answer(RESULT)) as daemon:
        assert (
            plugin.run(
                "ADD", None, {"CNI_ARGS": raw, "CNI_NETNS": raw, "CNI_PATH": b"/bin:" + raw[:100]}
            ).code
            == 0
        )
    assert daemon.bodies[0]["args"] == daemon.bodies[0]["netns"] == arrives


BODY = json.dumps(RESULT).encode()
ANSWERS = {
    "at_once": send(http(BODY)),
    "byte_by_byte": trickle(http(BODY)),
    "without_a_length": send(http(BODY, headers=[])),
    "with_odd_headers": send(http(BODY, headers=["X: 1", f"cONTENT-lENGTH:\t {len(BODY)} ", "Y:"])),
    "and_stays_connected": hold_open(http(BODY)),
    "and_then_some": send(http(BODY) + b"\r\n {"),
    "before_the_request": RefusesUnread(http(BODY)),
}


@pytest.mark.parametrize("behaviour", ANSWERS.values(), ids=ANSWERS)
def test_a_whole_answer_is_printed_as_it_is(plugin: Plugin, behaviour: Any):
    with FakeDaemon(plugin.socket, behaviour):
        outcome = plugin.run("ADD")
    assert (outcome.code, outcome.stdout) == (0, BODY)


def test_an_answer_of_four_mebibytes_is_printed_whole(plugin: Plugin):
    body = b"{" + b" " * (4 * 2**20 - 2) + b"}"
    with FakeDaemon(plugin.socket, send(http(body))):
        assert plugin.run("ADD").stdout == body


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize("behaviour", [answer(RESULT), send(http(b""))], ids=["object", "empty"])
def test_only_an_add_prints_its_success(plugin: Plugin, command: str, behaviour: Any):
    with FakeDaemon(plugin.socket, behaviour) as daemon:
        outcome = plugin.run(command)
    assert (outcome.code, outcome.stdout) == (0, b"")
    assert [body["command"] for body in daemon.bodies] == [command]
    assert not plugin.spool.exists()


WARNED = {"cniVersion": "1.1.0", "warnings": [{"reason": "portmap_missing", "msg": "No portmap."}]}


@pytest.mark.parametrize(("command", "is_printed"), [("STATUS", True), ("DEL", False), ("CHECK", False)])
def test_a_good_status_prints_its_warnings(plugin: Plugin, command: str, is_printed: bool):
    body = json.dumps(WARNED).encode()
    with FakeDaemon(plugin.socket, send(http(body))):
        outcome = plugin.run(command)
    assert (outcome.code, outcome.stdout) == (0, body if is_printed else b"")


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize("status", ["400 Bad Request", "503", "202 Accepted"])
def test_an_error_of_the_daemon_is_printed_as_it_is(plugin: Plugin, command: str, status: str):
    error = {"cniVersion": "1.1.0", "code": 11, "msg": "no address", "details": ""}
    with FakeDaemon(plugin.socket, answer(error, status=status)) as daemon:
        assert plugin.run(command).error == error
    assert len(daemon.requests) == 1
    assert not plugin.spool.exists()


def test_a_big_request_that_is_refused_unread_gets_its_answer(plugin: Plugin):
    refusal = {"cniVersion": "1.1.0", "code": 7, "msg": "too big", "details": ""}
    config = plugin.config(padding="x" * 1_000_000)
    with FakeDaemon(plugin.socket, RefusesUnread(http(json.dumps(refusal).encode(), status="413 Too Large"))):
        assert plugin.run("ADD", config).error == refusal


GARBAGE = {
    "nothing": die,
    "no_http": send(b"SSH-2.0-x\r\n\r\n{}"),
    "short_status_line": send(b"HTTP/1.1\r\n\r\n{}"),
    "no_status": send(http(BODY, status="abc")),
    "status_1000": send(http(BODY, status="1000 Much")),
    "status_100": send(http(b"", status="100 Continue", headers=[])),
    "no_head_end": send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{}"),
    "nul_in_head": send(b"HTTP/1.1 200\0 OK\r\n\r\n{}"),
    "endless_head": send(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000),
    "truncated_body": send(http(BODY, headers=[f"Content-Length: {len(BODY) + 1}"])),
    "cut_body": send(http(BODY[:-1])),
    "empty_result": send(http(b"")),
    "list": send(http(b"[]")),
    "text": send(http(b"500: Internal Server Error", status="500 Internal Server Error")),
    "two_objects": send(http(b"{}{}")),
    "nul_after_object": send(http(b"{}\0")),
    "deep": send(http(b'{"a":' * 100_000)),
    "chunked": send(http(b"2\r\n{}\r\n0\r\n\r\n", headers=["Transfer-Encoding: chunked"])),
    "no_number": send(http(BODY, headers=["Content-Length: many"])),
    "negative": send(http(BODY, headers=["Content-Length: -1"])),
    "half_a_number": send(http(BODY, headers=[f"Content-Length: {len(BODY)}x"])),
    "huge_length": send(http(BODY, headers=["Content-Length: 99999999999999999999999"])),
    "oversize_length": send(http(BODY, headers=[f"Content-Length: {4 * 2**20 + 1}"])),
    "oversize_body": send(http(b"{" + b" " * (5 * 2**20), headers=[])),
}


@pytest.mark.parametrize("behaviour", GARBAGE.values(), ids=GARBAGE)
def test_anything_but_a_whole_answer_is_a_lost_connection(plugin: Plugin, behaviour: Any):
    with FakeDaemon(plugin.socket, behaviour, behaviour, answer(RESULT)) as daemon:
        outcome = plugin.run("ADD")
    assert (outcome.code, json.loads(outcome.stdout)) == (0, RESULT)
    assert len(daemon.requests) == 3
    assert daemon.requests[0] == daemon.requests[2]


def test_a_success_without_json_is_a_lost_connection_for_a_del_too(plugin: Plugin):
    with FakeDaemon(plugin.socket, send(http(b"ok")), answer(RESULT)) as daemon:
        assert plugin.run("DEL").code == 0
    assert len(daemon.requests) == 2


# When the daemon is away


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "away_s"), [("ADD", 0.3), ("DEL", 0.3), ("CHECK", 0.1), ("STATUS", 0.1), ("GC", 0.1)]
)
def test_a_restart_of_the_daemon_is_invisible(plugin: Plugin, command: str, away_s: float):
    used_s = children_cpu_s()
    with appearing_after(away_s, FakeDaemon(plugin.socket, answer(RESULT))) as daemon:
        outcome = plugin.run(command)
    assert children_cpu_s() - used_s < 0.15  # it sleeps meanwhile; the sanitizers' start takes 0.02 s
    assert outcome.code == 0
    assert len(daemon.requests) == 1
    assert away_s - 0.05 < outcome.elapsed_s < away_s + 2
    assert not plugin.spool.exists()


@pytest.mark.slow
def test_a_daemon_that_dies_with_the_request_gets_it_again(plugin: Plugin):
    """The connect window starts again at the loss: away for 0.25 s before and 0.25 s after, 0.4 s allowed."""
    config = plugin.config(connectTimeoutMs=400)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(plugin.run, "ADD", config)
        time.sleep(0.25)
        with FakeDaemon(plugin.socket, hold_open(b"HTTP/1.1 200 OK\r\n")) as first:
            while not first.requests and not call.done():
                time.sleep(0.001)
        time.sleep(0.25)
        with FakeDaemon(plugin.socket, answer(RESULT)) as second:
            assert json.loads(call.result().stdout) == RESULT
    assert first.requests == second.requests


@pytest.mark.parametrize("what", ["stale_socket", "regular_file", "no_directory", "full_backlog"])
def test_whatever_keeps_it_from_connecting_it_tries_again(plugin: Plugin, what: str):
    path = plugin.home / "run" / "d.sock"
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        if what != "no_directory":
            path.parent.mkdir()
        if what == "regular_file":
            path.touch()
        if what == "stale_socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        if what == "full_backlog":
            busy = stack.enter_context(socket.socket(socket.AF_UNIX))
            busy.bind(str(path))
            busy.listen(0)
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        call = pool.submit(plugin.run, "ADD", plugin.config(socket=str(path)))
        time.sleep(0.1)
        assert not call.done()
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        with FakeDaemon(path, answer(RESULT)):
            assert call.result().code == 0


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
@pytest.mark.parametrize(
    ("behaviour", "members", "why"),
    [
        (None, {"connectTimeoutMs": 60}, "connect: No such file or directory"),
        (hold_open(b"HTTP/1.1 200"), {"answerTimeoutMs": 60}, "read: (Connection|Operation) timed out"),
        # The last try of these two may start so late that it is cut off by the deadline.
        (die, {"answerTimeoutMs": 60}, "the connection ended before a whole answer came|timed out"),
        (send(b"?\r\n\r\n"), {"answerTimeoutMs": 60}, "the answer is not HTTP|timed out"),
    ],
    ids=["away", "hangs", "dies", "babbles"],
)
def test_past_the_deadline_it_says_what_it_tried(
    plugin: Plugin, command: str, code: int, behaviour: Any, members: dict[str, int], why: str
):
    with FakeDaemon(plugin.socket, behaviour) if behaviour else contextlib.nullcontext() as daemon:
        outcome = plugin.run(command, plugin.config(**members, cniVersion="1.0.0"))
    assert (outcome.error["code"], outcome.error["cniVersion"]) == (code, "1.0.0")
    tried, _, advice = outcome.error["msg"].partition("; ")
    assert tried.startswith(f"{command}: no answer from the daemon on {plugin.socket} (")
    assert advice == "is the aws-node pod of this node running?"
    assert re.search(why, tried)
    assert 0.05 < outcome.elapsed_s < 2
    tries = range(2, 8) if "|timed out" in why else range(1, 2)  # pauses of 2, 4, 8, 16, 32 ms and the rest
    assert daemon is None or len(daemon.requests) in tries


def test_a_daemon_that_does_not_read_cannot_hold_it(plugin: Plugin):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(plugin.socket))
        deaf.listen()
        outcome = plugin.run("ADD", plugin.config(padding="x" * 1_000_000, answerTimeoutMs=60))
    assert outcome.error["code"] == 11
    assert "write: " in outcome.error["msg"]


def test_being_stopped_and_continued_changes_nothing(plugin: Plugin):
    text = plugin.home / "config"
    text.write_text(json.dumps(plugin.config()))
    with (
        FakeDaemon(plugin.socket, trickle(http(BODY), 0.0005)) as daemon,
        text.open() as stdin,
        ended(plugin.start("ADD", stdin.fileno(), {})) as process,
    ):
        while not daemon.requests and process.poll() is None:
            time.sleep(0.001)
        for _ in range(5):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.002)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.002)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, BODY, b"")


@pytest.mark.slow
def test_a_hundred_adds_at_once_each_get_their_own_answer(plugin: Plugin):
    def call(number: int) -> Outcome:
        return plugin.run("ADD", None, {"CNI_CONTAINERID": f"c{number}"})

    with FakeDaemon(plugin.socket, answer(RESULT), backlog=4) as daemon, ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(call, range(100)))
    assert [outcome.code for outcome in outcomes] == [0] * 100
    assert sorted(body["containerId"] for body in daemon.bodies) == sorted(
        f"c{number}" for number in range(100)
    )


def test_a_result_that_cannot_be_printed_is_no_success(plugin: Plugin):
    with FakeDaemon(plugin.socket, answer(RESULT)), Path("/dev/full").open("wb") as full:
        assert plugin.run("ADD", stdout=full.fileno()).code == 1


def test_a_warning_that_cannot_be_printed_does_not_make_a_good_status_bad(plugin: Plugin):
    with FakeDaemon(plugin.socket, answer(WARNED)), Path("/dev/full").open("wb") as full:
        assert plugin.run("STATUS", stdout=full.fileno()).code == 0


def close_stdout() -> None:
    os.close(1)


def test_a_closed_stdout_does_not_become_the_socket(plugin: Plugin):
    with FakeDaemon(plugin.socket, answer(RESULT)) as daemon:
        assert plugin.run("ADD", preexec_fn=close_stdout).code == 1
    assert len(daemon.requests) == 1


# STATUS while the daemon is away

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "members"),
    [
        (None, {}),
        (None, {"connectTimeoutMs": 60_000, "answerTimeoutMs": 60_000}),
        (hold_open(b""), {}),
        (hold_open(b""), {"connectTimeoutMs": 60_000, "answerTimeoutMs": 60_000}),
        (hold_open(b"HTTP/1.1 200 OK\r\n"), {}),
        (die, {}),
        (send(b"?\r\n\r\n"), {}),
    ],
    ids=["away", "away, long", "hangs", "hangs, long", "half an answer", "dies", "babbles"],
)
def test_status_is_soon_good_when_nobody_answers_and_the_daemon_was_ready_in_this_boot(
    plugin: Plugin, behaviour: Any, members: dict[str, int]
):
    """0.8 s, also where the configuration gives the other verbs longer. Whatever fails, kubelet's look at the
    runtime waits for it; the harness of the fuzzer, whose clock no load disturbs, holds it to one second."""
    plugin.ready.write_text(BOOT_ID.read_text())
    with FakeDaemon(plugin.socket, behaviour) if behaviour else contextlib.nullcontext():
        outcome = plugin.run("STATUS", plugin.config(**members))
    assert (outcome.code, outcome.stdout) == (0, b"")
    assert 0.7 < outcome.elapsed_s < 3


@pytest.mark.slow
def test_status_without_the_marker_is_an_error_as_soon(plugin: Plugin):
    outcome = plugin.run("STATUS")
    assert outcome.error["code"] == 50
    assert outcome.elapsed_s < 3


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC"])
def test_the_marker_is_for_status_alone(plugin: Plugin, command: str):
    plugin.ready.write_text(BOOT_ID.read_text())
    assert plugin.run(command, plugin.config(connectTimeoutMs=0)).error["code"] == 11


def test_a_daemon_that_says_that_it_is_not_ready_is_believed(plugin: Plugin):
    plugin.ready.write_text(BOOT_ID.read_text())
    error = {"cniVersion": "1.1.0", "code": 50, "msg": "no ENI", "details": ""}
    with FakeDaemon(plugin.socket, answer(error, status="503 Service Unavailable")):
        assert plugin.run("STATUS").error == error


AT_ONCE = {"connectTimeoutMs": 0}


@pytest.mark.parametrize(
    ("marker", "why"),
    [
        (None, "No such file or directory"),
        (b"", "it does not hold the id of this boot"),
        (b"0b1c\n0b1c", "it does not hold the id of this boot"),
        (b"0b1c", "it does not hold the id of this boot"),
        (b"0b\n", "it does not hold the id of this boot"),
        (b"0b1", "it does not hold the id of this boot"),
        (b"0b1c\n\n", "it does not hold the id of this boot"),
        (b"0b1c\n\0", "it does not hold the id of this boot"),
        (b"0b1d\n", "it does not hold the id of this boot"),
        (b"0B1C\n", "it does not hold the id of this boot"),
        (b"\0" * 5, "it does not hold the id of this boot"),
        (b"0b1c\n" * 100_000, "File too large"),
    ],
    ids=["none", "empty", "twice", "no newline", "short", "torn", "more", "nul", "another", "case", "nuls", "big"],
)  # fmt: skip
def test_a_marker_that_is_not_whole_and_of_this_boot_is_no_success(
    plugin: Plugin, marker: bytes | None, why: str
):
    (plugin.home / "boot_id").write_text("0b1c\n")
    config = plugin.config(**AT_ONCE, bootIdPath=str(plugin.home / "boot_id"))
    if marker is not None:
        plugin.ready.write_bytes(marker)
    error = plugin.run("STATUS", config).error
    assert error["code"] == 50
    said = f"no sign that it was ready in this boot ({plugin.ready}: {why}); is the aws-node pod"
    assert said in error["msg"]
    plugin.ready.write_text("0b1c\n")
    assert plugin.run("STATUS", config).code == 0


@pytest.mark.parametrize("boot_id", [None, "", "\n"], ids=["none", "empty", "empty line"])
def test_without_a_boot_id_no_marker_is_a_success(plugin: Plugin, boot_id: str | None):
    if boot_id is not None:
        (plugin.home / "boot_id").write_text(boot_id)
    plugin.ready.write_text(boot_id or "")
    config = plugin.config(**AT_ONCE, bootIdPath=str(plugin.home / "boot_id"))
    error = plugin.run("STATUS", config).error
    assert error["code"] == 50
    assert "read the boot id: " in error["msg"]


@pytest.mark.parametrize("kind", ["directory", "pipe", "pipe with a writer", "socket"])
def test_what_is_no_file_in_the_marker_s_place_neither_counts_nor_holds_it(plugin: Plugin, kind: str):
    with contextlib.ExitStack() as stack:
        if kind == "directory":
            plugin.ready.mkdir()
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(plugin.ready))
        else:
            os.mkfifo(plugin.ready)
        if kind == "pipe with a writer":
            stack.callback(os.close, os.open(plugin.ready, os.O_RDWR))
        outcome = plugin.run("STATUS", plugin.config(**AT_ONCE))
    assert outcome.error["code"] == 50
    assert str(plugin.ready) in outcome.error["msg"]
    assert outcome.elapsed_s < 3


def test_the_marker_may_lie_elsewhere(plugin: Plugin):
    elsewhere = plugin.home / "a" / "mark"
    config = plugin.config(**AT_ONCE, readyPath=str(elsewhere))
    plugin.ready.write_text(BOOT_ID.read_text())
    assert str(elsewhere) in plugin.run("STATUS", config).error["msg"]
    elsewhere.parent.mkdir()
    plugin.ready.rename(elsewhere)
    assert plugin.run("STATUS", config).code == 0


# The spool


@pytest.mark.parametrize(
    ("behaviour", "members"),
    [
        (None, {"connectTimeoutMs": 0}),
        (hold_open(b""), {"answerTimeoutMs": 60}),
        (die, {"answerTimeoutMs": 60}),
        (send(b"?\r\n\r\n"), {"answerTimeoutMs": 60}),
    ],
    ids=["away", "hangs", "dies", "babbles"],
)
def test_a_del_without_an_answer_is_kept(plugin: Plugin, behaviour: Any, members: dict[str, Any]):
    spool = plugin.home / "a" / "b" / "spool"
    config = plugin.config(**members, spool=f"/{spool}//")
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with FakeDaemon(plugin.socket, behaviour) if behaviour else contextlib.nullcontext():
        outcome = plugin.run("DEL", config)
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert (outcome.code, outcome.stdout) == (0, b"")
    (path,) = spool.iterdir()
    entry = json.loads(path.read_bytes())
    asked_ns = entry.pop("boottimeNs")
    assert (
        before_ns < asked_ns < after_ns - 50_000_000 * bool(behaviour)
    )  # when it was asked, not when it was kept
    assert path.name.startswith(f"{asked_ns:020}-")
    assert path.name.removeprefix(f"{asked_ns:020}-").removesuffix(".json").isdigit()
    assert entry == {
        "version": 1,
        "bootId": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "request": {
            "command": "DEL",
            "containerId": "0a1b2c",
            "netns": "/var/run/netns/cni-x",
            "ifname": "eth0",
            "path": "/opt/cni/bin",
            "args": ENVIRONMENT["CNI_ARGS"],
            "config": config,
        },
    }
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [made.stat().st_mode & 0o7777 for made in (spool, spool.parent, spool.parent.parent)] == [
        0o700
    ] * 3


def test_the_boot_id_may_come_from_elsewhere(plugin: Plugin):
    (plugin.home / "boot_id").write_text('node "b"\n')
    config = plugin.config(connectTimeoutMs=0, bootIdPath=str(plugin.home / "boot_id"))
    assert [plugin.run("DEL", config).code for _ in range(3)] == [0, 0, 0]
    assert [entry["bootId"] for entry in plugin.entries()] == ['node "b"'] * 3
    times = [entry["boottimeNs"] for entry in plugin.entries()]
    assert times == sorted(times)


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def limit_open_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))  # one at a time, which no walk can do with


@pytest.mark.parametrize(
    ("members", "options", "why"),
    [
        ({"spool": "{home}/file/spool"}, {}, "Not a directory"),
        ({"spool": "{home}/file"}, {}, "Not a directory"),
        ({"spool": "{home}/dangling"}, {}, "No such file or directory"),
        ({"spool": "/proc/spool"}, {}, "No such file or directory"),
        ({"spool": "/" + "a" * 300}, {}, "name too long"),
        ({"spool": "/" + "a/" * 400_000}, {}, "name too long"),
        ({}, {"preexec_fn": limit_file_size}, "File too large"),
        ({}, {"preexec_fn": limit_open_files}, "open the directory: "),
        ({"bootIdPath": "{home}/none"}, {}, "No such file or directory"),
        ({"bootIdPath": "{home}/file"}, {}, "the file is empty"),
        ({"bootIdPath": "{home}"}, {}, "Is a directory"),
    ],
)
def test_a_del_that_cannot_be_kept_is_no_success(
    plugin: Plugin, members: dict[str, str], options: dict[str, Any], why: str
):
    (plugin.home / "file").touch()
    (plugin.home / "dangling").symlink_to(plugin.home / "nowhere" / "else")
    paths = {key: value.format(home=plugin.home) for key, value in members.items()}
    error = plugin.run("DEL", plugin.config(connectTimeoutMs=0) | paths, **options).error
    assert error["code"] == 11
    assert why in error["msg"]
    assert "cannot be kept in" in error["msg"]
    assert not plugin.spool.exists() or list(plugin.spool.iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_instant_it_leaves_no_part_of_an_entry(plugin: Plugin):
    """SIGKILL at 200 instants spread over the life of a DEL that goes into the spool."""
    chance = random.Random(20)
    config = plugin.config(connectTimeoutMs=0, padding="x" * 50_000)
    text = plugin.home / "config"
    text.write_text(json.dumps(config))
    life_s = min(plugin.run("DEL", config).elapsed_s for _ in range(5))
    kept = len(plugin.entries())
    killed = 0
    for _ in range(200):
        with text.open() as stdin:
            process = plugin.start("DEL", stdin.fileno(), {})
        with process:
            time.sleep(chance.uniform(0, life_s))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        kept += process.returncode == 0
    entries = plugin.entries()  # each of them parses
    assert {entry["request"]["config"]["padding"] for entry in entries} == {config["padding"]}
    assert killed > 0
    assert kept <= len(entries) <= kept + killed


# The builds


@pytest.mark.slow
@pytest.mark.parametrize("binary", ["release"], indirect=True)
def test_a_del_waits_two_seconds_for_the_daemon(plugin: Plugin):
    outcome = plugin.run("DEL")
    assert outcome.code == 0
    assert 1.9 < outcome.elapsed_s < 3
    assert len(plugin.entries()) == 1


@pytest.mark.slow
def test_the_deadlines_can_be_compiled_in(tmp_path: Path):
    deadlines = {
        "CONNECT_MS": 50,
        "DEL_CONNECT_MS": 0,
        "ADD_ANSWER_MS": 9000,
        "DEL_ANSWER_MS": 100,
        "ANSWER_MS": 100,
        "STATUS_MS": 1200,
    }
    flags = " ".join(f"-D{name}={value}" for name, value in deadlines.items())
    with tempfile.TemporaryDirectory(prefix="vpccni-") as home:
        plugin = Plugin(binary=build(tmp_path, f"CPPFLAGS={flags}") / "aws-cni", home=Path(home))
        assert plugin.run("ADD").elapsed_s < 1
        assert plugin.run("DEL").code == 0
        with FakeDaemon(plugin.socket, hold_open(b"")):
            assert plugin.run("CHECK").elapsed_s < 1
            assert plugin.run("STATUS").elapsed_s > 1.1


@pytest.mark.slow
def test_the_release_build_needs_nothing_from_the_host(tmp_path: Path):
    for compiler in ({}, {"CC": "gcc"}):
        image = (
            build(tmp_path / str(len(compiler)), *(f"{k}={v}" for k, v in compiler.items())) / "aws-cni"
        ).read_bytes()
        assert image[:4] == b"\x7fELF"
        assert b"/ld-" not in image  # no PT_INTERP: nothing is loaded at run time

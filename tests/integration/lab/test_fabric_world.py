"""A world is private, passes on what it should, and ends with everything in it."""

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from vpccni.lab.fabric import enter, namespaces

ENTER = [sys.executable, enter.__file__, "--die-with-parent", "--"]
REPOSITORY = Path(__file__).parents[3]
NOBODY = 65534


@pytest.fixture(autouse=True, scope="module")
def world_is_possible():
    if not enter.is_inside() and (reason := enter.why_impossible()):
        pytest.skip(reason.message)


def run_inside(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ENTER, "sh", "-c", script], capture_output=True, text=True, timeout=30)


def test_a_world_has_loopback_alone_and_its_names_stay_inside():
    outside = _names_outside()
    done = run_inside("ip netns add inside-only && ip netns && ip -br link && ip -br addr show lo && echo $$")
    assert done.returncode == 0, done.stderr
    names, link, address, pid = done.stdout.splitlines()
    assert names == "inside-only"
    assert link.split()[0] == "lo"
    assert "127.0.0.1/8" in address
    assert pid == "2"
    assert _names_outside() == outside


def test_what_was_in_run_is_still_seen_and_what_is_made_beside_it_is_not_kept():
    had = "netns" in os.listdir("/run")
    visible = sorted(set(os.listdir("/run")) - {"netns"})
    done = run_inside("ls -A /run")
    assert sorted(set(done.stdout.split()) - {"netns"}) == visible
    assert ("netns" in os.listdir("/run")) == had


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + 15), ("exec /no/such/program", 127)],
    ids=["success", "failure", "signal", "no such program"],
)
def test_the_exit_status_is_the_programs(script, status):
    assert run_inside(script).returncode == status


def test_a_program_that_does_not_exist_is_named():
    done = subprocess.run([*ENTER, "no-such-program"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 127
    assert done.stderr.startswith("no-such-program: ")


def test_a_signal_to_the_supervisor_reaches_the_program():
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.01; done"
    with subprocess.Popen([*ENTER, "sh", "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.stdout.read() == "got it\n"
        assert supervisor.wait(timeout=10) == 9


@pytest.mark.parametrize("how", ["the program ends", "the supervisor is killed"])
def test_nothing_outlives_a_world(how):
    """A daemon that detached itself, in a namespace of its own, ignoring SIGTERM, is the hardest to end."""
    mark = f"{os.getpid()}.{time.monotonic_ns() % 10**9}"  # a sleep that only this test can mean
    last = "sleep 60" if how == "the supervisor is killed" else "exit 0"
    script = f"""
        trap '' TERM HUP
        ip netns add deep
        setsid nsenter --net=/run/netns/deep sleep 1000{mark} >/dev/null 2>&1 </dev/null &
        until ip netns pids deep | grep -q .; do :; done
        echo ready
        {last}
    """
    with subprocess.Popen([*ENTER, "sh", "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        if how == "the supervisor is killed":
            assert _is_running(f"1000{mark}")
            supervisor.kill()
        supervisor.wait(timeout=10)
    deadline = time.monotonic() + 5
    while _is_running(f"1000{mark}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(f"1000{mark}")


def test_a_program_that_enters_runs_whole_inside_with_its_arguments(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from vpccni.lab.fabric.enter import enter_world, is_inside, supervisor_pid\n"
        "print('before', is_inside(), sys.argv[1:], flush=True)\n"
        "enter_world()\n"
        "print('after', is_inside(), os.geteuid(), supervisor_pid() > 2)\n"
        "sys.exit(4)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != enter.WORLD_VARIABLE}
    done = subprocess.run(
        [sys.executable, str(program), "--flag", "an argument"],
        capture_output=True, text=True, timeout=30, env={**environment, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    arguments = "['--flag', 'an argument']"
    assert done.stdout.splitlines() == [
        f"before False {arguments}",
        f"before True {arguments}",
        "after True 0 True",
    ]
    assert done.returncode == 4


def test_a_marker_that_leaked_from_another_world_is_not_believed(monkeypatch):
    monkeypatch.setenv(enter.WORLD_VARIABLE, "1:1")
    assert not enter.is_inside()
    assert enter.supervisor_pid() == 0
    with pytest.raises(enter.NoWorldError, match="private world"):
        namespaces.create("never")


def test_missing_programs_are_named_with_their_debian_package(monkeypatch):
    monkeypatch.delenv(enter.WORLD_VARIABLE, raising=False)
    monkeypatch.setitem(enter.NEEDED_PROGRAMS, "no-such-program", "no-such-package")
    reason = enter.why_impossible()
    assert reason is not None
    assert reason.code == "programs_missing"
    assert reason.message == "Not installed: no-such-program. As root: apt-get install no-such-package"


def test_a_user_without_user_namespaces_is_told_which_switch_is_off():
    """Inside a world, where the switch can be thrown without touching the machine."""
    if not _is_real_root():
        pytest.skip("this run is an ordinary user's: it cannot become another one")
    python, environment = _python_of_nobody()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from vpccni.lab.fabric import enter\n"
        "import os; os.environ.pop(enter.WORLD_VARIABLE)\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "print(enter._explain('unshare: No space left on device').message)\n"
    )
    done = subprocess.run(
        [*_as_nobody(), python, "-I", enter.__file__, "--", python, "-c", script, str(REPOSITORY)],
        capture_output=True, text=True, timeout=30, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "user.max_user_namespaces is 0" in done.stdout
    assert "sysctl -w user.max_user_namespaces=15000" in done.stdout


def test_a_marked_test_reports_from_inside_whatever_becomes_of_it(tmp_path):
    """Outside a world the hook runs marked tests in a child, and survives its death."""
    (tmp_path / "conftest.py").write_text(
        "from tests.netns import fabric, netns_world, pytest_runtest_protocol\n"
    )
    (tmp_path / "test_it.py").write_text(
        """
import os, pytest
from vpccni.lab.fabric.enter import is_inside

def test_unmarked(): assert not is_inside()
def test_unmarked_with_namespaces(netns_world): pass
@pytest.mark.netns
def test_passes(netns_world): assert "lo" in netns_world.sh(netns_world.add("one"), "ip link")
@pytest.mark.netns
def test_fails(): assert os.listdir("/run/netns") == ["it is empty"]
@pytest.mark.netns
def test_skips(): pytest.skip("because")
@pytest.mark.netns
def test_dies(): os.kill(os.getpid(), 9)
@pytest.mark.netns
def test_comes_too_late(): pass
"""
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n  netns: as in the project\nasyncio_mode = auto\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != enter.WORLD_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/tmp", "."],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
    )
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    outcome = {line[1]: line[0] for line in lines if line[0] in ("PASSED", "FAILED", "ERROR")}
    assert {name.partition("::")[2]: how for name, how in outcome.items()} == {
        "test_unmarked": "PASSED",
        "test_unmarked_with_namespaces": "ERROR",
        "test_passes": "PASSED",
        "test_fails": "FAILED",
        "test_dies": "FAILED",
        "test_comes_too_late": "FAILED",
    }, done.stdout
    assert "because" in done.stdout
    assert "it is empty" in done.stdout
    assert "test_dies: the world ended (exit status 137) before this test did" in done.stdout


@pytest.fixture
def directory():
    """A directory of user nobody's own: pytest's belong to root alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        if _is_real_root():
            os.chown(made, NOBODY, NOBODY)
        yield made


@pytest.mark.slow
def test_the_fabric_behaves_the_same_for_an_ordinary_user(directory):
    """What matters of the fabric's own suite, as user nobody, by way of a user namespace."""
    if not _is_real_root():
        pytest.skip("this run is an ordinary user's already")
    python, environment = _python_of_nobody()
    suite = str(Path(__file__).with_name("test_fabric.py"))
    done = subprocess.run(
        [*_as_nobody(), python, enter.__file__, "--die-with-parent", "--",
         python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={directory}/tmp", suite],
        capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def _names_outside() -> list[str]:
    return os.listdir("/run/netns") if os.path.isdir("/run/netns") else []


def _is_running(mark: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if command[:2] == [b"sleep", mark.encode()]:
            return True
    return False


def _is_real_root() -> bool:
    """Root over every user: setpriv can become nobody."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] != "1"


def _as_nobody() -> list[str]:
    # Through env: setpriv itself finds a program with root's rights, and only what that starts is nobody's.
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env"]


def _python_of_nobody() -> tuple[str, dict[str, str]]:
    """A Python that user nobody may execute, and an environment in which it finds what this one finds.

    This one may lie in a home directory that is closed to others; then the system's, if of the same version.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")]),
    }
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}"):
        tried = subprocess.run(
            [*_as_nobody(), python, "-c", "import pytest, pyroute2, msgspec, vpccni"],
            env=environment, capture_output=True, cwd="/",
        )  # fmt: skip
        if tried.returncode == 0:
            return python, environment
    pytest.skip(
        f"user nobody can execute neither {sys.executable} nor a system Python {version} with our packages"
    )

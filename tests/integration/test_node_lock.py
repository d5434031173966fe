"""Two agents of ours on one node notice each other, also when their state directories differ."""

import os
import signal
import subprocess
import sys

import pytest

from vpccni.adapters.node_lock import LOCK_NAME, NodeLock
from vpccni.errors import PermanentError, Reason

HOLD = """
import sys
from pathlib import Path
from vpccni.adapters.node_lock import NodeLock
lock = NodeLock(Path(sys.argv[1]), "pid 7, state directory /var/lib/other")
lock.take()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_agent(tmp_path):
    """A process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        yield process
        process.kill()


def lock_of(directory, holder="pid 8, state directory /var/lib/aws-node"):
    return NodeLock(directory, holder)


def test_the_second_agent_is_refused_and_told_who_the_first_is(tmp_path, other_agent):
    with pytest.raises(PermanentError) as refused:
        lock_of(tmp_path).take()
    assert refused.value.reason is Reason.ANOTHER_AGENT
    assert str(tmp_path / LOCK_NAME) in refused.value.detail
    assert "pid 7, state directory /var/lib/other" in refused.value.detail


def test_a_killed_agent_holds_nothing(tmp_path, other_agent):
    other_agent.send_signal(signal.SIGKILL)
    other_agent.wait()
    lock = lock_of(tmp_path)
    lock.take()
    assert (tmp_path / LOCK_NAME).read_text() == "pid 8, state directory /var/lib/aws-node\n"
    lock.close()


def test_two_in_one_process_exclude_each_other_too(tmp_path):
    first, second = lock_of(tmp_path), lock_of(tmp_path)
    first.take()
    first.take()
    with pytest.raises(PermanentError):
        second.take()
    first.close()
    first.close()
    second.take()
    second.close()


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path):
    """1. Somebody empties the run directory. 2. The next look makes the file anew. 3. A second agent is refused."""
    lock = lock_of(tmp_path)
    lock.take()
    (tmp_path / LOCK_NAME).unlink()
    lock.take()
    with pytest.raises(PermanentError):
        lock_of(tmp_path).take()
    lock.close()


def test_an_agent_that_lost_its_file_to_another_is_told_so(tmp_path):
    """1. The file is removed. 2. Another agent starts and locks a new one. 3. The first looks again."""
    first, second = lock_of(tmp_path), lock_of(tmp_path, "pid 9")
    first.take()
    (tmp_path / LOCK_NAME).unlink()
    second.take()
    with pytest.raises(PermanentError) as refused:
        first.take()
    assert refused.value.reason is Reason.ANOTHER_AGENT
    assert "pid 9" in refused.value.detail
    first.close()
    second.close()


def test_a_file_that_is_replaced_between_opening_and_locking_is_not_ours(tmp_path, monkeypatch):
    """1. We open the file. 2. It is replaced. 3. We lock what nobody else will ever find."""
    real_open = os.open
    opened = []

    def replace_once(path, *arguments, **more):
        fd = real_open(path, *arguments, **more)
        opened.append(fd)
        if len(opened) == 1:
            (tmp_path / "new").write_text("")
            (tmp_path / "new").replace(path)
        return fd

    monkeypatch.setattr(os, "open", replace_once)
    lock = lock_of(tmp_path)
    lock.take()
    assert len(opened) == 2
    with pytest.raises(PermanentError):
        lock_of(tmp_path).take()
    lock.close()


def test_the_run_directory_is_made_when_it_is_not_there(tmp_path):
    lock = lock_of(tmp_path / "a" / "b")
    lock.take()
    assert (tmp_path / "a" / "b" / LOCK_NAME).stat().st_mode & 0o777 == 0o600
    lock.close()


@pytest.mark.parametrize("kind", ["directory", "link", "no directory"])
def test_a_place_that_cannot_hold_the_lock_is_a_bad_setting(tmp_path, kind):
    if kind == "directory":
        (tmp_path / LOCK_NAME).mkdir()
    elif kind == "link":
        (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "file").touch()
        tmp_path = tmp_path / "file"
    with pytest.raises(PermanentError) as refused:
        lock_of(tmp_path).take()
    assert refused.value.reason is Reason.BAD_SETTING
    assert "--run-dir" in refused.value.detail


def test_the_lock_is_not_handed_on_to_programs_that_we_start(tmp_path):
    """One that outlives us would keep the next agent from starting."""
    lock = lock_of(tmp_path)
    lock.take()
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        lock.close()
        lock.take()
        child.kill()
    lock.close()

"""The note that a standing lab leaves."""

import os
import subprocess
import sys

import msgspec
import pytest

from vpccni.lab import standing_file
from vpccni.lab.standing_file import StandingLab, StandingNode

NODE = StandingNode(
    name="a", instance_id="i-1", instance_type="m5.large", netns="/run/netns/a", socket="/s", directory="/d",
    events="/e", log="/l",
)  # fmt: skip
NOTE = StandingLab(
    phase="ready", supervisor_pid=os.getpid(), supervisor_start=standing_file.start_time_of(os.getpid()),
    run_directory="/r", directory="/d", control="/c", nodes=(NODE,),
)  # fmt: skip


def test_a_note_is_read_as_it_was_written_and_leaves_no_other_file(tmp_path):
    standing_file.write(tmp_path / "new", NOTE)
    assert standing_file.read(tmp_path / "new") == NOTE
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [standing_file.FILE_NAME]
    standing_file.remove(tmp_path / "new")
    assert standing_file.read(tmp_path / "new") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"phase":"gone"}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / standing_file.FILE_NAME).write_bytes(content)
    assert standing_file.read(tmp_path) is None


def test_a_lab_runs_while_its_supervisor_lives():
    assert NOTE.is_running


def test_a_pid_that_another_process_has_by_now_is_not_the_supervisor():
    assert not msgspec.structs.replace(NOTE, supervisor_start=NOTE.supervisor_start - 1).is_running


def test_a_process_that_has_ended_has_no_start_time_not_even_as_a_zombie():
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # it has ended, or is about to
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert standing_file.start_time_of(process.pid) == 0
    process.communicate()
    assert standing_file.start_time_of(process.pid) == 0


def test_a_node_is_found_by_its_name():
    assert NOTE.node("a") == NODE
    assert NOTE.node("z") is None

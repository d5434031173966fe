"""Asking executables for their versions: real programs, well behaved and not."""

import os
import time
from pathlib import Path

import pytest

from vpccni.adapters.cni_files import PLUGIN_PLACES
from vpccni.adapters.cni_versions import ask_versions
from vpccni.conflist import CNI_VERSIONS

DEBIANS = Path("/usr/lib/cni")
PATIENCE_S = 0.5
"""For programs that never answer."""


def script(directory, name, text):
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_our_executable_speaks_every_version():
    plugin = next((place for place in PLUGIN_PLACES if place.is_file()), None)
    if plugin is None:
        pytest.skip("the executable is not built: make plugin")
    answer = ask_versions(plugin.parent, [plugin.name])[plugin.name]
    assert answer.versions == set(CNI_VERSIONS)
    assert (answer.is_there, answer.problem) == (True, "")


def test_a_reference_plugin_says_what_it_speaks():
    if not (DEBIANS / "portmap").exists():
        pytest.skip(f"no portmap in {DEBIANS}: install containernetworking-plugins")
    answers = ask_versions(DEBIANS, ["portmap", "bandwidth"])
    assert all({"0.4.0", "1.0.0"} <= answer.versions for answer in answers.values())


def test_an_executable_gets_its_configuration_the_verb_and_nothing_else_of_our_environment(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    script(
        tmp_path,
        "it",
        f'env >{tmp_path}/env; cat >{tmp_path}/config; echo \'{{"supportedVersions":["1.0.0"]}}\'',
    )
    assert ask_versions(tmp_path, ["it"])["it"].versions == {"1.0.0"}
    environment = (tmp_path / "env").read_text()
    assert "CNI_COMMAND=VERSION\n" in environment
    assert "hush" not in environment
    assert (tmp_path / "config").read_text() == '{"cniVersion":"1.1.0"}'


@pytest.mark.parametrize("name", ["portmap", "../it", "/bin/true", "..", "n\0l", "x" * 300])
def test_what_is_no_executable_of_the_directory_is_told_and_not_run(tmp_path, name):
    directory = tmp_path / "bin"
    directory.mkdir()
    script(tmp_path, "it", f"touch {tmp_path}/was-run")
    answer = ask_versions(directory, [name])[name]
    assert not answer.is_there
    assert not answer.versions
    assert answer.problem
    assert not (tmp_path / "was-run").exists()


def test_a_file_counts_only_when_it_can_be_run(tmp_path):
    path = script(tmp_path, "portmap", "echo")
    path.chmod(0o644)
    assert not ask_versions(tmp_path, ["portmap"])["portmap"].is_there
    path.chmod(0o755)
    assert ask_versions(tmp_path, ["portmap"])["portmap"].is_there


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo oops; exit 1", "oops"),
        ("exit 0", "b''"),
        ('echo \'{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}\'; exit 1', "unknown CNI_COMMAND"),
        ('echo \'{"supportedVersions":"1.0.0"}\'', "1.0.0"),
        ("echo '{\"supportedVersions\":[]}'", "[]"),
        ("exec cat /dev/zero", "x00"),
    ],
    ids=["no JSON", "nothing", "an error", "not a list", "an empty list", "without an end"],
)
def test_an_answer_without_versions_is_told(tmp_path, text, said):
    script(tmp_path, "it", text)
    answer = ask_versions(tmp_path, ["it"])["it"]
    assert (answer.is_there, answer.versions) == (True, frozenset())
    assert said in answer.problem
    assert len(answer.problem) < 600


def test_a_file_that_is_no_program_is_told(tmp_path):
    (tmp_path / "it").write_bytes(b"\x7fELF")
    (tmp_path / "it").chmod(0o755)
    answer = ask_versions(tmp_path, ["it"])["it"]
    assert answer.is_there
    assert "cannot be run here" in answer.problem


@pytest.mark.slow
def test_programs_that_never_answer_are_killed_with_what_they_started_and_wait_at_the_same_time(tmp_path):
    for name in ("a", "b", "c"):
        script(tmp_path, name, f"sleep 1000 & echo $! >{tmp_path}/{name}.pid; wait")
    script(tmp_path, "good", 'echo \'{"supportedVersions":["0.4.0"]}\'')
    began = time.monotonic()
    answers = ask_versions(tmp_path, ["a", "b", "c", "good"], timeout_s=PATIENCE_S)
    assert time.monotonic() - began < 2 * PATIENCE_S
    assert answers["good"].versions == {"0.4.0"}
    assert "within 0.5 s" in answers["a"].problem
    for name in ("a", "b", "c"):
        wait_gone(int((tmp_path / f"{name}.pid").read_text()))


@pytest.mark.slow
def test_a_program_that_leaves_somebody_behind_with_its_output_is_not_waited_for(tmp_path):
    script(
        tmp_path, "it", f'sleep 1000 & echo $! >{tmp_path}/pid; echo \'{{"supportedVersions":["0.4.0"]}}\''
    )
    answer = ask_versions(tmp_path, ["it"], timeout_s=PATIENCE_S)["it"]
    assert "within 0.5 s" in answer.problem
    wait_gone(int((tmp_path / "pid").read_text()))


def wait_gone(pid):
    """Until a killed process is reaped by whoever has inherited it, or is dead at least."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    pytest.fail(f"{pid} lives on")

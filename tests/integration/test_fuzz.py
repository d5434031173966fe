"""The short forms of the fuzzers, with fixed seeds; the long ones are ``make fuzz``."""

from __future__ import annotations

import shutil

import pytest

from tests.fuzz import log, plugin, socket

CORPUS = sorted(plugin.CORPUS.iterdir())
RUNS = 40_000


@pytest.mark.netns
@pytest.mark.slow
async def test_nothing_that_is_sent_to_the_socket_disturbs_the_agent():
    tally = await socket.fuzz(seed=1, requests=20_000)
    print(tally)
    assert tally.wrong == [], str(tally)
    assert tally.total >= 20_000
    assert tally.adds > 0  # the run was one: real leases came and went meanwhile
    assert tally.control > 0


@pytest.mark.slow
async def test_a_damaged_log_is_refused_or_has_its_whole_history():
    tally = await log.fuzz(seed=1, damages=250)
    print(tally)
    assert tally.wrong == [], str(tally)
    assert {name.split()[-1] for name in tally.outcomes} == {"refused", "shorter", "whole"}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["clang", "gcc"])
def test_the_executable_stands_every_input_of_the_corpus(tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    program = plugin.build(tmp_path, fuzzer=False, compiler=compiler)
    assert plugin.judge(program, CORPUS) == []


@pytest.mark.slow
def test_the_executable_stands_the_fuzzer_for_some_seconds(tmp_path):
    if missing := plugin.why_no_fuzzer(tmp_path):
        pytest.skip(f"{missing}; the corpus is replayed without it")
    found = tmp_path / "found"
    found.mkdir()
    done = plugin.fuzz(plugin.build(tmp_path, fuzzer=True), found, f"-runs={RUNS}", "-seed=1")
    assert done.returncode == 0, done.stderr[-4000:]
    inputs = sorted(found.iterdir())
    assert len(inputs) > 50  # it found its way in
    assert plugin.judge(plugin.build(tmp_path, fuzzer=False), inputs) == []


def test_an_outcome_that_is_wrong_is_seen():
    good = {"status": 1, "kept": False, "answered": False, "printed": "", "sent": "", "entry": ""}
    assert plugin.wrong_in(good) == ""
    for text in (
        b"{",
        b"[]",
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b"{}",
        b'{"cniVersion":"","code":1,"msg":"","details":""}',
    ):
        assert plugin.wrong_in(good | {"printed": text.hex()}), text
    assert plugin.wrong_in(good | {"kept": True, "entry": b'{"request":{"command":"ADD"}}'.hex()})
    assert plugin.wrong_in(good | {"status": -6})

"""Planted bugs: every patch fits the package as it is, and some of them are planted and must be found."""

from __future__ import annotations

import shutil

import pytest

from tests.sim.mutants import planting

pytestmark = pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")


def test_every_patch_applies_and_says_what_it_breaks(tmp_path):
    planting.copy_package(tmp_path)
    troubles = {path.stem: planting.apply(path, tmp_path, "--dry-run") for path in planting.patches()}
    assert {name: said for name, said in troubles.items() if said} == {}
    assert len(troubles) >= 40
    rules = [planting.header_of(path)[0] for path in planting.patches()]
    assert all(rule.endswith(".") for rule in rules)
    assert len(set(rules)) == len(rules)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "answered_before_it_is_on_the_disk",
        "cooldown_forgotten",
        "intended_after_the_call",
        "prefix_judged_by_its_first_address",
    ],
)
def test_a_planted_bug_is_found(name, tmp_path):
    verdict = planting.hunt(planting.HERE / f"{name}.patch", tmp_path, seeds=3)
    assert verdict.state == "found", verdict


# -- that not everything counts as found ----------------------------------------------------------------

PATCH = """\
A planted slip.

--- a/vpccni/planner/assign.py
+++ b/vpccni/planner/assign.py
@@ -1,1 +1,2 @@
+{line}
 {first}
"""


def _planted(line: str, where) -> planting.Verdict:
    first = (planting.ROOT / "vpccni/planner/assign.py").read_text().splitlines()[0]
    patch = where / "slip.patch"
    patch.write_text(PATCH.format(line=line, first=first))
    (where / "copy").mkdir()
    return planting.hunt(patch, where / "copy", seeds=1)


def test_a_package_that_cannot_be_imported_is_not_a_bug_that_was_found(tmp_path):
    verdict = _planted("no Python", tmp_path)
    assert (verdict.state, verdict.said) == ("crashed", "SyntaxError: invalid syntax")


def test_a_patch_for_another_package_does_not_apply(tmp_path):
    patch = tmp_path / "stale.patch"
    patch.write_text(PATCH.format(line="x = 1", first="what no longer stands there"))
    (tmp_path / "copy").mkdir()
    assert planting.hunt(patch, tmp_path / "copy", seeds=1).state == "does not apply"


@pytest.mark.parametrize(
    "said",
    [
        "n0/cn0-1: ADD was refused with {'reason': 'internal', 'details': 'NameError'}",
        "the workload itself failed: KeyError('n0')",
        "the simulator itself failed: KeyError('n0')",
        "n1: the agent ended by itself: KeyError: 7",
    ],
)
def test_a_stumble_is_not_a_broken_promise(said):
    assert planting.is_stumble(said)


@pytest.mark.parametrize(
    "said",
    [
        "n1: the agent ended by itself: InvariantBrokenError: invariant_broken: append of event 138",
        "10.0.0.7 has two holders: n0/cn0-1 and, acknowledged now, n0/cn0-2",
    ],
)
def test_a_broken_promise_is_not_a_stumble(said):
    assert not planting.is_stumble(said)

"""A demo's figures and verdict."""

import json

import pytest

from vpccni.lab.report import DemoReport, percentile

KEYS = {
    "nodes", "pods", "pings_ok", "pings_total", "internet_ok", "internet_total", "adds", "add_p50_ms", "add_p99_ms",
    "lost_leases", "duplicate_addresses", "orphan_enis", "restart_to_first_add_ms", "ec2_calls", "events", "chain_ok",
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 101)], 1.0, 100.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(values, share, wanted):
    assert percentile(values, share) == wanted


def test_a_demo_that_checked_nothing_did_not_succeed():
    assert not DemoReport().ok


def test_one_check_that_fails_decides():
    report = DemoReport()
    assert report.check("one", True)
    assert report.ok
    assert not report.check("two", False, "because")
    report.check("three", True)
    assert not report.ok


def test_checks_of_two_reports_are_not_shared():
    DemoReport().check("one", True)
    assert DemoReport().checks == []


def test_the_file_has_the_keys_that_others_read(tmp_path):
    path = tmp_path / "deep" / "report.json"
    report = DemoReport(nodes=2)
    report.check("one", False, "why")
    report.write(path)
    said = json.loads(path.read_text())
    assert set(said) >= KEYS
    assert said["checks"] == [{"name": "one", "ok": False, "detail": "why"}]
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]

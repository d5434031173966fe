"""Tests that touch the kernel: the mark ``netns``, and fixtures that give namespaces and a fabric.

A test with this mark runs in a *world* (see ``vpccni.lab.fabric.enter``): network, mount and PID namespaces
of its own, so that it cannot change the machine, and so that nothing of it survives, not even after a crash.
It works as root and as an ordinary user. When pytest itself was not started inside a world, the marked tests
of the session run in one pytest child inside a world, started with the first of them, and their reports
appear here as if they had run here. Where no world is possible they are skipped, with what is missing.

To use it, a ``conftest.py`` of the directory (or one above) says::

    from tests.netns import *

To run with a debugger, be inside from the start::

    python vpccni/lab/fabric/enter.py -- python -m pytest --pdb tests/integration/…
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vpccni.lab.fabric import enter, namespaces
from vpccni.lab.fabric.fabric import Fabric
from vpccni.lab.fabric.namespaces import Namespace

T = TypeVar("T")

__all__ = ["fabric", "netns_world", "pytest_runtest_protocol"]

REPORT_TIMEOUT_S = 180
"""One test inside a world may take this long before it counts as hanging."""

_REPORTS_VARIABLE = "VPCCNI_TEST_REPORTS"  # in the child: the descriptor to which it writes its reports
_REPORTER = "netns-reporter"
_delegate_key: pytest.StashKey[Delegate | enter.Reason] = pytest.StashKey()


class NetnsWorld:
    """Bare namespaces for one test. When it ends, what runs inside is killed and they are removed."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []

    def add(self, name: str, *, loopback: bool = True) -> Namespace:
        """Make a namespace."""
        made = namespaces.create(f"test-{name}")
        self._made.append(made)
        if loopback:
            namespaces.set_lo_up(made)
        return made

    def run_in(self, namespace: Namespace, call: Callable[[], T]) -> T:
        """Call on a thread inside the namespace."""
        return namespaces.run_in(namespace, call)

    def sh(self, namespace: Namespace, script: str) -> str:
        """Run a shell script inside; return what it prints. A failing command fails the test."""
        return shell(namespace, script)

    def close(self) -> None:
        """Remove what was made."""
        while self._made:
            namespaces.remove(self._made.pop())


def shell(namespace: Namespace, script: str) -> str:
    """Run a shell script inside a namespace and return what it prints; a failing command fails the test."""
    done = subprocess.run(
        ["nsenter", f"--net={namespace.path}", "--", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if done.returncode != 0:
        pytest.fail(f"in {namespace.name}, exit status {done.returncode}: {done.stderr}\n{script}")
    return done.stdout


@pytest.fixture
def netns_world() -> Iterator[NetnsWorld]:
    """Bare namespaces, made on demand. The test must have the mark ``netns``."""
    _require_inside()
    world = NetnsWorld()
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    """An open fabric with the VPC 10.0.0.0/16 and no node yet. The test must have the mark ``netns``."""
    _require_inside()
    async with Fabric(name="test") as opened:
        yield opened


def _require_inside() -> None:
    if not enter.is_inside():
        pytest.fail("a test with namespaces needs the mark netns, and its conftest the hook of tests.netns")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test inside a world; leave any other to pytest."""
    if item.get_closest_marker("netns") is None:
        return None
    if enter.is_inside():
        _report_to_parent(item.config)
        return None
    delegate = _delegate_of(item.session)
    if isinstance(delegate, enter.Reason):
        item.add_marker(pytest.mark.skip(reason=delegate.message))
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in delegate.reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # This test set up nothing here; what the one before it left is torn down for the next.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def _delegate_of(session: pytest.Session) -> Delegate | enter.Reason:
    if _delegate_key not in session.stash:
        session.stash[_delegate_key] = enter.why_impossible() or Delegate(session)
    return session.stash[_delegate_key]


def _report_to_parent(config: pytest.Config) -> None:
    if _REPORTS_VARIABLE in os.environ and not config.pluginmanager.has_plugin(_REPORTER):
        config.pluginmanager.register(_Reporter(config, int(os.environ[_REPORTS_VARIABLE])), _REPORTER)


class _Reporter:
    """In the child: writes each report, and then the end of each test, as a line of JSON."""

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self._config = config
        self._out = os.fdopen(os.dup(descriptor), "w")
        config.add_cleanup(self._out.close)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"finished": nodeid})

    def _write(self, line: Any) -> None:
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()


def _temporary_root() -> Path:
    """One for each real user: inside, everybody is root, and pytest would look for root's own directory."""
    root = Path(tempfile.gettempdir()) / f"vpccni-pytest-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    return root


class Delegate:
    """In the parent: the pytest child inside a world, which runs all marked tests of this session."""

    def __init__(self, session: pytest.Session) -> None:
        config = session.config
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._finished: set[str] = set()
        self._unread = b""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._reports_in, reports_out = os.pipe()
        chosen = [item.nodeid for item in session.items if item.get_closest_marker("netns") is not None]
        ini = ["-c", str(config.inipath)] if config.inipath else []
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--rootdir={config.rootpath}",
            *ini,
        ]
        self._process = subprocess.Popen(
            [sys.executable, enter.__file__, "--die-with-parent", "--", *command, *chosen],
            cwd=config.rootpath,
            env={
                **os.environ,
                _REPORTS_VARIABLE: str(reports_out),
                "PYTEST_DEBUG_TEMPROOT": str(_temporary_root()),
            },
            pass_fds=[reports_out],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        os.close(reports_out)
        config.add_cleanup(self.close)

    def reports_of(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait until the child has finished this test; return its reports, or one that says why not."""
        deadline = time.monotonic() + REPORT_TIMEOUT_S
        while item.nodeid not in self._finished:
            ready, _, _ = select.select([self._reports_in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.stop()
                return [
                    self._failure(item, f"did not finish within {REPORT_TIMEOUT_S} s; its world was ended")
                ]
            data = os.read(self._reports_in, 1 << 20)
            if not data:
                return [
                    self._failure(
                        item, f"the world ended (exit status {self._process.wait()}) before this test did"
                    )
                ]
            self._take(data)
        return self._reports.pop(item.nodeid, [])

    def stop(self) -> None:
        """End the child and with it its world. A further test then finds the pipe at its end."""
        if self._process.poll() is None:
            self._process.kill()  # nothing inside needs a farewell: the kernel ends all of it
            self._process.wait()

    def close(self) -> None:
        """Stop, and give back the descriptors."""
        self.stop()
        os.close(self._reports_in)
        self._output.close()

    def _take(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in map(json.loads, lines):
            if "finished" in line:
                self._finished.add(line["finished"])
                continue
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=line)
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)  # a skip's place and reason: JSON has no tuples
            self._reports.setdefault(report.nodeid, []).append(report)

    def _failure(self, item: pytest.Item, why: str) -> pytest.TestReport:
        self._output.seek(0)
        said = self._output.read()[-8000:].decode(errors="replace")
        text = f"{item.nodeid}: {why}\n\n{said}"
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=text,
            when="call",
        )

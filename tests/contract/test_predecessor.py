"""The predecessor port: a real Unix socket and real files, and the fake."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.predecessor import FakePredecessor
from vpccni.adapters.predecessor import VpcCni
from vpccni.errors import TransientError
from vpccni.ports import Predecessor


@dataclass(frozen=True)
class Original:
    """The original's daemon, and the port that looks at it."""

    port: Predecessor
    start: Callable[[], Any]
    hang: Callable[[], Any]
    die: Callable[[], Any]
    pin: Callable[[str], Any]
    hide_pins: Callable[[], Any]


@pytest.fixture(params=["socket", "fake"])
def original(request: Any, tmp_path: Path) -> Iterator[Original]:
    if request.param == "fake":
        fake = FakePredecessor()

        def die() -> None:
            fake.is_alive = fake.is_hanging = False

        yield Original(
            fake,
            lambda: setattr(fake, "is_alive", True),
            lambda: setattr(fake, "is_hanging", True),
            die,
            fake.pins.add,
            lambda: setattr(fake, "are_pins_readable", False),
        )
        return
    run, pins = tmp_path / "run", tmp_path / "bpf" / "programs"
    run.mkdir()

    def pin(name: str) -> None:
        pins.mkdir(parents=True, exist_ok=True)
        (pins / name).touch()

    def hide_pins() -> None:
        pins.parent.mkdir(parents=True)
        pins.touch()

    with ExitStack() as stack:
        yield Original(
            VpcCni(run, pins),
            lambda: _listen(run / "ipamd.sock", stack, backlog=8),
            lambda: _fill(_listen(run / "ipamd.sock", stack, backlog=0), stack),
            stack.close,
            pin,
            hide_pins,
        )


def _listen(path: Path, stack: ExitStack, *, backlog: int) -> Path:
    """As the original does it: the old socket is removed and a new one made."""
    path.unlink(missing_ok=True)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(str(path))
    listener.listen(backlog)
    return path


def _fill(path: Path, stack: ExitStack) -> None:
    """Connect until a further caller would have to wait."""
    while True:
        caller = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except BlockingIOError:
            return


async def test_a_node_without_its_socket_has_no_living_original(original: Original) -> None:
    assert await original.port.living() == ""


async def test_a_socket_that_answers_means_that_it_lives(original: Original) -> None:
    original.start()
    assert "ipamd.sock answers" in await original.port.living()
    assert "ipamd.sock answers" in await original.port.living()


async def test_a_socket_that_its_process_left_behind_means_nothing(original: Original) -> None:
    original.start()
    original.die()
    assert await original.port.living() == ""


async def test_an_original_that_comes_back_is_seen(original: Original) -> None:
    original.start()
    original.die()
    original.start()
    assert await original.port.living() != ""


async def test_a_process_that_holds_the_socket_and_accepts_nobody_lives(original: Original) -> None:
    original.hang()
    assert "does not answer" in await original.port.living()


async def test_without_the_directory_of_pins_no_policy_is_enforced(original: Original) -> None:
    assert await original.port.enforced_policies() == ()


async def test_pinned_programs_are_named(original: Original) -> None:
    original.pin("web-7d9@default_handle_ingress")
    original.pin("db@default_handle_egress")
    assert await original.port.enforced_policies() == (
        "db@default_handle_egress",
        "web-7d9@default_handle_ingress",
    )


async def test_pins_that_cannot_be_listed_are_not_none(original: Original) -> None:
    original.hide_pins()
    with pytest.raises(TransientError, match="programs"):
        await original.port.enforced_policies()

"""Conversations through pods that live while the story of a test goes on, and what each part of it costs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.integration.talk import Talk, talking
from vpccni.lab.fabric.namespaces import Namespace

WORDS = 5


class Flows:
    """The conversations.

    Attributes:
        told: What each phase cost, one sentence each.
    """

    def __init__(self, talks: list[Talk]) -> None:
        self._talks = talks
        self.told: list[str] = []

    def connect(self, name: str, source: Namespace, target: Namespace, address: str, port: int) -> None:
        """Connect from a namespace to an address of another one, and begin to talk."""
        self._talks.append(Talk(name, client=source.path, server=target.path, address=address, port=port))

    @contextlib.contextmanager
    def phase(self, name: str, retransmissions_max: int = 1) -> Iterator[None]:
        """A part of the story. After it every conversation goes on, and no end has sent more than that again."""
        before = [talk.retransmissions_by_end() for talk in self._talks]
        for talk in self._talks:
            talk.longest_s = 0.0
        yield
        for talk, count in [(talk, talk.words + WORDS) for talk in self._talks]:
            talk.wait_words(count)
        again = {
            talk.name: tuple(
                now - then for now, then in zip(talk.retransmissions_by_end(), ends, strict=True)
            )
            for talk, ends in zip(self._talks, before, strict=True)
        }
        longest_ms = max(talk.longest_s for talk in self._talks) * 1000
        self.told.append(f"{name}: {again}, {longest_ms:.0f} ms at the longest")
        assert max(map(max, again.values())) <= retransmissions_max, self.told

    def finish(self) -> None:
        """End all in order: none has lost a word."""
        while self._talks:
            assert self._talks.pop().finish() > WORDS


@contextlib.contextmanager
def open_flows() -> Iterator[Flows]:
    """Conversations for the length of the block; what is left of them is ended."""
    with talking([]) as talks:
        yield Flows(talks)

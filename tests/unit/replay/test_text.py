"""Words for every event, and columns that line up."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.data.event_samples import EVENTS, record
from vpccni.events.codec import KIND_OF, UnknownEvent
from vpccni.replay.text import event_text, plain, record_json, table


@pytest.mark.parametrize("event", EVENTS, ids=[KIND_OF[type(event)] for event in EVENTS])
def test_every_event_has_one_line_of_words(event):
    words = event_text(event)
    assert words
    assert words.isprintable()


@pytest.mark.parametrize("event", EVENTS, ids=[KIND_OF[type(event)] for event in EVENTS])
def test_every_event_is_plain_data(event):
    shown = record_json(record(7, event))
    again = json.loads(json.dumps(shown))
    assert msgspec.convert(again["event"], type(event)) == event
    assert (shown["seq"], shown["kind"]) == (7, KIND_OF[type(event)])


def test_an_unknown_event_keeps_its_body_even_when_that_is_no_json():
    for body, shown in ((b'{"a":1}', {"a": 1}), (b"\xff\x00", "ff00")):
        event = UnknownEvent(kind="new", version=2, must_understand=True, body=body)
        assert record_json(record(1, event))["event"] == shown


def test_columns_line_up_and_numbers_stand_to_the_right():
    text = table(("N", "NAME", "LAST"), [(5, "a", ""), (1234, "long name", "x")])
    assert text.splitlines() == ["   N  NAME       LAST", "   5  a", "1234  long name  x"]


def test_an_empty_table_is_its_heads():
    assert table(("A", "B"), []) == "A  B"


def test_what_a_terminal_would_obey_is_not_printed():
    assert (
        plain("a\x1b[31mb\nc\u202e")
        == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"
    )

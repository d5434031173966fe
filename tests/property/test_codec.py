"""Laws of the codec and of the chain, over every event type and every value that its fields can hold."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpccni.adapters.log_format import (
    LogDamageError,
    chained,
    opened,
    pack_snapshot,
    row_of,
    sealed,
    stored_of,
    unpack_snapshot,
)
from vpccni.events.codec import KINDS, Record, UnknownEvent, decode_event, encode_event, seal
from vpccni.events.envelope import GENESIS
from vpccni.events.subjects import subjects_of
from vpccni.model import Seq, Stamp

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGER = st.integers(-(2**63), 2**63 - 1)


def values_of(info):
    """A strategy for what a field of this type can hold."""
    match info:
        case msgspec.inspect.StrType():
            return TEXT
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType():
            return INTEGER
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*map(values_of, types))
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(values_of(item), max_size=3).map(tuple)
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values_of(key), values_of(value), max_size=3)
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values_of(field.type) for field in fields})
        case _:
            raise NotImplementedError(f"an event holds a {info}: say how to make one")


EVENTS_OF = {kind: values_of(msgspec.inspect.type_info(shape.type)) for kind, shape in KINDS.items()}
BODIES = st.recursive(
    st.none() | st.booleans() | INTEGER | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
).map(msgspec.json.encode)
UNKNOWN = st.builds(
    UnknownEvent,
    kind=TEXT.filter(lambda kind: kind not in KINDS),
    version=st.integers(1, 99),
    must_understand=st.booleans(),
    body=BODIES,
)
STAMPS = st.builds(Stamp, INTEGER, INTEGER, TEXT)
# Drawn by kind first: a union of all strategies would hardly ever reach the last ones.
EVENTS = st.sampled_from(sorted(KINDS)).flatmap(EVENTS_OF.__getitem__) | UNKNOWN
BATCHES = st.lists(st.tuples(STAMPS, EVENTS, st.integers(0, 2**63 - 1)), min_size=1, max_size=6).map(
    lambda drawn: [
        Record(Seq(seq), stamp, event, cause) for seq, (stamp, event, cause) in enumerate(drawn, start=1)
    ]
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind, data):
    event = data.draw(EVENTS_OF[kind])
    shape = KINDS[kind]
    body = encode_event(event)
    again = decode_event(kind, shape.version, shape.must_understand, body)
    assert again == event
    assert encode_event(again) == body
    subjects = subjects_of(5, event)
    assert len(subjects) == len(set(subjects))


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_a_sealed_batch_opens_to_itself_by_way_of_its_rows(batch):
    rows = [row_of(one) for one in sealed(batch, 0, GENESIS)]
    assert [opened(one) for one in chained(map(stored_of, rows), 0, GENESIS)] == batch


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_a_snapshot_opens_to_itself(batch):
    snapshot = pack_snapshot(batch[-1].seq, b"h" * 32, batch)
    assert unpack_snapshot(snapshot, b"h" * 32) == tuple(batch)


@st.composite
def changes(draw):
    """A batch as rows, and the same with one thing changed, taken out, doubled or moved."""
    batch = draw(BATCHES)
    rows = [row_of(one) for one in sealed(batch, 0, GENESIS)]
    at = draw(st.integers(0, len(rows) - 1))
    how = draw(st.sampled_from(["field", "take out", "double", "move"]))
    changed = list(rows)
    if how == "field":
        column = draw(st.integers(0, 9))
        row = list(changed[at])
        row[column] = draw(different(row[column], flag=column == 3))
        changed[at] = tuple(row)
    elif how == "take out":
        del changed[at]
    elif how == "double":
        changed.insert(at, changed[at])
    else:
        changed.insert(draw(st.integers(0, len(rows) - 1)), changed.pop(at))
    return rows, changed


def different(value, *, flag):
    if flag:
        return st.just(1 - value)
    kind = {int: INTEGER, str: TEXT, bytes: st.binary(max_size=40)}[type(value)]
    return kind.filter(lambda other: other != value)


@settings(max_examples=200, deadline=None)
@given(changes())
def test_the_chain_detects_any_change_but_a_shorter_end(case):
    rows, changed = case
    kept = []
    with contextlib.suppress(LogDamageError):
        for stored in chained(map(stored_of, changed), 0, GENESIS):
            kept.append(row_of(stored))
    # Whatever is let through before the damage is told is what was written.
    assert kept == rows[: len(kept)]
    assert kept == changed or len(kept) < len(changed)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.data())
def test_a_snapshot_detects_any_change(batch, data):
    snapshot = pack_snapshot(batch[-1].seq, b"h" * 32, batch)
    name = data.draw(st.sampled_from(["seq", "head_hash", "records", "digest"]))
    value = getattr(snapshot, name)
    damaged = msgspec.structs.replace(snapshot, **{name: data.draw(different(value, flag=False))})
    with pytest.raises(LogDamageError):
        unpack_snapshot(damaged, b"h" * 32)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=60))
def test_a_body_of_noise_is_damage_and_nothing_else(kind, body):
    stored = seal(
        Record(Seq(1), Stamp(0, 0, ""), UnknownEvent(kind=kind, version=1, must_understand=True, body=body)),
        GENESIS,
    )
    with contextlib.suppress(LogDamageError):
        assert isinstance(opened(stored), Record)

"""The chain covers everything in the envelope."""

from __future__ import annotations

import pytest

from vpccni.events.envelope import GENESIS, chain_hash
from vpccni.model import Stamp

BASE = {
    "seq": 7,
    "kind": "lease_ended",
    "version": 1,
    "must_understand": True,
    "stamp": Stamp(11, 22, "boot"),
    "cause": 3,
    "body": b'{"lease":3}',
}

CHANGES = {
    "seq": 8,
    "kind": "lease_endes",
    "version": 2,
    "must_understand": False,
    "cause": 4,
    "body": b'{"lease":4}',
}


def hash_of(previous=GENESIS, **changes):
    return chain_hash(previous, **{**BASE, **changes})


@pytest.mark.parametrize(("field", "value"), CHANGES.items(), ids=CHANGES.keys())
def test_a_change_of_one_field_changes_the_hash(field, value):
    assert hash_of(**{field: value}) != hash_of()


@pytest.mark.parametrize(
    "stamp",
    [Stamp(12, 22, "boot"), Stamp(11, 23, "boot"), Stamp(11, 22, "boo")],
    ids=["wall", "boottime", "boot"],
)
def test_a_change_of_a_clock_changes_the_hash(stamp):
    assert hash_of(stamp=stamp) != hash_of()


def test_a_change_of_the_past_changes_the_hash():
    assert hash_of(previous=bytes([1]) * 32) != hash_of()


def test_the_same_record_has_the_same_hash():
    assert hash_of() == hash_of()
    assert len(hash_of()) == len(GENESIS) == 32


def test_text_cannot_move_from_one_field_to_the_next():
    """Fields are set apart and the body's length is in the header, so no two records write the same bytes."""
    assert hash_of(body=b"1|x") != hash_of(body=b"x")
    assert hash_of(seq=71, kind="x") != hash_of(seq=7, kind="1x")
    assert hash_of(cause=31, body=b"") != hash_of(cause=3, body=b"1")

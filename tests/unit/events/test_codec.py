"""Stored names and shapes are for ever."""

from __future__ import annotations

import typing

import pytest

from tests.data.event_samples import BOOT, EVENTS, KEY, POD, record
from vpccni.events import codec, node, sandbox
from vpccni.events.codec import (
    KIND_OF,
    KINDS,
    Event,
    Record,
    UndecodableError,
    UnknownEvent,
    decode_event,
    encode_event,
    is_chained,
    kind_of,
    open_stored,
    seal,
)
from vpccni.events.envelope import GENESIS
from vpccni.model import LeaseId, Seq, Stamp


def test_every_event_type_has_exactly_one_stored_name():
    types = set(typing.get_args(Event)) - {UnknownEvent}
    assert set(KIND_OF) == types
    assert len(KINDS) == len(types)


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_an_event_comes_back_as_it_was(event):
    shape = KINDS[kind_of(event)]
    body = encode_event(event)
    assert decode_event(kind_of(event), shape.version, shape.must_understand, body) == event
    assert encode_event(event) == body


def test_an_upcaster_leads_from_every_old_shape_to_the_present_one():
    wanted = {(kind, version) for kind, shape in KINDS.items() for version in range(1, shape.version)}
    assert set(codec.UPCASTERS) == wanted


def test_a_stored_event_reads_like_this():
    """Spelled out, because every byte of it is in logs on nodes."""
    event = sandbox.LeaseEnded(
        lease=LeaseId(7), cause="del", key=KEY, pod=POD, bindings=(), sources=("runtime",)
    )
    stored = seal(Record(Seq(9), Stamp(1, 2, "b"), event, 7), GENESIS)
    assert (stored.kind, stored.version, stored.must_understand) == ("lease_ended", 1, True)
    assert stored.body == (
        b'{"lease":7,"cause":"del",'
        b'"key":{"network":"aws-cni","container_id":"' + KEY.container_id.encode() + b'","ifname":"eth0"},'
        b'"pod":{"namespace":"shop","name":"cart-7d4b9","uid":"1b4e28ba-2fa1-11d2-883f-0016d3cca427"},'
        b'"bindings":[],"sources":["runtime"]}'
    )


def test_the_chain_of_a_known_record_is_this_very_hash():
    """If it changes, every log in the field looks damaged."""
    stored = seal(
        Record(Seq(1), Stamp(1, 2, BOOT), node.AgentStarted(boot_id=BOOT, version="0.1.0")), GENESIS
    )
    assert stored.hash.hex() == "1eb44519580db5b2f94cfd95af988653e16f6f309cae35499d2f55d099a46c1a"


def test_a_record_is_chained_to_the_one_before_and_to_no_other():
    first = seal(record(1), GENESIS)
    second = seal(record(2), first.hash)
    assert is_chained(first, GENESIS)
    assert is_chained(second, first.hash)
    assert not is_chained(second, GENESIS)
    assert not is_chained(first, first.hash)
    assert open_stored(second) == record(2)


@pytest.mark.parametrize(
    ("kind", "version"),
    [("branch_assigned", 1), ("lease_ended", 2)],
    ids=["unknown kind", "shape from the future"],
)
def test_what_a_newer_version_wrote_is_kept_byte_for_byte(kind, version):
    body = b'{ "vlan" : 3 }'
    event = decode_event(kind, version, True, body)
    assert event == UnknownEvent(kind=kind, version=version, must_understand=True, body=body)
    stored = seal(Record(Seq(1), Stamp(1, 2, "b"), event), GENESIS)
    assert (stored.kind, stored.version, stored.must_understand, stored.body) == (kind, version, True, body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'{"lease":"x"}', b'{"lease":1,"cause":"because"}', b'{"lease":\xff}'],
    ids=repr,
)
def test_a_body_that_is_not_what_its_kind_says_is_undecodable(body):
    with pytest.raises(UndecodableError):
        decode_event("lease_ended", 1, True, body)


def test_an_added_field_with_a_default_reads_old_bodies():
    """New optional fields need no new version: what an older version wrote lacks them."""
    failed = next(event for event in EVENTS if isinstance(event, sandbox.AddFailed))
    event = decode_event("add_failed", 1, False, encode_event(failed).replace(b',"undone":true', b""))
    assert event == failed


def test_old_shapes_are_lifted_step_by_step(monkeypatch):
    monkeypatch.setitem(codec.KINDS, "agent_started", codec.Shape(node.AgentStarted, 3, False))
    monkeypatch.setitem(codec.UPCASTERS, ("agent_started", 1), lambda raw: {"boot": raw["b"], "v": raw["v"]})
    monkeypatch.setitem(
        codec.UPCASTERS, ("agent_started", 2), lambda raw: {"boot_id": raw["boot"], "version": raw["v"]}
    )
    lifted = node.AgentStarted(boot_id="x", version="0.0.1")
    assert decode_event("agent_started", 1, False, b'{"b":"x","v":"0.0.1"}') == lifted
    assert decode_event("agent_started", 2, False, b'{"boot":"x","v":"0.0.1"}') == lifted
    with pytest.raises(UndecodableError):
        decode_event("agent_started", 1, False, b'{"boot":"x"}')

"""Between events and what is stored. Stored names are for ever; shapes change by upcasters only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from vpccni.events import address, adoption, decision, effect, eni, node, sandbox
from vpccni.events.envelope import Stored, chain_hash
from vpccni.model import Seq, Stamp


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a newer vpccni wrote. Kept as it is; ``must_understand`` stops all change."""

    kind: str
    version: int
    must_understand: bool
    body: bytes


Event = (
    node.LogCreated
    | node.AgentStarted
    | node.BootChanged
    | node.InstanceObserved
    | node.InstanceDoubted
    | node.LimitsObserved
    | node.PolicyObserved
    | node.MaxPodsObserved
    | node.SchedulingObserved
    | node.SubnetObserved
    | node.NetworkConfigObserved
    | node.InvariantBroken
    | node.LogRestored
    | effect.EffectIntended
    | effect.EffectConfirmed
    | effect.EffectFailed
    | effect.EffectUnknown
    | effect.EffectAbandoned
    | eni.EniAdopted
    | eni.EniAttached
    | eni.EniLinkReady
    | eni.EniLinkLost
    | eni.EniSuspected
    | eni.EniCleared
    | eni.EniDetached
    | eni.EniGone
    | address.CidrsOwned
    | address.CidrsReleased
    | address.CidrSuspected
    | address.CidrCleared
    | sandbox.AddRequested
    | sandbox.AddressAssigned
    | sandbox.AddressHeld
    | sandbox.LeaseLocated
    | sandbox.LeaseIdentified
    | sandbox.SandboxWired
    | sandbox.AddFailed
    | sandbox.LeaseEnded
    | sandbox.SandboxUnwired
    | sandbox.LeaseSuspected
    | sandbox.LeaseCleared
    | sandbox.AddressUnexplained
    | adoption.NodeSurveyed
    | adoption.OtherAgentObserved
    | adoption.CheckpointImported
    | adoption.CheckpointExported
    | adoption.ModeChanged
    | adoption.ForeignObjectRemoved
    | decision.PlanMade
    | UnknownEvent
)


class Record(msgspec.Struct, frozen=True):
    """An event in its envelope, decoded."""

    seq: Seq
    stamp: Stamp
    event: Event
    cause: int = 0


class Shape(msgspec.Struct, frozen=True):
    """How one event type is stored.

    Attributes:
        must_understand: True where ignoring the event would make a wrong state (leases, ownership, intents).
    """

    type: type
    version: int
    must_understand: bool


# The stored names. Written by hand, never derived: renaming a class must not orphan a log.
KINDS: Final[dict[str, Shape]] = {
    "log_created": Shape(node.LogCreated, 1, False),
    "agent_started": Shape(node.AgentStarted, 1, False),
    "boot_changed": Shape(node.BootChanged, 1, True),
    "instance_observed": Shape(node.InstanceObserved, 1, True),
    "instance_doubted": Shape(node.InstanceDoubted, 1, False),
    "limits_observed": Shape(node.LimitsObserved, 1, False),
    "policy_observed": Shape(node.PolicyObserved, 1, False),
    "max_pods_observed": Shape(node.MaxPodsObserved, 1, False),
    "scheduling_observed": Shape(node.SchedulingObserved, 1, False),
    "subnet_observed": Shape(node.SubnetObserved, 1, False),
    "network_config_observed": Shape(node.NetworkConfigObserved, 1, False),
    "invariant_broken": Shape(node.InvariantBroken, 1, False),
    "log_restored": Shape(node.LogRestored, 1, False),
    "effect_intended": Shape(effect.EffectIntended, 1, True),
    "effect_confirmed": Shape(effect.EffectConfirmed, 1, True),
    "effect_failed": Shape(effect.EffectFailed, 1, True),
    "effect_unknown": Shape(effect.EffectUnknown, 1, True),
    "effect_abandoned": Shape(effect.EffectAbandoned, 1, True),
    "eni_adopted": Shape(eni.EniAdopted, 1, True),
    "eni_attached": Shape(eni.EniAttached, 1, True),
    "eni_link_ready": Shape(eni.EniLinkReady, 1, False),
    "eni_link_lost": Shape(eni.EniLinkLost, 1, False),
    "eni_suspected": Shape(eni.EniSuspected, 1, True),
    "eni_cleared": Shape(eni.EniCleared, 1, False),
    "eni_detached": Shape(eni.EniDetached, 1, True),
    "eni_gone": Shape(eni.EniGone, 1, True),
    "cidrs_owned": Shape(address.CidrsOwned, 1, True),
    "cidrs_released": Shape(address.CidrsReleased, 1, True),
    "cidr_suspected": Shape(address.CidrSuspected, 1, True),
    "cidr_cleared": Shape(address.CidrCleared, 1, False),
    "add_requested": Shape(sandbox.AddRequested, 1, False),
    "address_assigned": Shape(sandbox.AddressAssigned, 1, True),
    "address_held": Shape(sandbox.AddressHeld, 1, True),
    "lease_located": Shape(sandbox.LeaseLocated, 1, True),
    "lease_identified": Shape(sandbox.LeaseIdentified, 1, True),
    "sandbox_wired": Shape(sandbox.SandboxWired, 1, False),
    "add_failed": Shape(sandbox.AddFailed, 1, False),
    "lease_ended": Shape(sandbox.LeaseEnded, 1, True),
    "sandbox_unwired": Shape(sandbox.SandboxUnwired, 1, False),
    "lease_suspected": Shape(sandbox.LeaseSuspected, 1, False),
    "lease_cleared": Shape(sandbox.LeaseCleared, 1, False),
    "address_unexplained": Shape(sandbox.AddressUnexplained, 1, False),
    "node_surveyed": Shape(adoption.NodeSurveyed, 1, True),
    "other_agent_observed": Shape(adoption.OtherAgentObserved, 1, False),
    "checkpoint_imported": Shape(adoption.CheckpointImported, 1, False),
    "checkpoint_exported": Shape(adoption.CheckpointExported, 1, False),
    "mode_changed": Shape(adoption.ModeChanged, 1, True),
    "foreign_object_removed": Shape(adoption.ForeignObjectRemoved, 1, False),
    "plan_made": Shape(decision.PlanMade, 1, False),
}

KIND_OF: Final[dict[type, str]] = {shape.type: kind for kind, shape in KINDS.items()}

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {}
"""(kind, version) to the function that makes version + 1 of it, one step at a time. Pure."""

_encoder = msgspec.json.Encoder(order="deterministic")
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(shape.type) for kind, shape in KINDS.items()
}


class UndecodableError(ValueError):
    """A stored event that claims a known shape does not have it: the log is damaged."""


def kind_of(event: Event) -> str:
    """The stored name of an event's type."""
    return event.kind if isinstance(event, UnknownEvent) else KIND_OF[type(event)]


def encode_event(event: Event) -> bytes:
    """The event as JSON, byte for byte the same for the same event."""
    return event.body if isinstance(event, UnknownEvent) else _encoder.encode(event)


def seal(record: Record, previous: bytes) -> Stored:
    """Encode a record and chain it to the hash before it."""
    event = record.event
    if isinstance(event, UnknownEvent):
        kind, version, must = event.kind, event.version, event.must_understand
    else:
        kind = KIND_OF[type(event)]
        version, must = KINDS[kind].version, KINDS[kind].must_understand
    body = encode_event(event)
    digest = chain_hash(
        previous,
        seq=record.seq,
        kind=kind,
        version=version,
        must_understand=must,
        stamp=record.stamp,
        cause=record.cause,
        body=body,
    )
    return Stored(
        seq=record.seq,
        kind=kind,
        version=version,
        must_understand=must,
        stamp=record.stamp,
        cause=record.cause,
        body=body,
        hash=digest,
    )


def is_chained(stored: Stored, previous: bytes) -> bool:
    """Whether the stored record's hash follows from the one before it."""
    return stored.hash == chain_hash(
        previous,
        seq=stored.seq,
        kind=stored.kind,
        version=stored.version,
        must_understand=stored.must_understand,
        stamp=stored.stamp,
        cause=stored.cause,
        body=stored.body,
    )


def open_stored(stored: Stored) -> Record:
    """Decode a stored record, lifting old shapes step by step.

    Raises:
        UndecodableError: The body is not what its kind and version say.
    """
    event = decode_event(stored.kind, stored.version, stored.must_understand, stored.body)
    return Record(stored.seq, stored.stamp, event, stored.cause)


def decode_event(kind: str, version: int, must_understand: bool, body: bytes) -> Event:
    """Decode an event body; a kind or version from the future becomes :class:`UnknownEvent`."""
    shape = KINDS.get(kind)
    if shape is None or version > shape.version:
        return UnknownEvent(kind=kind, version=version, must_understand=must_understand, body=body)
    try:
        if version == shape.version:
            event: Event = _decoders[kind].decode(body)
            return event
        raw = msgspec.json.decode(body)
        for step in range(version, shape.version):
            raw = UPCASTERS[kind, step](raw)
        lifted: Event = msgspec.convert(raw, shape.type)
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError) as error:
        raise UndecodableError(f"{kind} v{version}: {error}") from error
    return lifted

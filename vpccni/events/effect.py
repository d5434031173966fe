"""Effects on the outside: intended, then confirmed, failed, unknown or abandoned.

An intent is durable before the call leaves. Whatever happens after, the intent is closed by exactly
one of ``EffectConfirmed``, ``EffectFailed``, ``EffectAbandoned``; ``EffectUnknown`` keeps it open.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.model import Cidr, EniId, IntentId, SubnetId

EffectKind = str

EFFECT_KINDS: Final = frozenset(
    {"create", "attach", "modify", "assign", "unassign", "detach", "delete", "tag"}
)
"""The calls that this release knows. While an intent of another kind is open, a later release was changing
EC2 in a way that we cannot finish: EC2 is not changed by us then, ADD and DEL go on."""

UNITS: Final = ("address", "prefix")
"""What a count counts: single addresses, or prefixes (/28 for IPv4, /80 for IPv6)."""

DELETE_ON_TERMINATION: Final = "delete_on_termination"
"""The attribute whose change makes an ENI go away with its instance."""


class EffectIntended(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """We are going to change something in EC2.

    Attributes:
        kind: Which call: one of :data:`EFFECT_KINDS`, or one that a later release added.
        token: ClientToken of a create (EC2: idempotent); for the others only a name.
        eni: The ENI that is changed; empty for a create.
        subnet, groups, tags, description: Arguments of a create (and ``tags`` of a tag). ``subnet`` also
            tells where the addresses of an assign come from.
        device, card: The device index that an attach reserves.
        attachment: Which attachment a detach or a modify is about.
        count: Addresses or prefixes asked for (create, assign).
        family: Of what is counted: 4 or 6.
        unit: What is counted: one of :data:`UNITS`.
        eni_config: Name of the ENIConfig that chose subnet and groups of a create; empty for none.
        attribute: What a modify changes: :data:`DELETE_ON_TERMINATION`, ``groups``, …
        cidrs: What is given back (unassign): each without lease and past its cooldown.
        known: CIDRs of the ENI before an assign, to settle an unknown outcome by difference.
        reason: Why, in a few words.
    """

    kind: EffectKind
    token: str = ""
    eni: EniId = EniId("")
    subnet: SubnetId = SubnetId("")
    groups: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    description: str = ""
    device: int = -1
    card: int = 0
    attachment: str = ""
    count: int = 0
    family: int = 4
    unit: str = "address"
    eni_config: str = ""
    attribute: str = ""
    cidrs: tuple[Cidr, ...] = ()
    known: tuple[Cidr, ...] = ()
    reason: str = ""


class EffectConfirmed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """It is done: EC2 said so, or two readings of Describe agree.

    Attributes:
        how: ``reply`` or ``observed``.
        attribute: What a modify has changed.
    """

    intent: IntentId
    kind: EffectKind
    eni: EniId = EniId("")
    cidrs: tuple[Cidr, ...] = ()
    attachment: str = ""
    how: str = "reply"
    attribute: str = ""


class EffectFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """It was not done, and will not be by this intent.

    Attributes:
        reason: Reason code.
        code: EC2's error code, if it gave one.
        transient: Whether the same may succeed later.
    """

    intent: IntentId
    kind: EffectKind
    reason: str
    code: str = ""
    detail: str = ""
    transient: bool = False
    eni: EniId = EniId("")


class EffectUnknown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The request left and no reply came. The intent stays open until Describe settles it."""

    intent: IntentId
    kind: EffectKind
    detail: str = ""
    eni: EniId = EniId("")


class EffectAbandoned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The intent will not be carried out: what it was for no longer exists."""

    intent: IntentId
    kind: EffectKind
    reason: str
    eni: EniId = EniId("")

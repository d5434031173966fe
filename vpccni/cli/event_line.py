"""One event of the API, as a line for a person."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from vpccni.events.codec import KINDS
from vpccni.replay.text import event_text, plain

_STYLES: Final = {
    "address_assigned": "green",
    "sandbox_wired": "green",
    "lease_ended": "yellow",
    "add_failed": "red",
    "address_held": "yellow",
    "address_unexplained": "red",
    "instance_doubted": "red",
    "node_surveyed": "bold",
    "other_agent_observed": "yellow",
    "mode_changed": "bold",
    "effect_failed": "red",
    "effect_unknown": "red",
    "invariant_broken": "red",
    "log_restored": "red",
    "agent_started": "bold",
    "plan_made": "cyan",
    "effect_intended": "blue",
    "effect_confirmed": "blue",
}


def words_of(view: dict[str, Any]) -> str:
    """What happened, in words; an event that a newer agent wrote is shown by its fields."""
    shape = KINDS.get(view["kind"])
    if shape is not None:
        try:
            return event_text(msgspec.convert(view["event"], shape.type))
        except msgspec.ValidationError:
            pass  # a field that this version does not know: its fields are better than nothing
    return plain(msgspec.json.encode(view["event"]).decode())


def style_of(view: dict[str, Any]) -> str:
    """A colour by kind: what ends or fails stands out."""
    return _STYLES.get(view["kind"], "")


def clock_of(view: dict[str, Any]) -> str:
    """The time of day in UTC, to the millisecond."""
    return str(view["time"]).partition("T")[2].rstrip("Z")

"""How intended effects and their outcomes change the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vpccni.events import effect
from vpccni.events.codec import Record
from vpccni.events.effect import DELETE_ON_TERMINATION
from vpccni.model import EniId, IntentId
from vpccni.projections.enis import Intent
from vpccni.projections.rest import is_recent

if TYPE_CHECKING:
    from vpccni.projections.state import State


def _effect_intended(state: State, record: Record, event: effect.EffectIntended) -> None:
    intent_id = IntentId(record.seq)
    state.intents[intent_id] = Intent(
        id=intent_id, intended=event, since=record.stamp, records={"intended": record}
    )
    held = state.enis.get(event.eni)
    if held is not None and event.kind == "detach":
        held.is_retiring = True


def _effect_confirmed(state: State, record: Record, event: effect.EffectConfirmed) -> None:
    _close_intent(state, event.intent)
    held = state.enis.get(event.eni)
    if held is not None:
        held.records["effect"] = record
        if event.kind == "modify" and event.attribute == DELETE_ON_TERMINATION:
            held.is_kept_safe = True
            held.records["modify"] = record
    if event.kind == "delete":
        _note_deleted(state, record, event.eni)


def _note_deleted(state: State, record: Record, eni_id: EniId) -> None:
    state.deleted[eni_id] = record.stamp
    state.latest[f"deleted:{eni_id}"] = record
    for known, said in list(state.deleted.items()):
        if not is_recent(said, record.stamp):
            del state.deleted[known], state.latest[f"deleted:{known}"]


def _effect_failed(state: State, record: Record, event: effect.EffectFailed) -> None:
    _close_intent(state, event.intent)
    held = state.enis.get(event.eni)
    if held is not None and event.kind == "detach":
        held.is_retiring = False


def _effect_unknown(state: State, record: Record, event: effect.EffectUnknown) -> None:
    intent = state.intents.get(event.intent)
    if intent is not None:
        intent.unknown = event
        intent.records["unknown"] = record


def _effect_abandoned(state: State, record: Record, event: effect.EffectAbandoned) -> None:
    _close_intent(state, event.intent)
    held = state.enis.get(event.eni)
    if held is not None and event.kind == "detach":
        held.is_retiring = False


def _close_intent(state: State, intent_id: IntentId) -> None:
    # Confirming twice is harmless; a snapshot holds confirmations whose intent is long closed.
    state.intents.pop(intent_id, None)


FOLDS: Final[dict[type, Callable[[State, Record, Any], None]]] = {
    effect.EffectIntended: _effect_intended,
    effect.EffectConfirmed: _effect_confirmed,
    effect.EffectFailed: _effect_failed,
    effect.EffectUnknown: _effect_unknown,
    effect.EffectAbandoned: _effect_abandoned,
}

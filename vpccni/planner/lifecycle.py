"""What an ENI needs next on its way from created to serving, and from retired to deleted.

=========  ==============================  =======================
phase      also                            next
=========  ==============================  =======================
detached   retiring or left behind         delete
detached   attach refused for good         delete
detached   created by us                   attach, lowest free index
attached   made for us, not kept safe      modify (DeleteOnTermination)
=========  ==============================  =======================

Made for us is what we created, and what was found with the tag of this machine: whoever made it, an agent whose log
is lost or amazon-vpc-cni-k8s, may have ended before he came to this.
"""

from __future__ import annotations

from vpccni.events.effect import DELETE_ON_TERMINATION, EffectIntended
from vpccni.model import EniId
from vpccni.planner.reconcile import INSTANCE_TAG
from vpccni.projections.enis import Eni
from vpccni.projections.state import State

_DEVICES_MAX = 64
"""More device indexes than any instance type has on a card."""


def _is_made_for_us(state: State, held: Eni) -> bool:
    if held.origin == "created":
        return True
    is_tagged = state.instance is not None and held.facts.tags.get(INSTANCE_TAG) == state.instance.id
    return is_tagged and not held.is_primary


def next_effects(state: State, attach_refused: frozenset[EniId]) -> list[EffectIntended]:
    """One effect for each ENI that needs one and has none open; by ENI id, deterministic.

    Args:
        state: The books.
        attach_refused: ENIs whose attach EC2 refused permanently in this process.
    """
    wanted: list[EffectIntended] = []
    taken = {(held.card, held.device) for held in state.enis.values() if held.phase == "attached"}
    taken |= {
        (intent.intended.card, intent.intended.device)
        for intent in state.intents.values()
        if intent.intended.kind == "attach"
    }
    for eni_id in sorted(state.enis):
        held = state.enis[eni_id]
        if state.intents_on(eni_id) or not held.managed:
            continue
        if held.phase == "attached":
            if _is_made_for_us(state, held) and not held.is_kept_safe and held.attachment:
                wanted.append(
                    EffectIntended(
                        kind="modify",
                        eni=eni_id,
                        attachment=held.attachment,
                        attribute=DELETE_ON_TERMINATION,
                        reason="delete on termination",
                    )
                )
            continue
        if held.is_retiring or held.origin != "created" or eni_id in attach_refused:
            wanted.append(EffectIntended(kind="delete", eni=eni_id, reason="no longer wanted"))
            continue
        device = next(
            (index for index in range(1, _DEVICES_MAX) if (0, index) not in taken),
            None,
        )
        if device is not None:
            taken.add((0, device))
            wanted.append(
                EffectIntended(
                    kind="attach", eni=eni_id, device=device, card=0, reason="created for the pool"
                )
            )
    return wanted

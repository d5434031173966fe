"""What the planner chose, and why."""

from __future__ import annotations

import msgspec


class PlanMade(msgspec.Struct, frozen=True, kw_only=True):
    """A plan was acted on, or its reason changed; never one per wake-up.

    Attributes:
        reason: Why this plan, or why none.
        steps: What it does, one short text a step.
        constraints: What held it back (open breakers, limits), so that the decision can be run again.
    """

    reason: str
    steps: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

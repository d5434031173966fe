"""What holds the planner back just now, as plain values: the same values give the same plan again."""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.model import EniId, SubnetId

NO_LIMIT: Final = 1 << 20
"""More addresses than any subnet has."""


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet gave less than was asked for, so one call at a time is made there, and it asks for less.

    Attributes:
        call: ``assign`` or ``create``.
        subnet: Where.
        left: The most that the next call may ask for; 0: none is made now.
        detail: What is known of the subnet, for people.
    """

    call: str
    subnet: SubnetId
    left: int
    detail: str = ""


class HeldEni(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 refused a call about one ENI. Others are not concerned.

    Attributes:
        growth: Why no address is assigned to it now; empty when one may be.
        shrink: Why nothing of it is given back now.
        detail: What EC2 said, for people.
    """

    eni: EniId
    growth: str = ""
    shrink: str = ""
    detail: str = ""


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the planner back, as reason codes of the caller's; empty text where nothing does.

    Attributes:
        create_blocked: No ENI may be created (``ec2_throttled``, ``ec2_unauthorized``, …).
        assign_blocked: No address may be assigned to an ENI.
        release_blocked: No address may be given back.
        remove_blocked: No ENI may be removed.
        shrink_blocked: Neither of the two (node unschedulable, too soon after the last release).
        no_change: Nothing at all may be changed (``invariant_broken``, ``stopping``).
        create_once, assign_once: One such call is a trial: EC2 failed the last one, and the pause is over.
        shortages: Subnets that have fewer addresses than were asked for.
        enis: ENIs about which EC2 refused a call.
        create_detail, assign_detail: More about what blocks, for people.
    """

    create_blocked: str = ""
    assign_blocked: str = ""
    release_blocked: str = ""
    remove_blocked: str = ""
    shrink_blocked: str = ""
    no_change: str = ""
    create_once: bool = False
    assign_once: bool = False
    shortages: tuple[Shortage, ...] = ()
    enis: tuple[HeldEni, ...] = ()
    create_detail: str = ""
    assign_detail: str = ""

    def shortage(self, call: str, subnet: SubnetId) -> Shortage | None:
        """What is short for such a call in a subnet."""
        return next((one for one in self.shortages if (one.call, one.subnet) == (call, subnet)), None)

    @property
    def is_growth_held(self) -> bool:
        """Whether anything holds growth back."""
        return bool(
            self.create_blocked or self.assign_blocked or self.create_once or self.assign_once
        ) or bool(self.shortages or any(one.growth for one in self.enis))

    def texts(self) -> tuple[str, ...]:
        """The constraints that hold, one short text each, as ``PlanMade.constraints`` keeps them."""
        codes = {
            name: getattr(self, name)
            for name in (
                "create_blocked",
                "assign_blocked",
                "release_blocked",
                "remove_blocked",
                "shrink_blocked",
                "no_change",
            )
        }
        once = [name for name in ("create_once", "assign_once") if getattr(self, name)]
        return (
            *(f"{field}:{code}" for field, code in codes.items() if code),
            *once,
            *map(_shortage_text, self.shortages),
            *(f"{one.eni}: {one.growth or one.shrink}" for one in self.enis),
        )


def _shortage_text(one: Shortage) -> str:
    most = f"at most {one.left}" if one.left < NO_LIMIT else "one call at a time"
    return f"{one.call} in {one.subnet}: {most}"

"""A pool that does what a plan says at once: no latency, no cooldown, every ENI old."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from vpccni.model import Cidr, EniId
from vpccni.planner.warm_pool import (
    Constraints,
    CreateEni,
    Demand,
    EniView,
    GrowEni,
    Plan,
    PoolPolicy,
    ReleaseCidrs,
    RemoveEni,
    plan,
)


def cidrs_of(device: int, numbers: Iterable[int]) -> tuple[Cidr, ...]:
    return tuple(Cidr(f"10.0.{device}.{number}/32") for number in numbers)


def eni(device: int, owned: int, assigned: int = 0, slots: int = 14, **fields) -> EniView:
    """A usable ENI whose free addresses have all rested, unless told otherwise."""
    view = EniView(
        id=EniId(f"eni-{device}"),
        device=device,
        is_primary=device == 0,
        is_usable=True,
        slots=slots,
        owned=owned,
        assigned=assigned,
    )
    view = msgspec.structs.replace(view, **fields)
    return view if "rested" in fields else rest_all(view)


def rest_all(view: EniView) -> EniView:
    """The view with everything listed as rested that is free."""
    taken = view.assigned + view.resting + view.blocked
    free = () if view.is_coming else cidrs_of(view.device, range(view.owned - 1, taken - 1, -1))
    return msgspec.structs.replace(view, rested=free)


def applied(enis: Iterable[EniView], made: Plan) -> list[EniView]:
    """What the ENIs look like when every step of the plan is done."""
    views = {view.id: view for view in enis}
    for step in made.steps:
        match step:
            case GrowEni(eni=name, count=count):
                views[name] = msgspec.structs.replace(views[name], owned=views[name].owned + count)
            case CreateEni(count=count):
                device = max((view.device for view in views.values()), default=-1) + 1
                slots = max((view.slots for view in views.values()), default=count)
                views[EniId(f"eni-{device}")] = eni(device, count, slots=max(slots, count))
            case ReleaseCidrs(eni=name, cidrs=cidrs):
                assert {cidr.cidr for cidr in cidrs} <= set(views[name].rested)
                views[name] = msgspec.structs.replace(views[name], owned=views[name].owned - len(cidrs))
            case RemoveEni(eni=name):
                assert views[name].assigned == views[name].resting == 0
                del views[name]
    return [rest_all(view) for view in views.values()]


class SimulatedPool:
    """A node whose pods come and go one at a time, with the pool settling in between."""

    def __init__(self, policy: PoolPolicy, primary_slots: int | None = None) -> None:
        slots = policy.slots_per_eni if primary_slots is None else primary_slots
        self.policy = policy
        self.enis = [eni(0, 0, slots=slots, is_usable=slots > 0)]
        self.refused = 0
        self.settle()

    def settle(self, waiting: int = 0) -> Plan:
        """Follow plans until one changes nothing, and return that one."""
        for _ in range(12):
            made = plan(self.enis, self.policy, Demand(waiting), Constraints())
            if not made.steps:
                return made
            self.enis = applied(self.enis, made)
        raise AssertionError(f"does not settle: {self.enis}")

    def add(self) -> None:
        """One ADD: from the fullest ENI with a free address; it waits once when there is none."""
        if not self._free():
            self.settle(waiting=1)
        free = self._free()
        if not free:
            self.refused += 1
            return
        chosen = min(free, key=lambda view: (-view.assigned, view.device))
        self._change(chosen, +1)
        self.settle()

    def delete(self) -> None:
        """One DEL: of a pod on the newest ENI that has one; its address has rested at once."""
        self._change(max((view for view in self.enis if view.assigned), key=lambda view: view.device), -1)

    @property
    def owned(self) -> list[int]:
        return [view.owned for view in sorted(self.enis, key=lambda view: view.device)]

    @property
    def free(self) -> int:
        return sum(view.owned - view.assigned for view in self.enis)

    def _free(self) -> list[EniView]:
        return [view for view in self.enis if view.is_usable and view.owned > view.assigned]

    def _change(self, view: EniView, by: int) -> None:
        self.enis.remove(view)
        self.enis.append(rest_all(msgspec.structs.replace(view, assigned=view.assigned + by)))

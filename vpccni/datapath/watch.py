"""Which changes of rules and routes are worth a look at the whole kernel, and which are our own doing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vpccni.datapath.convert import is_narrow_from_rule, is_to_rule, single
from vpccni.datapath.numbers import (
    POD_TABLE,
    PRIORITY_FROM_ENI,
    PRIORITY_FROM_POD,
    PRIORITY_MARK,
    PRIORITY_TO_POD,
)
from vpccni.datapath.objects import PathChange, Route, Rule
from vpccni.model import MAIN_TABLE, Address, Cidr, is_inside

TableOf = Callable[[Address], int | None]
"""The routing table of the open lease of an address; ``None`` when it has none."""


def is_amiss(change: PathChange, table_of: TableOf, subnets: Sequence[Cidr], *, as_original: bool) -> bool:
    """Whether a change contradicts the leases: somebody else made it, or took away what is ours.

    Ask some time after the change: what we do ourselves is on record by then.

    Args:
        change: What the kernel told.
        table_of: The open leases.
        subnets: Of this node's ENIs.
        as_original: The node is being handed back: each lease has the original's rule and route, too.
    """
    if change.rule is not None:
        return _is_rule_amiss(change.rule, change.is_removed, table_of, subnets, as_original)
    if change.route is not None:
        return _is_route_amiss(change.route, change.is_removed, table_of, subnets, as_original)
    return True


def _is_rule_amiss(
    rule: Rule, is_removed: bool, table_of: TableOf, subnets: Sequence[Cidr], as_original: bool
) -> bool:
    if rule.exotic or rule.iif:
        return False
    if is_to_rule(rule):
        address = single(rule.dst)
        is_wanted = as_original and table_of(address) is not None
        return is_wanted == is_removed and _is_ours(address, subnets)
    if rule == Rule(priority=PRIORITY_TO_POD, table=POD_TABLE):
        return is_removed
    address = single(rule.src)
    if is_narrow_from_rule(rule):
        return not is_removed and _is_ours(address, subnets)
    if rule.priority == PRIORITY_FROM_POD and address and not rule.dst:
        is_wanted = table_of(address) == rule.table
        return is_wanted == is_removed and _is_ours(address, subnets)
    return rule.priority in (PRIORITY_MARK, PRIORITY_FROM_ENI) and is_removed


def _is_route_amiss(
    route: Route, is_removed: bool, table_of: TableOf, subnets: Sequence[Cidr], as_original: bool
) -> bool:
    address = single(route.dst)
    if not address or route.gateway or route.table not in (POD_TABLE, MAIN_TABLE):
        return False
    is_wanted = table_of(address) is not None and (route.table == POD_TABLE or as_original)
    return is_wanted == is_removed and _is_ours(address, subnets)


def _is_ours(address: Address, subnets: Sequence[Cidr]) -> bool:
    return any(is_inside(address, subnet) for subnet in subnets)

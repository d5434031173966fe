"""Applying a difference, part by part, on the worker threads of the kernel adapter.

Each function blocks, does one part, and writes into the :class:`Outcome` what came of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, TypeVar

from vpccni.adapters import kernel_node
from vpccni.adapters.kernel_firewall import FirewallError, OriginalFirewall
from vpccni.adapters.kernel_wiring import add_rule, delete_route, delete_rule, purge_rules
from vpccni.adapters.netlink import NetlinkSocket
from vpccni.adapters.netlink_route import RTM_NEWROUTE, SET, route
from vpccni.datapath.convert import rules_by_address, single, told_firewall, told_route, told_rule
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.datapath.objects import (
    Applied,
    Difference,
    PodWiring,
    Probed,
    RemovedObject,
    Route,
    RouteRemoval,
    Rule,
    SandboxSeen,
)
from vpccni.errors import PermanentError, VpccniError
from vpccni.model import EniId, LeaseId

_VETHS_AT_ONCE: Final = 32
"""How many veths go in one transaction: a bound for how long the kernel's lock is held."""

T = TypeVar("T")


class Outcome:
    """What came of a difference, while it is being applied."""

    def __init__(self, difference: Difference) -> None:
        self.sandboxes: dict[LeaseId, SandboxSeen] = {}
        self.enis: dict[EniId, tuple[str, int]] = {
            link.eni: (link.ifname, link.ifindex) for link in difference.enis_ready
        }
        self.missing_links: list[EniId] = list(difference.enis_missing)
        self.probed: dict[LeaseId, Probed] = {}
        self.removed_veths: list[int] = []
        self.removed: list[RemovedObject] = []
        self.errors: list[VpccniError] = []
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Something that matters too little to fail; nothing for an empty text."""
        if text:
            self._notes.append(text)

    def attempt(self, step: str, action: Callable[[], T]) -> T | None:
        """Do a part; keep its error for the end."""
        try:
            return action()
        except VpccniError as error:
            self.errors.append(error)
        except OSError as error:
            self.errors.append(kernel_node.as_error(step, error))
        return None

    def try_out(self, step: str, action: Callable[[], T]) -> None:
        """Do a part whose failure is only noted."""
        try:
            action()
        except OSError as error:
            self.note(kernel_node.as_error(step, error).detail)

    def applied(self) -> Applied:
        """The outcome; raises the first error, with the number of further ones."""
        if self.errors:
            first = self.errors[0]
            if len(self.errors) == 1:
                raise first
            detail = f"{first.detail} (and {len(self.errors) - 1} more)"
            raise PermanentError(first.reason, detail) from first
        return Applied(
            sandboxes=self.sandboxes,
            enis=self.enis,
            missing_links=tuple(self.missing_links),
            probed=self.probed,
            removed_veths=tuple(self.removed_veths),
            removed=tuple(self.removed),
            notes=tuple(self._notes),
        )


def has_node_part(difference: Difference) -> bool:
    """Whether :func:`apply_node` has something to do."""
    return bool(
        difference.ip_forward
        or difference.enis
        or difference.links_set
        or difference.rules_add
        or difference.routes_set
    )


def apply_node(host: NetlinkSocket, difference: Difference, outcome: Outcome) -> None:
    """Forwarding, ENIs, host veths, rules and routes that are to be there."""
    if difference.ip_forward:
        outcome.note(kernel_node.enable_forwarding())
    for setup in difference.enis:
        done = outcome.attempt(f"eni {setup.eni}", functools.partial(kernel_node.set_up_eni, host, setup))
        if done is None:
            continue
        link, note = done
        outcome.note(note)
        if link is None:
            outcome.missing_links.append(setup.eni)
        else:
            outcome.enis[setup.eni] = (link.ifname, link.ifindex)
    for setting in difference.links_set:
        outcome.attempt("host_link", functools.partial(kernel_node.set_link, host, setting))
    for rule in difference.rules_add:
        outcome.attempt(f"rule {rule.priority}", functools.partial(add_rule, host, rule))
    for entry in difference.routes_set:
        body = route(entry)
        outcome.attempt("host_route", functools.partial(host.change, RTM_NEWROUTE, SET, body))


def add_paths_of_original(host: NetlinkSocket, difference: Difference, outcome: Outcome) -> None:
    """What amazon-vpc-cni-k8s will need to lead packets to the pods."""
    for path in difference.original_add:
        add = functools.partial(kernel_node.add_path_of_original, host, path)
        outcome.attempt("original_path", add)


def apply_deletions(host: NetlinkSocket, difference: Difference, outcome: Outcome) -> None:
    """Routes and rules that are ours to delete, and what leads to addresses that no pod has any more."""
    for removal in difference.routes_delete:
        outcome.attempt("route", functools.partial(_delete_route, host, removal, outcome))
    for rule in difference.rules_delete:
        is_told = rule.priority == PRIORITY_FROM_POD
        outcome.attempt(
            f"rule {rule.priority}", functools.partial(_delete_rule, host, rule, outcome, is_told)
        )
    for address in difference.purge:
        removed = outcome.attempt("purge_rules", functools.partial(purge_rules, host, address))
        outcome.removed += removed or []


def _delete_route(host: NetlinkSocket, removal: RouteRemoval, outcome: Outcome) -> None:
    is_gone = delete_route(host, removal.table, removal.dst, removal.ifindex)
    if is_gone and removal.table != POD_TABLE and single(removal.dst):
        link = kernel_node.link_of(host, removal.ifindex)
        entry = Route(table=removal.table, dst=removal.dst, ifindex=removal.ifindex)
        outcome.removed.append(told_route(entry, link.ifname if link is not None else "?"))


def _delete_rule(host: NetlinkSocket, rule: Rule, outcome: Outcome, is_told: bool) -> None:
    if delete_rule(host, rule) and is_told:
        outcome.removed.append(told_rule(rule))


def remove_veths(host: NetlinkSocket, difference: Difference, outcome: Outcome) -> None:
    """Host veths of leases that have ended."""
    removals = difference.veths_delete
    before = len(outcome.errors)
    for first in range(0, len(removals), _VETHS_AT_ONCE):
        some = removals[first : first + _VETHS_AT_ONCE]
        outcome.attempt("veth", functools.partial(kernel_node.remove_veths, host, some))
    if len(outcome.errors) == before:
        outcome.removed_veths.extend(removal.ifindex for removal in removals if removal.ifindex)


def remove_foreign(
    host: NetlinkSocket, firewall: OriginalFirewall, difference: Difference, outcome: Outcome
) -> None:
    """What amazon-vpc-cni-k8s left: rules, then the routes to which they lead, then its firewall.

    Ours serve by now, so that what cannot be removed is noted and tried again at the next look.
    """
    for rule in difference.foreign_rules:
        outcome.try_out(f"rule {rule.priority}", functools.partial(_delete_rule, host, rule, outcome, True))
    for entry in difference.foreign_routes:
        removal = RouteRemoval(table=entry.table, dst=entry.dst, ifindex=entry.ifindex)
        outcome.try_out("route", functools.partial(_delete_route, host, removal, outcome))
    for part in difference.firewall:
        try:
            firewall.remove(part)
        except FirewallError as error:
            outcome.note(f"the firewall of amazon-vpc-cni-k8s cannot be removed: {error}")
        else:
            outcome.removed += told_firewall(part)


def probe_all(host: NetlinkSocket, home: int, pods: tuple[PodWiring, ...], outcome: Outcome) -> None:
    """Look at sandboxes; the node's rules are read once for all."""
    rules = outcome.attempt("probe", lambda: rules_by_address(kernel_node.rules_of(host)))
    if rules is None:
        return
    for pod in pods:
        found = outcome.attempt("probe", functools.partial(kernel_node.probe, host, home, pod, rules))
        if found is not None:
            outcome.probed[pod.lease] = found

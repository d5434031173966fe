"""What to do to get from what is to what should be.

The whole difference (:func:`difference`) is for the start and for repair; the small ones are for the paths
on which nobody looks at the kernel first. Ours to delete are: every route of the pod table, from-rules of
ours whose source is a single address in a subnet of ours, veths that carry our alias, and the nft table of
our name. Everything else is foreign and never in a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from vpccni.datapath.desired import eni_rules, eni_setup, from_rules, pod_wiring
from vpccni.datapath.names import alias_of, is_our_alias
from vpccni.datapath.nft import nft_table
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_ENI, PRIORITY_FROM_POD, is_eni_table
from vpccni.datapath.objects import (
    DatapathSettings,
    Desired,
    Difference,
    EniLink,
    EniSetup,
    EniWiring,
    LeaseWiring,
    LinkSeen,
    NftTable,
    Observed,
    PodWiring,
    Route,
    RouteRemoval,
    Rule,
    VethRemoval,
)
from vpccni.model import MAIN_TABLE, Address, Cidr, EniId, LeaseId, host_cidr, is_inside


def difference(desired: Desired, observed: Observed, *, rewire: bool = False) -> Difference:
    """Everything that has to be done; empty when the kernel is as desired.

    Args:
        desired: What should be.
        observed: What is.
        rewire: Wire sandboxes whose veth is not there. Without it they are only told (``absent``).
    """
    raise NotImplementedError


def wire(lease: LeaseWiring, enis: Sequence[EniWiring], settings: DatapathSettings) -> Difference:
    """Wire one sandbox; nothing else is looked at. Raises as ``pod_wiring``."""
    del enis  # where packets go is in the binding; other modes of routing will need the ENIs
    return Difference(wire=(pod_wiring(lease, settings),))


def unwire(lease: LeaseWiring) -> Difference:
    """Take away a lease's host routes and from-rules. The veth stays: it dies with its namespace."""
    addresses = [binding for binding in lease.bindings if binding.family == 4]
    return Difference(
        routes_delete=tuple(
            RouteRemoval(table=POD_TABLE, dst=host_cidr(binding.address), ifindex=lease.host_ifindex)
            for binding in addresses
        ),
        rules_delete=tuple(
            rule for binding in addresses for rule in from_rules(binding.address, binding.table)
        ),
    )


def sweep(leases: Sequence[LeaseWiring]) -> Difference:
    """Delete the host veths that still stand, each by its index *and* alias. Not yet wired ones are skipped."""
    return Difference(
        veths_delete=tuple(
            VethRemoval(ifindex=lease.host_ifindex, alias=lease.alias or alias_of(lease.key))
            for lease in leases
            if lease.host_ifindex
        )
    )


def sweep_links(links: Sequence[LinkSeen]) -> Difference:
    """Delete these links, as far as they are host veths of ours."""
    return Difference(
        veths_delete=tuple(
            VethRemoval(ifindex=link.ifindex, alias=link.alias)
            for link in links
            if link.kind == "veth" and is_our_alias(link.alias)
        )
    )


def probe(lease: LeaseWiring, settings: DatapathSettings) -> Difference:
    """Look at one sandbox, in the node and inside its namespace; changes nothing."""
    return Difference(probe=(pod_wiring(lease, settings),))


def setup_eni(eni: EniWiring, settings: DatapathSettings) -> Difference:
    """Set up one ENI; its link may not be there yet (then ``Applied.missing_links`` says so)."""
    setup = eni_setup(eni, settings)
    return Difference(enis=(setup,), rules_add=eni_rules(setup))


def teardown_eni(eni: EniWiring) -> Difference:
    """Take away the rule of an ENI that leaves the node. Its routes die with its link."""
    if eni.is_primary:
        return Difference()
    return Difference(rules_delete=eni_rules(eni_setup(eni, DatapathSettings())))

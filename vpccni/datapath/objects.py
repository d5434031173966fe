"""The records of the datapath: what goes in, what should be, what is, what to do, what came of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from vpccni.model import Address, Binding, Cidr, EniId, LeaseId, Mac, PodRef, SandboxKey

# --- what goes in -------------------------------------------------------------------------------------


class LeaseWiring(msgspec.Struct, frozen=True, kw_only=True):
    """What the datapath needs of a lease.

    Attributes:
        host_ifname, host_ifindex, alias: The host veth, as far as the log knows it; empty (0) when the
            sandbox has not been wired yet.
        host_mac, pod_mac: The MACs of both ends, as far as the log knows them.
        is_found: Its interface was found on the node: somebody else made it, or a log that is lost knew it.
    """

    lease: LeaseId
    key: SandboxKey
    pod: PodRef
    netns: str
    bindings: tuple[Binding, ...]
    host_ifname: str = ""
    host_ifindex: int = 0
    alias: str = ""
    host_mac: Mac = Mac("")
    pod_mac: Mac = Mac("")
    is_found: bool = False


class EniWiring(msgspec.Struct, frozen=True, kw_only=True):
    """What the datapath needs of an ENI.

    Attributes:
        primary: The ENI's own address, without prefix length.
        subnet_cidr: The CIDR of its subnet; its second address is the VPC router.
        table: Its Linux routing table (254 for the primary ENI).
    """

    eni: EniId
    mac: Mac
    primary: Address
    subnet_cidr: Cidr
    table: int
    card: int
    device: int
    is_primary: bool


class DatapathSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that shape the datapath.

    Attributes:
        veth_prefix: 1 to 4 characters; also what nft rules match pods' interfaces by.
        eni_mtu, pod_mtu: 576 to 9001 bytes.
        external_snat: Something outside the node translates; we do not.
        exclude_snat_cidrs: Destinations that see the pod's own address, besides the VPC's CIDRs.
        random_snat: ``prng``, ``hashrandom`` or ``none``: how SNAT picks ports.
        node_port: Answers to NodePort connections leave by the primary ENI.
        connmark: Mark and mask of connections that leave by the primary ENI.
        manage_sysctls: Whether ``rp_filter`` and ``ip_forward`` are ours to set.
    """

    veth_prefix: str = "eni"
    eni_mtu: int = 9001
    pod_mtu: int = 9001
    external_snat: bool = False
    exclude_snat_cidrs: tuple[Cidr, ...] = ()
    random_snat: str = "prng"
    node_port: bool = True
    connmark: int = 0x80
    manage_sysctls: bool = True


# --- objects of the kernel ----------------------------------------------------------------------------


class Rule(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One IPv4 policy rule: ``priority [from src] [to dst] [iif iif] [fwmark mark/mask] lookup table``.

    Attributes:
        src, dst: A CIDR, or empty for any.
        exotic: It has a selector or action that is not modelled here: never ours, never touched.
    """

    priority: int
    table: int
    src: Cidr = Cidr("")
    dst: Cidr = Cidr("")
    iif: str = ""
    mark: int = 0
    mask: int = 0
    exotic: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One IPv4 unicast route (default: ``dst`` ``0.0.0.0/0``); without ``gateway`` it is of scope link."""

    table: int
    dst: Cidr
    ifindex: int
    gateway: Address = Address("")


class LinkSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One link of the node.

    Attributes:
        kind: ``IFLA_INFO_KIND`` (``veth``, ``bridge``, ``vlan``, …); empty for a device with a driver.
        master: Ifindex of the bridge or bond that it belongs to; 0 for none.
        rp_filter: Its own ``rp_filter``; -1 when not told. The kernel uses the larger of this and ``all``'s.
        peer: ``IFLA_LINK``; for a veth the peer's ifindex in the peer's namespace. 0 when not told.
    """

    ifindex: int
    ifname: str
    mac: str
    alias: str
    kind: str
    mtu: int
    is_up: bool
    master: int = 0
    rp_filter: int = -1
    peer: int = 0


class AddressSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One IPv4 address of a link, with the prefix length that it was given."""

    ifindex: int
    address: Address
    prefix_length: int


class NftSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Our nft table, as far as one has to look to see whether it is the one that we would write.

    Attributes:
        digest: What the table says it was made from; empty when there is no table of ours.
        rules, elements: How many rules and set elements are really in it.
    """

    digest: str = ""
    rules: int = 0
    elements: int = 0


class FirewallPart(msgspec.Struct, frozen=True, kw_only=True):
    """What one tool shows of the firewall of amazon-vpc-cni-k8s: all of it goes in one transaction.

    Attributes:
        tool: ``iptables-nft``, ``iptables-legacy`` or ``nft``.
        lines: For the iptables tools: each chain and rule of one table as ``-t <table> -N …`` or
            ``-t <table> -A …``, in the order in which they would be made. For ``nft``: the whole table as
            ``nft list`` prints it.
    """

    tool: str
    lines: tuple[str, ...]


class FirewallSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The firewall of amazon-vpc-cni-k8s, as far as it can be read.

    Attributes:
        parts: Empty when nothing of it stands.
        problems: Why a part of it may stand unseen, or cannot be removed, one sentence each.
    """

    parts: tuple[FirewallPart, ...] = ()
    problems: tuple[str, ...] = ()


class NftTable(msgspec.Struct, frozen=True, kw_only=True):
    """The nft table to be. An empty ``text`` means that there is to be none."""

    text: str
    seen: NftSeen
    """What a reader of the kernel must see once it is loaded."""


# --- what should be -----------------------------------------------------------------------------------


class PodWiring(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that wiring one sandbox needs; nothing is left to choose.

    Attributes:
        ifname: Name of the interface inside the pod.
        host_mac, pod_mac: Of a new interface. One that stands keeps its own.
        mtu: Of a new interface; ``is_found`` keeps its own.
        table: Where packets from the pod are routed by.
        rp_filter: For the host veth; -1 leaves it alone.
        host_ifindex: 0 when nobody wrote it down.
        is_found: As in :class:`LeaseWiring`: what it has is left as it is.
        is_unlocated: Nobody knows yet which ENI has the address: ``table`` is what the rules told when the node was
            searched, and a plugin that was still at work then may have told more since.
        as_original: Wire it for amazon-vpc-cni-k8s, too: a host route in main, and a rule that leads to it.
    """

    lease: LeaseId
    netns: str
    ifname: str
    host_ifname: str
    alias: str
    address: Address
    gateway: Address
    host_mac: Mac
    pod_mac: Mac
    mtu: int
    table: int
    rp_filter: int = -1
    host_ifindex: int = 0
    is_found: bool = False
    is_unlocated: bool = False
    as_original: bool = False


class EniSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that setting up one ENI needs.

    Attributes:
        gateway: The VPC router of the subnet.
        prefix_length: That of the subnet, for the ENI's own address.
        rp_filter: For the link; -1 leaves it alone.
        owns_address: Whether address, routes and rule are ours to make (not on the primary ENI: there
            they belong to the operating system).
    """

    eni: EniId
    mac: Mac
    primary: Address
    prefix_length: int
    subnet_cidr: Cidr
    gateway: Address
    table: int
    mtu: int
    rp_filter: int = -1
    owns_address: bool = True


class NftPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the nft table depends on, but for the name of the primary link.

    Attributes:
        direct: Destinations that are reached with the pod's own address; sorted, without overlaps.
        snat_to: The primary ENI's address; empty when we do not translate.
    """

    veth_prefix: str
    direct: tuple[Cidr, ...]
    snat_to: Address
    random_snat: str
    node_port: bool
    connmark: int


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """How the node's network stack should look.

    Attributes:
        nft: ``None`` when it cannot be told yet (no VPC CIDR or no primary ENI known): then the table is
            left as it is.
        subnets: Where the address of a rule or host route must lie for it to be ours to delete.
        ended: Host veths of leases that have ended, and that may still stand.
        left_alone: Addresses of open leases that cannot be wired here: whatever serves them stays.
        notes: Why, one sentence for each of them that is not a mere hold.
        as_original: Each pod is wired for amazon-vpc-cni-k8s, too (the node is being handed back), and nothing
            of its own is removed.
    """

    pods: tuple[PodWiring, ...]
    enis: tuple[EniSetup, ...]
    rules: tuple[Rule, ...]
    nft: NftPolicy | None
    subnets: tuple[Cidr, ...]
    primary_mac: str = ""
    ip_forward: bool = True
    veth_prefix: str = "eni"
    ended: tuple[VethRemoval, ...] = ()
    left_alone: tuple[Address, ...] = ()
    notes: tuple[str, ...] = ()
    as_original: bool = False


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel says, ours and foreign.

    Attributes:
        routes: Unicast routes of the pod table, of ENI tables and of main.
        ip_forward: ``None`` when it could not be read.
    """

    links: tuple[LinkSeen, ...] = ()
    addresses: tuple[AddressSeen, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    nft: NftSeen = NftSeen()
    ip_forward: bool | None = None
    firewall: FirewallSeen = FirewallSeen()


class LinkChange(msgspec.Struct, frozen=True, kw_only=True):
    """A link appeared, changed or vanished."""

    kind: Literal["added", "changed", "removed"]
    link: LinkSeen


class PathChange(msgspec.Struct, frozen=True, kw_only=True):
    """A policy rule, or a host route of main or of the pod table, appeared or vanished.

    Attributes:
        rule, route: One of both; neither when the kernel had to drop changes: anything may have happened.
    """

    is_removed: bool = False
    rule: Rule | None = None
    route: Route | None = None


# --- what to do, and what came of it ------------------------------------------------------------------


class EniLink(msgspec.Struct, frozen=True, kw_only=True):
    """An ENI and its link."""

    eni: EniId
    ifname: str
    ifindex: int


class LinkSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A host veth that must be up, with this ``rp_filter`` (-1 leaves it alone).

    Attributes:
        alias: What it must have now; else it is another one by now, and left alone.
        ifname: Where it has no alias yet: what it must be called instead.
        new_alias: What it gets; ``None`` leaves its alias as it is.
    """

    ifindex: int
    alias: str
    rp_filter: int = -1
    ifname: str = ""
    new_alias: str | None = None


class OriginalPath(msgspec.Struct, frozen=True, kw_only=True):
    """How amazon-vpc-cni-k8s leads packets to a pod: a host route in main, and a rule that leads there."""

    address: Address
    ifindex: int


class VethRemoval(msgspec.Struct, frozen=True, kw_only=True):
    """A host veth that may go: only if the link of this index has this alias.

    Attributes:
        ifindex: 0 when nobody wrote it down (the agent died while it wired): then ``ifname`` finds it.
        ifname, mac: Tell a veth that has no alias (yet) as this sandbox's: it must have both, besides the
            index where that is known.
    """

    ifindex: int
    alias: str
    ifname: str = ""
    mac: str = ""


class RouteRemoval(msgspec.Struct, frozen=True, kw_only=True):
    """A route that may go. ``ifindex`` 0: whichever link it points to."""

    table: int
    dst: Cidr
    ifindex: int = 0


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, in the order of its fields: additions before deletions.

    Attributes:
        wire: Sandboxes to wire, each all or nothing.
        original_add: Paths of amazon-vpc-cni-k8s to make besides ours, each route before rule.
        purge: Addresses that no pod has any more: their from-rules go whatever their table, and so does the rule
            by which amazon-vpc-cni-k8s led to them.
        foreign_rules, foreign_routes, firewall: What amazon-vpc-cni-k8s left, in this order; only if everything
            before succeeded. What cannot be removed is noted.
        probe: Sandboxes to look at (CHECK, the lease sweep); changes nothing.
        absent: Leases whose host veth is not there; told, not done (the lease sweep decides).
        enis_ready, enis_missing: ENIs that need nothing, and ENIs without a link; told, not done.
        nft: The table to load; ``None`` leaves it alone.
    """

    ip_forward: bool = False
    enis: tuple[EniSetup, ...] = ()
    links_set: tuple[LinkSetting, ...] = ()
    rules_add: tuple[Rule, ...] = ()
    routes_set: tuple[Route, ...] = ()
    wire: tuple[PodWiring, ...] = ()
    nft: NftTable | None = None
    original_add: tuple[OriginalPath, ...] = ()
    routes_delete: tuple[RouteRemoval, ...] = ()
    rules_delete: tuple[Rule, ...] = ()
    purge: tuple[Address, ...] = ()
    veths_delete: tuple[VethRemoval, ...] = ()
    foreign_rules: tuple[Rule, ...] = ()
    foreign_routes: tuple[Route, ...] = ()
    firewall: tuple[FirewallPart, ...] = ()
    probe: tuple[PodWiring, ...] = ()
    absent: tuple[LeaseId, ...] = ()
    enis_ready: tuple[EniLink, ...] = ()
    enis_missing: tuple[EniId, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether applying it would change nothing."""
        return not (
            self.ip_forward
            or self.enis
            or self.links_set
            or self.rules_add
            or self.routes_set
            or self.wire
            or self.nft is not None
            or self.original_add
            or self.routes_delete
            or self.rules_delete
            or self.purge
            or self.veths_delete
            or self.foreign_rules
            or self.foreign_routes
            or self.firewall
        )


class SandboxSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that was wired."""

    host_ifname: str
    host_ifindex: int
    host_mac: str
    pod_mac: str
    alias: str
    netns_inode: int


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a sandbox.

    Attributes:
        netns_inode: 0 when its namespace is gone.
        host_ifindex: Of the veth with its alias; 0 when there is none.
        problems: One sentence for each thing that is not as its lease says; empty when all is well.
    """

    netns_inode: int
    host_ifindex: int
    problems: tuple[str, ...] = ()


class RemovedObject(msgspec.Struct, frozen=True, kw_only=True):
    """Something of amazon-vpc-cni-k8s that was removed: its kind, and how its own tool prints it."""

    kind: Literal["rule", "route", "iptables", "nftables"]
    text: str


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a difference.

    Attributes:
        enis: Each ENI that is set up now, with the name and index of its link.
        missing_links: ENIs of the difference that have no link (yet).
        removed_veths: The given indexes whose veths are gone now, whoever removed them.
        removed: What of amazon-vpc-cni-k8s was there and is no more, each once.
        notes: What could not be done and does not matter enough to fail, one sentence each.
    """

    sandboxes: dict[LeaseId, SandboxSeen] = {}
    enis: dict[EniId, tuple[str, int]] = {}
    missing_links: tuple[EniId, ...] = ()
    probed: dict[LeaseId, Probed] = {}
    removed_veths: tuple[int, ...] = ()
    removed: tuple[RemovedObject, ...] = ()
    notes: tuple[str, ...] = ()

"""The rtnetlink messages that the kernel adapter sends and reads: links, addresses, routes, rules.

Attribute numbers are those of ``linux/if_link.h``, ``if_addr.h``, ``rtnetlink.h``, ``fib_rules.h`` and
``neighbour.h``; they are kernel ABI. IPv4 only, as far as addresses go.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from vpccni.adapters.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Attributes,
    attr,
    attr_text,
    attr_u32,
    attributes,
    nest,
    number_of,
    text_of,
)
from vpccni.datapath.objects import AddressSeen, LinkSeen, Route, Rule
from vpccni.model import Address, Cidr

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_GETNEIGH: Final = 30
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34
RTM_GETNSID: Final = 90

ADD: Final = NLM_F_CREATE | NLM_F_EXCL
SET: Final = NLM_F_CREATE | NLM_F_REPLACE

_IFF_UP: Final = 0x1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_GROUP: Final = 27
_IFLA_LINK_NETNSID: Final = 37
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 18, 20, 26, 28, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET_CONF: Final = 1
_CONF_RP_FILTER: Final = 8
"""``IPV4_DEVCONF_RP_FILTER`` of ``linux/ip.h``."""
_RTEXT_FILTER_SKIP_STATS: Final = 8

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NOPREFIXROUTE: Final = 0x200

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_RTA_VIA: Final = 18
_RTA_ENCAP: Final = 22
_RTPROT_STATIC: Final = 4
_RTN_UNICAST: Final = 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_RTM_F_LOOKUP_TABLE: Final = 0x1000
_RTM_F_FIB_MATCH: Final = 0x2000
_RTM_F_CLONED: Final = 0x200

_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK = 1, 2, 3, 6, 10
_FRA_SUPPRESS_IFGROUP, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_FWMASK = 13, 14, 15, 16
_FRA_PAD, _FRA_PROTOCOL = 18, 21
_FRA_MODELLED: Final = frozenset(
    {_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PAD}
    | {_FRA_PROTOCOL}
)
_FR_ACT_TO_TBL: Final = 1
_NUMBER_NONE: Final = 0xFFFFFFFF

_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT: Final = 0x80

_NETNSA_NSID, _NETNSA_FD = 1, 3
_RTGENMSG: Final = struct.Struct("=Bxxx")
_S32: Final = struct.Struct("=i")
_NO_NETNS: Final = -1
"""``NETNSA_NSID_NOT_ASSIGNED``: of a namespace that is dying, or that we have nothing to do with."""

_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBi")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_AF_INET: Final = int(socket.AF_INET)
_AF_UNSPEC: Final = 0


def _packed(address: str) -> bytes:
    return socket.inet_aton(address)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# --- links --------------------------------------------------------------------------------------------


def new_veth(
    *, ifname: str, mac: str, mtu: int, peer_ifname: str, peer_mac: str, peer_mtu: int, peer_netns: int
) -> bytes:
    """Body of RTM_NEWLINK: a veth here, up, and its peer in the namespace of the descriptor.

    The peer cannot be made up: it would be opened before it knows its other end (ENOTCONN).
    """
    peer = (
        _IFINFOMSG.pack(_AF_UNSPEC, 0, 0, 0, 0)
        + attr_text(_IFLA_IFNAME, peer_ifname)
        + attr(_IFLA_ADDRESS, _mac(peer_mac))
        + attr_u32(_IFLA_MTU, peer_mtu)
        + attr_u32(_IFLA_NET_NS_FD, peer_netns)
    )
    return (
        _IFINFOMSG.pack(_AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP)
        + attr_text(_IFLA_IFNAME, ifname)
        + attr(_IFLA_ADDRESS, _mac(mac))
        + attr_u32(_IFLA_MTU, mtu)
        + nest(
            _IFLA_LINKINFO,
            attr(_IFLA_INFO_KIND, b"veth"),
            nest(_IFLA_INFO_DATA, nest(_VETH_INFO_PEER, peer)),
        )
    )


def one_link(*, ifname: str = "", ifindex: int = 0) -> bytes:
    """Body of RTM_GETLINK for one link, without its counters."""
    body = _IFINFOMSG.pack(_AF_UNSPEC, 0, ifindex, 0, 0) + attr_u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return body + attr_text(_IFLA_IFNAME, ifname) if ifname else body


def all_links() -> bytes:
    """Body of RTM_GETLINK for a dump."""
    return _IFINFOMSG.pack(_AF_UNSPEC, 0, 0, 0, 0) + attr_u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)


def link_settings(
    ifindex: int, *, up: bool = False, mtu: int = 0, alias: str | None = None, rp_filter: int = -1
) -> bytes:
    """Body of RTM_SETLINK; what is left at its default is not changed. ``rp_filter`` needs no ``/proc``.

    An empty ``alias`` takes the alias away.
    """
    flags = _IFF_UP if up else 0
    parts = [_IFINFOMSG.pack(_AF_UNSPEC, 0, ifindex, flags, flags)]
    if mtu:
        parts.append(attr_u32(_IFLA_MTU, mtu))
    if alias is not None:
        parts.append(attr(_IFLA_IFALIAS, alias.encode()))
    if rp_filter >= 0:
        conf = nest(_IFLA_INET_CONF, attr_u32(_CONF_RP_FILTER, rp_filter))
        parts.append(nest(_IFLA_AF_SPEC, nest(_AF_INET, conf)))
    return b"".join(parts)


def link_index(ifindex: int) -> bytes:
    """Body of RTM_DELLINK."""
    return _IFINFOMSG.pack(_AF_UNSPEC, 0, ifindex, 0, 0)


def link_into_group(ifindex: int, group: int) -> bytes:
    """Body of RTM_SETLINK: put a link into a group."""
    return _IFINFOMSG.pack(_AF_UNSPEC, 0, ifindex, 0, 0) + attr_u32(_IFLA_GROUP, group)


def link_group(group: int) -> bytes:
    """Body of RTM_DELLINK for all links of a group."""
    return _IFINFOMSG.pack(_AF_UNSPEC, 0, 0, 0, 0) + attr_u32(_IFLA_GROUP, group)


def parse_link(payload: bytes | memoryview) -> LinkSeen:
    """The link that an RTM_NEWLINK or RTM_DELLINK message tells of."""
    view = memoryview(payload)
    _, _, ifindex, flags, _ = _IFINFOMSG.unpack_from(view)
    found = attributes(view[16:])
    info = attributes(found[_IFLA_LINKINFO]) if _IFLA_LINKINFO in found else {}
    return LinkSeen(
        ifindex=ifindex,
        ifname=text_of(found, _IFLA_IFNAME),
        mac=bytes(found.get(_IFLA_ADDRESS, b"")).hex(":"),
        alias=text_of(found, _IFLA_IFALIAS),
        kind=text_of(info, _IFLA_INFO_KIND),
        mtu=number_of(found, _IFLA_MTU),
        is_up=bool(flags & _IFF_UP),
        master=number_of(found, _IFLA_MASTER),
        rp_filter=_rp_filter(found),
        peer=number_of(found, _IFLA_LINK),
    )


def parse_ends(payload: bytes) -> tuple[int, int]:
    """Of a veth: its own index and its peer's (kernels that leave it out mean that both are equal)."""
    view = memoryview(payload)
    ifindex = int(_IFINFOMSG.unpack_from(view)[2])
    return ifindex, number_of(attributes(view[16:]), _IFLA_LINK, ifindex)


def parse_peer_netns(payload: bytes) -> int:
    """The number by which our namespace knows that of a veth's other end.

    -1 when the other end is in our own, or in one that is being torn down.
    """
    return _signed(attributes(memoryview(payload)[16:]), _IFLA_LINK_NETNSID)


def netns_number_of(descriptor: int) -> bytes:
    """Body of RTM_GETNSID: by which number our namespace knows that of a descriptor."""
    return _RTGENMSG.pack(_AF_UNSPEC) + attr_u32(_NETNSA_FD, descriptor)


def parse_netns_number(payload: bytes) -> int:
    """The number that an RTM_NEWNSID message tells of; -1 for none: no link of ours ends in it."""
    return _signed(attributes(memoryview(payload)[4:]), _NETNSA_NSID)


def _signed(found: Attributes, kind: int) -> int:
    payload = found.get(kind)
    return _NO_NETNS if payload is None or len(payload) < 4 else int(_S32.unpack_from(payload)[0])


def _rp_filter(found: Attributes) -> int:
    if _IFLA_AF_SPEC not in found:
        return -1
    conf = attributes(attributes(found[_IFLA_AF_SPEC]).get(_AF_INET, memoryview(b""))).get(_IFLA_INET_CONF)
    offset = 4 * (_CONF_RP_FILTER - 1)
    if conf is None or len(conf) < offset + 4:
        return -1
    return int(struct.unpack_from("=I", conf, offset)[0])


# --- addresses and neighbours -------------------------------------------------------------------------


def new_address(ifindex: int, address: str, prefix_length: int, *, is_routed: bool = True) -> bytes:
    """Body of RTM_NEWADDR; ``is_routed=False`` makes the kernel add no connected route for it."""
    packed = _packed(address)
    body = _IFADDRMSG.pack(_AF_INET, prefix_length, 0, _SCOPE_UNIVERSE, ifindex)
    body += attr(_IFA_LOCAL, packed) + attr(_IFA_ADDRESS, packed)
    return body if is_routed else body + attr_u32(_IFA_FLAGS, _IFA_F_NOPREFIXROUTE)


def all_addresses(ifindex: int = 0) -> bytes:
    """Body of RTM_GETADDR for a dump of IPv4; those of one link where the socket lets dumps be filtered."""
    return _IFADDRMSG.pack(_AF_INET, 0, 0, 0, ifindex)


def is_of_global_scope(payload: bytes) -> bool:
    """Whether the address that an RTM_NEWADDR message tells of is good beyond its link."""
    return int(_IFADDRMSG.unpack_from(payload)[3]) == _SCOPE_UNIVERSE


def parse_address(payload: bytes) -> AddressSeen:
    """The address that an RTM_NEWADDR message tells of."""
    view = memoryview(payload)
    _, prefix_length, _, _, ifindex = _IFADDRMSG.unpack_from(view)
    found = attributes(view[8:])
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    return AddressSeen(
        ifindex=ifindex, address=Address(socket.inet_ntoa(packed)), prefix_length=prefix_length
    )


def new_neighbour(ifindex: int, address: str, mac: str) -> bytes:
    """Body of RTM_NEWNEIGH: a permanent entry."""
    body = _NDMSG.pack(_AF_INET, ifindex, _NUD_PERMANENT, 0, 0)
    return body + attr(_NDA_DST, _packed(address)) + attr(_NDA_LLADDR, _mac(mac))


def all_neighbours() -> bytes:
    """Body of RTM_GETNEIGH for a dump of IPv4."""
    return _NDMSG.pack(_AF_INET, 0, 0, 0, 0)


def parse_neighbour(payload: bytes) -> tuple[int, str, str]:
    """Ifindex, address and MAC of a neighbour entry."""
    view = memoryview(payload)
    ifindex = int(_NDMSG.unpack_from(view)[1])
    found = attributes(view[12:])
    packed = found.get(_NDA_DST)
    return ifindex, socket.inet_ntoa(packed) if packed else "", bytes(found.get(_NDA_LLADDR, b"")).hex(":")


# --- routes -------------------------------------------------------------------------------------------


def route(entry: Route) -> bytes:
    """Body of RTM_NEWROUTE."""
    return _route(entry.table, entry.dst, entry.ifindex, entry.gateway, is_new=True)


def route_removal(table: int, dst: str, ifindex: int) -> bytes:
    """Body of RTM_DELROUTE; ``ifindex`` 0 means whichever link it points to."""
    return _route(table, Cidr(dst), ifindex, Address(""), is_new=False)


def _route(table: int, dst: Cidr, ifindex: int, gateway: Address, *, is_new: bool) -> bytes:
    address, _, length = dst.partition("/")
    if is_new:
        scope = _SCOPE_UNIVERSE if gateway else _SCOPE_LINK
        protocol, kind = _RTPROT_STATIC, _RTN_UNICAST
    else:
        scope, protocol, kind = _SCOPE_NOWHERE, 0, 0
    small = table if table < 256 else 0
    body = _RTMSG.pack(_AF_INET, int(length), 0, 0, small, protocol, scope, kind, 0)
    body += attr_u32(_RTA_TABLE, table)
    if length != "0":
        body += attr(_RTA_DST, _packed(address))
    if ifindex:
        body += attr_u32(_RTA_OIF, ifindex)
    return body + attr(_RTA_GATEWAY, _packed(gateway)) if gateway else body


def matching_route(address: str) -> bytes:
    """Body of RTM_GETROUTE: the table entry that a packet to this address would take."""
    body = _RTMSG.pack(_AF_INET, 32, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH | _RTM_F_LOOKUP_TABLE)
    return body + attr(_RTA_DST, _packed(address))


def all_routes() -> bytes:
    """Body of RTM_GETROUTE for a dump of IPv4."""
    return _RTMSG.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)


def parse_route(payload: bytes) -> Route | None:
    """The route that an RTM_NEWROUTE message tells of; ``None`` for what :class:`Route` cannot say."""
    view = memoryview(payload)
    _, dst_len, src_len, tos, table, _, _, kind, flags = _RTMSG.unpack_from(view)
    found = attributes(view[12:])
    if kind != _RTN_UNICAST or src_len or tos or flags & _RTM_F_CLONED or _RTA_OIF not in found:
        return None
    if number_of(found, _RTA_PRIORITY) or found.keys() & {_RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP}:
        return None
    dst = socket.inet_ntoa(found[_RTA_DST]) if _RTA_DST in found else "0.0.0.0"  # noqa: S104 - any destination
    return Route(
        table=number_of(found, _RTA_TABLE, table),
        dst=Cidr(f"{dst}/{dst_len}"),
        ifindex=number_of(found, _RTA_OIF),
        gateway=Address(socket.inet_ntoa(found[_RTA_GATEWAY]) if _RTA_GATEWAY in found else ""),
    )


# --- rules --------------------------------------------------------------------------------------------


def rule(entry: Rule) -> bytes:
    """Body of RTM_NEWRULE and RTM_DELRULE. With table 0, RTM_DELRULE takes the first of any table."""
    src, _, src_length = entry.src.partition("/")
    dst, _, dst_length = entry.dst.partition("/")
    table = entry.table if entry.table < 256 else 0
    action = _FR_ACT_TO_TBL if entry.table else 0
    head = (_AF_INET, int(dst_length or 0), int(src_length or 0), 0, table, 0, 0, action, 0)
    parts = [_RTMSG.pack(*head), attr_u32(_FRA_PRIORITY, entry.priority)]
    if entry.table:
        parts.append(attr_u32(_FRA_TABLE, entry.table))
    if dst_length:
        parts.append(attr(_FRA_DST, _packed(dst)))
    if src_length:
        parts.append(attr(_FRA_SRC, _packed(src)))
    if entry.iif:
        parts.append(attr_text(_FRA_IIFNAME, entry.iif))
    if entry.mark or entry.mask:
        parts.extend((attr_u32(_FRA_FWMARK, entry.mark), attr_u32(_FRA_FWMASK, entry.mask)))
    return b"".join(parts)


def all_rules() -> bytes:
    """Body of RTM_GETRULE for a dump of IPv4."""
    return _RTMSG.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)


def parse_rule(payload: bytes) -> Rule:
    """The rule that an RTM_NEWRULE message tells of; ``exotic`` when it says more than :class:`Rule` can."""
    view = memoryview(payload)
    _, dst_len, src_len, tos, table, _, _, action, flags = _RTMSG.unpack_from(view)
    found = attributes(view[12:])
    none = [
        kind
        for kind in (_FRA_SUPPRESS_PREFIXLEN, _FRA_SUPPRESS_IFGROUP)
        if number_of(found, kind, _NUMBER_NONE) == _NUMBER_NONE
    ]
    exotic = found.keys() - _FRA_MODELLED - set(none)
    return Rule(
        priority=number_of(found, _FRA_PRIORITY),
        table=number_of(found, _FRA_TABLE, table),
        src=_cidr(found, _FRA_SRC, src_len),
        dst=_cidr(found, _FRA_DST, dst_len),
        iif=text_of(found, _FRA_IIFNAME),
        mark=number_of(found, _FRA_FWMARK),
        mask=number_of(found, _FRA_FWMASK),
        exotic=bool(exotic or tos or flags or action != _FR_ACT_TO_TBL),
    )


def _cidr(found: Attributes, kind: int, length: int) -> Cidr:
    return Cidr(f"{socket.inet_ntoa(found[kind])}/{length}") if kind in found else Cidr("")

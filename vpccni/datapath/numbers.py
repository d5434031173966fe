"""Every table number, rule priority and mark bit that we use, in one place.

Numbers that other programs use and that we keep away from: Calico's route tables 1-250, nm-cloud-setup's
tables and priorities 30200-30499, wg-quick's table 51820; packet mark bits 0x2000 (portmap), 0x4000 and
0x8000 (kube-proxy), 0x0f00 (Cilium) and 0xffff0000 (Calico).
"""

from __future__ import annotations

from typing import Final

from vpccni.model import MAIN_TABLE

POD_TABLE: Final = 51200
"""Holds one host route for each pod of this node and nothing else; a miss falls through to later rules.
Far above the tables of ENIs (10000 + 100 x card + device) and of the programs named above."""

PRIORITY_VLAN: Final = 10
"""Reserved: iif rules of security groups for pods."""
PRIORITY_LOCAL: Final = 20
"""Reserved: where ``local`` moves when branch ENIs enforce strictly."""
PRIORITY_TO_POD: Final = 512
"""``lookup POD_TABLE``: before any from-rule, so that pods of one node reach each other directly."""
PRIORITY_MARK: Final = 1024
"""``fwmark 0x80/0x80 lookup main``: before the from-rules, so that it wins over the pod's own ENI."""
PRIORITY_FROM_POD: Final = 1536
"""``from <pod> lookup <ENI table>``."""
PRIORITY_FROM_ENI: Final = 32765
"""``from <ENI's own address> lookup <ENI table>``: last before main."""

CONNMARK: Final = 0x80
"""Mark and mask of connections that leave by the primary ENI; ``AWS_VPC_K8S_CNI_CONNMARK`` changes it."""
OUR_MARK_BITS: Final = 0x7F
"""Bits kept for an ENI index in a later routing mode. Nobody else in the list above uses them."""

RP_FILTER_OFF: Final = 0
RP_FILTER_STRICT: Final = 1
RP_FILTER_LOOSE: Final = 2

NFT_FAMILY: Final = "ip"
NFT_TABLE: Final = "vpccni"

POD_GATEWAY: Final = "169.254.1.1"
"""What a pod takes for its gateway; only the permanent neighbour entry answers for it."""

IFALIAS_BYTES_MAX: Final = 255
"""Kernel's ``IFALIASZ`` less the terminating zero."""
IFNAME_BYTES_MAX: Final = 15
"""Kernel's ``IFNAMSIZ`` less the terminating zero."""

_CARD_TABLE_FIRST: Final = 10000
_CARD_TABLE_LAST: Final = 13399
"""Network cards are numbered below 33 on every instance type there is."""
_DEVICE_TABLE_LAST: Final = 64
"""No instance type takes more ENIs on one card."""


def is_eni_table(table: int) -> bool:
    """Whether a table number is one that :func:`vpccni.model.route_table_of` gives to a secondary ENI."""
    return 2 <= table <= _DEVICE_TABLE_LAST or _CARD_TABLE_FIRST <= table <= _CARD_TABLE_LAST


def needs_from_rule(table: int) -> bool:
    """Whether pods of an ENI with this table need a from-rule (those of the primary use main anyway)."""
    return table != MAIN_TABLE

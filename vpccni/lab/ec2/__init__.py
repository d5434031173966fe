"""The emulated EC2 and IMDS of one region.

Words of this package:

- **Region**: the model, without I/O, clock or chance of its own. Same seed, same calls, same instants: same
  ids, same addresses, same replies.
- **Call**: one API call on its way: how long it takes, what hits it, and what it changes once it is applied.
- **Fault**: what somebody asked to go wrong with a call, or with IMDS (**ImdsFault**). An **Ec2Fault** is the
  error that EC2 itself answers.
- **Agenda**: what the region does by itself at a later instant (an attach that settles, a link that appears).
- **Link**: what an attached ENI is to its instance: a NIC. The fabric follows the link events.

`model` holds the region, `inprocess` a client of it for simulations, `http` the same region served in the
real EC2 Query protocol and as IMDSv2, `wire` that protocol's encoding.
"""

from vpccni.lab.ec2.errors import Ec2Fault, ReplyLost
from vpccni.lab.ec2.faults import FOR_EVER, Fault
from vpccni.lab.ec2.imds import ImdsFault, ImdsReply
from vpccni.lab.ec2.inprocess import InProcessEc2
from vpccni.lab.ec2.link_events import AddressesChanged, LinkEvent, LinkPlugged, LinkUnplugged
from vpccni.lab.ec2.model import ACCOUNT_ID, REALISTIC_LATENCY_S, Region, small_region
from vpccni.lab.ec2.world import Timing

__all__ = [
    "ACCOUNT_ID",
    "FOR_EVER",
    "REALISTIC_LATENCY_S",
    "AddressesChanged",
    "Ec2Fault",
    "Fault",
    "ImdsFault",
    "ImdsReply",
    "InProcessEc2",
    "LinkEvent",
    "LinkPlugged",
    "LinkUnplugged",
    "Region",
    "ReplyLost",
    "Timing",
    "small_region",
]

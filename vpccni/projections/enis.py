"""ENIs and the CIDRs on them, as records left them."""

from __future__ import annotations

import msgspec

from vpccni.events.codec import Record
from vpccni.events.effect import EffectIntended, EffectUnknown
from vpccni.model import Cidr, EniFacts, IntentId, Stamp


class OwnedCidr(msgspec.Struct):
    """A CIDR that EC2 routes to an ENI of ours.

    Attributes:
        record: The ``CidrsOwned`` record that said so.
        suspected: How many readings in a row did not list it; 0 when it is in order.
    """

    record: Record
    suspected: int = 0


class Eni(msgspec.Struct, kw_only=True):
    """An ENI in the node's books.

    Attributes:
        facts: What EC2 said at its adoption; ``cidrs`` is empty but for an ENI that was left behind.
        phase: ``detached`` (exists, not attached) or ``attached``.
        attachment, device, card, table: Valid while attached.
        is_link_ready: The link is in the kernel, addressed and routed.
        is_retiring: We began to detach it in order to delete it.
        is_kept_safe: It will be deleted with the instance (DeleteOnTermination).
        suspected: How many readings in a row did not list it.
        eni_config: Name of the ENIConfig that chose its subnet and groups.
        lease_count: Open leases on it.
        released: CIDRs that left it lately, by the record that said so: a Describe that lags still lists them.
        adopted: When it came.
        records: The newest of each kind that says how it is; ``effect`` is our last call about it that was confirmed.
    """

    facts: EniFacts
    managed: bool
    origin: str
    phase: str
    attachment: str
    device: int
    card: int
    table: int
    is_link_ready: bool = False
    ifname: str = ""
    ifindex: int = 0
    is_retiring: bool = False
    is_kept_safe: bool = False
    suspected: int = 0
    eni_config: str = ""
    lease_count: int = 0
    adopted: Stamp
    cidrs: dict[Cidr, OwnedCidr]
    released: dict[Cidr, Record] = {}
    records: dict[str, Record]

    @property
    def is_primary(self) -> bool:
        """Whether it is device 0 of card 0, which EC2 never lets go of."""
        return self.phase == "attached" and self.device == 0 and self.card == 0


class Intent(msgspec.Struct, kw_only=True):
    """An effect that was intended and not yet settled."""

    id: IntentId
    intended: EffectIntended
    since: Stamp
    unknown: EffectUnknown | None = None
    records: dict[str, Record]

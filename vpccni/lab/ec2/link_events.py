"""What the network fabric and the simulator learn from the region: links that come, go and change.

An event is told while the region applies the change; a subscriber may queue it, but must not call back into
the region.
"""

import msgspec


class LinkPlugged(msgspec.Struct, frozen=True, kw_only=True):
    """A NIC appeared in the instance.

    Attributes:
        at: The instant, in the region's seconds.
        primary: The ENI's primary address.
        secondaries: Its other addresses at this instant, in EC2's order.
        prefixes: Its /28 prefixes at this instant.
        public_ip: The public address that is mapped to the primary address, if any.
    """

    at: float
    instance_id: str
    eni_id: str
    mac: str
    device_index: int
    card: int
    subnet_id: str
    subnet_cidr: str
    primary: str
    secondaries: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    public_ip: str | None = None
    source_dest_check: bool = True


class LinkUnplugged(msgspec.Struct, frozen=True, kw_only=True):
    """A NIC vanished from the instance."""

    at: float
    instance_id: str
    eni_id: str
    mac: str


class AddressesChanged(msgspec.Struct, frozen=True, kw_only=True):
    """What an ENI owns changed; the event carries all of it.

    Attributes:
        instance_id: Where the ENI is attached, None if it is not.
        addresses: Every address, the primary one first.
        prefixes: Every /28 prefix.
        source_dest_check: Whether the VPC drops packets from addresses that the ENI does not own.
    """

    at: float
    eni_id: str
    instance_id: str | None
    addresses: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    source_dest_check: bool = True


LinkEvent = LinkPlugged | LinkUnplugged | AddressesChanged

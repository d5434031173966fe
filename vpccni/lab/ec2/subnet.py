"""The address book of one subnet: finite, and deterministic in what it hands out.

Invariants: an address has at most one holder; the first four and the last address of the subnet are never
handed out (VPC user guide, "Subnet CIDR reservations"); a freed address goes to the end of the line, behind
every address that was never used, so that an address is reused as late as possible.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from vpccni.lab.ec2.errors import Ec2Fault, invalid_value, subnet_fragmented, subnet_full

RESERVED: Final = "reserved"
_PREFIX_SIZE: Final = 16  # a /28


def _text(number: int) -> str:
    """Return the dotted form; several times faster than IPv4Address, and every address passes here."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _number(address: str) -> int:
    """Return the number of an address that ``_text`` made or IPv4Address accepted."""
    a, b, c, d = address.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)


class AddressBook:
    """Who holds which address of a subnet.

    ``take`` and ``take_prefixes`` give all that was asked for or nothing.
    """

    def __init__(self, cidr: IPv4Network) -> None:
        if cidr.prefixlen < 16 or cidr.prefixlen > 28:
            raise ValueError(f"a VPC subnet is a /16 to a /28, not {cidr}")
        self.cidr = cidr
        self._first = int(cidr.network_address)
        self._size = cidr.num_addresses
        self._holder_of: dict[int, str] = {}
        self._held_in_block: dict[int, int] = {}
        self._fresh = 0  # offset of the first address that was never looked at
        self._freed: dict[int, None] = {}  # insertion order is the line
        self._next_block = 0
        for offset in (0, 1, 2, 3, self._size - 1):
            self._hold(self._first + offset, RESERVED)

    @property
    def free_count(self) -> int:
        """How many addresses nobody holds."""
        return self._size - len(self._holder_of)

    def holder_of(self, address: str) -> str | None:
        """Return who holds the address: an ENI id, ``reserved``, or None."""
        return self._holder_of.get(int(IPv4Address(address)))

    def take(self, count: int, holder: str) -> list[str]:
        """Hand out ``count`` addresses.

        Raises:
            Ec2Fault: The subnet has fewer free addresses; nothing was handed out.
        """
        if count > self.free_count:
            raise subnet_full()
        taken = []
        for _ in range(count):
            number = self._next_free()
            self._hold(number, holder)
            taken.append(_text(number))
        return taken

    def take_these(self, addresses: Sequence[str], holder: str) -> None:
        """Hand out exactly these addresses.

        Raises:
            Ec2Fault: One is outside the subnet, reserved, or held; nothing was handed out.
        """
        numbers = []
        for address in addresses:
            try:
                parsed = IPv4Address(address)
            except ValueError:
                raise invalid_value(f"invalid value for parameter address: [{address}]") from None
            held_by = self._holder_of.get(int(parsed))
            if parsed not in self.cidr or held_by == RESERVED:
                raise invalid_value(f"Address {address} does not fall within the subnet's address range")
            if held_by is not None:
                raise Ec2Fault("InvalidIPAddress.InUse", f"Address {address} is in use.")
            numbers.append(int(parsed))
        if len(set(numbers)) != len(numbers):
            raise invalid_value("Duplicate private IP addresses are not allowed")
        for number in numbers:
            self._hold(number, holder)

    def take_prefixes(self, count: int, holder: str) -> list[str]:
        """Hand out ``count`` whole /28 blocks.

        Raises:
            Ec2Fault: The subnet has fewer whole free blocks; nothing was handed out.
        """
        blocks = self._size // _PREFIX_SIZE
        found: list[int] = []
        for step in range(blocks):
            if len(found) == count:
                break
            block = (self._next_block + step) % blocks
            if not self._held_in_block.get(block):
                found.append(block)
        if len(found) < count:
            raise subnet_fragmented()
        for block in found:
            start = self._first + block * _PREFIX_SIZE
            for number in range(start, start + _PREFIX_SIZE):
                self._hold(number, holder)
        if found:
            self._next_block = (found[-1] + 1) % blocks
        return [f"{IPv4Address(self._first + block * _PREFIX_SIZE)}/28" for block in found]

    def give_back(self, addresses: Sequence[str]) -> None:
        """Take addresses back; the caller holds them."""
        for address in addresses:
            self._release(_number(address))

    def give_back_prefixes(self, prefixes: Sequence[str]) -> None:
        """Take whole /28 blocks back; the caller holds them."""
        for prefix in prefixes:
            start = int(IPv4Network(prefix).network_address)
            for number in range(start, start + _PREFIX_SIZE):
                self._release(number)

    def _next_free(self) -> int:
        while self._fresh < self._size:
            number = self._first + self._fresh
            self._fresh += 1
            if number not in self._holder_of:
                return number
        return next(iter(self._freed))

    def _hold(self, number: int, holder: str) -> None:
        self._holder_of[number] = holder
        self._freed.pop(number, None)
        block = (number - self._first) // _PREFIX_SIZE
        self._held_in_block[block] = self._held_in_block.get(block, 0) + 1

    def _release(self, number: int) -> None:
        del self._holder_of[number]
        self._held_in_block[(number - self._first) // _PREFIX_SIZE] -= 1
        self._freed[number] = None  # if the fresh ones still include it, it is taken as one of them

import random
from ipaddress import IPv4Network

import pytest

from vpccni.lab.ec2.errors import Ec2Fault
from vpccni.lab.ec2.subnet import AddressBook


def test_the_first_four_and_the_last_address_are_never_handed_out():
    book = AddressBook(IPv4Network("10.0.0.0/28"))
    assert book.free_count == 11
    assert book.take(11, "eni-1") == [f"10.0.0.{n}" for n in range(4, 15)]


def test_a_full_subnet_gives_all_that_is_asked_for_or_nothing():
    book = AddressBook(IPv4Network("10.0.0.0/28"))
    book.take(10, "eni-1")
    with pytest.raises(Ec2Fault) as refused:
        book.take(2, "eni-2")
    assert refused.value.code == "InsufficientFreeAddressesInSubnet"
    assert book.free_count == 1
    assert book.take(1, "eni-2") == ["10.0.0.14"]


def test_a_freed_address_is_handed_out_after_every_fresh_one_and_in_the_order_of_freeing():
    book = AddressBook(IPv4Network("10.0.0.0/28"))
    book.take(5, "eni-1")  # .4 to .8
    book.give_back(["10.0.0.7"])
    book.give_back(["10.0.0.5"])
    assert book.take(8, "eni-1") == [f"10.0.0.{n}" for n in range(9, 15)] + ["10.0.0.7", "10.0.0.5"]


def test_an_address_taken_by_name_is_not_handed_out_again_and_comes_back_when_freed():
    book = AddressBook(IPv4Network("10.0.0.0/28"))
    book.take_these(["10.0.0.5"], "eni-1")
    assert book.take(2, "eni-2") == ["10.0.0.4", "10.0.0.6"]
    book.give_back(["10.0.0.5"])
    assert book.take(9, "eni-2")[-1] == "10.0.0.5"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.0.0.0", "InvalidParameterValue"),
        ("10.0.0.15", "InvalidParameterValue"),
        ("10.0.1.9", "InvalidParameterValue"),
        ("nonsense", "InvalidParameterValue"),
        ("10.0.0.4", "InvalidIPAddress.InUse"),
    ],
    ids=["reserved_first", "reserved_last", "outside", "no_address", "held"],
)
def test_an_address_that_cannot_be_had_is_refused_and_takes_no_other_with_it(address, code):
    book = AddressBook(IPv4Network("10.0.0.0/28"))
    book.take(1, "eni-1")
    with pytest.raises(Ec2Fault) as refused:
        book.take_these(["10.0.0.9", address], "eni-2")
    assert refused.value.code == code
    assert book.holder_of("10.0.0.9") is None


def test_prefixes_are_whole_aligned_blocks_away_from_reserved_and_held_addresses():
    book = AddressBook(IPv4Network("10.0.0.0/26"))
    assert book.take_prefixes(1, "eni-1") == ["10.0.0.16/28"]
    book.take_these(["10.0.0.40"], "eni-2")
    with pytest.raises(Ec2Fault) as refused:
        book.take_prefixes(
            1, "eni-1"
        )  # blocks 0 and 3 hold reserved addresses, 1 is taken, 2 holds one address
    assert refused.value.code == "InsufficientCidrBlocks"
    book.give_back_prefixes(["10.0.0.16/28"])
    assert book.take_prefixes(1, "eni-1") == ["10.0.0.16/28"]


def test_random_traffic_never_gives_an_address_two_holders_and_never_loses_one():
    """A plain set says what is held; the book must agree after each of 2,000 steps."""
    chance = random.Random(3)
    book = AddressBook(IPv4Network("10.0.0.0/25"))
    held: set[str] = set()
    for _ in range(2000):
        if chance.random() < 0.5 and book.free_count:
            new = book.take(chance.randint(1, min(4, book.free_count)), "eni-1")
            assert not held & set(new)
            held |= set(new)
        elif held:
            gone = chance.sample(sorted(held), chance.randint(1, min(4, len(held))))
            book.give_back(gone)
            held -= set(gone)
        assert book.free_count == 128 - 5 - len(held)

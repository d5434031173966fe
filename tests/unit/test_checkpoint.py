"""The form of the original's checkpoint file: its words, its omissions, and what is made of a bad one."""

import hashlib
import json

import pytest

from vpccni.checkpoint import (
    COMPLAINTS_MAX,
    Mark,
    card_path,
    hold_key,
    is_made_up,
    parse_checkpoint,
    render_checkpoint,
)
from vpccni.errors import InvariantBrokenError
from vpccni.evidence import Row
from vpccni.model import Address, PodRef, SandboxKey

# As the original writes it: one line, a newline, no space, the newest row not the last.
ORIGINAL = (
    b'{"version":"vpc-cni-ipam/1","allocations":['
    b'{"networkName":"aws-cni","containerID":"%s","ifName":"eth0","ipv4":"10.0.1.17",'
    b'"allocationTimestamp":1718000000000000000,'
    b'"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}},'
    b'{"networkName":"_migrated-from-cri","containerID":"c1","ifName":"unknown","ipv4":"10.0.1.18",'
    b'"allocationTimestamp":1600000000000000000,"metadata":{}},'
    b'{"networkName":"aws-cni","containerID":"c2","ifName":"eth0","ipv6":"2600:1f13::5",'
    b'"allocationTimestamp":1718000000000000001,'
    b'"metadata":{"k8sPodNamespace":"kube-system","k8sPodName":"coredns-57ff979f67-qqbdh"}}]}\n'
) % (b"ab" * 32)
WEB = Row(
    key=SandboxKey("aws-cni", "ab" * 32, "eth0"),
    address=Address("10.0.1.17"),
    pod=PodRef("default", "web-0"),
    allocated_ns=1718000000000000000,
)
MARK = Mark(log_id="0f1e", seq=4711, boot_id="b-1")


def file_with(*rows, **keys):
    document = {"version": "vpc-cni-ipam/1", "allocations": list(rows)} | keys
    return json.dumps(document).encode()


def row(**changes):
    said = {
        "networkName": "aws-cni",
        "containerID": "c1",
        "ifName": "eth0",
        "ipv4": "10.0.1.17",
        "allocationTimestamp": 5,
        "metadata": {"k8sPodNamespace": "default", "k8sPodName": "web-0", "interfacesCount": 1},
    } | changes
    return {key: value for key, value in said.items() if value is not None}


def test_a_file_of_the_original_is_read():
    found = parse_checkpoint(ORIGINAL, path="/x/ipam.json", card=2, modified_ns=7)
    assert found.status == "read"
    assert found.unreadable == ()
    assert (found.path, found.card, found.modified_ns) == ("/x/ipam.json", 2, 7)
    assert found.digest == hashlib.sha256(ORIGINAL).hexdigest()
    assert (found.log_id, found.seq, found.boot_id) == ("", 0, "")
    assert found.rows == (
        Row(key=WEB.key, address=WEB.address, pod=WEB.pod, card=2, allocated_ns=WEB.allocated_ns),
        Row(
            key=SandboxKey("_migrated-from-cri", "c1", "unknown"),
            address=Address("10.0.1.18"),
            card=2,
            allocated_ns=1600000000000000000,
        ),
        Row(
            key=SandboxKey("aws-cni", "c2", "eth0"),
            address=Address("2600:1f13::5"),
            pod=PodRef("kube-system", "coredns-57ff979f67-qqbdh"),
            card=2,
            allocated_ns=1718000000000000001,
        ),
    )


def test_a_file_is_written_in_the_originals_bytes():
    expected = (
        b'{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"%s","ifName":"eth0",'
        b'"ipv4":"10.0.1.17","allocationTimestamp":1718000000000000000,'
        b'"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}}]}\n'
    ) % (b"ab" * 32)
    assert render_checkpoint([WEB], None) == expected
    assert render_checkpoint([WEB], MARK) == expected.replace(
        b"}}]}\n", b'}}],"vpccni":{"logId":"0f1e","seq":4711,"bootId":"b-1"}}\n'
    )


def test_no_rows_are_an_empty_list_and_empty_texts_are_left_out():
    assert render_checkpoint([], None) == b'{"version":"vpc-cni-ipam/1","allocations":[]}\n'
    nameless = Row(key=hold_key(Address("10.0.1.9")), address=Address("10.0.1.9"))
    (written,) = json.loads(render_checkpoint([nameless], None))["allocations"]
    assert written == {
        "networkName": "_vpccni-hold",
        "containerID": "vpccni-hold-10.0.1.9",
        "ifName": "eth0",
        "ipv4": "10.0.1.9",
        "allocationTimestamp": 0,
        "metadata": {"interfacesCount": 1},
    }
    v6 = Row(key=WEB.key, address=Address("fd00::1"))
    (written,) = json.loads(render_checkpoint([v6], None))["allocations"]
    assert written["ipv6"] == "fd00::1"
    assert "ipv4" not in written


def test_our_own_file_is_known_by_its_mark():
    found = parse_checkpoint(render_checkpoint([WEB], MARK), path="p")
    assert (found.log_id, found.seq, found.boot_id) == ("0f1e", 4711, "b-1")
    assert found.rows == (WEB,)
    # The original keeps the rows and drops every key that it does not know.
    rewritten = json.loads(render_checkpoint([WEB], MARK))
    del rewritten["vpccni"]
    assert parse_checkpoint(json.dumps(rewritten).encode(), path="p").log_id == ""


@pytest.mark.parametrize("mark", ["me", None, {"logId": 3}, {"logId": "a", "seq": -1.5, "bootId": ""}])
def test_a_mark_that_cannot_be_read_is_none_and_is_told(mark):
    found = parse_checkpoint(file_with(row(), vpccni=mark), path="p")
    assert (found.log_id, found.seq, found.boot_id) == ("", 0, "")
    assert len(found.rows) == 1
    assert "mark" in found.unreadable[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (ORIGINAL[:300], "truncated"),
        (b"\0" * 200, "malformed"),
        (b"[]", "object"),
        (b'{"allocations":[]}', "version"),
        (b'{"version":"vpc-cni-ipam/1"}', "allocations"),
        (b'{"version":"vpc-cni-ipam/2","allocations":[]}', "vpc-cni-ipam/2"),
        (b'{"version":"vpc-cni-ipam/1","allocations":{}}', "array"),
        (ORIGINAL + ORIGINAL, "trailing"),
        (
            b'{"version":"vpc-cni-ipam/1","allocations":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
            "recursion",
        ),
        (b'{"version":"\xff","allocations":[]}', "utf-8"),
    ],
    ids=[
        "empty",
        "torn",
        "zeros",
        "list",
        "no version",
        "no list",
        "newer",
        "no array",
        "twice",
        "deep",
        "text",
    ],
)
def test_a_file_that_is_not_whole_says_nothing_and_why(content, why):
    found = parse_checkpoint(content, path="p", modified_ns=9)
    assert found.status.startswith("unreadable: ")
    assert why in found.status
    assert found.rows == ()
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert found.modified_ns == 9


def test_a_list_of_null_is_empty():
    """A Go slice that was never filled."""
    found = parse_checkpoint(b'{"version":"vpc-cni-ipam/1","allocations":null}', path="p")
    assert (found.status, found.rows) == ("read", ())


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (row(ipv4="10.0.1.17/32"), "address cannot be read"),
        (row(ipv4="10.0.1"), "address cannot be read"),
        (row(ipv4="fd00::1"), "address cannot be read"),
        (row(ipv4=None, ipv6="10.0.0.1"), "address cannot be read"),
        (row(ipv4=None), "no address"),
        (row(ipv4=""), "no address"),
        (row(ipv4=5), "cannot be read"),
        (row(containerID=["x"]), "cannot be read"),
        (row(networkName="", containerID="", ifName=None), "10.0.1.17"),
        ("a row", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_row_is_told_and_hides_no_other(bad, why):
    before, after = row(ipv4="10.0.1.1", containerID="c8"), row(ipv4="10.0.1.2", containerID="c9")
    found = parse_checkpoint(file_with(before, bad, after), path="p")
    assert found.status == "read"
    assert [one.address for one in found.rows] == ["10.0.1.1", "10.0.1.2"]
    (told,) = found.unreadable
    assert told.startswith("row 2: ")
    assert why in told


@pytest.mark.parametrize(
    "odd",
    [
        {"allocationTimestamp": "yesterday"},
        {"allocationTimestamp": 1.5},
        {"allocationTimestamp": True},
        {"allocationTimestamp": 1 << 70},
        {"metadata": "none"},
        {"metadata": {"k8sPodName": 3}},
        {"metadata": {"interfacesCount": "two"}},
    ],
)
def test_a_row_whose_time_or_pod_cannot_be_read_still_shows_its_address(odd):
    found = parse_checkpoint(file_with(row(**odd)), path="p")
    assert [one.address for one in found.rows] == ["10.0.1.17"]
    assert found.rows[0].key == SandboxKey("aws-cni", "c1", "eth0")
    assert len(found.unreadable) == 1


@pytest.mark.parametrize(
    "older",
    [
        {"allocationTimestamp": None},
        {"allocationTimestamp": 0},
        {"allocationTimestamp": -6795364578871345152},  # Go: a time that was never set
        {"metadata": None},
        {"metadata": {"interfacesCount": 0}},
    ],
)
def test_what_older_files_leave_out_is_no_fault(older):
    found = parse_checkpoint(file_with(row(**older)), path="p")
    assert found.unreadable == ()
    (read,) = found.rows
    assert read.interfaces_count == 1
    assert read.allocated_ns in (0, 5)


def test_a_row_with_two_addresses_shows_both():
    found = parse_checkpoint(file_with(row(ipv6="fd00::1")), path="p")
    assert [one.address for one in found.rows] == ["10.0.1.17", "fd00::1"]


def test_an_address_has_one_form():
    found = parse_checkpoint(file_with(row(ipv4=None, ipv6="FD00:0:0::0001")), path="p")
    assert found.rows[0].address == "fd00::1"


def test_what_is_told_of_a_bad_file_is_bounded():
    found = parse_checkpoint(file_with(*[5] * 1000), path="p")
    assert len(found.unreadable) == COMPLAINTS_MAX + 1
    assert found.unreadable[-1] == f"and {1000 - COMPLAINTS_MAX} more"


def test_two_rows_with_one_address_are_never_written():
    """The original does not start with such a file."""
    other = Row(key=SandboxKey("aws-cni", "c9", "eth0"), address=WEB.address)
    with pytest.raises(InvariantBrokenError, match=r"10\.0\.1\.17"):
        render_checkpoint([WEB, other], MARK)


def test_a_row_without_a_key_is_never_written():
    """The original would give its address to the next pod."""
    with pytest.raises(InvariantBrokenError, match="no key"):
        render_checkpoint([Row(key=SandboxKey("", "", ""), address=Address("10.0.1.1"))], MARK)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/run/aws-node/ipam.json", "/var/run/aws-node/ipam-nic-1.json"),
        ("/x/state", "/x/state-nic-1.json"),
        ("/x/a.json.d/ipam.json", "/x/a.json.d/ipam-nic-1.json"),
    ],
)
def test_the_files_of_other_cards_lie_beside_the_first(path, expected):
    assert card_path(path, 0) == path
    assert card_path(path, 1) == expected


def test_the_key_of_a_hold_is_its_own_and_is_no_runtimes():
    keys = {hold_key(Address(address)) for address in ("10.0.1.1", "10.0.1.11", "fd00::1", "fd00::11")}
    assert len(keys) == 4
    for key in keys:
        assert is_made_up(key)
        assert all((key.network, key.container_id, key.ifname))
        assert key.container_id.replace("-", "").replace(".", "").isalnum()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (SandboxKey("aws-cni", "c1", "eth0"), False),
        (SandboxKey("_migrated-from-cri", "c1", "eth0"), True),
        (SandboxKey("_vpccni-hold", "c1", "eth0"), True),
        (SandboxKey("aws-cni", "c1", "unknown"), True),
        (SandboxKey("", "c1", "eth0"), True),
        (SandboxKey("aws-cni", "", "eth0"), True),
        (SandboxKey("aws-cni", "c1", ""), True),
    ],
)
def test_a_key_that_no_runtime_used_is_made_up(key, expected):
    assert is_made_up(key) is expected

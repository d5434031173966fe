"""Whatever rows there are, the checkpoint file gives them back; whatever bytes there are, reading them ends well."""

import json

from hypothesis import given
from hypothesis import strategies as st

from vpccni.checkpoint import Mark, parse_checkpoint, render_checkpoint
from vpccni.evidence import Row
from vpccni.model import Address, PodRef, SandboxKey

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = text.filter(bool)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(lambda address: Address(str(address)))
rows = st.builds(
    Row,
    key=st.builds(SandboxKey, names, names, names),
    address=addresses,
    pod=st.builds(PodRef, text, text),
    allocated_ns=st.integers(0, (1 << 63) - 1),
    interfaces_count=st.integers(1, 8),
)
some_rows = st.lists(rows, max_size=8, unique_by=lambda row: row.address)
marks = st.builds(Mark, log_id=names, seq=st.integers(0, 1 << 53), boot_id=names)


@given(some_rows, st.none() | marks)
def test_what_is_written_is_read_again(written, mark):
    content = render_checkpoint(written, mark)
    found = parse_checkpoint(content, path="p")
    assert (found.status, found.unreadable) == ("read", ())
    assert found.rows == tuple(written)
    if mark is not None:
        assert (found.log_id, found.seq, found.boot_id) == (mark.log_id, mark.seq, mark.boot_id)
    else:
        assert found.log_id == ""
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 1


@given(some_rows)
def test_every_row_has_exactly_one_family_and_no_empty_optional_key(written):
    for row in json.loads(render_checkpoint(written, None))["allocations"]:
        assert ("ipv4" in row) != ("ipv6" in row)
        assert set(row) - {"ipv4", "ipv6"} == {
            "networkName",
            "containerID",
            "ifName",
            "allocationTimestamp",
            "metadata",
        }
        assert all(row["metadata"].values())


@given(some_rows, marks, st.data())
def test_no_torn_file_reads_as_a_whole_one(written, mark, data):
    content = render_checkpoint(written, mark)
    length = data.draw(st.integers(0, len(content) - 2))  # without the newline it is still whole
    assert parse_checkpoint(content[:length], path="p").status.startswith("unreadable: ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | addresses,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
row_keys = st.sampled_from(
    ["networkName", "containerID", "ifName", "ipv4", "ipv6", "allocationTimestamp", "metadata"]
)
odd_rows = json_values | st.dictionaries(row_keys, json_values | addresses)


@given(st.binary(max_size=200) | st.lists(odd_rows, max_size=5), json_values)
def test_whatever_the_file_holds_reading_it_does_not_raise(content, mark):
    if not isinstance(content, bytes):
        document = {"version": "vpc-cni-ipam/1", "allocations": content, "vpccni": mark}
        content = json.dumps(document).encode()
    found = parse_checkpoint(content, path="p")
    assert found.status == "read" or found.status.startswith("unreadable: ")
    assert all(
        row.address and any((row.key.network, row.key.container_id, row.key.ifname)) for row in found.rows
    )

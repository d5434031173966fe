"""Files that other programs leave on a node, in their real forms, and what else may lie in their place."""

import asyncio
import hashlib
import json
import os
import socket
import stat

import pytest

from tests.libcni import CONTAINER_ID, NETNS, ORIGINAL_RESULT, cache_entry, write_entry
from vpccni.adapters import checkpoint as checkpoint_adapter
from vpccni.adapters import runtime as runtime_adapter
from vpccni.adapters.checkpoint import CheckpointFiles
from vpccni.adapters.foreign_file import read_foreign_file
from vpccni.adapters.predecessor import PINS_MAX, VpcCni
from vpccni.adapters.runtime import LibcniCache
from vpccni.checkpoint import Mark, render_checkpoint
from vpccni.errors import OutcomeUnknownError, TransientError
from vpccni.evidence import Row
from vpccni.model import Address, PodRef, SandboxKey

KEY = SandboxKey("aws-cni", CONTAINER_ID, "eth0")
CONTENT = render_checkpoint([Row(key=KEY, address=Address("10.0.0.1"))], None)


async def read_one(directory):
    (entry,) = (await LibcniCache(directory).read()).entries
    return entry


# -- the runtime's cache ------------------------------------------------------------------------------------


async def test_an_entry_of_the_original_under_an_old_libcni(tmp_path):
    """No ``netns`` in the entry: it is that of the interface, and not what the dummy calls its sandbox."""
    path = write_entry(tmp_path, cache_entry())
    os.utime(path, ns=(5, 1_718_000_000_123_456_789))
    entry = await read_one(tmp_path)
    assert entry.key == KEY
    assert entry.file == f"aws-cni-{CONTAINER_ID}-eth0"
    assert entry.netns == NETNS
    assert entry.addresses == ("10.0.97.30",)
    assert entry.host_ifnames == ("eni0d7763386da",)
    assert entry.pod == PodRef("default", "web-0", "uid-web-0")
    assert entry.plugin_types == ("aws-cni", "egress-cni", "portmap")
    assert entry.modified_ns == 1_718_000_000_123_456_789


async def test_the_entrys_own_namespace_comes_first(tmp_path):
    write_entry(tmp_path, cache_entry(netns="/run/netns/of-the-entry"))
    assert (await read_one(tmp_path)).netns == "/run/netns/of-the-entry"


async def test_a_branch_pod_of_the_original(tmp_path):
    """Its dummy has no sandbox at all, and is no host interface either."""
    result = {
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": "vlan0d7763386da"},
            {"name": "eth0", "mac": "0", "sandbox": NETNS},
            {"name": "dummy0d7763386da", "mac": "5"},
        ],
        "ips": [{"version": "4", "interface": 1, "address": "10.0.96.7/32", "gateway": "10.0.96.1"}],
    }
    write_entry(tmp_path, cache_entry(result=result))
    entry = await read_one(tmp_path)
    assert entry.host_ifnames == ("vlan0d7763386da",)
    assert entry.addresses == ("10.0.96.7",)


async def test_addresses_of_another_interface_of_the_sandbox_are_left_out(tmp_path):
    """A pod with two NICs is one entry; the second address stands in the file of its own card."""
    result = {
        "interfaces": [
            {"name": "eni0d7763386da"},
            {"name": "eth0", "mac": "254", "sandbox": NETNS},
            {"name": "enib813f772d20"},
            {"name": "mNicIf1", "mac": "10001", "sandbox": NETNS},
        ],
        "ips": [
            {"interface": 1, "address": "10.0.0.1/32"},
            {"interface": 3, "address": "10.0.0.2/32"},
            {"interface": 9, "address": "10.0.0.3/32"},
            {"address": "10.0.0.4/32"},
        ],
    }
    write_entry(tmp_path, cache_entry(result=result))
    entry = await read_one(tmp_path)
    # What points nowhere is not known to be another's.
    assert entry.addresses == ("10.0.0.1", "10.0.0.3", "10.0.0.4")
    assert entry.host_ifnames == ("eni0d7763386da", "enib813f772d20")


async def test_a_host_interface_of_the_same_name_is_not_the_pods(tmp_path):
    result = {
        "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": NETNS}],
        "ips": [{"interface": 0, "address": "10.0.0.1/32"}, {"interface": 1, "address": "10.0.0.2/32"}],
    }
    write_entry(tmp_path, cache_entry(result=result))
    entry = await read_one(tmp_path)
    assert entry.addresses == ("10.0.0.2",)
    assert entry.host_ifnames == ("eth0",)


@pytest.mark.parametrize(
    "result",
    [
        {"ips": [{"address": "10.0.0.1/24"}]},
        {"interfaces": [], "ips": [{"interface": 0, "address": "10.0.0.1"}]},
        {
            "interfaces": [{"name": "net1", "sandbox": "1"}],
            "ips": [{"interface": 0, "address": "10.0.0.1/32"}],
        },
    ],
    ids=["no interfaces", "empty", "none of that name"],
)
async def test_without_the_entrys_interface_every_address_counts(tmp_path, result):
    write_entry(tmp_path, cache_entry(result=result))
    entry = await read_one(tmp_path)
    assert entry.addresses == ("10.0.0.1",)
    assert entry.netns == ""


async def test_an_entry_is_known_by_its_content_and_not_by_its_name(tmp_path):
    """Multus calls our network under the same container id, and keeps entries of its own beside ours."""
    write_entry(tmp_path, cache_entry(), name="renamed")
    write_entry(tmp_path, cache_entry(network="multus-cni-network", conflist={"type": "multus"}))
    found = await LibcniCache(tmp_path).read()
    assert [entry.key.network for entry in found.entries] == ["multus-cni-network", "aws-cni"]
    assert [entry.plugin_types for entry in found.entries] == [
        ("multus",),
        ("aws-cni", "egress-cni", "portmap"),
    ]


@pytest.mark.parametrize(
    ("changes", "attribute", "expected"),
    [
        ({"cniArgs": None}, "pod", PodRef()),
        ({"config": "no base64"}, "plugin_types", ()),
        ({"config": None}, "plugin_types", ()),
        ({"result": None}, "addresses", ()),
        ({"result": {"cniVersion": "1.1.0"}}, "addresses", ()),
    ],
)
async def test_what_an_entry_does_not_tell_is_empty(tmp_path, changes, attribute, expected):
    write_entry(tmp_path, cache_entry(**changes))
    entry = await read_one(tmp_path)
    assert getattr(entry, attribute) == expected


async def test_an_address_that_is_none_is_told_and_the_others_count(tmp_path):
    result = {"ips": [{"address": "nonsense"}, {"address": "fd00::00ff/128"}]}
    write_entry(tmp_path, cache_entry(result=result))
    found = await LibcniCache(tmp_path).read()
    assert found.entries[0].addresses == ("fd00::ff",)
    assert "nonsense" in found.unreadable[0]


WHOLE = json.dumps(cache_entry()).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[: len(WHOLE) // 2],
        b"\0" * 400,
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        json.dumps(ORIGINAL_RESULT).encode(),
        json.dumps(cache_entry(kind="cniCacheV9")).encode(),
        json.dumps(cache_entry(container_id="")).encode(),
        json.dumps(cache_entry(containerId=None)).encode(),
        json.dumps({"cluster": "of another program"}).encode(),
    ],
    ids=[
        "empty",
        "torn",
        "zeros",
        "text",
        "list",
        "deep",
        "before kinds",
        "newer",
        "no id",
        "no key",
        "another",
    ],
)
async def test_a_file_that_is_no_whole_entry_is_told_and_hides_no_other(tmp_path, content):
    write_entry(tmp_path, cache_entry())
    (tmp_path / "odd").write_bytes(content)
    found = await LibcniCache(tmp_path).read()
    assert [entry.key for entry in found.entries] == [KEY]
    (told,) = found.unreadable
    assert told.startswith("odd: ")
    assert len(told) < 200


async def test_an_entry_that_goes_while_the_others_are_read_is_not_told(tmp_path, monkeypatch):
    """1. The directory is listed. 2. A DEL removes an entry. 3. The entry is opened."""

    def removed_before_it_is_read(path, bytes_max):
        if path.name == "leaves":
            path.unlink()
        return read_foreign_file(path, bytes_max)

    monkeypatch.setattr(runtime_adapter, "read_foreign_file", removed_before_it_is_read)
    write_entry(tmp_path, cache_entry(), name="leaves")
    write_entry(tmp_path, cache_entry("other"), name="stays")
    found = await LibcniCache(tmp_path).read()
    assert [entry.file for entry in found.entries] == ["stays"]
    assert found.unreadable == ()


async def test_what_is_no_file_neither_blocks_nor_hides_the_entries(tmp_path):
    write_entry(tmp_path, cache_entry())
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        async with asyncio.timeout(5):
            found = await LibcniCache(tmp_path).read()
    assert [entry.key for entry in found.entries] == [KEY]
    assert sorted(each.partition(":")[0] for each in found.unreadable) == [
        "dangling",
        "directory",
        "fifo",
        "socket",
        "zeros",
    ]


async def test_a_name_that_is_no_text_can_be_told(tmp_path):
    (tmp_path / os.fsdecode(b"bad-\xff")).write_bytes(b"x")
    found = await LibcniCache(tmp_path).read()
    assert found.unreadable[0].encode().startswith("bad-\N{REPLACEMENT CHARACTER}: ".encode())


async def test_the_newest_entries_are_read_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_adapter, "ENTRIES_MAX", 3)
    for number in range(6):
        path = write_entry(tmp_path, cache_entry(f"c{number}"))
        age = number if number % 2 else 100 + number  # 0, 2 and 4 are newer
        os.utime(path, ns=(age, age))
    found = await LibcniCache(tmp_path).read()
    assert [entry.key.container_id for entry in found.entries] == ["c0", "c2", "c4"]
    assert found.unreadable == ("only the newest 3 of 6 entries were read",)


async def test_an_entry_that_is_too_large_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_adapter, "ENTRY_BYTES_MAX", len(WHOLE) + 10)
    (tmp_path / "large").write_bytes(WHOLE + b" " * 11)
    (tmp_path / "whole").write_bytes(WHOLE)
    found = await LibcniCache(tmp_path).read()
    assert [entry.file for entry in found.entries] == ["whole"]
    assert "larger" in found.unreadable[0]


async def test_the_directorys_own_time_is_told(tmp_path):
    write_entry(tmp_path, cache_entry())
    os.utime(tmp_path, ns=(1, 1_718_000_000_000_000_009))
    assert (await LibcniCache(tmp_path).read()).modified_ns == 1_718_000_000_000_000_009


async def test_a_cache_that_is_a_file_is_unreadable(tmp_path):
    (tmp_path / "results").write_text("")
    found = await LibcniCache(tmp_path / "results").read()
    assert found.status == "unreadable: Not a directory"


# -- the checkpoint file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device", "socket"])
async def test_what_lies_in_the_place_of_the_checkpoint_is_told_and_does_not_block(tmp_path, kind):
    path = tmp_path / "ipam.json"
    real = tmp_path / "real.json"
    real.write_bytes(CONTENT)
    with socket.socket(socket.AF_UNIX) as bound:
        make = {
            "fifo": lambda: os.mkfifo(path),
            "directory": path.mkdir,
            "link": lambda: path.symlink_to(real),
            "device": lambda: path.symlink_to("/dev/zero"),
            "socket": lambda: bound.bind(str(path)),
        }
        make[kind]()
        async with asyncio.timeout(5):
            (file,) = await CheckpointFiles(path).read()
    assert file.status.startswith("unreadable: ")
    assert str(path) not in file.status


async def test_a_checkpoint_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_adapter, "BYTES_MAX", len(CONTENT))
    path = tmp_path / "ipam.json"
    path.write_bytes(CONTENT)
    assert (await CheckpointFiles(path).read())[0].status == "read"
    path.write_bytes(CONTENT + b" ")
    assert "larger" in (await CheckpointFiles(path).read())[0].status


async def test_the_time_of_a_checkpoint_is_told_in_nanoseconds(tmp_path):
    path = tmp_path / "ipam.json"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1_718_000_000_123_456_789))
    (file,) = await CheckpointFiles(path).read()
    assert file.modified_ns == 1_718_000_000_123_456_789


@pytest.mark.parametrize("umask", [0o000, 0o777])
async def test_the_export_is_the_owners_alone_and_leaves_no_draft(tmp_path, umask):
    path = tmp_path / "ipam.json"
    path.write_text("old")
    path.chmod(0o644)
    before = os.umask(umask)
    try:
        await CheckpointFiles(path).write(CONTENT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["ipam.json"]


async def test_what_a_killed_attempt_left_is_replaced_and_never_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "ipam.json.tmp-vpccni").symlink_to(victim)
    (tmp_path / "ipam.json.tmp123456").write_text("of the original")
    digest = await CheckpointFiles(tmp_path / "ipam.json").write(CONTENT)
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert victim.read_text() == "untouched"
    assert {each.name for each in tmp_path.iterdir()} == {"ipam.json", "ipam.json.tmp123456", "victim"}


async def test_a_reader_meets_the_old_file_or_the_new_one(tmp_path):
    """The file is replaced and never written to: who has it open goes on reading the old one."""
    path = tmp_path / "ipam.json"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        await CheckpointFiles(path).write(CONTENT)
        assert reader.read() == b"old"
    assert path.read_bytes() == CONTENT


async def test_everything_is_synced_in_order_before_the_write_returns(tmp_path, monkeypatch):
    """The content before its name, the name before the answer."""
    done = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd):
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_fsync(fd)

    def rename(*names, **folders):
        done.append("rename")
        real_rename(*names, **folders)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    await CheckpointFiles(tmp_path / "ipam.json").write(CONTENT)
    assert done == ["file", "rename", "directory"]


async def test_a_directory_that_is_not_there_fails_the_write_and_is_not_made(tmp_path):
    path = tmp_path / "none" / "ipam.json"
    with pytest.raises(TransientError, match="No such file"):
        await CheckpointFiles(path).write(CONTENT)
    assert not path.parent.exists()


async def test_a_write_whose_directory_cannot_be_synced_is_of_unknown_outcome(tmp_path, monkeypatch):
    real_fsync = os.fsync

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(5, "Input/output error")
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "ipam.json"
    with pytest.raises(OutcomeUnknownError, match="export_failed"):
        await CheckpointFiles(path).write(CONTENT)
    assert path.read_bytes() == CONTENT


async def test_a_write_that_is_cancelled_ends_before_the_next_begins(tmp_path, monkeypatch):
    """1. A write is under way on its thread. 2. Its caller is cancelled. 3. Another write begins.

    Both use one draft: without the order the second would remove the first's, and the first rename the second's.
    """
    files = CheckpointFiles(tmp_path / "ipam.json")
    loop = asyncio.get_running_loop()
    started, go_on = asyncio.Event(), asyncio.Event()
    real_rename = os.rename

    def rename(*names, **folders):
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(5)
        real_rename(*names, **folders)

    monkeypatch.setattr(os, "rename", rename)
    first = asyncio.ensure_future(files.write(b"first"))
    await started.wait()
    first.cancel()
    second = asyncio.ensure_future(files.write(b"second"))
    for _ in range(10):  # turns of the loop: enough for a cancellation to be through
        await asyncio.sleep(0)
    assert not first.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert (tmp_path / "ipam.json").read_bytes() == b"second"
    assert [each.name for each in tmp_path.iterdir()] == ["ipam.json"]


async def test_our_mark_survives_the_way_through_a_file(tmp_path):
    files = CheckpointFiles(tmp_path / "ipam.json")
    await files.write(render_checkpoint([], Mark(log_id="l", seq=9, boot_id="b")))
    (file,) = await files.read()
    assert (file.log_id, file.seq, file.boot_id, file.rows) == ("l", 9, "b", ())


def test_only_a_regular_file_is_read(tmp_path):
    """A FIFO would read as an empty file, and as one that waits for its writer."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="regular"):
        read_foreign_file(tmp_path / "fifo", 10)


def test_a_file_is_read_to_its_end_and_no_further(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert read_foreign_file(path, 3)[0] == b"abc"
    with pytest.raises(ValueError, match="larger than 2 bytes"):
        read_foreign_file(path, 2)


# -- the predecessor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory", "no run directory"])
async def test_what_is_no_socket_is_no_living_original(tmp_path, kind):
    run = tmp_path / "run"
    if kind != "no run directory":
        run.mkdir()
    if kind == "file":
        (run / "ipamd.sock").touch()
    if kind == "directory":
        (run / "ipamd.sock").mkdir()
    assert await VpcCni(run, tmp_path / "pins").living() == ""


async def test_a_socket_of_another_type_is_somebodys(tmp_path):
    """Nobody knows who; but somebody listens there, so we wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "ipamd.sock"))
        assert "cannot be told" in await VpcCni(tmp_path, tmp_path / "pins").living()


async def test_a_path_that_is_too_long_for_a_socket_is_nobodys(tmp_path):
    assert await VpcCni(tmp_path / ("x" * 120), tmp_path).living() == ""


async def test_what_cannot_be_asked_counts_as_living(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be told" in await VpcCni(loop, tmp_path).living()


async def test_the_socket_of_the_policy_agent_alone_means_nothing(tmp_path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "npa.sock"))
        bound.listen()
        original = VpcCni(tmp_path, tmp_path / "pins")
        assert await original.living() == ""
        assert await original.enforced_policies() == ()


async def test_some_of_many_pins_are_named(tmp_path):
    for number in range(PINS_MAX + 5):
        (tmp_path / f"web-{number:03}@default_handle_ingress").touch()
    named = await VpcCni(tmp_path, tmp_path).enforced_policies()
    assert len(named) == PINS_MAX
    assert named[0] == "web-000@default_handle_ingress"

"""Installing the executable and the conflist, where a runtime may look at any moment."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vpccni.adapters import cni_files
from vpccni.adapters.cni_files import find_plugin, install_conflist, install_plugin
from vpccni.conflist import CNI_VERSIONS, Executable
from vpccni.errors import PermanentError, Reason
from vpccni.settings import Settings

REPO = Path(__file__).parents[2]


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "built" / "aws-cni"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexit 0\n")
    return path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def all_there(names):
    """Every executable is there and speaks every version."""
    return dict.fromkeys(names, Executable(is_there=True, versions=frozenset(CNI_VERSIONS)))


def install(conf_dir, prefix="eni", ask=all_there):
    """Install a conflist that differs by the veth prefix."""
    return install_conflist(conf_dir, Settings(veth_prefix=prefix), ask)


def prefix_of(conf_dir):
    return json.loads((conf_dir / "10-aws.conflist").read_text())["plugins"][0]["vethPrefix"]


def test_both_files_are_put_in_place_and_nothing_else_is_touched(tmp_path, plugin):
    bin_dir, conf_dir = tmp_path / "opt" / "bin", tmp_path / "net.d"
    conf_dir.mkdir()
    (conf_dir / "99-loopback.conf").write_text("{}")
    before = os.umask(0o077)
    try:
        assert install_plugin(bin_dir, plugin)
        assert install(conf_dir).is_changed
    finally:
        os.umask(before)
    assert names(bin_dir) == ["aws-cni"]
    assert names(conf_dir) == ["10-aws.conflist", "99-loopback.conf"]
    assert mode(bin_dir / "aws-cni") == 0o755
    assert mode(conf_dir / "10-aws.conflist") == 0o644
    assert (bin_dir / "aws-cni").read_bytes() == plugin.read_bytes()
    subprocess.run([bin_dir / "aws-cni"], check=True)


def test_installing_the_same_again_changes_nothing_but_a_wrong_mode_is_mended(tmp_path, plugin):
    install_plugin(tmp_path, plugin)
    inode = (tmp_path / "aws-cni").stat().st_ino
    assert not install_plugin(tmp_path, plugin)
    assert (tmp_path / "aws-cni").stat().st_ino == inode
    (tmp_path / "aws-cni").chmod(0o644)
    assert install_plugin(tmp_path, plugin)
    assert mode(tmp_path / "aws-cni") == 0o755


def test_installing_the_same_conflist_again_changes_nothing(tmp_path):
    assert install(tmp_path).is_changed
    inode = (tmp_path / "10-aws.conflist").stat().st_ino
    assert not install(tmp_path).is_changed
    assert (tmp_path / "10-aws.conflist").stat().st_ino == inode


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    install(tmp_path)
    (tmp_path / "10-aws.conflist").rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    (tmp_path / "10-aws.conflist").symlink_to("elsewhere")
    assert install(tmp_path).is_changed
    assert not (tmp_path / "10-aws.conflist").is_symlink()
    assert (tmp_path / "10-aws.conflist").read_bytes() == before
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_what_others_have_put_into_the_file_is_in_the_new_one_and_their_executables_are_asked(tmp_path):
    mesh = {"type": "mesh-cni", "options": {"a": [1, 2.5, None]}}
    (tmp_path / "10-aws.conflist").write_text(json.dumps({"plugins": [{"type": "aws-cni"}, mesh], "x": 1}))
    asked = []

    def ask(names):
        asked.append(names)
        return all_there(names) | {"mesh-cni": Executable(is_there=False, problem="There is no mesh-cni")}

    installed = install(tmp_path, ask=ask)
    new = json.loads((tmp_path / "10-aws.conflist").read_text())
    assert asked == [{"aws-cni", "portmap", "mesh-cni"}]
    assert new["plugins"][-1] == mesh
    assert new["x"] == 1
    assert installed.versions == ("0.4.0",)
    assert installed.serves_host_ports
    assert [note.name for note in installed.notes] == ["cni_executable_missing"]
    assert names(tmp_path) == ["10-aws.conflist"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b'{"plugins": [{"type": "mesh-cni"},]}'), "not JSON"),
        (lambda path: path.write_bytes(b" " * ((1 << 20) + 1)), "larger than"),
        (os.mkfifo, "not a file"),
    ],
    ids=["a comma too many", "huge", "a pipe"],
)
def test_a_file_that_is_no_conflist_is_kept_where_no_runtime_reads_it_and_told(tmp_path, spoil, said):
    path = tmp_path / "10-aws.conflist"
    (tmp_path / "10-aws.conflist.bad").write_text("of last time")
    spoil(path)
    before = path.stat()
    installed = install(tmp_path)
    assert prefix_of(tmp_path) == "eni"
    assert names(tmp_path) == ["10-aws.conflist", "10-aws.conflist.bad"]
    kept = (tmp_path / "10-aws.conflist.bad").stat()
    assert (kept.st_ino, kept.st_size) == (before.st_ino, before.st_size)
    (note,) = installed.notes
    assert (note.name, note.is_warning) == ("conflist_unreadable", True)
    assert said in note.detail
    assert str(tmp_path / "10-aws.conflist.bad") in note.detail
    assert install(tmp_path).notes == ()


def test_a_directory_in_the_conflists_place_is_refused_in_words(tmp_path):
    (tmp_path / "10-aws.conflist").mkdir()
    with pytest.raises(PermanentError, match=r"10-aws\.conflist cannot be installed") as caught:
        install(tmp_path)
    assert caught.value.reason is Reason.INSTALL_FAILED
    assert names(tmp_path) == ["10-aws.conflist"]


def test_what_one_installer_puts_in_while_another_asks_is_not_lost(tmp_path):
    """Both read before either writes: the one that writes last would take the other's entry out again.

    1. The first asks executables. 2. A second begins. 3. The first writes. 4. The second must have read that.
    """
    install(tmp_path)
    second = threading.Thread(target=install, args=(tmp_path, "two"))
    prefixes = []

    def ask(asked):
        second.start()
        second.join(0.3)
        prefixes.append(prefix_of(tmp_path))
        return all_there(asked)

    install(tmp_path, "one", ask)
    second.join()
    assert prefixes == ["eni"]
    assert prefix_of(tmp_path) == "two"


def test_the_executable_can_be_replaced_while_it_runs(tmp_path):
    first, second = Path("/bin/sleep"), Path("/bin/true")
    install_plugin(tmp_path, first)
    with subprocess.Popen([tmp_path / "aws-cni", "30"]) as running:
        try:
            assert install_plugin(tmp_path, second)
            assert running.poll() is None
            subprocess.run([tmp_path / "aws-cni"], check=True)
        finally:
            running.kill()


def test_at_no_moment_is_the_file_missing_partial_or_not_executable(tmp_path):
    versions = []
    for number in (1, 2):
        path = tmp_path / f"plugin-{number}"
        path.write_bytes(bytes([number]) * 300_000)
        versions.append(path)
    bin_dir = tmp_path / "bin"
    install_plugin(bin_dir, versions[0])
    wrong = []
    stop = threading.Event()

    def look():
        while not stop.is_set():
            with open(bin_dir / "aws-cni", "rb") as file:
                state = os.fstat(file.fileno())
                content = file.read()
            if stat.S_IMODE(state.st_mode) != 0o755 or content not in {
                path.read_bytes() for path in versions
            }:
                wrong.append((oct(state.st_mode), len(content)))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(20):
            for path in reversed(versions):
                assert install_plugin(bin_dir, path)
    finally:
        stop.set()
        reader.join()
    assert wrong == []


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from vpccni.adapters import cni_files
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
owner = cni_files if sys.argv[1] == "_write" else os
setattr(owner, sys.argv[1], die)
from vpccni.conflist import CNI_VERSIONS, Executable
from vpccni.settings import Settings
cni_files.install_conflist(
    Path(sys.argv[2]),
    Settings(veth_prefix="new"),
    lambda names: dict.fromkeys(names, Executable(is_there=True, versions=frozenset(CNI_VERSIONS))),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_write", "fchmod", "fsync", "rename"])
def test_killed_before_the_rename_the_old_file_stands_and_the_next_attempt_clears_up(tmp_path, step):
    install(tmp_path, "old")
    before = (tmp_path / "10-aws.conflist").read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, step, str(tmp_path)], cwd=REPO, check=False)
    assert killed.returncode == -9
    assert (tmp_path / "10-aws.conflist").read_bytes() == before
    left = [name for name in names(tmp_path) if name != "10-aws.conflist"]
    assert all(name.startswith(".") and not name.endswith((".conf", ".conflist", ".json")) for name in left)
    assert install(tmp_path, "last").is_changed
    assert names(tmp_path) == ["10-aws.conflist"]
    assert prefix_of(tmp_path) == "last"


def test_two_installers_at_once_both_end_well(tmp_path):
    prefixes = [f"e{number}" for number in range(4)]
    threads = [threading.Thread(target=install, args=(tmp_path, prefix)) for prefix in prefixes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["10-aws.conflist"]
    assert prefix_of(tmp_path) in prefixes


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_directory_that_cannot_be_written_is_named_with_its_reason(tmp_path, plugin, monkeypatch, code):
    install_plugin(tmp_path, plugin)
    plugin.write_text("#!/bin/sh\nexit 1\n")

    def refuse(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(PermanentError) as caught:
        install_plugin(tmp_path, plugin)
    assert caught.value.reason is Reason.INSTALL_FAILED
    assert str(tmp_path / "aws-cni") in caught.value.detail
    assert os.strerror(code) in caught.value.detail
    assert names(tmp_path) == ["aws-cni", "built"]
    assert "exit 0" in (tmp_path / "aws-cni").read_text()


@pytest.mark.netns
def test_a_read_only_mount_is_refused_in_words(tmp_path):
    """A real read-only mount, in a mount namespace of the test's own; root is stopped by it, too."""
    code = (
        "from pathlib import Path; from vpccni.adapters.cni_files import install_conflist; "
        "from vpccni.adapters.cni_versions import ask_versions; from vpccni.settings import Settings; "
        f"install_conflist(Path('{tmp_path}'), Settings(), lambda names: ask_versions(Path('/nowhere'), names))"
    )
    script = f'mount -t tmpfs -o ro none {tmp_path} && exec {sys.executable} -c "{code}"'
    command = ["unshare", "-Urm", "sh", "-c", script]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr:
        pytest.skip(f"no user namespaces: {done.stderr.strip()}")
    assert "10-aws.conflist cannot be installed: Read-only file system" in done.stderr
    assert done.returncode == 1


def test_without_an_executable_the_message_says_how_to_get_one(tmp_path, monkeypatch):
    with pytest.raises(PermanentError, match="make plugin"):
        find_plugin(tmp_path / "aws-cni")
    monkeypatch.setattr(cni_files, "PLUGIN_PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(PermanentError, match=r"a or .*b"):
        find_plugin()
    (tmp_path / "b").touch()
    assert find_plugin() == tmp_path / "b"
    with pytest.raises(PermanentError, match="is empty"):
        install_plugin(tmp_path / "bin")

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
from vpccni.adapters.cni_files import (
    find_plugin,
    has_portmap,
    install_conflist,
    install_plugin,
    render_conflist,
)
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


def test_the_conflist_has_what_runtimes_and_the_plugin_need():
    settings = Settings(veth_prefix='e"i', pod_mtu=1500, plugin_log_file="", plugin_log_level="info")
    assert json.loads(render_conflist(settings, portmap=True)) == {
        "cniVersion": "0.4.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "aws-cni",
        "plugins": [
            {
                "type": "aws-cni",
                "name": "aws-cni",
                "vethPrefix": 'e"i',
                "mtu": "1500",
                "pluginLogFile": "",
                "pluginLogLevel": "info",
                "capabilities": {"io.kubernetes.cri.pod-annotations": True},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }


def test_only_unusual_paths_are_named():
    text = render_conflist(
        Settings(), portmap=False, socket="/s/x.sock", spool="/s/spool", plugin_type="aws-2"
    )
    (ours,) = json.loads(text)["plugins"]
    assert (ours["socket"], ours["spool"], ours["type"]) == ("/s/x.sock", "/s/spool", "aws-2")
    (usual,) = json.loads(render_conflist(Settings(), portmap=False))["plugins"]
    assert not {"socket", "spool"} & set(usual)


def test_portmap_counts_only_when_it_can_be_run(tmp_path):
    assert not has_portmap(tmp_path)
    (tmp_path / "portmap").touch(mode=0o644)
    assert not has_portmap(tmp_path)
    (tmp_path / "portmap").chmod(0o755)
    assert has_portmap(tmp_path)


def test_both_files_are_put_in_place_and_nothing_else_is_touched(tmp_path, plugin):
    bin_dir, conf_dir = tmp_path / "opt" / "bin", tmp_path / "net.d"
    conf_dir.mkdir()
    (conf_dir / "99-loopback.conf").write_text("{}")
    before = os.umask(0o077)
    try:
        assert install_plugin(bin_dir, plugin)
        assert install_conflist(conf_dir, b"{}\n")
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


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"old")
    (tmp_path / "10-aws.conflist").symlink_to("elsewhere")
    assert install_conflist(tmp_path, b"old")
    assert not (tmp_path / "10-aws.conflist").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"old"


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
cni_files.install_conflist(Path(sys.argv[2]), b"new\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_write", "fchmod", "fsync", "rename"])
def test_killed_before_the_rename_the_old_file_stands_and_the_next_attempt_clears_up(tmp_path, step):
    install_conflist(tmp_path, b"old\n")
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, step, str(tmp_path)], cwd=REPO, check=False)
    assert killed.returncode == -9
    assert (tmp_path / "10-aws.conflist").read_bytes() == b"old\n"
    left = [name for name in names(tmp_path) if name != "10-aws.conflist"]
    assert all(name.startswith(".") and not name.endswith((".conf", ".conflist", ".json")) for name in left)
    assert install_conflist(tmp_path, b"newest\n")
    assert names(tmp_path) == ["10-aws.conflist"]
    assert (tmp_path / "10-aws.conflist").read_bytes() == b"newest\n"


def test_two_installers_at_once_both_end_well(tmp_path):
    contents = [bytes([65 + number]) * 100_000 for number in range(4)]
    threads = [threading.Thread(target=install_conflist, args=(tmp_path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["10-aws.conflist"]
    assert (tmp_path / "10-aws.conflist").read_bytes() in contents


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
        f"install_conflist(Path('{tmp_path}'), b'x')"
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

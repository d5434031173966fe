"""The two files that the container runtime looks for: our executable and the conflist.

A runtime may read either at any moment, and the node may lose power at any moment, so a file is only ever
replaced as a whole: written beside its place under a hidden name, made executable, synced, renamed, and the
directory synced. Order matters too: the conflist is what makes a runtime call us, so whoever installs both
writes it last. Nothing else in the two directories is touched.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from vpccni.errors import PermanentError, Reason
from vpccni.settings import Settings

CONFLIST_NAME: Final = "10-aws.conflist"
"""The original's name: it sorts before what else a node may hold, and tools look for it."""

PLUGIN_NAME: Final = "aws-cni"
"""The executable's name, and thereby the plugin's ``type``."""

SOCKET_DEFAULT: Final = "/var/run/aws-node/vpccni.sock"
SPOOL_DEFAULT: Final = "/var/run/aws-node/spool"

PLUGIN_PLACES: Final = (
    Path(__file__).parents[1] / "_plugin" / PLUGIN_NAME,  # in an image or a wheel
    Path(__file__).parents[2] / "build" / "plugin" / PLUGIN_NAME,  # in a checkout, after `make plugin`
)


def render_conflist(
    settings: Settings,
    *,
    portmap: bool,
    socket: str = SOCKET_DEFAULT,
    spool: str = SPOOL_DEFAULT,
    plugin_type: str = PLUGIN_NAME,
) -> bytes:
    """The conflist for these settings, as JSON that ends in a newline.

    Args:
        settings: Whose veth prefix, MTU and plugin log go into it.
        portmap: Whether ``portmap`` stands behind our plugin; see :func:`has_portmap`.
        socket: The agent's socket as the *host* sees it.
        spool: The directory of spooled DELs as the host sees it.
        plugin_type: Name of the executable.
    """
    ours: dict[str, Any] = {
        "type": plugin_type,
        "name": "aws-cni",
        "vethPrefix": settings.veth_prefix,
        "mtu": str(settings.pod_mtu),  # a string in the original's file, so tools expect one
        "pluginLogFile": settings.plugin_log_file,
        "pluginLogLevel": settings.plugin_log_level,
        "capabilities": {"io.kubernetes.cri.pod-annotations": True},
    }
    if socket != SOCKET_DEFAULT:
        ours["socket"] = socket
    if spool != SPOOL_DEFAULT:
        ours["spool"] = spool
    plugins = [ours]
    if portmap:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
    conflist = {
        # A libcni that knows `cniVersions` takes the highest it can speak; an older one takes `cniVersion`.
        "cniVersion": "0.4.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "aws-cni",
        # The original says `disableCheck` here, for its CHECK tells nothing. Ours compares kernel and lease.
        "plugins": plugins,
    }
    return msgspec.json.format(msgspec.json.encode(conflist), indent=2) + b"\n"


def has_portmap(bin_dir: Path) -> bool:
    """Whether the reference plugin ``portmap`` is there to be run.

    Host ports need it. But a conflist that names a missing executable fails *every* pod of the node, and the
    original's images bring the plugin along where ours leave that to the node: so it is named only where
    it is. Whoever renders without it should warn that host ports will not work.
    """
    path = bin_dir / "portmap"
    return path.is_file() and os.access(path, os.X_OK)


def find_plugin(path: Path | None = None) -> Path:
    """The compiled executable: ``path``, or where an image, a wheel or a checkout has it.

    Raises:
        PermanentError: ``bad_setting``; it is in none of these places.
    """
    places = (path,) if path else PLUGIN_PLACES
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(map(str, places))
    raise PermanentError(
        Reason.INSTALL_FAILED,
        f"no executable at {looked}: run `make plugin`, or say where it is with --plugin",
    )


def install_plugin(bin_dir: Path, plugin: Path | None = None) -> bool:
    """Put the executable into ``bin_dir``, mode 0755. Safe while runtimes are starting it.

    Returns:
        Whether anything had to be changed.

    Raises:
        PermanentError: ``bad_setting``; there is no executable to install, or the directory cannot be
            written. The file that was there is as it was.
    """
    source = find_plugin(plugin)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise _refused(source, error) from error
    if not content:
        raise PermanentError(Reason.INSTALL_FAILED, f"{source} is empty: build it again with `make plugin`")
    return _replace(bin_dir, PLUGIN_NAME, content, 0o755)


def install_conflist(conf_dir: Path, conflist: bytes) -> bool:
    """Put the conflist into ``conf_dir``, mode 0644. Call it last: from here on pods come to us.

    Returns:
        Whether anything had to be changed.

    Raises:
        PermanentError: ``bad_setting``; the directory cannot be written. The old file is as it was.
    """
    return _replace(conf_dir, CONFLIST_NAME, conflist, 0o644)


def _replace(directory: Path, name: str, content: bytes, mode: int) -> bool:
    """Make ``directory/name`` hold ``content``: the old file or the new one, never a part, never neither."""
    target = directory / name
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)  # whatever the umask is: others look in here, too
        with _locked(directory) as directory_fd:
            if _is_already(target, content, mode):
                return False
            # One fixed name, so that killed attempts leave one file at most. The leading dot and the suffix
            # keep runtimes from reading it as a configuration.
            temporary = f".{name}.tmp"
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
            try:
                _write(temporary, directory_fd, content, mode)
                os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory_fd)
                raise
            os.fsync(directory_fd)
    except OSError as error:
        raise _refused(target, error) from error
    return True


def _write(name: str, directory_fd: int, content: bytes, mode: int) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    # Closed before the rename: starting a file that anybody has open for writing fails with ETXTBSY.
    with open(os.open(name, flags, 0o600, dir_fd=directory_fd), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)  # whatever the umask is
        os.fsync(file.fileno())


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """The open directory, with the lock that keeps two installers from sharing a temporary file."""
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory_fd, fcntl.LOCK_EX)
        yield directory_fd
    finally:
        os.close(directory_fd)


def _is_already(target: Path, content: bytes, mode: int) -> bool:
    """Whether nothing is to be done. Rewriting would only make runtimes load the same file again."""
    try:
        found = target.lstat()
        return (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == mode
            and found.st_size == len(content)
            and target.read_bytes() == content
        )
    except FileNotFoundError:
        return False


def _refused(path: Path, error: OSError) -> PermanentError:
    return PermanentError(
        Reason.INSTALL_FAILED,
        f"{path} cannot be installed: {error.strerror or error}; "
        "give a directory that is writable (in a pod: check the hostPath mounts and readOnly)",
    )

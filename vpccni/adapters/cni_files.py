"""The two files that the container runtime looks for: our executable and the conflist.

A runtime may read either at any moment, and the node may lose power at any moment, so a file is only ever
replaced as a whole: written beside its place under a hidden name, made executable, synced, renamed, and the
directory synced. Order matters too: the conflist is what makes a runtime call us, so whoever installs both
writes it last. Nothing else in the two directories is touched.

What the conflist says is decided in :mod:`vpccni.conflist`, from what the file said before.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from vpccni.conflist import (
    PLUGIN_NAME,
    SOCKET_DEFAULT,
    SPOOL_DEFAULT,
    Executable,
    FoundList,
    Note,
    merge,
    read_list,
)
from vpccni.errors import PermanentError, Reason
from vpccni.settings import Settings

CONFLIST_NAME: Final = "10-aws.conflist"
"""The original's name: it sorts before what else a node may hold, and tools look for it."""

SPOILT_NAME: Final = f"{CONFLIST_NAME}.bad"
"""Where a conflist that could not be read is kept. Runtimes read ``.conf``, ``.conflist`` and ``.json`` only."""

CONFLIST_BYTES_MAX: Final = 1 << 20
"""Our executable takes no configuration that is larger; real ones have some KiB."""

Ask = Callable[[frozenset[str]], Mapping[str, Executable]]
"""Asks executables for their versions; see ``adapters.cni_versions``."""

PLUGIN_PLACES: Final = (
    Path(__file__).parents[1] / "_plugin" / PLUGIN_NAME,  # in an image or a wheel
    Path(__file__).parents[2] / "build" / "plugin" / PLUGIN_NAME,  # in a checkout, after `make plugin`
)


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`install_conflist` did.

    Attributes:
        is_changed: Whether the file had to be written.
        versions: The CNI versions that it offers, lowest first.
        serves_host_ports: Whether a plugin of it serves host ports.
        notes: What an operator should read about it.
    """

    is_changed: bool
    versions: tuple[str, ...]
    serves_host_ports: bool
    notes: tuple[Note, ...]


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
    target = bin_dir / PLUGIN_NAME
    try:
        with _locked(bin_dir) as directory_fd:
            return _replace(directory_fd, target, content, 0o755)
    except OSError as error:
        raise _refused(target, error) from error


def install_conflist(
    conf_dir: Path,
    settings: Settings,
    ask: Ask,
    *,
    socket: str = SOCKET_DEFAULT,
    spool: str = SPOOL_DEFAULT,
) -> Installed:
    """Put our conflist into ``conf_dir``, mode 0644. Call it last: from here on pods come to us.

    What others have put into the file stays in it. A file that is no list of plugins is replaced, and kept
    beside as ``10-aws.conflist.bad``. Blocks for as long as ``ask`` does.

    Args:
        conf_dir: The runtime's directory of configurations; made if it is missing.
        settings: What our own entry depends on.
        ask: How the executables of the list are asked for the versions that they speak.
        socket: The agent's socket as the host sees it.
        spool: The directory of spooled DELs as the host sees it.

    Raises:
        PermanentError: ``install_failed``; the directory cannot be written. The old file is as it was.
    """
    target = conf_dir / CONFLIST_NAME
    try:
        # One lock from reading to writing: what another installer writes in between would be lost.
        with _locked(conf_dir) as directory_fd:
            found, notes = _found_list(directory_fd, target)
            merged = merge(found, settings, ask(found.executables()), socket=socket, spool=spool)
            is_changed = _replace(directory_fd, target, merged.content, 0o644)
    except OSError as error:
        raise _refused(target, error) from error
    return Installed(
        is_changed=is_changed,
        versions=merged.versions,
        serves_host_ports=merged.serves_host_ports,
        notes=notes + merged.notes,
    )


async def install_conflist_off_loop(
    conf_dir: Path, settings: Settings, ask: Ask, *, socket: str, spool: str
) -> Installed:
    """:func:`install_conflist` in a thread: executables are run and disks are waited for."""
    return await asyncio.to_thread(install_conflist, conf_dir, settings, ask, socket=socket, spool=spool)


def _found_list(directory_fd: int, target: Path) -> tuple[FoundList, tuple[Note, ...]]:
    """The conflist that is there. What cannot be read as one is kept beside, and told."""
    try:
        found = read_list(_read(directory_fd, target.name))
    except OSError as error:
        found = FoundList(problem=f"it cannot be read ({error.strerror or error})")
    if not found.problem:
        return found, ()
    try:
        # A second name for the old file, so that at no moment there is none.
        with suppress(FileNotFoundError):
            os.unlink(SPOILT_NAME, dir_fd=directory_fd)
        os.link(
            target.name,
            SPOILT_NAME,
            src_dir_fd=directory_fd,
            dst_dir_fd=directory_fd,
            follow_symlinks=False,
        )
        kept = f"It is kept as {target.with_name(SPOILT_NAME)}: put entries that it had into the new one."
    except OSError as error:
        kept = f"It could not be kept ({error.strerror or error})."
    detail = f"{target} is replaced: {found.problem}. {kept}"
    return found, (Note(name="conflist_unreadable", detail=detail),)


def _read(directory_fd: int, name: str) -> bytes | None:
    """The file's content; ``None`` when there is none. What is no file, or too large for one, is an ``OSError``."""
    try:
        # Not blocking: a pipe by that name would keep us waiting for its writer.
        opened = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    with open(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError("it is not a file")
        content = file.read(CONFLIST_BYTES_MAX + 1)
    if len(content) > CONFLIST_BYTES_MAX:
        raise OSError(f"it is larger than {CONFLIST_BYTES_MAX} bytes")
    return content


def _replace(directory_fd: int, target: Path, content: bytes, mode: int) -> bool:
    """Make ``target`` hold ``content``: the old file or the new one, never a part, never neither.

    Args:
        directory_fd: Its directory, locked.
        target: The file.
        content: What it shall hold.
        mode: Its permissions, whatever the umask is.

    Returns:
        Whether anything had to be changed.
    """
    if _is_already(target, content, mode):
        return False
    # One fixed name, so that killed attempts leave one file at most. The leading dot and the suffix
    # keep runtimes from reading it as a configuration.
    temporary = f".{target.name}.tmp"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory_fd)
    try:
        _write(temporary, directory_fd, content, mode)
        os.rename(temporary, target.name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory_fd)
        raise
    os.fsync(directory_fd)
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
    """The open directory, made if missing, with the lock that keeps two installers out of each other's way."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # whatever the umask is: others look in here, too
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

"""A private world: the namespaces in which the lab, and every test that touches the kernel, runs.

A *world* is a network, a mount and a PID namespace of its own (and a user namespace, when the caller is not
privileged). Inside it, the program is root over interfaces, routes and nftables that nobody else sees;
``/run/netns`` is a private tmpfs, so ``ip netns`` names never reach the machine; and the PID namespace ends
everything that was started inside, containers and daemons included, when the program ends or is killed.
Nothing needs to be cleaned up on the machine, because nothing on the machine was changed.

Three processes make a world::

    supervisor   stays outside (its PID is ``supervisor_pid()``): passes signals on, returns the exit status
      └ init     PID 1 inside: mounts, loopback, reaps orphans; killed by the kernel when the supervisor dies
          └ program

Two ways in:

* a command line calls `enter_world` first thing: it returns at once inside a world, and otherwise runs the
  whole program again inside a new one and exits with its status;
* anything else runs ``python vpccni/lab/fabric/enter.py [--die-with-parent] -- COMMAND…`` as a child.

This file imports the standard library alone, so that it also starts by path, before anything is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

WORLD_VARIABLE = "VPCCNI_WORLD"
"""Set inside a world to ``<inode of its mount namespace>:<PID of its supervisor, seen from outside>``."""

EXIT_NO_WORLD = 125
"""Exit status when the world could not be built; the program was not started (as for ``env``)."""

NEEDED_PROGRAMS = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
"""Programs that the fabric runs, and the Debian packages that hold them."""

_SYSTEM_DIRECTORIES = (
    "/usr/sbin",
    "/sbin",
    "/usr/bin",
    "/bin",
)  # an ordinary user's PATH has no sbin, where nft lives
_NETNS_DIRECTORY = Path("/run/netns")

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_FORWARDED = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)

# What a world must be able to do before it is worth starting anything in it.
_TRIAL = (
    "ip link add name trial0 type veth peer name trial1 && ip netns add trial && "
    "nft 'add table ip trial; add chain ip trial c { type filter hook prerouting priority raw; }; "
    "add rule ip trial c fib saddr . iif oif 0 drop'"
)

_libc = ctypes.CDLL(None, use_errno=True)


class Reason(NamedTuple):
    """Why no world can be made here. ``message`` is sentences: what is missing, what to do about it."""

    code: str
    message: str


class NoWorldError(Exception):
    """A world was needed and could not be built, or the caller is not in one. Nothing was changed."""


def is_inside() -> bool:
    """Tell whether this process runs in a world. True in every network namespace of that world."""
    inode, _, _ = os.environ.get(WORLD_VARIABLE, "").partition(":")
    return inode == str(os.stat("/proc/self/ns/mnt").st_ino)


def require_inside() -> None:
    """Refuse to touch the kernel of the machine.

    Raises:
        NoWorldError: this process is not in a world.
    """
    if not is_inside():
        raise NoWorldError(
            "network namespaces are only made inside a private world: "
            "call vpccni.lab.fabric.enter.enter_world() first, or run the command through that file"
        )


def supervisor_pid() -> int:
    """PID by which the machine knows this world; a signal to it reaches the program. 0 if not inside."""
    return int(os.environ[WORLD_VARIABLE].partition(":")[2]) if is_inside() else 0


def why_impossible() -> Reason | None:
    """Say why no world can be made by this user on this machine, by trying (some 60 ms), or None if it can.

    Inside a world the answer is None at once.
    """
    if is_inside():
        return None
    missing = {
        program: package for program, package in NEEDED_PROGRAMS.items() if find_program(program) is None
    }
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        return Reason(
            "programs_missing", f"Not installed: {', '.join(missing)}. As root: apt-get install {packages}"
        )
    trial = subprocess.run(
        [sys.executable, "-I", __file__, "--die-with-parent", "--", "sh", "-ec", _TRIAL],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if trial.returncode == 0:
        return None
    said = trial.stderr.strip()
    if trial.returncode == EXIT_NO_WORLD:
        return _explain(said)
    return Reason(
        "kernel_incomplete", f"The kernel lacks veth, network namespaces or nftables with fib: {said}"
    )


def find_program(name: str) -> str | None:
    """Path of a program, also when it lies in an sbin directory that is not on an ordinary user's PATH."""
    return shutil.which(name, path=_search_path())


def enter_world(program: Sequence[str] | None = None) -> None:
    """Return at once inside a world; otherwise run ``program`` in a new one and exit with its status.

    To be called before any thread or event loop exists.

    Args:
        program: The command to run inside; by default this very process's own command line, again.

    Raises:
        NoWorldError: the namespaces were refused; `why_impossible` says more.
        SystemExit: always, once the program has ended (128 + n when signal n ended it).
    """
    if is_inside():
        return
    raise SystemExit(_supervise(list(program or [sys.executable, *sys.orig_argv[1:]])))


def _search_path() -> str:
    present = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join([*present, *(d for d in _SYSTEM_DIRECTORIES if d not in present)])


def _explain(said: str) -> Reason:
    """Name the switch that forbids a world, where one of the well-known ones is off."""
    switches = (
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    )
    for name, off, remedy in switches:
        file = Path("/proc/sys", name)
        if file.exists() and file.read_text().strip() == off:
            return Reason(
                "user_namespaces_off",
                "This machine does not let ordinary users make namespaces: "
                f"{name.replace('/', '.')} is {off}. As root: sysctl -w {remedy} "
                f"(or run this as root). It said: {said}",
            )
    return Reason(
        "namespaces_refused",
        f"The kernel refused the namespaces; run this as root or outside a container. ({said})",
    )


def _is_privileged() -> bool:
    """Whether namespaces can be made without a user namespace: by capability, for root may lack them too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return bool(effective >> _CAP_SYS_ADMIN & 1) and bool(effective >> _CAP_NET_ADMIN & 1)
    return False


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoWorldError(f"{what}: {error.strerror}") from error


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, target: str | Path, kind: str | None, flags: int, options: str | None = None) -> None:
    _check(
        _libc.mount(
            source.encode(), str(target).encode(), kind and kind.encode(), flags, options and options.encode()
        )
    )


def _supervise(argv: list[str]) -> int:
    """Make the namespaces, start init in them, pass signals on; return the program's exit status."""
    flags = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWPID
    uid, gid, privileged = os.geteuid(), os.getegid(), _is_privileged()
    with _doing("unshare"):
        _check(_libc.unshare(flags if privileged else flags | _CLONE_NEWUSER))
    if not privileged:
        with _doing("mapping this user to root"):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    marker = f"{os.stat('/proc/self/ns/mnt').st_ino}:{os.getpid()}"
    sys.stdout.flush()
    sys.stderr.flush()
    # Blocked before the fork, so that no signal falls between two chairs: supervisor and init wait for them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
    init = os.fork()
    if init == 0:
        _be_init(argv, marker, mask)
    return _pass_signals_until_exit(init)


def _be_init(argv: list[str], marker: str, mask: set[signal.Signals | int]) -> NoReturn:
    status = EXIT_NO_WORLD
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _furnish()
        program = os.fork()
        if program == 0:
            _exec(argv, marker, mask)
        status = _pass_signals_until_exit(program)
    except NoWorldError as error:
        os.write(2, f"no private world: {error}\n".encode())
    finally:
        os._exit(status)


def _exec(argv: list[str], marker: str, mask: set[signal.Signals | int]) -> NoReturn:
    status = 127
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
            signal.signal(ignored, signal.SIG_DFL)
        environment = {**os.environ, WORLD_VARIABLE: marker, "PATH": _search_path()}
        os.execvpe(argv[0], argv, environment)  # noqa: S606  # the caller's own command, and no shell
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(status)


def _furnish() -> None:
    """Mounts and loopback of the new world. Runs as its PID 1."""
    with _doing("making mounts private"):
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    with _doing("mounting /proc"):
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    with _doing("mounting /run/netns"):
        if not _NETNS_DIRECTORY.is_dir():
            _rebuild_run()
            _NETNS_DIRECTORY.mkdir()
        _mount("netns", _NETNS_DIRECTORY, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0755")
    with _doing("setting loopback up"):
        set_loopback_up()


def _rebuild_run() -> None:
    """Put a private tmpfs over /run that shows what was there.

    For a machine without the directory for names: to make it in its own /run needs root and leaves a trace.
    """
    old = os.open("/run", os.O_PATH | os.O_DIRECTORY)
    try:
        names = os.listdir("/run")
        _mount("run", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
        for name in names:
            source, target = f"/proc/self/fd/{old}/{name}", Path("/run", name)
            with contextlib.suppress(OSError):  # a file that this user may not see is not missed
                kind = os.lstat(source).st_mode
                if stat.S_ISLNK(kind):
                    target.symlink_to(os.readlink(source))
                    continue
                if stat.S_ISDIR(kind):
                    target.mkdir()
                else:
                    target.touch()
                _mount(source, target, None, _MS_BIND | _MS_REC)
    finally:
        os.close(old)


def set_loopback_up() -> None:
    """Set ``lo`` up in the network namespace of the calling thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = bytearray(struct.pack("16sH22x", b"lo", 0))
        fcntl.ioctl(handle, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("H", request, 16)[0]
        struct.pack_into("H", request, 16, flags | _IFF_UP)
        fcntl.ioctl(handle, _SIOCSIFFLAGS, request)


def _pass_signals_until_exit(child: int) -> int:
    """Wait for ``child``, reaping orphans on the way; return its exit status.

    A signal that the terminal sent (Ctrl-C) has reached the program already, being in the same process group;
    one that a process sent came to us alone and is passed on.
    """
    while True:
        signalled = signal.sigwaitinfo(_FORWARDED | {signal.SIGCHLD})
        if signalled.si_signo != signal.SIGCHLD:
            if signalled.si_code <= 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signalled.si_signo)
            continue
        status = _reap(child)
        if status is not None:
            return status


def _reap(child: int) -> int | None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``[--die-with-parent] -- COMMAND…`` in a new world and exit with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--die-with-parent"]:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        arguments.pop(0)
    if arguments[:1] != ["--"] or len(arguments) < 2:
        sys.stderr.write("usage: enter.py [--die-with-parent] -- COMMAND [ARGUMENT…]\n")
        raise SystemExit(errno.EINVAL)
    try:
        raise SystemExit(_supervise(arguments[1:]))
    except NoWorldError as error:
        sys.stderr.write(f"no private world: {error}\n")
        raise SystemExit(EXIT_NO_WORLD) from None


if __name__ == "__main__":
    main()

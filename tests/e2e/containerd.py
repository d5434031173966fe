"""Debian's containerd and runc on one node of the lab.

It runs in the node's network namespace and in a mount namespace of its own, in which ``/run`` and ``/var/lib``
are the node's: shims, runc and libcni keep things at fixed paths there. Only ``/run/netns`` is the world's, shared
both ways, so that the agent sees the sandboxes' namespaces, as it does on a node by mount propagation.
Containers get control groups below one that is named after the world, and removed in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.cri import Cri, Message, message_at, text_at
from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.enter import find_program, supervisor_pid
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY, Namespace
from vpccni.lab.fabric.processes import Daemon
from vpccni.lab.lab import Lab, LabNode

IMAGE = "lab.test/busybox:1"
"""A name under a domain that can never be one (RFC 2606): nothing is ever pulled."""

DEBIAN_PLUGINS = Path("/usr/lib/cni")
READY_TIMEOUT_S = 20.0
STALE_S = 3600.0
"""A control group that nobody touched for so long is one of a world that was killed; it is empty, then."""
CGROUPS_GONE_TIMEOUT_S = 10.0
"""A killed process leaves its control group within milliseconds unless the kernel holds it in I/O."""
PORT = 8080

_CGROUP_PREFIX = "vpccni-test-"

_CONFIG = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{conf}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""

_START = """\
mount --bind "$1/var-lib" /var/lib
mount --rbind /run/netns "$1/netns"
mount -t tmpfs run /run
mkdir /run/netns
mount --rbind "$1/netns" /run/netns
exec containerd --config "$1/config.toml"
"""


class Pod:
    """A pod as the runtime runs it: a sandbox with one container in it."""

    def __init__(self, name: str, uid: str, sandbox: str, container: str, address: str) -> None:
        self.name, self.uid, self.sandbox, self.container, self.address = (
            name,
            uid,
            sandbox,
            container,
            address,
        )


class Containerd:
    """One node's containerd. The node's agent must have installed its conflist before ``start``."""

    def __init__(self, lab: Lab, node: LabNode) -> None:
        self.node = node
        self.directory = node.places.root / "c"
        self.socket = node.places.run / "c.sock"
        self.log = self.directory / "log.txt"
        self.cri = Cri(self.socket)
        self._lab = lab
        self._daemon: Daemon | None = None

    @property
    def results(self) -> Path:
        """Where libcni keeps its results on this node."""
        return self.directory / "var-lib" / "cni" / "results"

    def install_plugins(self) -> None:
        """Put Debian's plugins where ours will be: the agent looks for portmap when it writes its conflist."""
        for plugin in ("loopback", "portmap"):
            shutil.copy(DEBIAN_PLUGINS / plugin, self.node.places.bin)

    async def start(self, image: Path) -> None:
        """Start it and import the image.

        Raises:
            AssertionError: it did not get ready; the message is the end of its log.
        """
        for directory in ("root", "var-lib", "netns"):
            (self.directory / directory).mkdir(parents=True)
        config = _CONFIG.format(
            root=self.directory / "root",
            state=self.node.places.run / "c",
            socket=self.socket,
            image=IMAGE,
            bin=self.node.places.bin,
            conf=self.node.places.conf,
        )
        (self.directory / "config.toml").write_text(config)
        self._daemon = await self._lab.fabric.spawn_in(
            self.node.namespace,
            [
                "unshare",
                "--mount",
                "--propagation",
                "unchanged",
                "sh",
                "-ec",
                _START,
                "sh",
                str(self.directory),
            ],
            output=self.log,
        )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not await self.cri.is_network_ready():
            assert self._daemon.returncode is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            await asyncio.sleep(0.05)
        done = await self._lab.fabric.exec_in(
            self.node.namespace,
            [
                "ctr",
                "-a",
                str(self.socket),
                "-n",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                "native",
                str(image),
            ],
        )
        assert done.returncode == 0, done.stderr.decode()
        while not await self._has_image():  # the import is told to the CRI by an event
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            await asyncio.sleep(0.02)

    async def _has_image(self) -> bool:
        answer = await self.cri.call("ImageService", "ImageStatus", {1: {1: IMAGE}})
        return 1 in answer

    async def run_pod(self, name: str, *, namespace: str = "default", host_port: int = 0) -> Pod:
        """Run a pod whose container serves its own name over HTTP.

        Args:
            name: Its name.
            namespace: Its namespace.
            host_port: Where its port shall be served on the node; 0 for nowhere, as kubelet says it.

        Raises:
            CriError: the runtime refused; see its log.
        """
        uid = hashlib.sha256(name.encode()).hexdigest()[:32]
        sandbox_config: Message = {
            1: {1: name, 2: uid, 3: namespace},
            2: name,
            3: str(self.directory),
            5: {1: 0, 2: PORT, 3: host_port},  # the protocol, 0 for TCP, and the container's port
            8: {1: str(cgroup_parent())},
        }
        made = await self.cri.runtime("RunPodSandbox", {1: sandbox_config}, timeout_s=60.0)
        sandbox = text_at(made, 1)
        serve = f"hostname >/www/index.html; exec httpd -f -p {PORT} -h /www"
        config: Message = {
            1: {1: "main"},
            2: {1: IMAGE},
            3: ["/bin/sh", "-c", serve],
            11: f"{name}.log",
            15: {},
        }
        made = await self.cri.runtime("CreateContainer", {1: sandbox, 2: config, 3: sandbox_config})
        container = text_at(made, 1)
        await self.cri.runtime("StartContainer", {1: container})
        # Without wget's -T: with it, Debian's static busybox dies of SIGSEGV where a connection is refused.
        while (await self.cri.exec(container, "wget", "-q", "-O", "-", f"http://127.0.0.1:{PORT}/"))[0] != 0:
            await asyncio.sleep(0.02)
        status = message_at(await self.cri.runtime("PodSandboxStatus", {1: sandbox}), 1)
        return Pod(name, uid, sandbox, container, text_at(message_at(status, 5), 1))

    async def remove_pod(self, pod: Pod) -> None:
        """Stop and remove a pod, as kubelet does."""
        await self.cri.runtime("StopPodSandbox", {1: pod.sandbox})
        await self.cri.runtime("RemovePodSandbox", {1: pod.sandbox})

    async def stop(self) -> None:
        """Stop the daemon; whatever it leaves is killed: shims live in the node's network namespace."""
        if self._daemon is not None:
            await self._daemon.stop()


def cgroup_parent() -> Path:
    """The control group of this world's containers, from the root of the hierarchy."""
    return Path(f"/{_CGROUP_PREFIX}{supervisor_pid()}")


def cgroup_directories(*, stale: bool = False) -> list[Path]:
    """Control groups of this world's containers, innermost first, over all hierarchies.

    Args:
        stale: Those of earlier worlds instead.
    """
    top = Path("/sys/fs/cgroup")
    if stale:
        found = [*top.glob(f"{_CGROUP_PREFIX}*"), *top.glob(f"*/{_CGROUP_PREFIX}*")]
        roots = [path for path in found if _is_stale(path)]
    else:
        name = cgroup_parent().name
        roots = [path for path in (top / name, *top.glob(f"*/{name}")) if path.is_dir()]
    return [Path(path) for root in roots for path, _, _ in os.walk(root, topdown=False)]


def _is_stale(directory: Path) -> bool:
    try:
        return time.time() - directory.stat().st_mtime > STALE_S
    except FileNotFoundError:  # another world's, which has just ended
        return False


def share_netns_directory(*, shared: bool) -> None:
    """Let mounts below ``/run/netns`` show in mount namespaces that are made from now on, and theirs here."""
    subprocess.run(
        ["mount", "--make-shared" if shared else "--make-private", str(NETNS_DIRECTORY)], check=True
    )


def container_processes() -> dict[int, str]:
    """Processes of this world that a container runtime started or is."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "exe").rpartition("/")[2].startswith(("containerd", "runc")):
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def remove_leftovers(timeout_s: float = CGROUPS_GONE_TIMEOUT_S) -> None:
    """Kill and remove what pods that were not removed leave: only after the daemons are gone.

    Raises:
        AssertionError: control groups of this world are still there after ``timeout_s``; they are named, with
            the processes in them. Everything else is removed.
    """
    for path in NETNS_DIRECTORY.glob("cni-*"):
        namespaces.remove(Namespace(name=path.name, path=str(path)))
    _remove_groups(cgroup_directories(stale=True))
    # A killed process is out of its network namespace, and so no longer looked for, some milliseconds before it
    # is out of its control group: it takes down its mount namespace in between. Until then the group is busy.
    deadline = time.monotonic() + timeout_s
    while _remove_groups(cgroup_directories()):
        if time.monotonic() > deadline:
            left = [_with_processes(directory) for directory in cgroup_directories()]
            assert left == [], f"control groups that do not go within {timeout_s} s: {'; '.join(left)}"
            return
        time.sleep(0.005)


def _remove_groups(directories: list[Path]) -> list[Path]:
    """Try once to remove each; return those that are still there."""
    left = []
    for directory in directories:
        try:
            directory.rmdir()
        except FileNotFoundError:  # somebody else was faster
            continue
        except OSError:  # busy: a process or a group is in it
            left.append(directory)
    return left


def _with_processes(cgroup: Path) -> str:
    """A control group and who is in it, for a person."""
    names = []
    with contextlib.suppress(OSError):
        for pid in (cgroup / "cgroup.procs").read_text().split():
            try:
                names.append(f"{pid} {Path('/proc', pid, 'comm').read_text().strip()}")
            except OSError:
                names.append(f"{pid} (ending)")
    return f"{cgroup} with {', '.join(names) or 'no process'}"


# -- the image --------------------------------------------------------------------------------------------


def make_image(path: Path) -> None:
    """Write a Docker archive with one layer: a static busybox, a command for each of its applets, ``/www``.

    Raises:
        AssertionError: there is no static busybox.
    """
    busybox = find_program("busybox")
    assert busybox is not None, "busybox-static is not installed"
    assert subprocess.run(["ldd", busybox], capture_output=True).returncode != 0, f"{busybox} is not static"
    layer = _tar(
        [
            _directory("bin"), _directory("etc"), _directory("proc"), _directory("sys"), _directory("dev"),
            _directory("www"), _file("bin/busybox", Path(busybox).read_bytes(), mode=0o755),
            *(_link(f"bin/{name}") for name in ("sh", "hostname", "httpd", "ip", "nc", "ping", "wget", "sleep")),
        ]
    )  # fmt: skip
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    raw = json.dumps(config).encode()
    name = f"{hashlib.sha256(raw).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    members = [
        _file(name, raw),
        _file("layer.tar", layer),
        _file("manifest.json", json.dumps(manifest).encode()),
    ]
    path.write_bytes(_tar(members))


Member = tuple[tarfile.TarInfo, bytes]


def _tar(members: Sequence[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _file(name: str, content: bytes, *, mode: int = 0o644) -> Member:
    made = tarfile.TarInfo(name)
    made.size, made.mode = len(content), mode
    return made, content


def _directory(name: str) -> Member:
    made = tarfile.TarInfo(name)
    made.type, made.mode = tarfile.DIRTYPE, 0o755
    return made, b""


def _link(name: str) -> Member:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = tarfile.SYMTYPE, "busybox"
    return made, b""

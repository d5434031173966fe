"""What a figure was measured on: a number without its machine and its disk says nothing."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from vpccni.lab.places import volatile_filesystem

_SYNCS: Final = 200
_PAGE: Final = b"\xa5" * 4096


def fdatasync_ms(directory: Path, count: int = _SYNCS) -> list[float]:
    """Milliseconds for writing over one page and ``fdatasync``, each time: what a commit costs at least."""
    taken = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        handle = file.fileno()
        os.pwrite(handle, _PAGE * count, 0)
        os.fsync(handle)
        for place in range(count):
            began = time.perf_counter_ns()
            os.pwrite(handle, _PAGE, place * len(_PAGE))
            os.fdatasync(handle)
            taken.append((time.perf_counter_ns() - began) / 1e6)
    return taken


def filesystem(path: Path) -> str:
    """The filesystem's kind and device, such as ``ext4 on /dev/vda``."""
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == device:
            kind, source = after.split()[:2]
            return f"{kind} on {source}"
    return "unknown"


def describe(directory: Path) -> dict[str, Any]:
    """The machine, the disk that the log is on, and how busy it is just now."""
    synced = fdatasync_ms(directory)
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "python": platform.python_version(),
        "filesystem": filesystem(directory),
        "is_durable": not volatile_filesystem(directory),
        "fdatasync_ms": round(statistics.median(synced), 4),
        "fdatasync_p99_ms": round(sorted(synced)[int(len(synced) * 0.99)], 4),
        "load": [round(value, 2) for value in os.getloadavg()],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def one_line(machine: dict[str, Any]) -> str:
    """The same, to be read."""
    durable = "" if machine["is_durable"] else " (NOT durable: figures of the log mean nothing)"
    return (
        f"{machine['cpus']} x {machine['cpu']}, {machine['kernel']}, Python {machine['python']}; "
        f"log on {machine['filesystem']}{durable}, fdatasync {machine['fdatasync_ms']:.3g} ms "
        f"(p99 {machine['fdatasync_p99_ms']:.3g}); load {' '.join(map(str, machine['load']))}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"

"""The agent's flags, and where it keeps things. Light: the command line reads the same places."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import msgspec

from vpccni import __version__
from vpccni.settings import Settings

RUN_DIR: Final = Path("/var/run/aws-node")
LOG_NAME: Final = "events.sqlite"
SOCKET_NAME: Final = "vpccni.sock"


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the agent keeps things."""

    log: Path
    run: Path
    socket: Path
    pid: Path
    spool: Path
    boot_id: Path
    checkpoint: Path
    cni_results: Path


def parser() -> argparse.ArgumentParser:
    """The agent's flags. argparse: the agent must not pay for a prettier library."""
    made = argparse.ArgumentParser(
        prog="vpccni agent",
        description="Run the node agent: assign VPC addresses to pods, keep the pool warm, wire the pods.",
        epilog="Settings come from the environment, under the names that amazon-vpc-cni-k8s uses; "
        "see docs/settings.md or `vpccni config`. Try a setting before a node does: "
        "`WARM_IP_TARGET=5 vpccni agent --check-config`.",
    )
    made.add_argument(
        "--state-dir",
        type=Path,
        default=Path("/var/lib/aws-node"),
        help="directory of the event log, on a disk (default: %(default)s)",
    )
    made.add_argument(
        "--run-dir",
        type=Path,
        default=RUN_DIR,
        help="directory of the socket, the pid file and the DEL spool (default: %(default)s)",
    )
    made.add_argument("--socket", type=Path, help="the socket (default: RUN_DIR/vpccni.sock)")
    made.add_argument("--spool", type=Path, help="directory of spooled DELs (default: RUN_DIR/spool)")
    made.add_argument(
        "--volatile-log",
        action="store_true",
        help="accept a log on tmpfs or overlay: a power loss or a new container then loses leases",
    )
    made.add_argument(
        "--boot-id-path",
        type=Path,
        default=Path("/proc/sys/kernel/random/boot_id"),
        help="file with the id of this boot (default: %(default)s)",
    )
    made.add_argument(
        "--cni-results-dir",
        type=Path,
        default=Path("/var/lib/cni/results"),
        help="the runtime's cached CNI results: by them the agent knows which sandboxes live (default: %(default)s)",
    )
    made.add_argument("--install-bin", type=Path, help="put the CNI executable into this directory at start")
    made.add_argument(
        "--install-conf",
        type=Path,
        help="write 10-aws.conflist into this directory once ADDs can be served",
    )
    made.add_argument("--plugin", type=Path, help="the CNI executable to install (default: the packaged one)")
    made.add_argument(
        "--log-format", choices=("auto", "json", "text"), default="auto", help="of the text log"
    )
    made.add_argument(
        "--check-config",
        action="store_true",
        help="only look at the environment: print what is set and everything that is wrong with it, and end with 0 "
        "when the agent would start, 2 when not",
    )
    made.add_argument("--json", action="store_true", help="with --check-config: print JSON for machines")
    made.add_argument("--seed", type=int, help="seed of the jitter (tests)")
    made.add_argument("--version", action="version", version=f"vpccni {__version__}")
    return made


def paths_of(settings: Settings, options: argparse.Namespace) -> Paths:
    """Where things lie, by the flags and by the setting of the checkpoint file."""
    return Paths(
        log=options.state_dir / LOG_NAME,
        run=options.run_dir,
        socket=options.socket or options.run_dir / SOCKET_NAME,
        pid=options.run_dir / "vpccni.pid",
        spool=options.spool or options.run_dir / "spool",
        boot_id=options.boot_id_path,
        checkpoint=checkpoint_path(settings.backing_store, options.run_dir),
        cni_results=options.cni_results_dir,
    )


def checkpoint_path(setting: str, run_dir: Path) -> Path:
    """Where the checkpoint file is: as set, else where the original has it; of another run directory, in that."""
    if setting == Settings().backing_store and run_dir != RUN_DIR:
        return run_dir / Path(setting).name
    return Path(setting)

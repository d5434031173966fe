"""``vpccni take-over --check``: can this node be taken over from amazon-vpc-cni-k8s?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from vpccni.cli.output import console, print_json
from vpccni.cli.problems import USAGE, CommandError
from vpccni.cli.unix_http import UnixHttp
from vpccni.cli.where import JsonOption
from vpccni.errors import PermanentError, Reason, Refused
from vpccni.flags import SOCKET_NAME, checkpoint_path
from vpccni.settings import Settings, read_settings

_WAITING_REASONS: Final = frozenset({Reason.TAKE_OVER_REFUSED, Reason.ANOTHER_AGENT, Reason.RECOVERING})
"""With these an agent of ours is there and has not taken the node."""
_LOOKED_FOR: Final = (
    "MY_NODE_NAME",
    "CLUSTER_ENDPOINT",
    "AWS_VPC_K8S_CNI_VETHPREFIX",
    "AWS_VPC_K8S_CNI_BACKING_STORE",
)
"""Settings that tell where to look; they are read even when others are refused."""


def take_over(
    check: Annotated[
        bool, typer.Option("--check", help="Look, and change nothing. There is no other way to use this.")
    ] = False,
    as_json: JsonOption = False,
    run_dir: Annotated[
        Path, typer.Option("--run-dir", help="Where the agents of this node have their sockets.")
    ] = Path("/var/run/aws-node"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="The original's checkpoint file (default: AWS_VPC_K8S_CNI_BACKING_STORE)."
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option("--cni-results-dir", help="The container runtime's cached CNI results.")
    ] = Path("/var/lib/cni/results"),
    bpf: Annotated[Path, typer.Option("--bpf-dir", help="Where the BPF filesystem is mounted.")] = Path(
        "/sys/fs/bpf"
    ),
    boot_id: Annotated[
        Path, typer.Option("--boot-id-path", help="File with the id of this boot.", hidden=True)
    ] = Path("/proc/sys/kernel/random/boot_id"),
) -> None:
    """Can this node be taken over from amazon-vpc-cni-k8s? Changes nothing.

    Run it as root on a node while amazon-vpc-cni-k8s serves it. It shows
    every pod that would be taken over, what stands in the way, and what to do
    next. The settings in its environment are checked, too: give it those that
    the agent will have. The agent asks the same at its first start.

    With MY_NODE_NAME and KUBECONFIG (or in a pod) it also asks the API server
    for pods with security groups of their own and for network policies. To ask
    every node of a cluster, see deploy/take-over-check.yaml.

    Exit code 0: it can be taken over. 1: something stands in the way.
    2: the node could not be looked at.

    [bold]Examples[/bold]
      vpccni take-over --check
      vpccni take-over --check --json | jq -r '.objections[].pods[]'
    """
    if not check:
        raise CommandError(
            "Say --check: this command only looks. The agent takes the node over by itself when it starts "
            "(docs/migrate.md).",
            USAGE,
        )
    served_by_us = _served_by_us(run_dir)
    if served_by_us:
        if as_json:
            print_json({"can_be_taken_over": None, "served_by": served_by_us})
        else:
            console().print(f"{served_by_us} serves this node already: there is nothing to take over.")
        return
    # Adapters and their libraries are for this command alone: the others start without them.
    from vpccni.cli.looking import Places, look
    from vpccni.cli.taking_over_view import as_data, exit_code, print_look

    settings, refused = _read_settings(os.environ)
    places = Places(
        run_dir=run_dir,
        checkpoint=checkpoint or checkpoint_path(settings.backing_store, run_dir),
        results=results,
        bpf=bpf,
        boot_id=boot_id,
    )
    looked = asyncio.run(look(settings, places, refused))
    if as_json:
        print_json(as_data(looked))
    else:
        print_look(looked, console())
    code = exit_code(looked.findings)
    if code:
        raise typer.Exit(code)


def _served_by_us(run_dir: Path) -> str:
    """Which vpccni serves this node; empty when none does, or one that waits for the node."""
    socket = run_dir / SOCKET_NAME
    if not socket.exists():
        return ""
    try:
        said = UnixHttp(str(socket)).get("/v1/status")
    except CommandError:
        return ""
    return "" if said["reason"] in _WAITING_REASONS else f"vpccni {said['version']}"


def _read_settings(environ: Mapping[str, str]) -> tuple[Settings, Refused | None]:
    """The settings and why they are refused; then those that tell where to look, as far as they can be read."""
    try:
        return read_settings(environ), None
    except PermanentError as error:
        refused = Refused(error.reason, error.detail)
    good: dict[str, str] = {}
    settings = Settings()
    for name in _LOOKED_FOR:
        try:
            settings = read_settings(good | {name: environ.get(name, "")})
        except PermanentError:
            continue
        good[name] = environ.get(name, "")
    return settings, refused

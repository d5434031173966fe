"""``vpccni take-over --check``: can this node be taken over from amazon-vpc-cni-k8s?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vpccni.cli.looking import IMDS, PINS, POLICIES, Look, Places, counted, look
from vpccni.cli.output import console, plain_table, print_json
from vpccni.cli.problems import NOT_GOOD, USAGE, CommandError
from vpccni.cli.unix_http import UnixHttp
from vpccni.cli.where import JsonOption
from vpccni.errors import PermanentError, Reason, Refused
from vpccni.evidence import ABSENT, API_SERVER, CHECKPOINT, KERNEL, READ, RUNTIME_CACHE
from vpccni.settings import Settings, read_settings
from vpccni.takeover import Caution, Findings, Found, Objection, pod_text

AGENT_SOCKET: Final = "vpccni.sock"
COULD_NOT_LOOK: Final = USAGE
_WAITING_REASONS: Final = frozenset({Reason.TAKE_OVER_REFUSED, Reason.ANOTHER_AGENT, Reason.RECOVERING})
"""With these an agent of ours is there and has not taken the node."""
_LOOKED_FOR: Final = (
    "MY_NODE_NAME",
    "CLUSTER_ENDPOINT",
    "AWS_VPC_K8S_CNI_VETHPREFIX",
    "AWS_VPC_K8S_CNI_BACKING_STORE",
)
"""Settings that tell where to look; they are read even when others are refused."""
_NAMES: Final = {
    KERNEL: "kernel",
    RUNTIME_CACHE: "runtime's cache",
    CHECKPOINT: "ipam.json",
    API_SERVER: "API server",
    IMDS: "IMDS",
    PINS: "BPF filesystem",
    POLICIES: "PolicyEndpoints",
}
_ABSENT: Final = {
    API_SERVER: "not asked: MY_NODE_NAME and KUBECONFIG (or a service account) are not set",
    POLICIES: "not asked",
    PINS: "not mounted here",
}


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
    settings, refused = _read_settings(os.environ)
    places = Places(
        run_dir=run_dir,
        checkpoint=checkpoint or Path(settings.backing_store),
        results=results,
        bpf=bpf,
        boot_id=boot_id,
    )
    looked = asyncio.run(look(settings, places, refused))
    if as_json:
        print_json(_as_data(looked))
    else:
        _print(looked, console())
    code = _exit_code(looked.findings)
    if code:
        raise typer.Exit(code)


def _served_by_us(run_dir: Path) -> str:
    """Which vpccni serves this node; empty when none does, or one that waits for the node."""
    socket = run_dir / AGENT_SOCKET
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


def _exit_code(findings: Findings) -> int:
    """0: yes; 1: no; 2: nobody knows, as something could not be looked at."""
    if any(one.reason is not Reason.KERNEL_REFUSED for one in findings.objections):
        return NOT_GOOD
    return COULD_NOT_LOOK if findings.gaps else 0


# -- for machines -----------------------------------------------------------------------------------------


def _as_data(looked: Look) -> dict[str, Any]:
    findings = looked.findings
    code = _exit_code(findings)
    return {
        "can_be_taken_over": None if code == COULD_NOT_LOOK else code == 0,
        "original": findings.living,
        "found": [
            {
                "address": one.address,
                "namespace": one.pod.namespace,
                "name": one.pod.name,
                "becomes": _becomes(one),
                "host_ifname": one.host_ifname,
                "sources": list(one.sources),
            }
            for one in findings.found
        ],
        "objections": [
            {
                "reason": str(one.reason),
                "kind": one.kind,
                "sentence": one.sentence,
                "next_action": one.next_action,
                "pods": list(one.pods),
            }
            for one in findings.objections
        ],
        "cautions": [
            {
                "kind": one.kind,
                "sentence": one.sentence,
                "next_action": one.next_action,
                "names": list(one.names),
            }
            for one in findings.cautions
        ],
        "gaps": list(findings.gaps),
        "sources": findings.sources,
        "notes": list(findings.notes),
    }


def _becomes(one: Found) -> str:
    return "hold" if one.is_hold else "lease"


# -- for people -------------------------------------------------------------------------------------------


def _print(looked: Look, out: Console) -> None:
    findings = looked.findings
    out.print(_heading("Looked at"))
    out.print(_indented(_source_table(looked)))
    out.print()
    if findings.found:
        holds = sum(one.is_hold for one in findings.found)
        leases = len(findings.found) - holds
        told = [counted(leases, "lease")] if leases else []
        told += [f"{counted(holds, 'hold')} (address whose sandbox is not known)"] if holds else []
        out.print(_heading(f"Would be taken over: {', '.join(told)}"))
        out.print(_indented(_found_table(findings)))
    else:
        out.print(_heading("No pod was found that would be taken over."))
    sections: tuple[tuple[str, Sequence[Objection | Caution], str], ...] = (
        ("Stands in the way", findings.objections, "red"),
        ("Good to know", findings.cautions, "yellow"),
    )
    for title, items, style in sections:
        if items:
            out.print()
            out.print(_heading(title, style))
            for number, item in enumerate(items, start=1):
                _print_item(item, number, out)
    if findings.gaps or findings.notes:
        out.print()
        for said in findings.gaps:
            out.print(Text(f"Could not be looked at: {said}", style="red"))
        for said in findings.notes:
            out.print(Text(f"Left out: {said}", style="dim"))
    out.print()
    _print_end(findings, out)


def _print_item(item: Objection | Caution, number: int, out: Console) -> None:
    """One numbered paragraph: what is the matter, all names when the sentence has only some, what to do."""
    names = item.pods if isinstance(item, Objection) else item.names
    code = f"{item.reason}: " if isinstance(item, Objection) else ""
    lines = [Text(f"{code}{item.sentence}")]
    if any(name not in item.sentence for name in names):
        lines.append(Text(f"all: {', '.join(names)}"))
    if item.next_action:
        lines.append(Text.assemble(("→ ", "bold"), item.next_action))
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(f"{number}.", Text("\n").join(lines))
    out.print(_indented(table))


def _print_end(findings: Findings, out: Console) -> None:
    code = _exit_code(findings)
    if code == NOT_GOOD:
        number = counted(len(findings.objections), "thing")
        verb = "stands" if len(findings.objections) == 1 else "stand"
        out.print(f"This node cannot be taken over: {number} {verb} in the way.", style="bold red")
        out.print("Nothing was changed. Do what is said above, and check again.")
    elif code == COULD_NOT_LOOK:
        out.print("Whether this node can be taken over is not known.", style="bold red")
        out.print("Nothing was changed. Make what could not be read readable, and check again.")
    else:
        out.print("This node can be taken over.", style="bold green")
        out.print("Nothing was changed. Next: replace the DaemonSet step by step, as docs/migrate.md says.")


def _source_table(looked: Look) -> Table:
    living = looked.findings.living
    rows: list[tuple[str | Text, ...]] = [
        ("amazon-vpc-cni-k8s", f"runs: {living}" if living else "does not run")
    ]
    for name, status in looked.findings.sources.items():
        card = name.removeprefix(f"{CHECKPOINT}_nic_")
        shown = _NAMES.get(name, name) if card == name else f"ipam-nic-{card}.json"
        if status == READ:
            rows.append((shown, looked.counts.get(name, "read")))
        elif status == ABSENT:
            rows.append((shown, Text(_ABSENT.get(name, "not there"), style="dim")))
        else:
            rows.append((shown, Text(status, style="red")))
    table = plain_table(("", ""), rows)
    table.show_header = False
    table.columns[1].no_wrap = False
    return table


def _found_table(findings: Findings) -> Table:
    rows = [
        (
            one.address,
            pod_text(one.pod) or "-",
            Text(_becomes(one), style="yellow" if one.is_hold else ""),
            one.host_ifname or "-",
            ", ".join(_NAMES.get(source, source) for source in one.sources),
        )
        for one in findings.found
    ]
    return plain_table(("address", "pod", "becomes", "interface", "shown by"), rows)


def _heading(text: str, style: str = "") -> Text:
    return Text(text, style=f"bold {style}".strip())


def _indented(what: Table) -> Padding:
    return Padding(what, (0, 0, 0, 2), expand=False)

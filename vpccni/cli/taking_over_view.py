"""What ``vpccni take-over --check`` says: for people, for machines, and as an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vpccni.cli.looking import IMDS, PINS, POLICIES, Look, counted
from vpccni.cli.output import plain_table
from vpccni.cli.problems import NOT_GOOD, USAGE
from vpccni.errors import Reason
from vpccni.evidence import ABSENT, API_SERVER, CHECKPOINT, KERNEL, READ, RUNTIME_CACHE
from vpccni.takeover import Caution, Findings, Found, Objection, pod_text

COULD_NOT_LOOK: Final = USAGE
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


def exit_code(findings: Findings) -> int:
    """0: yes; 1: no; 2: nobody knows, as something could not be looked at."""
    if any(one.reason is not Reason.KERNEL_REFUSED for one in findings.objections):
        return NOT_GOOD
    return COULD_NOT_LOOK if findings.gaps else 0


# -- for machines -----------------------------------------------------------------------------------------


def as_data(looked: Look) -> dict[str, Any]:
    """Everything, as JSON has it."""
    findings = looked.findings
    code = exit_code(findings)
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


def print_look(looked: Look, out: Console) -> None:
    """Tables and sentences, the conclusion last."""
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
    code = exit_code(findings)
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

"""``vpccni hand-back``: give the node back to amazon-vpc-cni-k8s without cutting off a pod."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from vpccni.cli.output import console, print_json
from vpccni.cli.problems import NOT_GOOD, USAGE, CommandError
from vpccni.cli.unix_http import UnixHttp
from vpccni.cli.where import JsonOption, NodeOption, SocketOption, agent_at

POLL_S: Final = 0.5
_SHOWN_MAX: Final = 8


def hand_back(
    socket: SocketOption = None,
    node: NodeOption = None,
    finish: Annotated[
        bool,
        typer.Option("--finish", help="Remove what is left of vpccni, once the original serves. Needs root."),
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Do not hand back after all: serve again.")
    ] = False,
    wait_s: Annotated[
        int,
        typer.Option("--wait", metavar="SECONDS", help="How long to wait for the node to be ready.", min=1),
    ] = 600,
    state_dir: Annotated[
        Path, typer.Option("--state-dir", help="With --finish: the directory of the event log.")
    ] = Path("/var/lib/aws-node"),
    run_dir: Annotated[
        Path, typer.Option("--run-dir", help="With --finish: where the original has its socket.")
    ] = Path("/var/run/aws-node"),
    as_json: JsonOption = False,
) -> None:
    """Hand this node back to amazon-vpc-cni-k8s.

    Pods keep their addresses and their connections. From now on every pod
    also has the original's routes and rules, and EC2 is not changed any more.
    The command waits until the instance metadata service lists every pod's
    address, because the original forgets pods whose address it does not find
    there. Then it says that the original may be started. See docs/migrate.md.

    [bold]Examples[/bold]
      vpccni hand-back               [dim]# 1. prepare; wait until it says so[/dim]
                                     [dim]# 2. replace the DaemonSet by the original[/dim]
      vpccni hand-back --finish      [dim]# 3. remove our table, rule and marks[/dim]
      vpccni hand-back --cancel      [dim]# or: stay with vpccni[/dim]
    """
    if finish and cancel:
        raise CommandError("Give --finish or --cancel, not both.", USAGE)
    if finish:
        # The kernel adapter is for this alone: the other commands start without it.
        from vpccni.cli.farewell import finish as take_away

        done = take_away(state_dir / "events.sqlite", run_dir)
        words = (
            f"Removed {done.routes} routes, {done.rules} rules and {done.aliases} marks"
            + (" and the nft table" if done.nft_table else "")
            + ". The node is the original's."
        )
        _say(msgspec.to_builtins(done), words, as_json=as_json)
        return
    agent = agent_at(socket, node)
    agent.post("/v1/mode", {"mode": "serve" if cancel else "hand_back"})
    if cancel:
        _say({"mode": "serve"}, "The agent serves this node again.", as_json=as_json)
        return
    progress = _wait_ready(agent, wait_s, shows=not as_json)
    if as_json:
        print_json(progress)
    if not progress["is_ready"]:
        raise CommandError(
            f"The node is not ready to be handed back after {wait_s} s: {_lacking(progress)}. Pods are served "
            "meanwhile. Call the command again, or stay with `vpccni hand-back --cancel`.",
            NOT_GOOD,
        )
    if not as_json:
        console().print(
            "Ready. Start the original now (docs/migrate.md), and when it serves: vpccni hand-back --finish",
            style="green",
        )


def _wait_ready(agent: UnixHttp, wait_s: int, *, shows: bool) -> dict[str, Any]:
    """Ask until everything is in place or the time is over; says what is lacking whenever that changes."""
    deadline, told = time.monotonic() + wait_s, ""
    while True:
        progress: dict[str, Any] | None = agent.get("/v1/status")["hand_back"]
        if progress is None:
            raise CommandError(
                "The agent no longer hands the node back; somebody has cancelled it.", NOT_GOOD
            )
        if progress["is_ready"] or time.monotonic() > deadline:
            return progress
        lacking = _lacking(progress)
        if shows and lacking != told:
            console().print(f"waiting for {lacking}")
            told = lacking
        time.sleep(POLL_S)


def _lacking(progress: dict[str, Any]) -> str:
    """What the node still lacks, in a few words."""
    missing: list[str] = progress["not_in_imds"]
    parts = []
    if missing:
        more = f" and {len(missing) - _SHOWN_MAX} more" if len(missing) > _SHOWN_MAX else ""
        parts.append(f"IMDS to list {', '.join(missing[:_SHOWN_MAX])}{more}")
    if progress["open_intents"]:
        parts.append(f"EC2 to finish {', '.join(progress['open_intents'])}")
    if progress["problem"]:
        parts.append(progress["problem"])
    return "; ".join(parts) or "the next look"


def _say(data: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(data)
    else:
        console().print(words)

"""The commands that ask an agent and change nothing: status, pods, enis, events, config, why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from vpccni.cli.event_line import clock_of, style_of, words_of
from vpccni.cli.output import (
    console,
    eni_table,
    plain_table,
    print_json,
    print_json_line,
)
from vpccni.cli.problems import NO_ANSWER, NOT_GOOD, USAGE, CommandError
from vpccni.cli.unix_http import UnixHttp
from vpccni.cli.where import JsonOption, NodeOption, SocketOption, agent_at
from vpccni.errors import EXPLANATIONS, PermanentError, Reason, sentence
from vpccni.events.codec import KINDS
from vpccni.settings import TABLE, Status, effective, read_settings

_PAGE: Final = 1000
_LAST: Final = 50

# -- status -----------------------------------------------------------------------------------------------


def status(socket: SocketOption = None, node: NodeOption = None, as_json: JsonOption = False) -> None:
    """Is the agent ready, what has it, what does it plan, what troubles it.

    Exit code 0 when it serves ADDs, 1 when it does not (the reason is shown).

    [bold]Examples[/bold]
      vpccni status
      vpccni status --json | jq .pool.free
      vpccni status --node a          [dim]# a node of `vpccni lab up`[/dim]
    """
    said = agent_at(socket, node).get("/v1/status")
    if as_json:
        print_json(said)
    else:
        console().print(_status_table(said))
    if not said["ready"]:
        raise typer.Exit(NOT_GOOD)


def _status_table(said: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    ready = Text("ready", style="green") if said["ready"] else Text("not ready", style="red")
    table.add_row("agent", ready + Text(f" · vpccni {said['version']} · pid {said['pid']}"))
    if not said["ready"]:
        table.add_row("why", Text(f"{said['reason']}: {said['message']}"))
    table.add_row("instance", Text(_instance_text(said)))
    pool = said["pool"]
    table.add_row(
        "pool",
        Text(
            f"{pool['enis']} ENIs, {pool['owned']} addresses: {pool['assigned']} assigned, "
            f"{pool['resting']} resting, {pool['free']} free"
        ),
    )
    table.add_row("plan", Text(_plan_text(said["plan"])))
    table.add_row("waiting", Text(f"{said['waiting_adds']} ADDs"))
    open_intents = ", ".join(f"{intent['kind']} {intent['eni']}".strip() for intent in said["open_intents"])
    table.add_row("doing", Text(open_intents or "nothing in EC2"))
    calls = said["ec2_calls"]
    by_action = ", ".join(f"{action} {count}" for action, count in sorted(calls.items()))
    table.add_row("EC2 calls", Text(f"{sum(calls.values())}" + (f" ({by_action})" if by_action else "")))
    table.add_row(
        "log", Text(f"event {said['log']['head']}, {said['log']['commits']} commits since the start")
    )
    taken = _recovery_text(said)
    if taken:
        table.add_row("taken over", Text(taken))
    if said.get("hand_back") is not None:
        table.add_row("hand back", _hand_back_text(said["hand_back"]))
    table.add_row("problems", _problems_text(said["problems"]))
    return table


def _instance_text(said: dict[str, Any]) -> str:
    instance, limits = said["instance"], said["limits"]
    if instance is None:
        return "not known yet"
    text = f"{instance['id']} · {instance['type']} · {instance['az']}"
    if limits is not None:
        slots = limits["ipv4_per_eni"] - 1
        text += f" · up to {limits['enis_max']} ENIs of {slots} addresses, {said['max_pods'] or '?'} pods"
    return text


def _recovery_text(said: dict[str, Any]) -> str:
    """What the last search of the node found; empty when it found nothing worth a line."""
    recovery = said.get("recovery") or {}
    parts = []
    if recovery.get("other_agent"):
        parts.append(f"another agent lives here: {recovery['other_agent']}")
    if recovery.get("leases") or recovery.get("holds"):
        parts.append(f"{recovery['leases']} leases found on the node, {recovery['holds']} addresses held")
    if recovery.get("suspected"):
        parts.append(f"{recovery['suspected']} of them in doubt")
    sources = (recovery.get("last") or {}).get("sources", {})
    parts += [f"{name} {status}" for name, status in sources.items() if status.startswith("unreadable")]
    return "; ".join(parts)


def _hand_back_text(progress: dict[str, Any]) -> Text:
    if progress["is_ready"]:
        return Text("ready: the original may be started", style="green")
    waits = [f"IMDS to list {len(progress['not_in_imds'])} addresses"] if progress["not_in_imds"] else []
    waits += progress["open_intents"] + ([progress["problem"]] if progress["problem"] else [])
    return Text(f"waiting for {'; '.join(waits) or 'the next look'}", style="yellow")


def _plan_text(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "none made yet"
    text = str(plan["reason"])
    if plan["constraints"]:
        text += f" Held back by {', '.join(plan['constraints'])}."
    return text


def _problems_text(problems: dict[str, Any]) -> Text:
    said = [
        f"{name}: {'; '.join(what) if isinstance(what, list) else what}"
        for name, what in problems.items()
        if what
    ]
    return Text("\n".join(said), style="red") if said else Text("none", style="green")


# -- pods and ENIs ----------------------------------------------------------------------------------------


def pods(socket: SocketOption = None, node: NodeOption = None, as_json: JsonOption = False) -> None:
    """The pods that have an address here: who, which, on which ENI, since when.

    A lease that was found on the node, not assigned by an ADD, says so and by which sources; a held address has
    a user whose sandbox is not known. A lease is in doubt when one source says that its sandbox is gone; two
    sources end it.

    [bold]Examples[/bold]
      vpccni pods
      vpccni pods --json | jq -r '.[] | .name'
    """
    said = agent_at(socket, node).get("/v1/pods")
    if as_json:
        print_json(said)
        return
    if not said:
        console().print("No pod has an address here.")
        return
    rows = [
        [
            ", ".join(pod["addresses"]),
            f"{pod['namespace']}/{pod['name']}" if pod["name"] else "-",
            str(pod["device"]),
            pod["host_ifname"] or "-",
            _age_text(pod["age_s"]),
            str(pod["lease"]),
            _lease_note(pod),
        ]
        for pod in said
    ]
    heads = ("address", "pod", "dev", "host link", "age", "lease", "")
    console().print(plain_table(heads, rows, numbers=("dev", "age", "lease")))


def _lease_note(pod: dict[str, Any]) -> Text:
    if pod["suspected"]:
        return Text(f"in doubt: {pod['suspected']}", style="red")
    origin, evidence = pod.get("origin", "add"), pod.get("evidence") or []
    if origin == "add":
        return Text("")
    return Text(f"{origin} by {', '.join(evidence)}" if evidence else str(origin), style="yellow")


def _age_text(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def enis(socket: SocketOption = None, node: NodeOption = None, as_json: JsonOption = False) -> None:
    """The ENIs that this node keeps in its books, with their addresses counted.

    owned = assigned + resting + free; a resting address waits for its cooldown to end.

    [bold]Examples[/bold]
      vpccni enis
      vpccni enis --json | jq 'map(.free)'
    """
    said = agent_at(socket, node).get("/v1/enis")
    if as_json:
        print_json(said)
    elif said:
        out = console()
        out.print(eni_table(said, out.width))
    else:
        console().print("No ENI is known yet; `vpccni status` says what the agent waits for.")


# -- events -----------------------------------------------------------------------------------------------


def events(
    socket: SocketOption = None,
    node: NodeOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new events as they come.")
    ] = False,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="SEQ", help="Begin after this event; 0 is the whole log.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only kinds that begin so; may be given several times.")
    ] = None,
    last: Annotated[
        int, typer.Option("--last", "-n", min=0, help="Without --after: so many of the last events.")
    ] = _LAST,
    as_json: JsonOption = False,
) -> None:
    """What happened, from the event log: one line an event, with --json one object a line.

    [bold]Examples[/bold]
      vpccni events -f
      vpccni events --after 0 --kind lease_ended --kind add_failed
      vpccni events -f --kind effect   [dim]# every call to EC2, and what came of it[/dim]

    The log of another node, or of yesterday: [bold]vpccni replay LOG events[/bold].
    """
    wanted = _checked_kinds(kind or [])
    agent = agent_at(socket, node)
    begin = after if after is not None else max(0, agent.get("/v1/status")["log"]["head"] - last)
    out = console()
    for view in _stream(agent, begin, follow):
        if wanted and not view["kind"].startswith(wanted):
            continue
        if as_json:
            print_json_line(view)
        else:
            line = Text(f"{view['seq']:>6}  {clock_of(view)}  ", style="dim")
            line.append(f"{view['kind']:<17} ", style="dim")
            out.print(line + Text(words_of(view), style=style_of(view)), overflow="fold")


def _checked_kinds(asked: list[str]) -> tuple[str, ...]:
    for prefix in asked:
        if not any(known.startswith(prefix) for known in KINDS):
            raise CommandError(f"No kind of event begins with {prefix!r}. Kinds: {', '.join(KINDS)}.", USAGE)
    return tuple(asked)


def _stream(agent: UnixHttp, after: int, follow: bool) -> Iterator[dict[str, Any]]:
    if follow:
        yield from agent.lines(f"/v1/events?after={after}&follow=1", follows=True)
        raise CommandError("The agent ended the stream: it was stopped.", NO_ANSWER)
    while True:
        count = 0
        for view in agent.lines(f"/v1/events?after={after}&limit={_PAGE}"):
            count += 1
            after = view["seq"]
            yield view
        if count < _PAGE:
            return


# -- config -----------------------------------------------------------------------------------------------


def config(
    socket: SocketOption = None,
    node: NodeOption = None,
    from_agent: Annotated[
        bool, typer.Option("--agent", help="What the running agent took, from its log.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the variables that have no effect here.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The effective settings: what the agent takes from this environment, or took from its own.

    Exit code 1 when an agent would refuse to start with this environment; every offence is named.

    [bold]Examples[/bold]
      vpccni config
      WARM_IP_TARGET=5 vpccni config --json
      vpccni config --node a           [dim]# what the agent of a lab node took[/dim]
    """
    if from_agent or socket is not None or node is not None:
        values, warnings, unset = _settings_of(agent_at(socket, node)), [], set[str]()
    else:
        try:
            settings = read_settings(os.environ)
        except PermanentError as refused:
            raise CommandError(sentence(refused.reason, refused.detail)) from refused
        values, warnings = effective(settings), list(settings.warnings)
        unset = {row.name for row in TABLE if not os.environ.get(row.name)}
    if as_json:
        print_json({"settings": values, "warnings": warnings})
        return
    out = console()
    out.print(_settings_table(values, unset, everything))
    for warning in warnings:
        out.print(Text(f"warning: {warning}", style="yellow"))


def _settings_of(agent: UnixHttp) -> dict[str, str]:
    found: dict[str, str] = {}
    for view in _stream(agent, 0, follow=False):
        if view["kind"] == "policy_observed":
            found = view["event"]["settings"]
    return found


def _settings_table(values: dict[str, str], unset: set[str], everything: bool) -> Table:
    rows: list[list[str | Text]] = []
    group = ""
    for row in TABLE:
        if row.name in values:
            value = values[row.name]
            shown = Text(
                value or "(empty)", style="dim" if row.name in unset or value == row.default else "bold green"
            )
            note = row.unit
        elif everything:
            shown = Text("-", style="dim")
            note = "not built" if row.status is Status.NOT_BUILT else "no effect here"
        else:
            continue
        if row.group != group:
            group = row.group
            rows.append([Text(group, style="bold underline"), "", ""])
        rows.append([f"  {row.name}", shown, Text(note, style="dim")])
    return plain_table(("setting", "value", ""), rows)


# -- why --------------------------------------------------------------------------------------------------


def why(
    reason_code: Annotated[
        str | None, typer.Argument(help="A reason code, such as no_address; without it, all are listed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a reason code means, and what to do about it.

    The same codes stand in CNI errors, in the log, in events and here.

    [bold]Examples[/bold]
      vpccni why subnet_exhausted
      vpccni why                       [dim]# all of them[/dim]
    """
    if reason_code is None:
        _list_reasons(as_json)
        return
    try:
        reason = Reason(reason_code.strip().lower())
    except ValueError:
        near = [code for code in Reason if reason_code.lower() in code or code in reason_code.lower()]
        hint = f" Did you mean {', '.join(near)}?" if near else " `vpccni why` lists them all."
        raise CommandError(f"There is no reason code {reason_code!r}.{hint}", USAGE) from None
    explanation = EXPLANATIONS[reason]
    if as_json:
        print_json(_reason_json(reason))
        return
    out = console()
    out.print(Text(reason, style="bold"))
    out.print(Text(explanation.meaning))
    out.print(Text("What to do: ", style="bold") + Text(explanation.next_action))


def _list_reasons(as_json: bool) -> None:
    if as_json:
        print_json([_reason_json(reason) for reason in Reason])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("reason code", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for reason in Reason:
        table.add_row(Text(reason), Text(EXPLANATIONS[reason].meaning))
    console().print(table)


def _reason_json(reason: Reason) -> dict[str, str]:
    explanation = EXPLANATIONS[reason]
    return {
        "reason": str(reason),
        "meaning": explanation.meaning,
        "next_action": explanation.next_action,
    }


def commands() -> Iterable[Any]:
    """The commands of this module, in the order of the help."""
    return (status, pods, enis, events, config, why)

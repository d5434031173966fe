"""``vpccni lab …``: the demo, and a region that stays for hands-on use."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.text import Text

from vpccni.cli import lab_life
from vpccni.cli.output import console, plain_table, print_json
from vpccni.cli.problems import NOT_GOOD, USAGE, CommandError
from vpccni.cli.where import DirectoryOption, JsonOption, lab_control, lab_node, lab_notes, standing_lab
from vpccni.lab.standing_file import StandingLab

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An emulated AWS region on this machine: EC2, IMDS and a VPC of network namespaces.\n\n"
    "It runs in namespaces of its own and touches nothing of this machine; an ordinary user can run it.",
)

_ADD_TIMEOUT_S: Final = 150.0

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="A node's name: a, b, …")]


@app.command(rich_help_panel="A tour")
def demo(
    pods: Annotated[int, typer.Option(min=4, max=40, help="Pods to start first.")] = 24,
    fast: Annotated[bool, typer.Option("--fast", help="EC2 ten times as fast, cooldown one second.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the region standing at the end, until Ctrl-C or `lab down`.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Where the figures go (default: build/demo/report.json).")
    ] = None,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Boot a region, run pods, fire bursts, kill an agent in the middle of one, and check that nothing is lost.

    Two nodes with real agents; every pod goes through the real CNI executable.
    Every pod pings every pod and the internet; replay is asked who held the dead pods' addresses.
    Exit code 1 when any check failed.

    [bold]Examples[/bold]
      vpccni lab demo
      vpccni lab demo --fast --json | jq .lost_leases
      vpccni lab demo --keep           [dim]# and then: vpccni lab shell a[/dim]
    """
    lab_life.enter_world_or_explain()
    from vpccni.cli import lab_demo

    code = lab_demo.run(
        pods=pods, fast=fast, keep=keep, report=report, directory=lab_notes(directory), as_json=as_json
    )
    raise typer.Exit(code)


@app.command(rich_help_panel="A tour")
def sim(
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same run (default: a fresh one).")
    ] = None,
    operations: Annotated[int, typer.Option(min=1, help="ADDs and DELs.")] = 2000,
    nodes: Annotated[int, typer.Option(min=1, max=16, help="Machines on the one account.")] = 3,
    trace: Annotated[
        Path | None, typer.Option(help="Where to write a line for everything that happens.")
    ] = None,
    faults: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="What goes wrong, as a failed run left it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where a failed run leaves its trace, faults and logs.")] = Path(
        "build/sim"
    ),
    no_shrink: Annotated[
        bool, typer.Option("--no-shrink", help="Do not look for fewer faults that break the same promise.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for bugs: the real agent on virtual time, with everything going wrong that may, by a seed.

    EC2, IMDS, kernel, disk, clock and runtime are emulated; hours pass in seconds; nothing needs namespaces.
    After every event the promises are checked from outside: docs/reliability.md tells which, and what goes wrong.
    A run that breaks one prints its seed, tries to leave out faults, and leaves a log that replay can be asked.
    Exit code 1 when a promise was broken.

    [bold]Examples[/bold]
      vpccni lab sim                                     [dim]# a fresh seed, some seconds[/dim]
      vpccni lab sim --seed 7 --operations 20000 --nodes 5
      vpccni lab sim --seed 7 --faults build/sim/seed-7.faults.json --trace /tmp/trace
      vpccni replay build/sim/seed-7-n0.db whohad 10.0.0.9
    """
    from vpccni.cli import lab_sim

    raise typer.Exit(
        lab_sim.run(
            seed=seed,
            operations=operations,
            nodes=nodes,
            trace=trace,
            faults=faults,
            out=out,
            is_shrinking=not no_shrink,
            as_json=as_json,
        )
    )


@app.command(rich_help_panel="Hands on")
def up(
    nodes: Annotated[int, typer.Option(min=1, max=8, help="How many nodes: a, b, …")] = 2,
    instance_type: Annotated[str, typer.Option(help="EC2 instance type of all of them.")] = "m5.large",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="A setting of the agents; repeatable."),
    ] = None,
    speed: Annotated[float, typer.Option(min=0.1, max=1000, help="How much faster EC2 is than usual.")] = 1.0,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Boot a region with nodes and agents and leave it running.

    It stays until `vpccni lab down`, also when this terminal ends. EC2's latencies are those of a real one.

    [bold]Examples[/bold]
      vpccni lab up
      vpccni lab up --nodes 3 --instance-type m5.xlarge --env WARM_IP_TARGET=3
    """
    notes = lab_notes(directory)
    lab_life.require_possible()
    settings = lab_life.checked_settings(env or [])
    lab_life.check_instance_type(instance_type)
    arguments = ["--nodes", str(nodes), "--instance-type", instance_type, "--speed", str(speed)]
    for name, value in settings.items():
        arguments += ["--env", f"{name}={value}"]
    standing = lab_life.bring_up(notes, arguments, quiet=as_json)
    if as_json:
        print_json(_lab_json(standing))
        return
    names = ", ".join(f"{node.name} ({node.instance_type})" for node in standing.nodes)
    out = console()
    out.print(f"The lab is up: {names}. Its files: {standing.directory}")
    first, last = standing.nodes[0].name, standing.nodes[-1].name
    for command, does in (
        (f"vpccni lab add {first} web --count 5", "start pods"),
        (f"vpccni lab add {last} db", "on another node"),
        ("vpccni lab ping", "every pod pings every pod, and the internet"),
        (f"vpccni status --node {first}", "also: pods, enis, events -f, config"),
        (f"vpccni lab kill {first}", "SIGKILL the agent; `lab start` starts it again"),
        (f"vpccni lab shell {first}", f"a shell on the node; {first}/web-1 is one in the pod"),
        ("vpccni lab status", "nodes, pods and files"),
        ("vpccni lab down", "remove every trace"),
    ):
        out.print(Text(f"  {command:<38}") + Text(does, style="dim"))


@app.command(rich_help_panel="Hands on")
def down(directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """End the standing lab and remove every trace of it: processes, namespaces, sockets, files.

    Nothing happens when there is none.
    """
    was_there = lab_life.take_down(lab_notes(directory))
    if as_json:
        print_json({"was_there": was_there})
    else:
        console().print("The lab is gone." if was_there else "No lab was standing.")


@app.command(rich_help_panel="Hands on")
def status(directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """The standing lab: its nodes, their agents and pods, and where the files are."""
    standing = standing_lab(directory)
    control = lab_control(standing)
    said, pods = control.get("/status"), control.get("/pods")
    if as_json:
        print_json({**said, "pods": pods, "supervisor_pid": standing.supervisor_pid})
        return
    out = console()
    out.print(f"region {said['region']}, {said['ec2_calls']} EC2 calls so far; files in {said['directory']}")
    rows: list[list[str | Text]] = [
        [
            node["name"],
            node["instance_type"],
            node["instance_id"],
            str(node["enis"]),
            str(node["addresses"]),
            str(node["pods"]),
            Text(node["agent"], style="green" if node["agent"] == "ready" else "red"),
        ]
        for node in said["nodes"]
    ]
    heads = ("node", "type", "instance", "ENIs", "addresses", "pods", "agent")
    out.print(plain_table(heads, rows, numbers=("ENIs", "addresses", "pods")))
    if pods:
        out.print()
        shown = [[pod["address"], pod["node"], pod["pod"], pod["netns"]] for pod in pods]
        out.print(plain_table(("address", "node", "pod", "network namespace"), shown))


@app.command(rich_help_panel="Hands on")
def add(
    node: NodeArgument,
    pod: Annotated[str, typer.Argument(metavar="POD", help="The pod's name.")],
    count: Annotated[int, typer.Option(min=1, max=200, help="So many, POD-1, POD-2 …, at once.")] = 1,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start pods on a node of the standing lab, through the real CNI executable."""
    said = lab_control(standing_lab(directory)).post(
        "/add", {"node": node, "pod": pod, "count": count}, _ADD_TIMEOUT_S
    )
    _show_outcome(said, as_json)


@app.command(rich_help_panel="Hands on")
def delete(
    node: NodeArgument,
    pod: Annotated[str, typer.Argument(metavar="POD", help="The pod's name.")] = "",
    all_pods: Annotated[bool, typer.Option("--all", help="All pods of the node.")] = False,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a pod, or all pods, of a node of the standing lab."""
    if bool(pod) == all_pods:
        raise CommandError("Name a pod, or say --all.", USAGE)
    said = lab_control(standing_lab(directory)).post("/delete", {"node": node, "pod": pod}, _ADD_TIMEOUT_S)
    _show_outcome(said, as_json)


def _show_outcome(said: dict[str, Any], as_json: bool) -> None:
    out = console()
    if as_json:
        print_json(said)
    else:
        for one in said.get("started", ()):
            out.print(f"{one['node']}/{one['pod']} {one['address']} after {one['latency_ms']:.0f} ms")
        for name in said.get("deleted", ()):
            out.print(f"{name} deleted")
        for one in said["failed"]:
            out.print(f"{one['pod']} failed: {one['message']}", style="red")
    if said["failed"]:
        raise typer.Exit(NOT_GOOD)


@app.command(rich_help_panel="Hands on")
def ping(directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """Every pod of the standing lab pings every other one, and the internet. Exit code 1 if any does not."""
    said = lab_control(standing_lab(directory)).post("/ping", None)
    if as_json:
        print_json(said)
    else:
        out = console()
        out.print(
            f"{said['pings_ok']} of {said['pings_total']} pings between pods, "
            f"{said['internet_ok']} of {said['internet_total']} to the internet"
        )
        for line in said["failed"]:
            out.print(line, style="red")
    if said["failed"]:
        raise typer.Exit(NOT_GOOD)


@app.command(rich_help_panel="Hands on")
def kill(node: NodeArgument, directory: DirectoryOption = None) -> None:
    """SIGKILL the agent of a node. Its pods go on; DELs wait in the spool, ADDs wait for the next agent."""
    lab_control(standing_lab(directory)).post("/kill", {"node": node})
    console().print(f"The agent of {node} is dead. `vpccni lab start {node}` starts it again.")


@app.command(rich_help_panel="Hands on")
def start(node: NodeArgument, directory: DirectoryOption = None) -> None:
    """Start the agent of a node again, with the settings that it had."""
    said = lab_control(standing_lab(directory)).post("/start", {"node": node}, 60.0)
    console().print(f"The agent of {node} serves, PID {said['pid']} inside the lab.")


@app.command(rich_help_panel="Hands on")
def shell(
    place: Annotated[str, typer.Argument(metavar="NODE[/POD]", help="A node, or a pod on it.")],
    directory: DirectoryOption = None,
) -> None:
    """A shell in the network of a node, or of a pod: ip, nft, ping, tcpdump as you please."""
    _run_inside(standing_lab(directory), place, [os.environ.get("SHELL", "/bin/sh")])


@app.command("exec", rich_help_panel="Hands on", context_settings={"ignore_unknown_options": True})
def execute(
    place: Annotated[str, typer.Argument(metavar="NODE[/POD]", help="A node, or a pod on it.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="After --, what to run.")],
    directory: DirectoryOption = None,
) -> None:
    """Run one command in the network of a node, or of a pod; its exit code is ours.

    Only the network is the lab's: files are those of this machine.

    [bold]Examples[/bold]
      vpccni lab exec a -- ip rule
      vpccni lab exec a/web-1 -- ip route
    """
    _run_inside(standing_lab(directory), place, command)


def _run_inside(standing: StandingLab, place: str, command: list[str]) -> NoReturn:
    name, _, pod = place.partition("/")
    netns = lab_node(standing, name).netns
    if pod:
        pods = lab_control(standing).get("/pods")
        found = [one["netns"] for one in pods if (one["node"], one["pod"]) == (name, pod)]
        if not found:
            raise CommandError(f"No pod {pod} on {name}; `vpccni lab status` lists them.", USAGE)
        netns = found[0]
    lab_life.run_inside(standing, netns, command)


@app.command(hidden=True)
def serve(
    nodes: Annotated[int, typer.Option()] = 2,
    instance_type: Annotated[str, typer.Option()] = "m5.large",
    env: Annotated[list[str] | None, typer.Option("--env")] = None,
    speed: Annotated[float, typer.Option()] = 1.0,
    directory: DirectoryOption = None,
) -> None:
    """The standing lab itself, in the foreground. `vpccni lab up` starts it."""
    lab_life.enter_world_or_explain()
    from vpccni.cli import lab_demo

    sys.stderr.write(f"serving: {shlex.join(sys.argv[1:])}\n")
    lab_demo.stand(
        nodes=nodes,
        instance_type=instance_type,
        env=lab_life.checked_settings(env or []),
        speed=speed,
        directory=lab_notes(directory),
    )


def _lab_json(standing: StandingLab) -> dict[str, Any]:
    return {
        "supervisor_pid": standing.supervisor_pid,
        "directory": standing.directory,
        "run_directory": standing.run_directory,
        "nodes": [
            {
                "name": node.name,
                "instance_type": node.instance_type,
                "socket": node.socket,
                "events": node.events,
            }
            for node in standing.nodes
        ],
    }

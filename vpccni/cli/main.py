"""``vpccni``: the root of the command line, for everything but the agent, the probe and replay."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vpccni import __version__
from vpccni.cli import capacity, handing_back, installing, lab_commands, planning, reading, taking_over
from vpccni.cli.output import console
from vpccni.cli.problems import CommandError

_EPILOG = (
    "Exit codes: 0 good, 1 not good, 2 wrong usage, 3 nobody answered. "
    "Every command explains itself: vpccni COMMAND --help."
)

app = typer.Typer(
    name="vpccni",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"vpccni {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pod networking for Kubernetes nodes on EC2: every pod gets an address of the VPC.

    Try it, without AWS and without touching this machine:
      vpccni lab demo                  [dim]# a minute's tour with kills and recovery[/dim]
      vpccni lab up                    [dim]# an emulated region to play with; then:[/dim]
      vpccni status --node a
      vpccni lab add a web --count 3
      vpccni events -f --node a

    Before there is a node:
      vpccni plan -t m5.large --pods 20 --set WARM_IP_TARGET=5
      vpccni capacity -t m5.large      [dim]# kubelet's --max-pods, and why[/dim]

    On a node:
      vpccni status                    [dim]# ready? what is it waiting for?[/dim]
      vpccni why no_address            [dim]# what a reason code means[/dim]
      vpccni replay /var/lib/aws-node/events.sqlite whohad 10.0.3.7
    """


for _command in reading.commands():
    app.command(rich_help_panel="Ask an agent")(_command)
app.command(rich_help_panel="Plan a node")(capacity.capacity)
app.command(rich_help_panel="Plan a node")(planning.plan)
app.command(rich_help_panel="Run a node")(installing.install)
app.command(rich_help_panel="Take over, hand back")(taking_over.take_over)
app.command(rich_help_panel="Take over, hand back")(handing_back.hand_back)
app.add_typer(lab_commands.app, name="lab", rich_help_panel="Try it")


@app.command(context_settings=_PASS_ON, rich_help_panel="Run a node", add_help_option=False)
def agent(context: typer.Context) -> None:
    """Run the node agent (settings come from the environment). See: vpccni agent --help."""
    from vpccni.app import main as run_agent

    raise typer.Exit(run_agent(context.args))


@app.command(context_settings=_PASS_ON, rich_help_panel="Run a node", add_help_option=False)
def probe(context: typer.Context) -> None:
    """Ask whether the agent is alive, or ready, for a DaemonSet's probes. See: vpccni probe --help."""
    from vpccni.probe import main as run_probe

    raise typer.Exit(run_probe(context.args))


@app.command(context_settings=_PASS_ON, rich_help_panel="Ask a log file", add_help_option=False)
def replay(context: typer.Context) -> None:
    """Ask a log file who held an address when, and why anything happened. See: vpccni replay --help."""
    from vpccni.replay.cli import main as run_replay

    raise typer.Exit(run_replay(context.args))


def main() -> int:
    """Run a command line; return its exit code. What goes wrong is said in sentences, on standard error."""
    try:
        app(prog_name="vpccni")
    except CommandError as error:
        console(stderr=True).print(f"vpccni: {error.message}", markup=False, style="red")
        return error.exit_code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); the flush at exit must not stumble over it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0

"""``vpccni install``: executable and conflist in place, the conflist last."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vpccni.adapters import cni_files
from vpccni.adapters.cni_versions import ask_versions
from vpccni.cli.output import console, print_json
from vpccni.cli.problems import NOT_GOOD, CommandError
from vpccni.cli.where import JsonOption
from vpccni.conflist import PLUGIN_NAME, SOCKET_DEFAULT, SPOOL_DEFAULT
from vpccni.errors import PermanentError, sentence
from vpccni.settings import read_settings


def install(
    bin_directory: Annotated[Path, typer.Option("--bin", help="Directory of CNI executables.")] = Path(
        "/opt/cni/bin"
    ),
    conf_directory: Annotated[Path, typer.Option("--conf", help="Directory of CNI configuration.")] = Path(
        "/etc/cni/net.d"
    ),
    plugin: Annotated[
        Path | None, typer.Option(help="The compiled executable; by default the one that came along.")
    ] = None,
    socket: Annotated[str, typer.Option(help="The agent's socket, as the host sees it.")] = SOCKET_DEFAULT,
    spool: Annotated[
        str, typer.Option(help="Directory of spooled DELs, as the host sees it.")
    ] = SPOOL_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Put the CNI executable and the conflist in place, each as a whole, the conflist last.

    From the moment the conflist is there, pods come to us; so the agent should be serving, or about to.
    Veth prefix, MTU and plugin log go into it from the environment's settings. Plugins that others have put into
    the conflist stay in it. Done twice, it changes nothing.

    [bold]Examples[/bold]
      vpccni install
      vpccni install --bin /host/opt/cni/bin --conf /host/etc/cni/net.d
    """
    try:
        settings = read_settings(os.environ)
        plugin_changed = cni_files.install_plugin(bin_directory, plugin)
        installed = cni_files.install_conflist(
            conf_directory, settings, partial(ask_versions, bin_directory), socket=socket, spool=spool
        )
    except PermanentError as refused:
        raise CommandError(sentence(refused.reason, refused.detail), NOT_GOOD) from refused
    executable = bin_directory / PLUGIN_NAME
    configuration = conf_directory / cni_files.CONFLIST_NAME
    if as_json:
        print_json(
            {
                "plugin": {"path": str(executable), "changed": plugin_changed},
                "conflist": {"path": str(configuration), "changed": installed.is_changed},
                "versions": installed.versions,
                "host_ports": installed.serves_host_ports,
                "notes": msgspec.to_builtins(installed.notes),
            }
        )
        return
    out = console()
    for path, changed in ((executable, plugin_changed), (configuration, installed.is_changed)):
        out.print(f"{path}: {'written' if changed else 'was up to date'}")
    for note in installed.notes:
        out.print(f"{'warning' if note.is_warning else 'note'}: {note.detail}", style="yellow", markup=False)

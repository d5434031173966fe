"""``vpccni install``: executable and conflist in place, the conflist last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vpccni.adapters import cni_files
from vpccni.cli.output import console, print_json
from vpccni.cli.problems import NOT_GOOD, CommandError
from vpccni.cli.where import JsonOption
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
    socket: Annotated[
        str, typer.Option(help="The agent's socket, as the host sees it.")
    ] = cni_files.SOCKET_DEFAULT,
    spool: Annotated[
        str, typer.Option(help="Directory of spooled DELs, as the host sees it.")
    ] = cni_files.SPOOL_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Put the CNI executable and the conflist in place, each as a whole, the conflist last.

    From the moment the conflist is there, pods come to us; so the agent should be serving, or about to.
    Veth prefix, MTU and plugin log go into it from the environment's settings. Done twice, it changes nothing.

    [bold]Examples[/bold]
      vpccni install
      vpccni install --bin /host/opt/cni/bin --conf /host/etc/cni/net.d
    """
    try:
        settings = read_settings(os.environ)
        portmap = cni_files.has_portmap(bin_directory)
        plugin_changed = cni_files.install_plugin(bin_directory, plugin)
        conflist = cni_files.render_conflist(settings, portmap=portmap, socket=socket, spool=spool)
        conflist_changed = cni_files.install_conflist(conf_directory, conflist)
    except PermanentError as refused:
        raise CommandError(sentence(refused.reason, refused.detail), NOT_GOOD) from refused
    executable = bin_directory / cni_files.PLUGIN_NAME
    configuration = conf_directory / cni_files.CONFLIST_NAME
    if as_json:
        print_json(
            {
                "plugin": {"path": str(executable), "changed": plugin_changed},
                "conflist": {"path": str(configuration), "changed": conflist_changed},
                "portmap": portmap,
            }
        )
        return
    out = console()
    for path, changed in ((executable, plugin_changed), (configuration, conflist_changed)):
        out.print(f"{path}: {'written' if changed else 'was up to date'}")
    if not portmap:
        out.print(
            f"note: no portmap in {bin_directory}, so host ports of pods will not work.", style="yellow"
        )

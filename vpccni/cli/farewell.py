"""``vpccni hand-back --finish``: take away what only vpccni needs, once the original serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.predecessor import VpcCni
from vpccni.cli.problems import NOT_GOOD, CommandError
from vpccni.datapath.convert import Farewell, farewell
from vpccni.datapath.desired import desired
from vpccni.errors import PermanentError, VpccniError, sentence
from vpccni.loops.agent import datapath_settings
from vpccni.loops.wiring import attached_enis, lease_wiring
from vpccni.projections.state import State
from vpccni.replay.past import past_at
from vpccni.replay.reader import open_log
from vpccni.settings import read_settings


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken away, in numbers."""

    routes: int
    rules: int
    aliases: int
    nft_table: bool


def finish(log: Path, run_dir: Path, netns: str | None = None) -> Finished:
    """Remove our routing table, its rule, our nft table and the marks on the pods' interfaces.

    Args:
        log: The event log of the agent that handed the node back; by it the pods are known.
        run_dir: Where the original has its socket.
        netns: Path of the node's network namespace; ``None`` for the caller's.

    Raises:
        CommandError: the original does not serve, a pod lacks its routes, or the kernel refused; nothing was
            removed, or what is left is removed by the same command.
    """
    return asyncio.run(_finish(_state_of(log), run_dir, netns))


async def _finish(state: State, run_dir: Path, netns: str | None) -> Finished:
    living = await VpcCni(run_dir).living()
    if not living:
        raise CommandError(
            f"amazon-vpc-cni-k8s does not serve this node: nobody answers on {run_dir}/ipamd.sock. Start it first; "
            "until then the pods need what this command would remove.",
            NOT_GOOD,
        )
    try:
        kernel = await NetlinkKernel.open(netns)
        try:
            observed = await kernel.observe()
            settings = datapath_settings(read_settings(state.policy))
            wanted = desired(
                [lease_wiring(lease) for lease in state.leases.values()],
                attached_enis(state),
                settings,
                state.vpc_cidrs,
                as_original=True,
            )
            parting = farewell(wanted, observed)
            if parting.objections:
                raise CommandError(_objections_text(parting), NOT_GOOD)
            await kernel.apply(parting.difference)
        finally:
            await kernel.close()
    except VpccniError as error:
        raise CommandError(sentence(error.reason, error.detail), NOT_GOOD) from error
    made = parting.difference
    return Finished(
        routes=len(made.routes_delete),
        rules=len(made.rules_delete),
        aliases=len(made.links_set),
        nft_table=made.nft is not None,
    )


def _objections_text(parting: Farewell) -> str:
    shown = "; ".join(parting.objections[:5])
    more = f" and {len(parting.objections) - 5} more" if len(parting.objections) > 5 else ""
    return (
        f"Nothing was removed, because pods would lose their network: {shown}{more}. Wait until the original has "
        "set them up, or restart it, and call this again."
    )


def _state_of(path: Path) -> State:
    """The state that the log ends with; an empty one when there is no log: the kernel then tells the pods."""
    if not path.exists():
        return State()
    try:
        with open_log(path) as log:
            head, _ = log.head()
            return past_at(log, head).state
    except PermanentError as error:
        raise CommandError(sentence(error.reason, error.detail), NOT_GOOD) from error

"""The commands of docs/migrate.md, in their order, on a node that the original served."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.pod_view import CHECKOUT, command_in_view
from tests.original.stage import OriginalStage, original_stage
from vpccni.datapath.numbers import POD_TABLE
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY

pytestmark = [pytest.mark.netns, pytest.mark.slow]

PAGE = CHECKOUT / "docs" / "migrate.md"
BLOCK = re.compile(
    r"^```sh (?P<place>\w+)(?: (?P<phase>[\w-]+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
PHASES = ("before", "after", "hand-back", "finish")
PODS = ("web-0", "web-1", "db-0")


def blocks(place: str, phase: str | None = None) -> list[str]:
    """The page's commands of one kind."""
    found = [each for each in BLOCK.finditer(PAGE.read_text()) if each["place"] == place]
    return [each["text"] for each in found if phase in (None, each["phase"])]


class Node:
    """The node's own view of the file system: its places lie where they lie on a node."""

    def __init__(self, stage: OriginalStage) -> None:
        self._stage = stage
        self._views = 0

    async def run(self, script: str) -> str:
        """What the commands print. Each must succeed."""
        self._views += 1
        root = self._stage.node.places.root / f"view-{self._views}"
        root.mkdir()
        volumes = {path: Path(lies) for path, lies in self._stage.paths().items()}
        volumes["/run/netns"] = NETNS_DIRECTORY
        environment = self._stage.lab.agent_environment(self._stage.node)
        environment["PATH"] = f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"
        done = await self._stage.lab.fabric.exec_in(
            self._stage.node.namespace,
            command_in_view(root, volumes, ["sh", "-exc", script]),
            env=environment,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout.decode()


async def test_the_commands_of_the_page_take_a_node_over_and_hand_it_back():
    async with original_stage(pods=PODS) as stage:
        node = Node(stage)
        (check,) = blocks("node", "before")
        assert "This node can be taken over." in await node.run(check)

        stage.original.stop()
        await stage.lab.start_agent(stage.node)
        await stage.lab.wait_ready(stage.node)
        (look,) = blocks("node", "after")
        said = await node.run(look)
        assert "ready" in said
        assert "3 leases found on the node" in said
        for name in PODS:
            assert f"default/{name}" in said
        assert "searched the node" in said

        (prepare,) = blocks("node", "hand-back")
        assert "Start the original now" in await node.run(prepare)
        await stage.lab.kill_agent(stage.node, 15)
        stage.start_original()
        assert {row.name for row in stage.original.rows.values()} == set(PODS)
        (finish,) = blocks("node", "finish")
        await node.run(finish)
        left = await node.run("ip rule; ip route show table all; nft list tables; ip link")
        for ours in (f"lookup {POD_TABLE}", f"table {POD_TABLE}", "vpccni"):
            assert ours not in left
        for pod in stage.pods.values():
            assert f"{pod.address} dev {pod.host_ifname}" in left


def test_every_command_of_the_page_is_marked_with_where_and_when_it_runs():
    fences = re.findall(r"^```(.*)$", PAGE.read_text(), re.MULTILINE)
    opened = fences[::2]
    assert set(opened) == {"sh cluster"} | {f"sh node {phase}" for phase in PHASES}
    assert len(BLOCK.findall(PAGE.read_text())) == len(opened)


@pytest.mark.parametrize("text", blocks("cluster") + blocks("node"))
def test_every_command_of_the_page_is_one_that_a_shell_can_read(text):
    done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr

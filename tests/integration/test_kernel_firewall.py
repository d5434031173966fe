"""The firewall of amazon-vpc-cni-k8s in the real iptables and nftables: found, removed exactly, or told."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.kernel_worlds import RealWorld, sh
from tests.original.host import Eni, Settings, missing_program, set_up_host
from tests.unit.datapath.builders import SETTINGS, VPC, eni
from vpccni.adapters import kernel_firewall
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference
from vpccni.datapath.objects import Applied

pytestmark = pytest.mark.netns

PRIMARY = Eni(mac=eni(0).mac, device=0, primary=eni(0).primary, subnet=eni(0).subnet_cidr)
NFT = Settings(vpc_cidrs=("10.0.0.0/16",), excluded_cidrs=("192.168.0.0/24",))
FLAVOURS = {
    "nft, connmark in nftables": NFT,
    "nft, connmark in iptables": replace(NFT, connmark="iptables"),
    "legacy": replace(NFT, iptables="legacy"),
    "only nftables": replace(NFT, iptables=""),
    "external SNAT": replace(NFT, external_snat=True),
}
OTHERS = """
iptables-{f} -w -t nat -N KUBE-SERVICES
iptables-{f} -w -t nat -A PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
iptables-{f} -w -t nat -A POSTROUTING -s 10.9.9.9/32 -m comment --comment 'AWS SNAT CHAIN' -j MASQUERADE
iptables-{f} -w -t nat -A KUBE-SERVICES -d 10.96.0.1/32 -m comment --comment "it's \\"quoted\\"" -j ACCEPT
iptables-{f} -w -t mangle -A PREROUTING -i eth9 -j CONNMARK --set-mark 0x80/0x80
iptables-{f} -w -t filter -A FORWARD -i eni+ -m comment --comment 'AWS, primary ENI' -j ACCEPT
"""


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealWorld]:
    made = RealWorld()
    lock = tmp_path / "xtables.lock"
    lock.touch()
    monkeypatch.setattr(kernel_firewall, "LOCK", lock)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    try:
        made.plug(eni(0).mac, "eth0")
        sh(made.node, "ip addr add 10.0.0.10/24 dev eth0; ip link set eth0 up")
        yield made
    finally:
        await made.close()


def need(settings: Settings) -> None:
    lacking = missing_program(settings)
    if lacking:
        pytest.skip(f"{lacking} is not installed")


def saved(world: RealWorld, flavour: str) -> list[str]:
    """Everything that one iptables holds, without counters and remarks."""
    text = sh(world.node, f"iptables-{flavour}-save")
    return [line for line in text.splitlines() if not line.startswith("#")]


def tables(world: RealWorld) -> str:
    """All that nftables holds besides our own table, without what iptables keeps there."""
    return sh(world.node, "nft list tables")


async def take_over(kernel: NetlinkKernel) -> Applied:
    wanted = desired([], [eni(0)], SETTINGS, VPC)
    applied = await kernel.apply(difference(wanted, await kernel.observe()))
    again = difference(wanted, await kernel.observe())
    assert again.is_empty, again
    return applied


@pytest.mark.parametrize("settings", FLAVOURS.values(), ids=FLAVOURS.keys())
async def test_its_firewall_goes_and_every_other_rule_stays(world, settings):
    need(settings)
    flavour = settings.iptables
    if flavour:
        sh(world.node, OTHERS.format(f=flavour))
    before = saved(world, flavour) if flavour else []
    await asyncio.to_thread(set_up_host, world.node, PRIMARY, settings)
    kernel = await world.open()
    if flavour:
        assert saved(world, flavour) != before
    applied = await take_over(kernel)
    assert applied.notes == ()
    if flavour:
        # Built-in chains come with the first rule in them, and stay: they let everything pass.
        after = [line for line in saved(world, flavour) if line in before or not line.startswith(":")]
        assert after == before
    assert "aws-cni" not in tables(world)
    assert "table ip vpccni" in tables(world)
    firewall = (await kernel.observe()).firewall
    assert (firewall.parts, firewall.problems) == ((), ())


async def test_what_was_removed_can_be_made_again_by_what_is_on_record(world):
    need(NFT)
    await asyncio.to_thread(set_up_host, world.node, PRIMARY, replace(NFT, connmark="iptables"))
    before = saved(world, "nft")
    kernel = await world.open()
    applied = await take_over(kernel)
    assert saved(world, "nft") != before
    sh(world.node, "\n".join(one.text for one in applied.removed if one.kind == "iptables"))
    assert saved(world, "nft") == before


async def test_its_nftables_table_is_on_record_as_nft_takes_it(world):
    await asyncio.to_thread(set_up_host, world.node, PRIMARY, replace(NFT, iptables=""))
    before = sh(world.node, "nft list table ip aws-cni")
    kernel = await world.open()
    applied = await take_over(kernel)
    (table,) = [one.text for one in applied.removed if one.kind == "nftables"]
    assert table.strip() == before.strip()


async def test_a_chain_to_which_somebody_else_leads_stays_and_is_told(world):
    need(NFT)
    await asyncio.to_thread(set_up_host, world.node, PRIMARY, NFT)
    kernel = await world.open()
    observed = await kernel.observe()
    # After the look, so that the jump is not among what is to go.
    sh(world.node, "iptables-nft -t nat -N MINE; iptables-nft -t nat -A MINE -j AWS-SNAT-CHAIN-0")
    applied = await kernel.apply(difference(desired([], [eni(0)], SETTINGS, VPC), observed))
    assert any("cannot be removed" in note for note in applied.notes)
    told = [one.text for one in applied.removed if one.kind == "iptables"]
    assert told
    assert all("-t mangle " in text for text in told)
    assert sh(world.node, "iptables-nft -t mangle -S PREROUTING").strip() == "-P PREROUTING ACCEPT"
    assert "-N AWS-SNAT-CHAIN-0" in sh(world.node, "iptables-nft -t nat -S")
    assert sh(world.node, "iptables-nft -t nat -S POSTROUTING").count("AWS SNAT CHAIN") == 1


async def test_nothing_is_looked_for_where_nothing_of_it_stands(world, monkeypatch):
    """Each look would cost three processes, and a node with 10,000 Services 100 ms."""
    sh(world.node, "nft add table ip nat; nft add chain ip nat KUBE-SERVICES")
    kernel = await world.open()

    def run(*_: object) -> None:
        raise AssertionError("a process")

    monkeypatch.setattr(kernel_firewall, "_run", run)
    assert (await kernel.observe()).firewall.parts == ()


@pytest.mark.parametrize("lacking", ["programs", "lock", "capability"])
async def test_what_cannot_be_read_in_iptables_legacy_is_told(world, monkeypatch, tmp_path, lacking):
    settings = FLAVOURS["legacy"]
    need(settings)
    await asyncio.to_thread(set_up_host, world.node, PRIMARY, settings)
    if lacking == "programs":
        real = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if "legacy" in name else real(name))
    elif lacking == "lock":
        os.unlink(kernel_firewall.LOCK)
    else:
        status = tmp_path / "status"
        status.write_text("Name:\tx\nCapEff:\t0000000000001000\n")
        monkeypatch.setattr(kernel_firewall, "STATUS", status)
    kernel = await world.open()
    seen = (await kernel.observe()).firewall
    said = {"programs": "not installed", "lock": "is not mounted", "capability": "NET_RAW"}[lacking]
    assert all(part.tool != "iptables-legacy" for part in seen.parts)
    (problem,) = seen.problems
    assert said in problem
    applied = await kernel.apply(difference(desired([], [eni(0)], SETTINGS, VPC), await kernel.observe()))
    assert not any("iptables-legacy" in one.text for one in applied.removed)
    assert "AWS-SNAT-CHAIN-0" in sh(world.node, "iptables-legacy -w -t nat -S")


async def test_missing_programs_of_iptables_nft_are_told(world, monkeypatch):
    need(NFT)
    await asyncio.to_thread(set_up_host, world.node, PRIMARY, NFT)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if "iptables" in name else real(name))
    kernel = await world.open()
    (problem,) = (await kernel.observe()).firewall.problems
    assert "install the Debian package iptables" in problem


async def test_a_legacy_table_that_was_seen_clean_is_not_read_at_every_look(world, monkeypatch):
    settings = FLAVOURS["legacy"]
    need(settings)
    sh(world.node, OTHERS.format(f="legacy"))
    kernel = await world.open()
    read: list[list[str]] = []
    real = kernel_firewall._run

    def run(command: list[str], text: str = "") -> str:
        read.append(command)
        return real(command, text)

    monkeypatch.setattr(kernel_firewall, "_run", run)
    for _ in range(3):
        assert (await kernel.observe()).firewall.parts == ()
    assert len(read) == 2, "its two tables, once"

"""Checks from outside around a change of hands: who serves, what is exported, what the other one finds.

What is believed: the original's socket, the bytes of the checkpoint file, the runtime's record of living sandboxes,
and what the metadata service listed when the original read it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Final

from vpccni.checkpoint import HOLD_NETWORK, parse_checkpoint
from vpccni.datapath.objects import Difference
from vpccni.errors import Reason
from vpccni.evidence import READ, Row
from vpccni.lab.sim.books import NodeBook
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.original import NOTICED_S
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.model import Address

BEHIND_S: Final = 1.0
"""How far the checkpoint file may be behind the log."""
SETTLES_S: Final = 5.0
"""A file that could not be written is tried again within this."""


def may_export(node: SimNode) -> bool:
    """Whether our agent knows who lives here, and nobody else serves."""
    agent = node.agent
    return (
        agent is not None
        and agent.recovery.is_done
        and not agent.readiness.must_not_change
        and agent.writer.state.other_agent is None
        and not node.original.is_running
    )


def check_alone(node: SimNode, what: str, grace_s: float = NOTICED_S) -> None:
    """While the original serves we change nothing.

    Raises:
        BrokenPromiseError: it has served for longer than it takes to notice.
    """
    since = node.original.serving_since
    if since is not None and node.loop.time() - since > grace_s:
        raise BrokenPromiseError(
            f"{node.name} {what} although the original has served for {node.loop.time() - since:.1f} s"
        )


def check_kernel_change(node: SimNode, difference: Difference) -> None:
    """A change of the kernel; looking is none. Raises as ``check_alone``."""
    changes = [
        name
        for name in difference.__struct_fields__
        if name not in ("probe", "absent", "enis_ready", "enis_missing") and getattr(difference, name)
    ]
    if changes:
        check_alone(node, f"changes the kernel ({', '.join(changes)})")


def check_told(node: SimNode) -> None:
    """Another agent that serves is told of.

    Raises:
        BrokenPromiseError: our agent calls itself ready, or gives another reason.
    """
    agent, since = node.agent, node.original.serving_since
    now = node.loop.time()
    if agent is None or since is None or now - max(since, node.started_at) < NOTICED_S:
        return
    refused = agent.readiness.refusal()
    # What cannot be recorded just now is told as what holds us back: it comes to the same.
    if refused is None or refused.reason not in (Reason.ANOTHER_AGENT, Reason.STOPPING, Reason.RECOVERING):
        raise BrokenPromiseError(f"{node.name} says {refused} while the original serves")


def rows_of(content: bytes) -> dict[Address, str]:
    """A checkpoint file of ours: container ids by address; empty for a hold.

    Raises:
        BrokenPromiseError: it is none, or holds an address twice.
    """
    found = parse_checkpoint(content, path="ipam.json")
    if found.status != READ or found.unreadable or not found.log_id:
        raise BrokenPromiseError(
            f"the export of log {found.log_id} cannot be read: {found.status} {found.unreadable} {found.log_id}"
        )
    rows = {
        row.address: "" if row.key.network == HOLD_NETWORK else row.key.container_id for row in found.rows
    }
    if len(rows) != len(found.rows):
        raise BrokenPromiseError(f"an export has an address twice: {json.loads(content)}")
    return rows


def note_leases(book: NodeBook) -> None:
    """The leases on the disk have changed."""
    now = book.node.loop.time()
    book.lease_sets.append(
        (now, {address: book.leases[lease].key.container_id for address, lease in book.by_address.items()})
    )
    while len(book.lease_sets) > 1 and book.lease_sets[1][0] < now - SETTLES_S:
        book.lease_sets.popleft()


def check_exported(book: NodeBook, content: bytes, *, is_allowed: bool) -> None:
    """An export was written: by somebody who may, and of leases that there are.

    Args:
        book: The node's.
        content: The whole file.
        is_allowed: Our agent knew who lives here when it began to write.

    Raises:
        BrokenPromiseError: it was not.
    """
    node = book.node
    check_alone(node, "exports")
    if not is_allowed:
        raise BrokenPromiseError(f"{node.name} exports before it knows who lives here")
    rows = rows_of(content)
    if not any(rows == leases for _, leases in book.lease_sets) and (rows or book.lease_sets):
        raise BrokenPromiseError(f"{node.name} exports what it never had: {_difference(book, rows)}")


def check_export_is_current(book: NodeBook) -> None:
    """Every few seconds: the file is what the log was a second ago, or newer.

    Raises:
        BrokenPromiseError: it is older.
    """
    node, now = book.node, book.node.loop.time()
    is_possible = node.checkpoints.is_writable and may_export(node) and node.misled_at < node.last_export_at
    is_ending = (
        node.agent is not None and node.agent.readiness.is_stopping
    )  # The last export comes at the very end.
    if not is_possible or is_ending:
        book.may_export_since = float("inf")
        return
    if book.may_export_since > now:
        book.may_export_since = now
    if now - book.may_export_since < SETTLES_S:
        return
    rows = rows_of(node.checkpoints.files.get(0, (b"", 0))[0])
    current = [leases for at, leases in book.lease_sets if at >= now - BEHIND_S]
    older = [leases for at, leases in book.lease_sets if at < now - BEHIND_S]
    if rows not in [*older[-1:], *current] and (rows or book.lease_sets):
        raise BrokenPromiseError(f"the export of {node.name} is behind: {_difference(book, rows)}")


def check_last_export(book: NodeBook) -> None:
    """After SIGTERM and the last acknowledgement: the file is exactly what the log is.

    Raises:
        BrokenPromiseError: it is not.
    """
    node = book.node
    content = node.checkpoints.files.get(0, (b"", 0))[0]
    if not node.checkpoints.is_writable or not may_export(node) or node.misled_at > node.last_export_at:
        return
    rows = rows_of(content)
    if rows != (book.lease_sets[-1][1] if book.lease_sets else {}):
        raise BrokenPromiseError(
            f"{node.name} ended and its last export is behind: {_difference(book, rows)}"
        )


def _difference(book: NodeBook, rows: Mapping[Address, str]) -> str:
    latest = book.lease_sets[-1][1] if book.lease_sets else {}
    missing = {address: key for address, key in latest.items() if rows.get(address) != key}
    extra = {address: key for address, key in rows.items() if latest.get(address) != key}
    return f"missing {missing}, left over {extra}"


def lost_by_restore(
    book: NodeBook, living: Collection[Sandbox], kept: Mapping[Address, Row], listed: Collection[Address]
) -> frozenset[Address]:
    """The original has restored its assignments from our file: which living pods it does not know.

    Raises:
        BrokenPromiseError: one of them it must know: the hand-back was said to be ready, or our file was to
            hold the pod and IMDS listed its address.
    """
    node = book.node
    how, at, was_exporting = book.left
    lost = [sandbox for sandbox in living if not _is_known(kept.get(sandbox.address), sandbox)]
    is_ours = was_exporting and node.misled_at < at
    for sandbox in lost:
        in_time = sandbox.acked_at <= at - (BEHIND_S if how == "killed" else 0.0)
        if sandbox.served_by == "ours" and not in_time:
            continue
        is_ready = node.handed_back_at is not None and sandbox.acked_at < node.handed_back_at
        # What IMDS listed when it was ready may be missing again, when somebody has broken IMDS since.
        is_imds_well = node.imds_broken_at < (node.handed_back_at or 0.0)
        if is_ours and is_ready and (sandbox.address in listed or is_imds_well):
            raise BrokenPromiseError(
                f"the node {node.name} was handed back, and the original does not know {sandbox.told} "
                f"({sandbox.address}, {'' if sandbox.address in listed else 'not '}listed by IMDS)"
            )
        if is_ours and sandbox.address in listed:
            raise BrokenPromiseError(
                f"{node.name} ended ({how}), and the original does not know {sandbox.told} ({sandbox.address})"
            )
    return frozenset(sandbox.address for sandbox in lost)


def _is_known(row: Row | None, sandbox: Sandbox) -> bool:
    """Whether a row keeps a sandbox's address, for itself or without owner. Of a damaged row the id may be left."""
    if row is None:
        return False
    return row.key.container_id == sandbox.container_id or row.key.network == HOLD_NETWORK

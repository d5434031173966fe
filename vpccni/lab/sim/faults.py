"""What goes wrong in a simulated region, and when: a list of plain records, so that it can be shrunk.

A fault is armed at its instant and lasts ``seconds`` where that makes sense. The list is drawn from a seed before
the simulation begins; leaving one out changes nothing about the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import msgspec

from vpccni.adapters.ec2.errors import REASON_OF_CODE, THROTTLING_CODES


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that goes wrong.

    Attributes:
        at: Virtual second.
        kind: See :data:`DRAWS`.
        node: Index of the node; -1 where it concerns the region.
        action: EC2 action (``*`` for any), wiring step, or what a crash waits for.
        how: Kind of the EC2 or IMDS fault, or of the log's.
        code: EC2's error code.
        seconds: How long it lasts, or how much later something comes.
        count: How often, how many, or how many steps later.
        flag: ``torn``: the batch under way reaches the disk; ``sent``: EC2 requests under way arrive. For a log
            that is lost, and for the original: sources that go wrong meanwhile (:mod:`vpccni.lab.sim.misleading`).
    """

    at: float
    kind: str
    node: int = -1
    action: str = ""
    how: str = ""
    code: str = ""
    seconds: float = 0.0
    count: int = 0
    flag: tuple[str, ...] = ()


CHANGES: Final = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
)
READS: Final = ("DescribeNetworkInterfaces", "DescribeInstanceTypes", "DescribeSubnets")
ERRORS: Final[tuple[tuple[str, ...], ...]] = (
    ("InternalError", "Unavailable"),
    *(
        tuple(sorted(code for code, reason in REASON_OF_CODE.items() if reason is meant))
        for meant in sorted(set(REASON_OF_CODE.values()))
    ),
    tuple(sorted(THROTTLING_CODES)),
    (
        "InvalidParameterValue",
        "NetworkInterfaceLimitExceeded",
        "InvalidNetworkInterface.InUse",
        "IncorrectState",
    ),
    # EC2 may not know yet what it has just made.
    ("InvalidNetworkInterfaceID.NotFound", "InvalidAttachmentID.NotFound"),
)
"""Codes by what they mean: every one that the agent tells from others, and some that it does not."""
WIRING_STEPS: Final = (
    "create_veth",
    "host_link",
    "pod_address",
    "pod_default_route",
    "from_rule",
    "host_route",
)
WAYS: Final = (
    "cache_emptied",
    "cache_stale",
    "cache_absent",
    "cache_torn",
    "cache_dead",
    "cache_of_before",
    "cache_lying",
    "checkpoint_missing",
    "checkpoint_torn",
    "checkpoint_half",
    "checkpoint_foreign",
    "checkpoint_dead",
    "checkpoint_of_before",
    "checkpoint_made_up",
    "checkpoint_unreadable",
    "checkpoint_unwritable",
    "netns_sealed",
    "netns_hidden",
    "survey_refused",
    "api_down",
    "api_slow",
)
"""How a source that a search of the node reads can be wrong; see :mod:`vpccni.lab.sim.misleading`."""
CRASH_POINTS: Final = (
    "step",
    "step",
    "commit",
    "committed",
    "ec2_sent",
    "ec2_applied",
    "ec2_answered",
    "wiring",
    "searching",
    "exporting",
    "changing",
)

Draw = Callable[[random.Random, float, int], Fault]


def _ec2_call(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(
        ("error", "throttle", "lost_reply", "lost_reply", "dropped_request", "hang", "latency", "partial")
    )
    action = rng.choice((*CHANGES, *CHANGES, READS[0], "*"))
    if how == "partial":
        action = "AssignPrivateIpAddresses"
    return Fault(
        at=at,
        kind="ec2_call",
        action=action,
        how=how,
        code=rng.choice(rng.choice(ERRORS)) if how == "error" else "",
        seconds=round(rng.uniform(1.0, 12.0), 2) if how == "latency" else 0.0,
        count=rng.randint(1, 3),
        flag=("applied",) if how == "hang" and rng.random() < 0.5 else (),
    )


def _ec2_away(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(("dropped_request", "throttle", "error", "lost_reply"))
    return Fault(at=at, kind="ec2_away", how=how, code="InternalError", seconds=round(rng.uniform(2, 90), 1))


def _ec2_slow(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="ec2_slow", count=rng.randint(2, 8), seconds=round(rng.uniform(10, 120), 1))


def _ec2_budget(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="ec2_budget", seconds=round(rng.uniform(20, 120), 1))


def _describe_lag(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="describe_lag", count=rng.randint(1, 8), seconds=round(rng.uniform(60, 400), 1))


def _describe_short(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="describe_short", seconds=round(rng.uniform(60, 1800), 1))


def _imds(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(
        ("lag", "missing_eni", "missing_address", "resurrected_address", "hang", "status", "latency")
    )
    return Fault(at=at, kind="imds", node=node, how=how, seconds=round(rng.uniform(5, 300), 1))


def _log(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(("lost", "applied", "disk_full"))
    return Fault(at=at, kind="log", node=node, how=how, count=rng.choice((1, 1, 1, 2, 3, 6)))


def _disk_full(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="disk_full", node=node, seconds=round(rng.uniform(3, 60), 1))


def _slow_sync(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="slow_sync", node=node, count=rng.randint(20, 2000), seconds=rng.uniform(5, 60))


def _wiring(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="wiring", node=node, action=rng.choice(WIRING_STEPS), count=rng.randint(1, 6))


def _slow_kernel(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(
        at=at, kind="slow_kernel", node=node, count=rng.randint(20, 3000), seconds=rng.uniform(5, 40)
    )


def _link(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(("late", "late", "missing", "renamed", "flap", "flap"))
    return Fault(at=at, kind="link", node=node, how=how, seconds=round(rng.uniform(2, 100), 1))


def _crash(rng: random.Random, at: float, node: int) -> Fault:
    flags = tuple(flag for flag in ("torn", "sent") if rng.random() < 0.6)
    return Fault(
        at=at,
        kind="crash",
        node=node,
        action=rng.choice(CRASH_POINTS),
        count=rng.randint(1, 60),
        seconds=round(rng.choice((0.3, 1.0, 3.0, 12.0, 40.0)) * rng.uniform(0.7, 1.3), 2),
        flag=flags,
    )


def _stop(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="stop", node=node, seconds=round(rng.choice((0.3, 2.0, 10.0)), 2))


def _reboot(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="reboot", node=node, seconds=round(rng.uniform(5, 90), 1), flag=("sent",))


def _clock(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(
        at=at, kind="clock", node=node, seconds=round(rng.choice((-86400, -3600, -30, 30, 3600, 86400)), 1)
    )


def _witness(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(
        ("api_down", "api_stale", "cache_unreadable", "spool_broken", "spool_stuck", "blind", "blind")
    )
    return Fault(at=at, kind="witness", node=node, how=how, seconds=round(rng.uniform(20, 900), 1))


def _snapshot(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="snapshot", node=node)


def _retune(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(
        at=at, kind="retune", node=node, count=rng.randrange(6), seconds=round(rng.uniform(0.3, 5), 2)
    )


def _foreign_eni(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(at=at, kind="foreign_eni", node=node, seconds=round(rng.uniform(30, 600), 1))


def _log_lost(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(("gone", "gone", "marker_left", "old", "old", "foreign"))
    return Fault(
        at=at,
        kind="log_lost",
        node=node,
        action=rng.choice(("stop", "kill")),
        how=how,
        seconds=round(rng.choice((0.3, 2.0, 15.0)) * rng.uniform(0.7, 1.3), 2),
        count=int(rng.choice((20, 120, 600, 3000)) * rng.uniform(0.5, 1.5)),
        flag=_some_ways(rng),
    )


def _misled(rng: random.Random, at: float, node: int) -> Fault:
    return Fault(
        at=at,
        kind="misled",
        node=node,
        how=rng.choice(WAYS),
        seconds=round(rng.uniform(20, 300), 1),
        count=rng.randrange(10**6),
    )


def _original(rng: random.Random, at: float, node: int) -> Fault:
    how = rng.choice(("stop", "stop", "kill", "kill", "hand_back", "hand_back", "beside"))
    return Fault(
        at=at,
        kind="original",
        node=node,
        how=how,
        seconds=round(rng.choice((8.0, 40.0, 150.0)) * rng.uniform(0.7, 1.3), 1),
        count=rng.randrange(10**6),
        flag=_some_ways(rng),
    )


def _some_ways(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.sample(WAYS, rng.choice((0, 0, 1, 1, 2, 4))))


DRAWS: Final[tuple[tuple[int, Draw], ...]] = (
    (30, _ec2_call),
    (5, _ec2_away),
    (4, _ec2_slow),
    (2, _ec2_budget),
    (12, _describe_lag),
    (3, _describe_short),
    (6, _imds),
    (7, _log),
    (3, _disk_full),
    (2, _slow_sync),
    (10, _wiring),
    (2, _slow_kernel),
    (4, _link),
    (12, _crash),
    (3, _stop),
    (2, _reboot),
    (2, _clock),
    (4, _witness),
    (6, _snapshot),
    (3, _retune),
    (1, _foreign_eni),
    (4, _log_lost),
    (4, _misled),
    (3, _original),
)
"""What can go wrong, with its weight."""


def draw_faults(
    seed: int,
    *,
    nodes: int,
    begin_s: float,
    end_s: float,
    every_s: float,
    kinds: frozenset[str] = frozenset(),
) -> tuple[Fault, ...]:
    """Faults from a seed, in order of time, one every ``every_s`` seconds on average.

    Args:
        seed: Same seed, same faults.
        nodes: How many nodes there are.
        begin_s: None before.
        end_s: None after.
        every_s: Mean distance, seconds.
        kinds: Only these; empty for all.
    """
    rng = random.Random(f"faults {seed}")
    weights = [weight for weight, _ in DRAWS]
    drawn: list[Fault] = []
    at = begin_s
    while True:
        at += rng.expovariate(1.0 / every_s)
        if at >= end_s:
            return tuple(drawn)
        draw = rng.choices(DRAWS, weights)[0][1]
        fault = draw(rng, round(at, 3), rng.randrange(nodes))
        if not kinds or fault.kind in kinds:
            drawn.append(fault)

"""The rules of the original that an incident is about, each as small as it can be.

They are written after its documented behaviour, to prove that a scenario bites: with this rule in place of ours
the pods of the scenario would have come to harm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def restored_allocations(checkpoint: Mapping[str, str], set_up: Mapping[str, Collection[str]]) -> set[str]:
    """At start the checkpoint is kept only as far as its addresses are on ENIs whose set-up succeeded (W1)."""
    known = {address for addresses in set_up.values() for address in addresses}
    return {address for address in checkpoint if address in known}


def free_after_reconcile(set_up: Mapping[str, Collection[str]], allocated: Collection[str]) -> set[str]:
    """What a later reconcile adds is free unless an allocation is known for it (W1)."""
    known = {address for addresses in set_up.values() for address in addresses}
    return known - set(allocated)


def pool_at_start(imds: Mapping[str, Collection[str]]) -> set[str]:
    """After a restart the pool is what IMDS lists (W2)."""
    return {address for addresses in imds.values() for address in addresses}


def pods_that_survive_a_reading(holders: Mapping[str, str], listed_enis: Collection[str]) -> set[str]:
    """An ENI that one reading of IMDS does not list is dropped with its pods (W4). By pod: its ENI."""
    return {pod for pod, eni in holders.items() if eni in listed_enis}


def is_assignable_after_restart(rested_s: float) -> bool:
    """The cooldown lives in memory: after a restart every address without an allocation is free (W17)."""
    return rested_s >= 0.0


def wait_behind_detaches(durations_s: Iterable[float]) -> float:
    """One loop does everything in turn: growth begins when the last detach has come to its end (W24)."""
    return sum(durations_s)


def create_calls_after_a_crash(attempts: int) -> int:
    """A create has no token: each attempt whose reply is lost makes another ENI."""
    return attempts


def pool_of_an_image(checkpoint: Mapping[str, str]) -> set[str]:
    """Whatever the file lists is taken over when IMDS is silent."""
    return set(checkpoint)

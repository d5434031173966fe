"""The rules of the original that an incident is about, each as small as it can be.

They are written after its documented behaviour, to prove that a scenario bites: with this rule in place of ours
the pods of the scenario would have come to harm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


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


def given_back_as_unused(owned: Collection[str], allocated: Collection[str]) -> set[str]:
    """Whatever no allocation is known for may go back to EC2 when the targets shrink; a cooldown counts not (W6)."""
    return set(owned) - set(allocated)


def enis_for_pods_at_start(listed: Collection[str]) -> set[str]:
    """Every ENI that IMDS lists serves pods: no detach that was begun is remembered (W8)."""
    return set(listed)


def assignable_after_restart(owned: Collection[str], allocated: Collection[str]) -> set[str]:
    """The cooldown lives in memory, and the file of allocations on a tmpfs: what it does not name is free (W17)."""
    return set(owned) - set(allocated)


def is_left_behind_deleted(age_s: float) -> bool:
    """An ENI that was made and not attached is no dead process's any more: the leak clean-up spares young ones."""
    return age_s >= 300.0


def is_kept_safe(set_by_process: int, attached_by_process: int) -> bool:
    """DeleteOnTermination is a step of whoever attached: the next process finds the ENI and does not set it (W8)."""
    return set_by_process == attached_by_process


def throttled_detach_s(tries: int = 12) -> float:
    """How long the one loop that does everything in turn sits in a detach that is throttled (W24)."""
    return sum(min(0.2 * float(1 << number), 60.0) for number in range(tries - 1))


def pool_of_an_image(checkpoint: Mapping[str, str]) -> set[str]:
    """Whatever the file lists is taken over when IMDS is silent."""
    return set(checkpoint)

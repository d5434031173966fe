"""The promises about EC2, checked where calls leave and where they change something."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from vpccni.errors import InvariantBrokenError
from vpccni.events.effect import EffectIntended
from vpccni.lab.ec2 import Region
from vpccni.lab.ec2.entities import Eni
from vpccni.lab.sim import handover
from vpccni.lab.sim.books import NodeBook, OpenLease
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.model import Address, LeaseId
from vpccni.planner.reconcile import INSTANCE_TAG, NO_MANAGE_TAG

CALLS_MAX: Final = 150
CALLS_S: Final = 30.0
"""So many calls of one node in so many seconds are a storm; whole ENIs for a burst of pods are a third of that."""
CALLS_NOTICED_S: Final = 8.0
"""Another agent is seen, and the calls that were under way or about to be tried again have left."""
SHORT_S: Final = 2000.0
"""The books are made anew from EC2 within this: half an hour, and what a reading takes."""
INTENDED: Final = {
    "CreateNetworkInterface": "create",
    "AttachNetworkInterface": "attach",
    "ModifyNetworkInterfaceAttribute": "modify",
    "AssignPrivateIpAddresses": "assign",
    "UnassignPrivateIpAddresses": "unassign",
    "DetachNetworkInterface": "detach",
    "DeleteNetworkInterface": "delete",
    "CreateTags": "tag",
}
"""By what kind of intent a call is covered."""


P = ParamSpec("P")
C = TypeVar("C", bound="Ec2Checks")


def reporting(check: Callable[Concatenate[C, P], None]) -> Callable[Concatenate[C, P], None]:
    """A check that is called from within somebody else's step: it reports and does not raise."""

    @functools.wraps(check)
    def wrapped(checker: C, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            check(checker, *args, **kwargs)
        except BrokenPromiseError as error:
            checker.report(str(error))
        except InvariantBrokenError as error:
            checker.report(f"what is on the disk does not fold: {error}")

    return wrapped


class Ec2Checks:
    """Knows who has acknowledged pods where; see :class:`vpccni.lab.sim.invariants.Checker`."""

    def __init__(self, region: Region, report: Callable[[str], None]) -> None:
        self.report = report
        self.checks = 0
        self._region = region
        self._books: dict[str, NodeBook] = {}
        self._acked_at: dict[Address, Sandbox] = {}

    @reporting
    def on_call(self, sender: str, action: str, params: Mapping[str, Any]) -> None:
        """See :class:`vpccni.lab.sim.cloud.Watcher`."""
        self.checks += 1
        book = self._books[sender]
        now = book.node.loop.time()
        book.calls.append(now)
        if len(book.calls) > CALLS_MAX and now - book.calls.popleft() < CALLS_S:
            raise BrokenPromiseError(f"{sender} storms EC2: {CALLS_MAX} calls in {CALLS_S} s, now {action}")
        kind = INTENDED.get(action)
        if kind is None:
            return
        handover.check_alone(book.node, f"calls {action}", CALLS_NOTICED_S)
        eni = self._concerned(action, params)
        if eni is not None:
            holder = eni.attachment.instance.id if eni.attachment else eni.tags.get(INSTANCE_TAG, "")
            if holder != book.node.instance.id or eni.tags.get(NO_MANAGE_TAG) == "true":
                raise BrokenPromiseError(f"{action} by {sender} is about {eni.id}, which is not its own")
        if not any(intent.kind == kind and _covers(intent, params) for intent in book.intents.values()):
            raise BrokenPromiseError(f"{action} by {sender} leaves and no open intent on the disk covers it")

    def before_call(self, sender: str, action: str, params: Mapping[str, Any], sent_at: float) -> object:
        """See :class:`vpccni.lab.sim.cloud.Watcher`."""
        if action not in ("UnassignPrivateIpAddresses", "DetachNetworkInterface", "DeleteNetworkInterface"):
            return None
        eni = self._concerned(action, params)
        if eni is None:
            return None
        return eni, frozenset(eni.addresses) if eni.attachment is not None else frozenset(), sent_at

    @reporting
    def after_call(self, sender: str, action: str, outcome: str, before: object) -> None:
        """See :class:`vpccni.lab.sim.cloud.Watcher`."""
        self.checks += 1
        if not isinstance(before, tuple):
            return
        eni, had, sent_at = before
        has: frozenset[str] = frozenset()
        if eni.attachment is not None and eni.attachment.status != "detaching":
            has = frozenset(eni.addresses)
        for address in sorted(had - has):
            sandbox = self._acked_at.get(address)
            if sandbox is not None:
                raise BrokenPromiseError(f"{action} by {sender} took {address} from {sandbox.told}")
            book = self._books[sender]
            lease = book.leases.get(book.by_address.get(address, LeaseId(0)))
            # An ENI's own address is no pod's. A lease that was found after the call had left calls nothing back.
            if lease is None or address == eni.primary or lease.told_at > sent_at:
                continue
            if could_locate(book, lease):
                raise BrokenPromiseError(
                    f"{action} by {sender} took {address}, on which it has lease {lease.lease}"
                )

    def _concerned(self, action: str, params: Mapping[str, Any]) -> Eni | None:
        if action == "DetachNetworkInterface":
            return self._region.world.eni_of_attachment.get(params.get("AttachmentId", ""))
        return self._region.world.enis.get(params.get("NetworkInterfaceId", ""))

    def _owner(self, address: str) -> Eni | None:
        for subnet in self._region.world.subnets.values():
            holder = subnet.addresses.holder_of(address)
            if holder is not None and holder.startswith("eni-"):
                return self._region.world.enis.get(holder)
        return None


def could_locate(book: NodeBook, lease: OpenLease) -> bool:
    """Whether the agent could know on which ENI a lease is.

    Who lives shows in the kernel, with the routing table of his ENI. Of a sandbox that only a file names nothing
    tells the ENI while Describe leaves out addresses.
    """
    is_short = book.node.loop.time() - book.node.cloud.last_short_at < SHORT_S
    return lease.is_shown or lease.is_located or not is_short


def _covers(intent: EffectIntended, params: Mapping[str, Any]) -> bool:
    """Whether a call is the one that was intended, by what it is about."""
    if intent.kind == "create":
        return bool(intent.token == params.get("ClientToken"))
    if intent.kind == "detach":
        return bool(intent.attachment == params.get("AttachmentId"))
    return bool(intent.eni == params.get("NetworkInterfaceId"))

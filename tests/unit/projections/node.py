"""A node made of the core alone: decide, append, fold; its clocks and its EC2 are in the test's hand."""

from __future__ import annotations

import msgspec

from vpccni.errors import Refused
from vpccni.events import node as n
from vpccni.events.codec import Event, Record
from vpccni.events.effect import EffectIntended
from vpccni.events.sandbox import SandboxLink, SandboxWired
from vpccni.model import (
    Address,
    Cidr,
    EniFacts,
    EniId,
    InstanceFacts,
    InstanceId,
    InstanceLimits,
    IntentId,
    LeaseId,
    Mac,
    PodRef,
    SandboxKey,
    Seq,
    Stamp,
    SubnetId,
)
from vpccni.planner import commands as c
from vpccni.planner.commands import PREVIOUS
from vpccni.planner.decide import decide
from vpccni.planner.reconcile import READINGS_APART_S_MIN
from vpccni.planner.warm_pool import Constraints, PoolPolicy
from vpccni.projections.leases import Lease
from vpccni.projections.snapshot import restore, snapshot_of
from vpccni.projections.state import State

SECOND = 10**9
MORNING = 1_772_359_200 * SECOND
"""2026-03-01 10:00:00 UTC."""
COOLDOWN_S = 30.0
INSTANCE_TAG = "node.k8s.amazonaws.com/instance_id"


def instance(number: int = 1) -> InstanceFacts:
    return InstanceFacts(
        id=InstanceId(f"i-{number}"),
        type="m5.large",
        az="eu-central-1a",
        region="eu-central-1",
        primary_mac=Mac(f"0a:00:00:00:{number:02x}:00"),
        vpc_cidrs=(Cidr("10.0.0.0/16"),),
    )


def eni_facts(number: int, *last_octets: int, machine: int = 1, **fields) -> EniFacts:
    """An attached ENI; its addresses are ``10.0.<number>.<octet>``."""
    facts = EniFacts(
        id=EniId(f"eni-{number}"),
        mac=Mac(f"0a:00:00:00:{machine:02x}:{number:02x}"),
        subnet=SubnetId("subnet-1"),
        subnet_cidr=Cidr("10.0.0.0/20"),
        primary=Address(f"10.0.{number}.4"),
        cidrs=tuple(Cidr(f"10.0.{number}.{octet}/32") for octet in last_octets),
        groups=("sg-1",),
        tags={INSTANCE_TAG: f"i-{machine}"},
        attachment=f"attach-{number}",
        attachment_status="attached",
        instance=InstanceId(f"i-{machine}"),
        device=number,
    )
    return msgspec.structs.replace(facts, **fields)


def key_of(name: str) -> SandboxKey:
    return SandboxKey("aws-cni", f"container-{name}", "eth0")


def link_of(name: str) -> SandboxLink:
    return SandboxLink(ifname="eth0", host_ifname=f"eni{name}", host_ifindex=7, alias=f"alias-{name}")


def pod_of(name: str) -> PodRef:
    return PodRef("shop", name, f"uid-{name}")


class Node:
    """One node's core. Every answer's events are appended and folded, as the writer does it.

    Attributes:
        records: The log.
        state: The live state.
    """

    def __init__(
        self, *, enis_max: int = 3, slots: int = 4, max_pods: int = 20, boot: str = "boot-1"
    ) -> None:
        self.state = State()
        self.records: list[Record] = []
        self.now = Stamp(MORNING, 100 * SECOND, boot)
        self.context = c.Context(
            cooldown_s=COOLDOWN_S,
            add_wait_s=55.0,
            policy=PoolPolicy(enis_max=enis_max, slots_per_eni=slots, max_pods=max_pods),
            constraints=Constraints(),
        )

    # -- time -------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        passed = round(seconds * SECOND)
        self.now = Stamp(self.now.wall_ns + passed, self.now.boottime_ns + passed, self.now.boot_id)

    def set_clock(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.now = Stamp(self.now.wall_ns + round(seconds * SECOND), self.now.boottime_ns, self.now.boot_id)

    def boot(self, boot_id: str, off_s: float = 20.0) -> None:
        self.now = Stamp(self.now.wall_ns + round(off_s * SECOND), 5 * SECOND, boot_id)
        self.ask(c.StartAgent(boot_id=boot_id, version="1.0.0"))

    # -- asking -----------------------------------------------------------------------------------

    def with_context(self, **fields) -> c.Context:
        return msgspec.structs.replace(self.context, **fields)

    def decide(self, command: c.Command, **fields) -> c.Answer:
        return decide(self.state, command, self.now, self.with_context(**fields))

    def ask(self, command: c.Command, **fields) -> c.Answer:
        answer = self.decide(command, **fields)
        if not isinstance(answer, Refused):
            for event, cause in answer.events:
                self.append(event, self.state.head if cause == PREVIOUS else cause)
        return answer

    def append(self, event: Event, cause: int = 0) -> Record:
        record = Record(Seq(self.state.head + 1), self.now, event, cause)
        self.state.evolve(record)
        self.records.append(record)
        return record

    # -- stories ----------------------------------------------------------------------------------

    def start(self, *enis: EniFacts) -> Node:
        """A node that serves: known instance, limits and policy, these ENIs, all links ready."""
        self.ask(c.StartAgent(boot_id=self.now.boot_id, version="1.0.0"))
        self.ask(c.ObserveInstance(instance()))
        self.ask(
            c.Observe(n.LimitsObserved(type="m5.large", limits=InstanceLimits(enis_max=3, ipv4_per_eni=5)))
        )
        self.ask(c.Observe(n.PolicyObserved(settings={"IP_COOLDOWN_PERIOD": "30"})))
        self.ask(c.Observe(n.MaxPodsObserved(max_pods=20, source="node")))
        self.read(*enis, is_second=False)
        self.ready(*(facts.id for facts in enis))
        return self

    def read(
        self, *enis: EniFacts, previous: tuple[EniFacts, ...] | None = None, is_second: bool = True
    ) -> c.Answer:
        """EC2 lists these, and listed the same a moment ago; or ``previous``; or was not asked before."""
        before = None
        if is_second:
            before = c.Reading(enis if previous is None else previous, self.now)
            self.wait(READINGS_APART_S_MIN)
        return self.ask(c.ReadEc2(c.Reading(enis, self.now), before))

    def ready(self, *enis: str) -> None:
        self.ask(c.NoteLinks(ready=tuple((EniId(eni), f"ens{eni[-1]}", 10) for eni in enis)))

    def add(self, name: str, **fields) -> c.Answer:
        return self.ask(c.Add(key=key_of(name), pod=pod_of(name), netns=f"/netns/{name}"), **fields)

    def lease(self, name: str) -> Lease:
        held = self.state.lease_of(key_of(name))
        assert held is not None, f"{name} has no lease"
        return held

    def address(self, name: str) -> Address:
        return self.lease(name).bindings[0].address

    def wire(self, name: str) -> None:
        lease = self.lease(name).id
        self.ask(
            c.NoteWired(
                SandboxWired(
                    lease=lease,
                    links=(
                        SandboxLink(
                            ifname="eth0", host_ifname=f"eni{name}", host_ifindex=7, alias=f"alias-{name}"
                        ),
                    ),
                )
            )
        )

    def delete(self, name: str) -> LeaseId:
        answer = self.ask(c.EndLease(key=key_of(name), cause="del", sources=("runtime",)))
        assert isinstance(answer, c.Decision)
        return answer.lease

    def unwire_all(self) -> None:
        self.ask(c.NoteUnwired(tuple(self.state.standing)))

    def run_pod(self, name: str) -> Address:
        """From ADD to wired."""
        self.add(name)
        self.wire(name)
        return self.address(name)

    def end_pod(self, name: str) -> None:
        """DEL, and its veth seen gone."""
        self.delete(name)
        self.unwire_all()

    def intend(self, **fields) -> c.Answer:
        return self.ask(c.Intend(EffectIntended(**fields)))

    def settle(self, intent: int, outcome: c.Outcome) -> c.Answer:
        return self.ask(c.Settle(IntentId(intent), outcome))

    # -- other ways to the same state ---------------------------------------------------------------

    def folded(self) -> State:
        """The fold from the first record."""
        state = State()
        state.evolve_all(self.records)
        return state

    def restored(self) -> State:
        """What a snapshot of the live state stands for."""
        state = restore(snapshot_of(self.state))
        state.head = self.state.head
        return state

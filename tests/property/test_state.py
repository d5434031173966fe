"""The core under everything that can happen to a node, in any order, beside a model that knows only dicts.

``decide`` and ``State`` are driven as the writer drives them. The world (EC2) does or does not do what was
intended, forgets to answer, lags, and leaves things out; the node crashes, reboots, and its wall clock jumps.
``EXPLORE=3000`` in the environment tries so many histories, other ones each time.
"""

from __future__ import annotations

import os

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.projections.node import COOLDOWN_S, Node, eni_facts, key_of, pod_of
from vpccni.errors import Reason, Refused
from vpccni.events.address import CidrsReleased
from vpccni.events.codec import Record
from vpccni.events.effect import EffectIntended
from vpccni.events.eni import EniGone
from vpccni.events.sandbox import AddressAssigned, LeaseEnded
from vpccni.model import Address, Cidr, EniFacts, EniId, IntentId, LeaseId, is_inside
from vpccni.planner import commands as c
from vpccni.planner.lifecycle import next_effects
from vpccni.planner.view import views_of
from vpccni.planner.warm_pool import Constraints, CreateEni, Demand, GrowEni, ReleaseCidrs, RemoveEni, plan
from vpccni.projections.leases import Lease
from vpccni.projections.snapshot import picture, restore, snapshot_of

EXPLORING = bool(os.environ.get("EXPLORE"))
SLOTS, ENIS_MAX = 3, 3
NAMES = st.sampled_from([f"pod{number}" for number in range(6)])


class World:
    """EC2's truth: ENIs by id. One small pool of addresses, the lowest free one first: they come back soon."""

    def __init__(self) -> None:
        self.enis: dict[EniId, EniFacts] = {}
        self.made = 0
        primary = self.new_eni(2)
        self.enis[primary.id] = msgspec.structs.replace(
            primary, device=0, attachment="attach-0", instance="i-1"
        )

    def _free(self, count: int) -> tuple[Cidr, ...]:
        taken = {cidr for facts in self.enis.values() for cidr in facts.cidrs}
        free = [Cidr(f"10.0.0.{octet}/32") for octet in range(10, 40)]
        return tuple([cidr for cidr in free if cidr not in taken][:count])

    def new_eni(self, count: int) -> EniFacts:
        number, self.made = self.made, self.made + 1
        facts = eni_facts(
            number, cidrs=self._free(count), attachment="", attachment_status="", instance="", device=-1
        )
        self.enis[facts.id] = facts
        return facts

    def attached(self) -> tuple[EniFacts, ...]:
        return tuple(facts for _, facts in sorted(self.enis.items()) if facts.attachment)

    def _change(self, eni: EniId, **fields) -> None:
        self.enis[eni] = msgspec.structs.replace(self.enis[eni], **fields)

    def perform(self, intent: int, wanted: EffectIntended) -> c.Outcome:
        """Do it; the outcome is what a reply, or later Describe, tells."""
        facts = self.enis.get(wanted.eni)
        if wanted.kind == "create":
            return c.Confirmed(facts=self.new_eni(wanted.count))
        if facts is None:
            return c.Failed(reason=Reason.EC2_REFUSED, code="InvalidNetworkInterfaceID.NotFound")
        match wanted.kind:
            case "attach":
                self._change(wanted.eni, attachment=f"attach-{intent}", instance="i-1", device=wanted.device)
                return c.Confirmed(attachment=f"attach-{intent}")
            case "assign":
                fresh = self._free(min(wanted.count, SLOTS - len(facts.cidrs)))
                self._change(wanted.eni, cidrs=tuple(sorted((*facts.cidrs, *fresh))))
                return c.Confirmed(cidrs=fresh)
            case "unassign":
                self._change(wanted.eni, cidrs=tuple(one for one in facts.cidrs if one not in wanted.cidrs))
            case "detach":
                self._change(wanted.eni, attachment="", instance="", device=-1)
            case "delete":
                del self.enis[wanted.eni]
            case _:
                pass
        return c.Confirmed()


class NodeMachine(RuleBasedStateMachine):
    """Rules are what happens to a node; invariants are what must stay true."""

    @initialize()
    def begin(self) -> None:
        self.node = Node(enis_max=ENIS_MAX, slots=SLOTS, max_pods=8)
        self.world = World()
        self.views = [self.reading()]  # what EC2 has shown so far, for readings that lag
        self.previous: c.Reading | None = None
        self.wanted: list[EffectIntended] = []  # plans, which grow old
        self.outcomes: dict[int, c.Outcome] = {}  # of intents that were performed and not yet settled
        self.snapshot: tuple[int, tuple[Record, ...]] = (0, ())
        self.true_s = 0.0  # time as it really passes
        self.forward_s = 0.0  # by how much the wall clock was set forward so far
        self.boots = 0
        self.seen = 0
        # The plain model: who has an address, and when each was given up (true time, set forward, boots).
        self.holder: dict[Address, LeaseId] = {}
        self.ended: dict[Address, tuple[float, float, int]] = {}
        self.node.start(*self.world.attached())

    # -- asking -----------------------------------------------------------------------------------

    def ask(self, command: c.Command) -> c.Answer:
        answer = self.node.ask(command)
        self.follow()
        return answer

    def follow(self) -> None:
        """Take what was appended into the plain model, checking each assignment against it."""
        for record in self.node.records[self.seen :]:
            event = record.event
            if isinstance(event, AddressAssigned):
                for binding in event.bindings:
                    self.follow_assignment(record.seq, binding.address)
            elif isinstance(event, LeaseEnded):
                for binding in event.bindings:
                    assert self.holder.pop(binding.address) == event.lease
                    if event.was_wired:
                        self.ended[binding.address] = (self.true_s, self.forward_s, self.boots)
        self.seen = len(self.node.records)

    def follow_assignment(self, seq: int, address: Address) -> None:
        assert address not in self.holder, f"{address} has two leases"
        self.holder[address] = LeaseId(seq)
        if address in self.ended:
            at_s, forward_s, boots = self.ended.pop(address)
            # Across a boot only the wall clock tells: it is believed, also when somebody set it forward.
            believed = self.forward_s - forward_s if boots != self.boots else 0.0
            assert self.true_s - at_s + believed >= COOLDOWN_S - 1e-6, f"{address} did not rest"

    def keeps_leases(self, command: c.Command) -> None:
        """Ask something that must free nothing, whatever it says."""
        before, held = dict(self.node.state.by_address), dict(self.node.state.leases)
        answer = self.ask(command)
        assert isinstance(answer, c.Decision)
        assert self.node.state.by_address == before
        assert self.node.state.leases.keys() == held.keys()
        for event, _ in answer.events:
            if isinstance(event, CidrsReleased):
                assert not any(is_inside(one, cidr) for one in self.not_free() for cidr in event.cidrs)
            if isinstance(event, EniGone):
                assert event.eni not in {one.eni for lease in held.values() for one in lease.bindings}

    def not_free(self) -> list[Address]:
        """Leased, or certainly still resting (by true time: at least as long as the node thinks)."""
        resting = [
            one for one, (at_s, forward_s, boots) in self.ended.items()
            if self.true_s - at_s + (self.forward_s - forward_s if boots != self.boots else 0) < COOLDOWN_S - 1e-6
        ]  # fmt: skip
        return [*self.holder, *resting]

    # -- the runtime ------------------------------------------------------------------------------

    @rule(name=NAMES)
    def add(self, name):
        node = self.node
        before = node.state.lease_of(key_of(name))
        answer = self.ask(c.Add(key=key_of(name), pod=pod_of(name), netns=f"/netns/{name}"))
        if before is not None:
            assert answer == c.Decision((), before.id), "an ADD is idempotent by its key"
        elif isinstance(answer, c.Decision):
            held = node.state.enis[node.lease(name).bindings[0].eni]
            assert (held.phase, held.is_link_ready, held.is_retiring) == ("attached", True, False)
            assert Cidr(f"{node.address(name)}/32") not in node.state.cidrs_under_release()

    @rule(names=st.lists(NAMES, min_size=1, unique=True))
    def run_pods(self, names):
        for name in names:
            self.add(name)
            self.wire(name)

    @rule(name=NAMES, was_wired=st.booleans())
    def fail_add(self, name, was_wired):
        answer = self.ask(c.Add(key=key_of(name), pod=pod_of(name), netns="/netns"))
        is_new = isinstance(answer, c.Decision) and answer.is_new
        self.ask(
            c.RefuseAdd(
                key=key_of(name),
                pod=pod_of(name),
                reason=Reason.KERNEL_REFUSED,
                ends_lease=is_new,
                was_wired=was_wired,
            )
        )
        assert not (is_new and self.node.state.lease_of(key_of(name)))

    def wire(self, name):
        if self.node.state.lease_of(key_of(name)) is not None:
            self.node.wire(name)

    def some_lease(self, data) -> Lease:
        leases = self.node.state.leases
        return leases[data.draw(st.sampled_from(sorted(leases)))]

    @rule(name=NAMES)
    def delete(self, name):
        self.ask(c.EndLease(key=key_of(name), cause="del", sources=("runtime",)))
        assert self.node.state.lease_of(key_of(name)) is None
        again = self.node.decide(c.EndLease(key=key_of(name), cause="del"))
        assert again == c.Decision(), "a second DEL succeeds and does nothing"

    @precondition(lambda self: self.node.state.leases)
    @rule(data=st.data(), age_s=st.sampled_from([0.5, 40.0]))
    def delete_from_the_spool(self, data, age_s):
        """A DEL that was written some time ago does not end a lease that is younger."""
        lease, now = self.some_lease(data), self.node.now
        written = now.boottime_ns - round(age_s * 1e9)
        self.ask(
            c.EndLease(
                key=lease.key,
                cause="del",
                sources=("spool",),
                written_boot_id=now.boot_id,
                written_boottime_ns=written,
            )
        )
        assert (lease.id in self.node.state.leases) == (lease.opened.boottime_ns > written)

    @rule()
    def unwire(self):
        self.ask(c.NoteUnwired(tuple(self.node.state.standing)))

    @precondition(lambda self: self.node.state.leases)
    @rule(data=st.data(), is_alive=st.booleans())
    def doubt(self, data, is_alive):
        lease = self.some_lease(data)
        self.keeps_leases(c.NoteEvidence(lease=lease.id, source="kernel", is_alive=is_alive))

    @precondition(lambda self: any(one.suspected for one in self.node.state.leases.values()))
    @rule()
    def sweep(self):
        lease = next(one for one in self.node.state.leases.values() if one.suspected)
        self.ask(c.EndBySources(lease=lease.id, sources=("kernel", "api_server")))

    # -- EC2 --------------------------------------------------------------------------------------

    @rule(waiting=st.integers(0, 4), warm_ip=st.sampled_from([0, 2]))
    def make_plan(self, waiting, warm_ip):
        """As the warm-pool loop does; what it wants is intended later, when it may be stale."""
        node, state = self.node, self.node.state
        policy = node.context.policy
        assert policy is not None
        policy = msgspec.structs.replace(policy, warm_ip_target=warm_ip, min_eni_age_s=0.0)
        views = views_of(state, node.now, COOLDOWN_S, SLOTS)
        for step in plan(views, policy, Demand(waiting), Constraints()).steps:
            self.wanted.append(self.effect_of(step))
        self.wanted += next_effects(state, frozenset())

    @rule(
        waiting=st.integers(0, 6),
        warm_ip=st.sampled_from([0, 1]),
        rounds=st.integers(1, 3),
        lost=st.sets(
            st.sampled_from(["create", "attach", "assign", "unassign", "detach", "delete"]), max_size=2
        ),
    )
    def work(self, waiting, warm_ip, rounds, lost):
        """The whole way from plan to serving links, done by EC2; the replies of some calls are lost."""
        for _ in range(rounds):
            self.wanted.clear()
            self.make_plan(waiting, warm_ip)
            for wanted in self.wanted:
                self.intend_checked(wanted)
            for intent in list(self.node.state.intents.values()):
                if intent.intended.kind not in lost:
                    self.settle_truly(intent.id, intent.intended)
                elif intent.id not in self.outcomes:
                    self.outcomes[intent.id] = self.world.perform(intent.id, intent.intended)
                    self.ask(c.Settle(intent.id, c.Unknown(detail="no reply")))
            ready = [one for one in self.node.state.enis.values() if one.phase == "attached"]
            self.node.ready(*(one.facts.id for one in ready))
        self.wanted.clear()

    def reading(self) -> c.Reading:
        """What EC2 truly has just now."""
        return c.Reading(self.world.attached(), self.node.now)

    def settle_truly(self, intent: IntentId, wanted: EffectIntended) -> None:
        done = self.outcomes.pop(intent, None) or self.world.perform(intent, wanted)
        self.views.append(self.reading())
        self.ask(c.Settle(intent, done))

    def effect_of(self, step) -> EffectIntended:
        match step:
            case GrowEni():
                return EffectIntended(kind="assign", eni=step.eni, count=step.count)
            case CreateEni():
                return EffectIntended(kind="create", count=step.count, token=f"t{self.node.state.head}")
            case ReleaseCidrs():
                cidrs = tuple(one.cidr for one in step.cidrs)
                return EffectIntended(kind="unassign", eni=step.eni, cidrs=cidrs)
            case RemoveEni():
                attachment = self.node.state.enis[step.eni].attachment
                return EffectIntended(kind="detach", eni=step.eni, attachment=attachment)
        raise AssertionError(step)

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def intend(self, data):
        self.intend_checked(self.wanted.pop(data.draw(st.integers(0, len(self.wanted) - 1))))

    @rule(data=st.data(), kind=st.sampled_from(["unassign", "detach", "delete"]))
    def intend_something_wild(self, data, kind):
        """A plan of a planner gone mad: what the check at the door lets through is done."""
        held = self.node.state.enis[data.draw(st.sampled_from(sorted(self.node.state.enis)))]
        cidrs: tuple[Cidr, ...] = ()
        if kind == "unassign":
            if not held.cidrs:
                return
            cidrs = tuple(data.draw(st.lists(st.sampled_from(sorted(held.cidrs)), min_size=1, unique=True)))
        self.intend_checked(
            EffectIntended(kind=kind, eni=held.facts.id, cidrs=cidrs, attachment=held.attachment)
        )

    def intend_checked(self, wanted: EffectIntended) -> None:
        state = self.node.state
        answer = self.ask(c.Intend(wanted))
        if isinstance(answer, Refused):
            return
        covered = wanted.cidrs if wanted.kind == "unassign" else ()
        if wanted.kind in ("detach", "delete"):
            covered = tuple(state.enis[wanted.eni].cidrs)
            on_it = [lease for lease in state.leases.values() if lease.bindings[0].eni == wanted.eni]
            assert not on_it, f"{wanted.kind} covers open leases"
            assert wanted.eni != EniId("eni-0"), "the primary ENI stays"
        bad = [one for one in self.not_free() for cidr in covered if is_inside(one, cidr)]
        # A detached ENI's addresses may have come back to us on another ENI, and be leased there.
        if wanted.kind != "delete":
            assert not bad, f"{wanted.kind} covers {bad}"
        others = [one.intended.kind for one in state.intents_on(wanted.eni)] if wanted.eni else []
        assert len(others) <= 2
        assert sum(kind in ("assign", "unassign") for kind in others) <= 1

    @precondition(lambda self: self.node.state.intents)
    @rule(data=st.data(), how=st.sampled_from(["reply", "reply", "fail", "lost", "lost before", "give up"]))
    def settle(self, data, how):
        """Each outcome of each effect; one that was performed can only turn out to have been."""
        intent = self.node.state.intents[data.draw(st.sampled_from(sorted(self.node.state.intents)))]
        done = self.outcomes.pop(intent.id, None)
        if done is None and how in ("reply", "lost"):
            done = self.world.perform(intent.id, intent.intended)
            self.views.append(self.reading())
        if how.startswith("lost"):
            self.ask(c.Settle(intent.id, c.Unknown(detail="no reply")))
            assert intent.id in self.node.state.intents, "an unknown outcome keeps the intent open"
            if done is not None:
                self.outcomes[intent.id] = done
            return
        if done is None:
            failed = c.Failed(reason=Reason.EC2_THROTTLED, is_transient=True)
            done = failed if how == "fail" else c.Abandoned(reason="no longer wanted")
        self.ask(c.Settle(intent.id, done))
        assert intent.id not in self.node.state.intents, "what is settled is closed"
        assert self.node.decide(c.Settle(intent.id, done)) == c.Decision(), "settling twice does nothing"

    @rule(
        data=st.data(),
        how=st.sampled_from(["true", "true", "lags", "late", "lies about an ENI", "lies about an address"]),
    )
    def read_ec2(self, data, how):
        begun, enis = self.node.now, list(self.world.attached())
        if how in ("lags", "late"):
            old = data.draw(st.sampled_from(self.views[-4:]))
            enis = list(old.enis)
            if how == "late" and old.begun.boot_id == begun.boot_id:
                begun = old.begun  # It was true when EC2 was asked, and the answer took long.
        elif how == "lies about an ENI":
            enis = [facts for facts in enis if facts.device == 0 or data.draw(st.booleans())]
        elif how == "lies about an address":
            enis = [
                msgspec.structs.replace(one, cidrs=one.cidrs[data.draw(st.integers(0, 1)) :]) for one in enis
            ]
        reading = c.Reading(tuple(enis), begun)
        self.keeps_leases(c.ReadEc2(reading, self.previous))
        self.previous = reading

    @rule(times=st.integers(1, 3), denies_enis=st.booleans())
    def ec2_denies_everything(self, times, denies_enis):
        """Only the primary ENI is listed, or every ENI without its addresses, again and again."""
        for _ in range(times):
            self.wait(61.0)
            seen = tuple(
                msgspec.structs.replace(facts, cidrs=() if not denies_enis else facts.cidrs)
                for facts in self.world.attached()
                if facts.device == 0 or not denies_enis
            )
            reading = c.Reading(seen, self.node.now)
            self.keeps_leases(c.ReadEc2(reading, self.previous))
            self.previous = reading

    @rule()
    def adopt_left_behind(self):
        loose = [facts for facts in self.world.enis.values() if not facts.attachment]
        self.keeps_leases(c.AdoptLeftBehind(tuple(loose)))

    @rule(data=st.data(), is_lost=st.booleans())
    def see_link(self, data, is_lost):
        eni = data.draw(st.sampled_from(sorted(self.node.state.enis)))
        note = c.NoteLinks(lost=((eni, "gone"),)) if is_lost else c.NoteLinks(ready=((eni, "ens5", 3),))
        self.keeps_leases(note)

    # -- time and trouble -------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 10.0, 29.0, 31.0, 61.0, 100.0]))
    def wait(self, seconds):
        self.node.wait(seconds)
        self.true_s += seconds
        if seconds > COOLDOWN_S:
            for rest in self.node.state.rests.values():
                assert not self.node.state.rest_left_s(rest, self.node.now, COOLDOWN_S), "a rest has an end"

    @rule(seconds=st.sampled_from([-3600.0, -20.0, 20.0, 3600.0, 10.0 * 86400]))
    def set_clock(self, seconds):
        self.node.set_clock(seconds)
        self.forward_s += max(0.0, seconds)

    @rule(off_s=st.sampled_from([1.0, 20.0, 40.0]))
    def reboot(self, off_s):
        self.boots += 1
        self.true_s += off_s + 5.0
        self.node.wait(5.0)  # up for so long when the agent starts
        self.node.boot(f"boot-{self.boots + 1}", off_s)
        self.follow()
        assert not self.node.state.leases, "no sandbox outlives a boot"
        assert not self.node.state.standing

    @rule()
    def take_snapshot(self):
        self.snapshot = (self.node.state.head, snapshot_of(self.node.state))

    @rule()
    def crash_and_replay(self):
        """Live on with what the last snapshot and the log after it say."""
        self.node.state = self.replayed()
        self.ask(c.StartAgent(boot_id=self.node.now.boot_id, version="1.0.1"))
        self.wanted.clear()
        self.previous = None

    def replayed(self):
        seq, records = self.snapshot
        state = restore(records)
        state.evolve_all(self.node.records[seq:])
        state.head = self.node.state.head
        return state

    # -- what must stay true ------------------------------------------------------------------------

    @invariant()
    def the_model_agrees(self):
        assert self.node.state.by_address == self.holder

    @invariant()
    def nothing_in_use_can_be_given_back(self):
        """Asked of every ENI and every address that is leased or resting, whatever a plan may say."""
        in_use = set(self.not_free())
        for eni, held in self.node.state.enis.items():
            inside = [cidr for cidr in held.cidrs if Address(cidr[:-3]) in in_use]
            asked = [EffectIntended(kind="unassign", eni=eni, cidrs=(cidr,)) for cidr in inside]
            if inside:
                asked += [EffectIntended(kind="unassign", eni=eni, cidrs=tuple(held.cidrs))]
                asked += [EffectIntended(kind="detach", eni=eni, attachment=held.attachment)]
            if held.lease_count:
                asked += [EffectIntended(kind="delete", eni=eni)]
            for wanted in asked:
                assert isinstance(self.node.decide(c.Intend(wanted)), Refused), (
                    f"{wanted.kind} {wanted.cidrs}"
                )

    @invariant()
    def the_next_pod_gets_an_address_that_is_free(self):
        answer = self.node.decide(c.Add(key=key_of("next"), pod=pod_of("next"), netns="/netns"))
        if not isinstance(answer, c.Decision):
            return
        (event,) = [event for event, _ in answer.events if isinstance(event, AddressAssigned)]
        (binding,) = event.bindings
        assert binding.address not in self.not_free()
        assert Cidr(f"{binding.address}/32") not in self.node.state.cidrs_under_release()

    @invariant()
    def every_way_to_the_state_leads_to_the_same(self):
        live = picture(self.node.state)
        assert live == picture(self.node.folded())
        assert live == picture(self.replayed())
        assert live == picture(self.node.restored())

    @invariant()
    def the_indexes_hold(self):
        state = self.node.state
        assert state.by_key == {lease.key: lease.id for lease in state.leases.values()}
        for lease in state.leases.values():
            assert lease.bindings[0].eni in state.enis, "the ENI of a lease is in the books"
        for eni, held in state.enis.items():
            assert held.lease_count == sum(one.bindings[0].eni == eni for one in state.leases.values())
        assert not state.rests.keys() & state.by_address.keys()
        standing = {rest.lease for rest in state.rests.values() if rest.is_standing}
        assert standing == state.standing.keys(), "an address whose veth stands is waited for"

    @rule()
    def quiet_down(self):
        """When all is quiet, every intent settles, every address is free, and the books are EC2's."""
        node = self.node
        for intent in list(node.state.intents.values()):
            self.settle_truly(intent.id, intent.intended)
        assert not node.state.intents
        for lease in list(node.state.leases.values()):
            self.ask(c.EndLease(key=lease.key, cause="del"))
        node.unwire_all()
        for _ in range(4):
            self.wait(100.0)
            before = self.reading()
            self.wait(5.0)
            self.keeps_leases(c.ReadEc2(self.reading(), before))
        books = {eni: set(held.cidrs) for eni, held in node.state.enis.items() if held.phase == "attached"}
        assert books == {facts.id: set(facts.cidrs) for facts in self.world.attached()}


NodeMachine.TestCase.settings = settings(
    max_examples=int(os.environ["EXPLORE"]) if EXPLORING else 50,
    stateful_step_count=60 if EXPLORING else 50,
    deadline=None,
    derandomize=not EXPLORING,
    database=None,
)
TestNode = NodeMachine.TestCase

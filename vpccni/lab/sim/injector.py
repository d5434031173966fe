"""Lets a fault happen at its instant, and ends it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from vpccni.adapters.log_format import LogFault
from vpccni.adapters.log_memory import RESERVE_BYTES
from vpccni.lab.ec2 import FOR_EVER, Ec2Fault, ImdsFault, Region
from vpccni.lab.ec2 import Fault as CallFault
from vpccni.lab.ec2.entities import Eni
from vpccni.lab.ec2.imds_history import KEPT_S
from vpccni.lab.ec2.throttle import Rate
from vpccni.lab.sim.disk import SYNC_S
from vpccni.lab.sim.faults import CHANGES, Fault
from vpccni.lab.sim.kernel_watched import KERNEL_LATENCY_S
from vpccni.lab.sim.loop import VirtualLoop
from vpccni.lab.sim.misleading import drop_made_up, mislead, set_right
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.rollout import Rollout
from vpccni.lab.sim.trace import Trace
from vpccni.planner.reconcile import NO_MANAGE_TAG
from vpccni.settings import read_settings

TUNINGS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"WARM_ENI_TARGET": "0"},
    {"WARM_ENI_TARGET": "2"},
    {"WARM_IP_TARGET": "1"},
    {"WARM_IP_TARGET": "4", "MINIMUM_IP_TARGET": "10"},
    {"MINIMUM_IP_TARGET": "8"},
)
"""What the targets are set to while nodes run."""


class Injector:
    """Arms faults. ``struck`` counts them; ``on_reboot`` is told before a machine goes down.

    ``rollout`` is who decides which agent runs where.
    """

    def __init__(
        self,
        *,
        region: Region,
        nodes: Sequence[SimNode],
        loop: VirtualLoop,
        trace: Trace,
        on_reboot: Callable[[SimNode], None],
    ) -> None:
        self._region = region
        self._nodes = nodes
        self._loop = loop
        self._trace = trace
        self._on_reboot = on_reboot
        self._latency_s: Mapping[str, float] = dict(region.latency_s)
        self._is_over = False
        self.struck = 0
        self.rollout = Rollout(loop, nodes)
        self._strikes: dict[str, Callable[[Fault, SimNode], None]] = {
            "ec2_call": self._ec2_call,
            "ec2_away": self._ec2_away,
            "ec2_slow": self._ec2_slow,
            "ec2_budget": self._ec2_budget,
            "describe_lag": self._describe_lag,
            "describe_short": self._describe_short,
            "imds": self._imds,
            "log": self._log,
            "disk_full": self._disk_full,
            "slow_sync": self._slow_sync,
            "wiring": self._wiring,
            "slow_kernel": self._slow_kernel,
            "link": self._link,
            "crash": self._crash,
            "stop": self._stop,
            "reboot": self._reboot,
            "clock": self._clock,
            "witness": self._witness,
            "snapshot": self._snapshot,
            "retune": self._retune,
            "foreign_eni": self._foreign_eni,
            "log_lost": self.rollout.lose_log,
            "misled": self._misled,
            "original": self.rollout.bring_original,
        }

    def arm(self, faults: Sequence[Fault]) -> None:
        """Let all of them happen at their instants; they are in order of time."""
        self._arm_next(iter(faults))

    def _arm_next(self, faults: Iterator[Fault]) -> None:
        fault = next(faults, None)
        if fault is not None:
            self._loop.call_outside(
                max(0.0, fault.at - self._loop.time()), self._strike_and_arm, fault, faults
            )

    def _strike_and_arm(self, fault: Fault, faults: Iterator[Fault]) -> None:
        self.strike(fault)
        self._arm_next(faults)

    def strike(self, fault: Fault) -> None:
        """Let one happen now."""
        if self._is_over or fault.node >= len(self._nodes) or self._nodes[max(fault.node, 0)].is_dormant:
            return
        self.struck += 1
        self._trace(f"fault {fault}")
        self._strikes[fault.kind](fault, self._nodes[max(fault.node, 0)])

    def heal(self) -> None:
        """Everything works again, and goes on to."""
        self._is_over = True
        self._trace("healed")
        region = self._region
        region.faults.clear()
        region.throttle.disable()
        region.latency_s = dict(self._latency_s)
        region.world.describe_lag_s = 0.0
        self._describe_whole()
        region.imds.clear()
        region.imds.lag_s = 0.0
        for node in self._nodes:
            node.crash_wanted = None
            if node.life is not None:
                node.life.dies_at = 0
            node.store.capacity_bytes = None
            node.store.faults = type(node.store.faults)()
            node.store.sync_s = SYNC_S
            node.kernel.latency_s = KERNEL_LATENCY_S
            node.kernel.stop_failing()
            node.kernel.is_blind = False
            set_right(node)
            drop_made_up(node)
            node.spool.is_broken = node.spool.is_stuck = False
            node.plug_all()
        self.rollout.heal()

    def _later(self, seconds: float, end: Callable[..., None], *args: Any) -> None:
        self._loop.call_outside(seconds, end, *args)

    # -- EC2 and IMDS -----------------------------------------------------------------------------

    def _ec2_call(self, fault: Fault, node: SimNode) -> None:
        self._region.faults.inject(
            CallFault(
                action=fault.action,
                kind=fault.how,  # type: ignore[arg-type]
                times=max(fault.count, 1),
                code=fault.code or "InternalError",
                seconds=fault.seconds,
                give=fault.count,
                applied="applied" in fault.flag,
            )
        )

    def _ec2_away(self, fault: Fault, node: SimNode) -> None:
        until = self._loop.time() + fault.seconds
        self._region.faults.inject(
            CallFault(
                action="*",
                kind=fault.how,  # type: ignore[arg-type]
                times=FOR_EVER,
                code=fault.code or "InternalError",
            ),
            lambda action, params: self._loop.time() < until,
        )

    def _ec2_slow(self, fault: Fault, node: SimNode) -> None:
        self._region.latency_s = {name: each * fault.count for name, each in self._latency_s.items()}
        self._later(fault.seconds, self._ec2_fast)

    def _ec2_fast(self) -> None:
        self._region.latency_s = dict(self._latency_s)

    def _ec2_budget(self, fault: Fault, node: SimNode) -> None:
        self._region.throttle.enable({action: Rate(2, 0.2) for action in CHANGES})
        self._later(fault.seconds, self._region.throttle.disable)

    def _describe_lag(self, fault: Fault, node: SimNode) -> None:
        self._region.world.describe_lag_s = float(fault.count)
        self._later(fault.seconds, self._describe_now)

    def _describe_now(self) -> None:
        self._region.world.describe_lag_s = 0.0

    def _describe_short(self, fault: Fault, node: SimNode) -> None:
        node.cloud.is_short = True
        self._later(fault.seconds, self._describe_whole)

    def _describe_whole(self) -> None:
        self._nodes[0].cloud.is_short = False

    def _imds(self, fault: Fault, node: SimNode) -> None:
        imds = self._region.imds
        eni = list(node.instance.enis.values())[-1]
        if fault.how == "lag":
            imds.lag_s = fault.seconds
            for each in self._nodes:
                each.imds_broken_at = self._loop.time()
        else:
            node.imds_broken_at = self._loop.time()
            imds.inject(
                ImdsFault(
                    kind=fault.how,  # type: ignore[arg-type]
                    instance_id=node.instance.id,
                    eni_id=eni.id,
                    address=self._wrong_address(fault, node, eni),
                    seconds=1.0,
                )
            )
        self._later(fault.seconds, self._imds_well)

    def _wrong_address(self, fault: Fault, node: SimNode, eni: Eni) -> str:
        """The one to hide, or one that EC2 took away minutes ago."""
        if fault.how == "missing_address":
            return eni.addresses[-1]
        then = self._region.world.history.as_of(node.instance.id, self._loop.time() - KEPT_S)
        gone = [
            one
            for view in then
            if view.eni_id == eni.id
            for one in view.addresses
            if one not in eni.addresses
        ]
        return gone[-1] if gone else ""

    def _imds_well(self) -> None:
        self._region.imds.clear()
        self._region.imds.lag_s = 0.0

    # -- the disk ---------------------------------------------------------------------------------

    def _log(self, fault: Fault, node: SimNode) -> None:
        node.store.faults.plan(*[LogFault(fault.how)] * max(fault.count, 1))

    def _disk_full(self, fault: Fault, node: SimNode) -> None:
        store = node.store
        store.capacity_bytes = store.used_bytes + 1000 + (RESERVE_BYTES if int(fault.seconds) % 2 else 0)
        if not int(fault.seconds) % 2:
            store.is_reserve_held = False
        self._later(fault.seconds, self._disk_free, node)

    def _disk_free(self, node: SimNode) -> None:
        node.store.capacity_bytes = None

    def _slow_sync(self, fault: Fault, node: SimNode) -> None:
        node.store.sync_s = fault.count / 1000
        self._later(fault.seconds, self._fast_sync, node)

    def _fast_sync(self, node: SimNode) -> None:
        node.store.sync_s = SYNC_S

    # -- the kernel -------------------------------------------------------------------------------

    def _wiring(self, fault: Fault, node: SimNode) -> None:
        node.kernel.fail(fault.action, times=max(fault.count, 1))

    def _slow_kernel(self, fault: Fault, node: SimNode) -> None:
        node.kernel.latency_s = fault.count / 1000
        self._later(fault.seconds, self._fast_kernel, node)

    def _fast_kernel(self, node: SimNode) -> None:
        node.kernel.latency_s = KERNEL_LATENCY_S

    def _link(self, fault: Fault, node: SimNode) -> None:
        if fault.how == "flap":
            node.flap(fault.seconds)
        else:
            node.link_faults.append(fault)

    # -- the machine ------------------------------------------------------------------------------

    def _crash(self, fault: Fault, node: SimNode) -> None:
        node.want_crash(fault)

    def _stop(self, fault: Fault, node: SimNode) -> None:
        if not self.rollout.is_busy(node):
            node.stop(fault.seconds)

    def _reboot(self, fault: Fault, node: SimNode) -> None:
        is_ours_down = node.life is None or node.life.is_over
        has_other_served = node.original.ended_at > node.started_at or node.original.is_running
        is_drawn = fault.at > 0  # A scenario knows what it does.
        if is_drawn and is_ours_down and node.store.events and has_other_served:
            return  # It would take away all that tells our agent that another one has changed the pool.
        self._on_reboot(node)
        node.reboot(fault.seconds, is_sent="sent" in fault.flag)

    def _clock(self, fault: Fault, node: SimNode) -> None:
        node.clock.step_wall(fault.seconds)

    def _witness(self, fault: Fault, node: SimNode) -> None:
        match fault.how:
            case "api_down":
                node.kube.is_down = True
            case "api_stale":
                node.kube.stale = frozenset(node.kube.uids)
            case "cache_unreadable":
                node.cache.is_readable = False
            case "blind":
                node.kernel.is_blind = True
            case "spool_stuck":
                node.spool.is_stuck = True
            case _:
                node.spool.is_broken = True
        self._later(fault.seconds, self._witness_well, node)

    def _witness_well(self, node: SimNode) -> None:
        node.kube.is_down, node.kube.stale = False, None
        node.kernel.is_blind = False
        node.cache.is_readable = True
        node.spool.is_broken = node.spool.is_stuck = False

    def _misled(self, fault: Fault, node: SimNode) -> None:
        mislead(node, fault.how, random.Random(fault.count), self._nodes)
        self._later(fault.seconds, set_right, node)

    def _snapshot(self, fault: Fault, node: SimNode) -> None:
        node.write_snapshot()

    def _retune(self, fault: Fault, node: SimNode) -> None:
        """Somebody edits the DaemonSet: the agent is restarted with other targets."""
        node.settings = read_settings(TUNINGS[fault.count % len(TUNINGS)])
        if not self.rollout.is_busy(node):
            node.stop(fault.seconds)

    def _foreign_eni(self, fault: Fault, node: SimNode) -> None:
        """Another program attaches an ENI that is none of ours to manage, and takes it away later."""
        region, now = self._region, self._loop.time()
        made = region.perform(
            "CreateNetworkInterface",
            {
                "SubnetId": node.instance.subnet.id,
                "TagSpecifications": [
                    {
                        "ResourceType": "network-interface",
                        "Tags": [{"Key": NO_MANAGE_TAG, "Value": "true"}],
                    }
                ],
            },
            now,
        )
        if isinstance(made, Ec2Fault):
            return
        eni = made["NetworkInterface"]["NetworkInterfaceId"]
        used = [each.attachment.device_index for each in node.instance.enis.values() if each.attachment]
        device = next(index for index in range(1, 64) if index not in used)
        params = {"NetworkInterfaceId": eni, "InstanceId": node.instance.id, "DeviceIndex": device}
        region.perform("AttachNetworkInterface", params, now)
        region.advance(now)
        self._later(fault.seconds, self._take_away, eni)

    def _take_away(self, eni: str) -> None:
        region, now = self._region, self._loop.time()
        held = region.world.enis.get(eni)
        if held is not None and held.attachment is not None:
            region.perform("DetachNetworkInterface", {"AttachmentId": held.attachment.id}, now)
            region.advance(now)
            self._later(10.0, self._take_away, eni)
        elif held is not None:
            region.perform("DeleteNetworkInterface", {"NetworkInterfaceId": eni}, now)

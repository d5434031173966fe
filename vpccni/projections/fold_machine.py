"""How events about the machine, about taking over and about the planner change the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vpccni.events import adoption, decision, node
from vpccni.events.codec import Record
from vpccni.model import Seq
from vpccni.projections.rest import BootMark

if TYPE_CHECKING:
    from vpccni.projections.state import State

_BOOTS_KEPT = 8
"""Boot changes remembered: rests are seconds long, so one would do; a few more cost nothing."""


def _keep(state: State, kind: str, record: Record) -> None:
    state.latest[kind] = record


def _log_created(state: State, record: Record, event: node.LogCreated) -> None:
    state.log_id = event.log_id
    _keep(state, "log", record)


def _agent_started(state: State, record: Record, event: node.AgentStarted) -> None:
    state.boot_id = event.boot_id
    state.agent_version = event.version
    state.broken = None
    state.latest.pop("broken", None)
    _keep(state, "agent", record)


def _boot_changed(state: State, record: Record, event: node.BootChanged) -> None:
    state.boots[event.old] = BootMark(event.last, record.stamp)
    _keep(state, f"boot:{event.old}", record)
    while len(state.boots) > _BOOTS_KEPT:
        oldest = next(iter(state.boots))
        del state.boots[oldest]
        del state.latest[f"boot:{oldest}"]
    state.boot_id = event.new


def _instance_observed(state: State, record: Record, event: node.InstanceObserved) -> None:
    state.instance = event.instance
    state.identity_boot = record.stamp.boot_id
    state.doubted = None
    state.latest.pop("doubted", None)
    state.vpc_cidrs = event.instance.vpc_cidrs
    state.latest.pop("network", None)
    _keep(state, "instance", record)
    if event.changed:
        # Nobody has yet searched this machine.
        state.survey, state.survey_seq = None, Seq(0)
        state.latest.pop("survey", None)


def _instance_doubted(state: State, record: Record, event: node.InstanceDoubted) -> None:
    state.doubted = event
    _keep(state, "doubted", record)


def _limits_observed(state: State, record: Record, event: node.LimitsObserved) -> None:
    state.limits = event.limits
    _keep(state, "limits", record)


def _policy_observed(state: State, record: Record, event: node.PolicyObserved) -> None:
    state.policy = event.settings
    _keep(state, "policy", record)


def _max_pods_observed(state: State, record: Record, event: node.MaxPodsObserved) -> None:
    state.max_pods = event.max_pods
    _keep(state, "max_pods", record)


def _scheduling_observed(state: State, record: Record, event: node.SchedulingObserved) -> None:
    state.is_schedulable = event.schedulable
    _keep(state, "scheduling", record)


def _subnet_observed(state: State, record: Record, event: node.SubnetObserved) -> None:
    state.subnets[event.subnet] = event
    _keep(state, f"subnet:{event.subnet}", record)


def _network_config_observed(state: State, record: Record, event: node.NetworkConfigObserved) -> None:
    state.vpc_cidrs = event.vpc_cidrs
    _keep(state, "network", record)


def _invariant_broken(state: State, record: Record, event: node.InvariantBroken) -> None:
    state.broken = event
    _keep(state, "broken", record)


def _plan_made(state: State, record: Record, event: decision.PlanMade) -> None:
    state.plan = event
    _keep(state, "plan", record)


def _node_surveyed(state: State, record: Record, event: adoption.NodeSurveyed) -> None:
    state.survey, state.survey_seq = event, record.seq
    _keep(state, "survey", record)


def _other_agent_observed(state: State, record: Record, event: adoption.OtherAgentObserved) -> None:
    state.other_agent = event if event.is_alive else None
    _keep(state, "other_agent", record)


def _checkpoint_imported(state: State, record: Record, event: adoption.CheckpointImported) -> None:
    state.imported = event
    _keep(state, "imported", record)


def _checkpoint_exported(state: State, record: Record, event: adoption.CheckpointExported) -> None:
    state.exported = event
    _keep(state, "exported", record)


def _mode_changed(state: State, record: Record, event: adoption.ModeChanged) -> None:
    state.mode = event.mode
    _keep(state, "mode", record)


FOLDS: Final[dict[type, Callable[[State, Record, Any], None]]] = {
    node.LogCreated: _log_created,
    node.AgentStarted: _agent_started,
    node.BootChanged: _boot_changed,
    node.InstanceObserved: _instance_observed,
    node.InstanceDoubted: _instance_doubted,
    node.LimitsObserved: _limits_observed,
    node.PolicyObserved: _policy_observed,
    node.MaxPodsObserved: _max_pods_observed,
    node.SchedulingObserved: _scheduling_observed,
    node.SubnetObserved: _subnet_observed,
    node.NetworkConfigObserved: _network_config_observed,
    node.InvariantBroken: _invariant_broken,
    adoption.NodeSurveyed: _node_surveyed,
    adoption.OtherAgentObserved: _other_agent_observed,
    adoption.CheckpointImported: _checkpoint_imported,
    adoption.CheckpointExported: _checkpoint_exported,
    adoption.ModeChanged: _mode_changed,
    decision.PlanMade: _plan_made,
}

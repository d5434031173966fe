"""The DaemonSet's manifest, as tests want it: parsed, and the agent's command and environment taken from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
Document = dict[str, Any]


def deploy_manifest() -> dict[str, Document]:
    """The documents of ``deploy/aws-node.yaml`` by kind."""
    documents = list(yaml.safe_load_all((DEPLOY / "aws-node.yaml").read_text()))
    return {document["kind"]: document for document in documents}


def pod_spec() -> Document:
    """The spec of the DaemonSet's pods."""
    spec: Document = deploy_manifest()["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> Document:
    """One container, or init container, by name."""
    spec = pod_spec()
    found: Document = next(
        each for each in spec["containers"] + spec["initContainers"] if each["name"] == name
    )
    return found


def agent_command() -> list[str]:
    """What the agent's container runs."""
    return list(container("aws-node")["command"])


def agent_environment(**fields: str) -> dict[str, str]:
    """The agent's environment; ``fields`` are the node's and pod's, by last part: ``nodeName``, ``name``."""
    environ = {}
    for entry in container("aws-node").get("env", []):
        if "valueFrom" in entry:
            environ[entry["name"]] = fields[entry["valueFrom"]["fieldRef"]["fieldPath"].rpartition(".")[2]]
        else:
            environ[entry["name"]] = entry["value"]
    return environ

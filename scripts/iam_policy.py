"""Prints ``deploy/iam-policy.json`` from the EC2 operations that the agent's client has (`make docs`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection

from vpccni.adapters.ec2.sdk import OPERATIONS

INTERFACES = "arn:aws:ec2:*:*:network-interface/*"
"""All that is ever tagged, in a call of its own or as part of a create, which needs ``ec2:CreateTags`` as well."""


def policy(operations: Collection[str]) -> dict[str, object]:
    """What a node's role must be allowed so that these operations succeed: these, and nothing else."""
    looking = {name for name in operations if name.startswith("Describe")}
    tagging = {name for name in operations if name.endswith("Tags")} - looking
    if "CreateNetworkInterface" in operations:
        tagging |= {"CreateTags"}
    changing = set(operations) - looking - tagging
    statements = [
        _statement("Look", looking, "*"),  # EC2 knows no resources for these
        _statement("Change", changing, "*"),
        _statement("Tag", tagging, INTERFACES),
    ]
    return {"Version": "2012-10-17", "Statement": [each for each in statements if each["Action"]]}


def _statement(sid: str, operations: Collection[str], resource: str) -> dict[str, object]:
    actions = [f"ec2:{name}" for name in sorted(operations)]
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}


def document() -> str:
    """The whole file."""
    return json.dumps(policy(OPERATIONS), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())

"""Can this node be taken over from amazon-vpc-cni-k8s? What would be taken over, and what stands in the way.

The same answer serves ``vpccni take-over --check``, which runs beside the living original, and an agent without a
log, which asks before it replaces anything. Five words:

* *found*: one address in use on the node, which becomes a lease or a hold;
* *objection*: something here that vpccni cannot serve yet, or would drop silently. One is enough to refuse;
* *caution*: something to know. It refuses nothing;
* *gap*: what could not be looked at and may hide an objection. With a gap nobody can say "yes";
* *ours*: a pod that vpccni has wired; its host veth has our alias. It is no reason to refuse, for an agent that has
  lost its log must not refuse its own node.
"""

from vpccni.takeover.examination import BRANCH_VETH_PREFIX, check
from vpccni.takeover.findings import Caution, Findings, Found, Objection, pod_text

__all__ = ["BRANCH_VETH_PREFIX", "Caution", "Findings", "Found", "Objection", "check", "pod_text"]

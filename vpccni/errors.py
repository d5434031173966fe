"""The error tree and the closed list of reason codes.

A *reason code* is the one name of a cause: the same in the CNI error, the log, the metric, the
Kubernetes Event and ``vpccni why``. Each has a sentence for a person and a next action. A code is
never renamed and never used for a second cause.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Reason(StrEnum):
    """Why something was refused, failed or was held back."""

    # An ADD cannot be served now.
    NO_ADDRESS = "no_address"
    WAIT_TIMED_OUT = "wait_timed_out"
    INSTANCE_FULL = "instance_full"
    MAX_PODS_REACHED = "max_pods_reached"
    SUBNET_EXHAUSTED = "subnet_exhausted"
    EC2_THROTTLED = "ec2_throttled"
    EC2_UNREACHABLE = "ec2_unreachable"
    EC2_UNAUTHORIZED = "ec2_unauthorized"
    EC2_REFUSED = "ec2_refused"
    IMDS_UNREACHABLE = "imds_unreachable"
    NODE_NOT_INITIALIZED = "node_not_initialized"
    NOT_THE_SAME_MACHINE = "not_the_same_machine"
    INSTANCE_DOUBTED = "instance_doubted"
    RECOVERING = "recovering"
    ADDRESS_UNEXPLAINED = "address_unexplained"
    HANDING_BACK = "handing_back"
    SANDBOX_HELD = "sandbox_held"
    CANCELLED = "cancelled"
    TOO_MANY_WAITING = "too_many_waiting"
    STOPPING = "stopping"
    # The node's own machinery.
    LOG_DISK_FULL = "log_disk_full"
    LOG_WRITE_FAILED = "log_write_failed"
    LOG_NEWER = "log_newer"
    LOG_DAMAGED = "log_damaged"
    LOG_UNUSABLE = "log_unusable"
    LOG_VOLATILE = "log_volatile"
    LOG_IN_USE = "log_in_use"
    LOG_REMOVED = "log_removed"
    INVARIANT_BROKEN = "invariant_broken"
    KERNEL_REFUSED = "kernel_refused"
    NETNS_GONE = "netns_gone"
    INTERFACE_EXISTS = "interface_exists"
    ENI_LINK_MISSING = "eni_link_missing"
    SPOOL_UNREADABLE = "spool_unreadable"
    TAKE_OVER_REFUSED = "take_over_refused"
    PORTMAP_MISSING = "portmap_missing"
    EXPORT_FAILED = "export_failed"
    ANOTHER_AGENT = "another_agent"
    # The caller's mistake.
    BAD_REQUEST = "bad_request"
    BAD_ENVIRONMENT = "bad_environment"
    BAD_CONFIG = "bad_config"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNKNOWN_CONTAINER = "unknown_container"
    CHECK_FAILED = "check_failed"
    NOT_ALLOWED = "not_allowed"
    TOO_LARGE = "too_large"
    TOO_BUSY = "too_busy"
    # Settings.
    FEATURE_NOT_SUPPORTED = "feature_not_supported"
    BAD_SETTING = "bad_setting"
    INSTALL_FAILED = "install_failed"
    INTERNAL = "internal"


class Explanation(msgspec.Struct, frozen=True):
    """What a reason code means and what to do about it, each one plain sentence."""

    meaning: str
    next_action: str


EXPLANATIONS: Final[dict[Reason, Explanation]] = {
    Reason.NO_ADDRESS: Explanation(
        "The node has no free address and no growth is possible just now.",
        "Look at `vpccni status` for what growth waits on; delete pods or wait for cooling addresses.",
    ),
    Reason.WAIT_TIMED_OUT: Explanation(
        "The pod waited for an address that growth should have brought, and it did not come in time.",
        "kubelet tries again by itself; `vpccni events` shows which EC2 call is slow or failing.",
    ),
    Reason.INSTANCE_FULL: Explanation(
        "Every ENI and every address slot that this instance type allows is in use.",
        "Use a larger instance type, prefix delegation, or fewer pods on this node.",
    ),
    Reason.MAX_PODS_REACHED: Explanation(
        "The node already owns as many addresses as it may run pods, and all are taken.",
        "Raise max pods of the node, or schedule pods elsewhere.",
    ),
    Reason.SUBNET_EXHAUSTED: Explanation(
        "The subnet has no free address left.",
        "Add a CIDR or a subnet, or lower the warm targets; the next try is in at most two minutes.",
    ),
    Reason.EC2_THROTTLED: Explanation(
        "EC2 throttles the calls that would bring addresses.",
        "Nothing is lost, calls go on more slowly; look for other callers on the account's request quota.",
    ),
    Reason.EC2_UNREACHABLE: Explanation(
        "EC2 does not answer.",
        "Check the route to the EC2 endpoint, its security group, and AWS_ENDPOINT_URL_EC2.",
    ),
    Reason.EC2_UNAUTHORIZED: Explanation(
        "IAM does not allow the node a call that it needs.",
        "Attach the policy of the README to the role of the aws-node service account.",
    ),
    Reason.EC2_REFUSED: Explanation(
        "EC2 refused a call for a reason that trying again will not change.",
        "Read the EC2 error code in the event; quota and configuration are the usual causes.",
    ),
    Reason.IMDS_UNREACHABLE: Explanation(
        "The instance metadata service does not answer, and the log does not prove which machine this is.",
        "Check the hop limit and availability of IMDSv2 on the instance.",
    ),
    Reason.NODE_NOT_INITIALIZED: Explanation(
        "The agent has not yet learned its ENIs: the log is new and EC2 or IMDS have not answered.",
        "`vpccni status` says what it waits for.",
    ),
    Reason.NOT_THE_SAME_MACHINE: Explanation(
        "The log was written on another machine: its primary MAC is not that of any link here.",
        "The agent waits for IMDS and then starts over; do not bake the log into a machine image.",
    ),
    Reason.INSTANCE_DOUBTED: Explanation(
        "IMDS names another instance than the log, and nothing proves that the machine has changed.",
        "EC2 is not changed meanwhile, pods are served. Look at what answers at the IMDS address of this node.",
    ),
    Reason.RECOVERING: Explanation(
        "The agent is finding out which pods live on this node, because its log does not tell.",
        "Wait; `vpccni status` says which source could not be read.",
    ),
    Reason.ADDRESS_UNEXPLAINED: Explanation(
        "A pod's host interface is there, and neither a route nor its namespace tells which address it has.",
        "It is looked at again every few seconds. If it stays, delete that pod, or the interface when no pod "
        "has it: `ip link show NAME`, `ip route show dev NAME`.",
    ),
    Reason.HANDING_BACK: Explanation(
        "The node is being handed back to amazon-vpc-cni-k8s: EC2 is not changed.",
        "Start the original when `vpccni hand-back` says so, or serve again with `vpccni hand-back --cancel`.",
    ),
    Reason.SANDBOX_HELD: Explanation(
        "Another lease for the same sandbox is still being taken down.",
        "Try again; the runtime does so by itself.",
    ),
    Reason.CANCELLED: Explanation(
        "The ADD was given up because a DEL for the same sandbox came.", "Nothing to do."
    ),
    Reason.TOO_MANY_WAITING: Explanation(
        "More pods wait for an address than the agent lets wait.", "kubelet tries again by itself."
    ),
    Reason.STOPPING: Explanation(
        "The agent is stopping.", "The plugin tries again until the next agent answers."
    ),
    Reason.LOG_DISK_FULL: Explanation(
        "The disk of the event log is full: nothing can be promised to a new pod.",
        "Free space on the filesystem of the log (--state-dir); deleting pods goes on meanwhile.",
    ),
    Reason.LOG_WRITE_FAILED: Explanation(
        "The event log could not be written or synced; the outcome of the last batch was unknown.",
        "Check the disk (dmesg); the agent reopened the log and goes on from what is in it.",
    ),
    Reason.LOG_NEWER: Explanation(
        "The event log was written by a newer vpccni with records that this version must understand.",
        "Run the newer version again.",
    ),
    Reason.LOG_DAMAGED: Explanation(
        "The event log is damaged: its hash chain or its content does not hold.",
        "A copy is kept beside it (*.quarantine-*); run `vpccni replay LOG verify`. Restore a good copy, or move all "
        "files of the log to another directory: the agent then recovers the leases from the pods that live here.",
    ),
    Reason.LOG_UNUSABLE: Explanation(
        "The place of the event log cannot be used; the log itself, if there is one, was not touched.",
        "Look at the directory in the message (--state-dir): does it exist, is it writable, is it a directory?",
    ),
    Reason.LOG_VOLATILE: Explanation(
        "The event log would lie on a tmpfs or overlay, where a sync promises nothing.",
        "Mount a directory of the node's disk there, or say --volatile-log if losing leases is acceptable.",
    ),
    Reason.LOG_IN_USE: Explanation(
        "Another agent holds the event log.",
        "Stop the other agent first; two writers are never right.",
    ),
    Reason.LOG_REMOVED: Explanation(
        "The files of the event log were removed or replaced under the running agent and could not be put back yet.",
        "Look at what the message says stands in the way. Do not restart the agent before that: "
        "it holds the only copy of its log, and tries again every two seconds.",
    ),
    Reason.INVARIANT_BROKEN: Explanation(
        "A check of our own failed. The agent stopped changing EC2 and goes on serving from stock.",
        "Save the log (`vpccni replay LOG verify`) and report it.",
    ),
    Reason.KERNEL_REFUSED: Explanation(
        "The kernel refused a step of wiring a pod or of setting up an ENI; what was done before it was undone.",
        "The message names the step and the errno. EPERM: the agent's container lacks CAP_NET_ADMIN.",
    ),
    Reason.NETNS_GONE: Explanation(
        "The network namespace of the sandbox does not exist.",
        "The runtime gave up on this sandbox; it will make another.",
    ),
    Reason.INTERFACE_EXISTS: Explanation(
        "The sandbox already has an interface of that name that is not ours.",
        "Another plugin ran first, or ran under the same name; look at the order of the conflist.",
    ),
    Reason.ENI_LINK_MISSING: Explanation(
        "An ENI is attached, says EC2, but its link is not in the kernel.",
        "Wait a moment; if it lasts, detach the ENI or reboot the node.",
    ),
    Reason.SPOOL_UNREADABLE: Explanation(
        "A spooled DEL could not be read; it was set aside.",
        "Look at the file with the suffix .bad in the spool; the lease sweep frees the address later.",
    ),
    Reason.TAKE_OVER_REFUSED: Explanation(
        "This node cannot be taken over from amazon-vpc-cni-k8s: its pods use something that vpccni cannot serve "
        "yet. Executable, conflist and checkpoint file are as they were.",
        "`vpccni take-over --check` on the node names the pods and what to do; start amazon-vpc-cni-k8s again if it "
        "was stopped.",
    ),
    Reason.PORTMAP_MISSING: Explanation(
        "No plugin of this node serves host ports: `portmap` is missing. Pods with a hostPort are refused.",
        "Put `portmap` into the node's directory of CNI executables, then restart the agent or run `vpccni install`.",
    ),
    Reason.EXPORT_FAILED: Explanation(
        "The leases could not be written as the checkpoint file of amazon-vpc-cni-k8s (ipam.json).",
        "Look at the path in the message (AWS_VPC_K8S_CNI_BACKING_STORE): does its directory exist, is there room? "
        "Pods are served meanwhile, but do not hand the node back before it is written.",
    ),
    Reason.ANOTHER_AGENT: Explanation(
        "Another agent serves this node's pods.",
        "The message says how it shows. Stop that agent first: two of them give the same address to two pods.",
    ),
    Reason.BAD_REQUEST: Explanation(
        "The request is not what POST /v1/cni takes.", "Use the plugin of the same version."
    ),
    Reason.BAD_ENVIRONMENT: Explanation(
        "A CNI environment variable is missing or not valid.",
        "The message names the variable; the runtime's configuration is the place to look.",
    ),
    Reason.BAD_CONFIG: Explanation(
        "The network configuration is not valid.",
        "Run `vpccni install` again to write a good conflist.",
    ),
    Reason.UNSUPPORTED_VERSION: Explanation(
        "The configuration asks for a CNI version that is not supported.",
        "Use 0.3.0, 0.3.1, 0.4.0, 1.0.0 or 1.1.0.",
    ),
    Reason.UNKNOWN_CONTAINER: Explanation(
        "There is no lease for this sandbox.", "The runtime must ADD it first."
    ),
    Reason.CHECK_FAILED: Explanation(
        "The sandbox is not wired as its lease says.",
        "The message names what is missing; recreate the pod if it lasts.",
    ),
    Reason.NOT_ALLOWED: Explanation("Only root may talk to this socket.", "Run the command as root."),
    Reason.TOO_LARGE: Explanation("The request is larger than the agent takes.", "Send less."),
    Reason.TOO_BUSY: Explanation(
        "More requests are under way than the agent takes at once.",
        "Try again shortly; the plugin does so by itself.",
    ),
    Reason.FEATURE_NOT_SUPPORTED: Explanation(
        "A setting asks for something that vpccni cannot do yet.",
        "Unset the named setting, or stay on amazon-vpc-cni-k8s until it is there.",
    ),
    Reason.BAD_SETTING: Explanation(
        "A setting has a value that cannot be meant.", "The message names the setting and its range."
    ),
    Reason.INSTALL_FAILED: Explanation(
        "The CNI executable or the conflist could not be put in place; nothing half-written is there.",
        "Look at the directory in the message: does it exist, is it writable, is it a mount of the host's?",
    ),
    Reason.INTERNAL: Explanation(
        "Something unforeseen happened in the agent.", "Read the agent's log; please report it."
    ),
}


class VpccniError(Exception):
    """Root of every error that we raise on purpose.

    Attributes:
        reason: The stable code of the cause.
        detail: What was attempted and what came back, for the message.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else str(reason))


class TransientError(VpccniError):
    """Nothing was changed; the same call may succeed later.

    Attributes:
        retry_after_s: Do not try before that many seconds, if the other side said so.
    """

    def __init__(self, reason: Reason, detail: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s


class PermanentError(VpccniError):
    """Useless to repeat until somebody changes a quota, a policy or the configuration.

    Attributes:
        code: The foreign error code, when there is one (``InvalidNetworkInterfaceID.NotFound``).
    """

    def __init__(self, reason: Reason, detail: str = "", code: str = "") -> None:
        super().__init__(reason, detail)
        self.code = code


class OutcomeUnknownError(VpccniError):
    """The request left and no reply came: it may or may not have been done. Ask before acting again."""


class InvariantBrokenError(VpccniError):
    """A bug of ours: recorded, changes to EC2 stop, safe service goes on."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.INVARIANT_BROKEN, detail)


class Refused(msgspec.Struct, frozen=True):
    """An expected refusal, as a value inside the core."""

    reason: Reason
    detail: str = ""


def sentence(reason: Reason, detail: str = "") -> str:
    """One line for a person: meaning, detail, next action."""
    explanation = EXPLANATIONS[reason]
    middle = f" ({detail})" if detail else ""
    return f"{explanation.meaning}{middle} {explanation.next_action}"

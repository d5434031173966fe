"""The errors that EC2 answers, with its own codes and wording.

Codes: EC2 API reference, "Error codes". Where the reference leaves the wording open, the wording is what
operators report from the field. The id stands in quotes, because clients parse it out of the message.
"""

from typing import Final

_STATUS_OF_CODE: Final = {
    "RequestLimitExceeded": 503,
    "Unavailable": 503,
    "InternalError": 500,
    "DryRunOperation": 412,
    "UnauthorizedOperation": 403,
    "AuthFailure": 401,
}


class Ec2Fault(Exception):  # noqa: N818  # EC2 calls it a fault, and it is returned as often as it is raised
    """EC2 refused a call: nothing was changed.

    Attributes:
        code: The EC2 error code, for instance ``InvalidSubnetID.NotFound``.
        message: EC2's sentence about it.
        status: The HTTP status that goes with the code.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status if status is not None else _STATUS_OF_CODE.get(code, 400)


class ReplyLost(Exception):  # noqa: N818  # what happened, not whose error it is
    """The connection broke before a reply came; the caller cannot know whether the call was applied.

    Attributes:
        applied: Whether it was. For assertions in tests only: no client may look at it.
    """

    def __init__(self, action: str, *, applied: bool) -> None:
        super().__init__(f"{action}: connection lost before the reply")
        self.action = action
        self.applied = applied


def missing(parameter: str) -> Ec2Fault:
    """A required parameter was not given."""
    return Ec2Fault("MissingParameter", f"The request must contain the parameter {parameter}")


def invalid_value(message: str) -> Ec2Fault:
    """A parameter has a value that EC2 refuses."""
    return Ec2Fault("InvalidParameterValue", message)


def invalid_combination(message: str) -> Ec2Fault:
    """Two parameters exclude each other, or two resources do."""
    return Ec2Fault("InvalidParameterCombination", message)


def not_modelled(action: str, parameter: str) -> Ec2Fault:
    """EC2 knows this parameter, the emulated region does not; it is refused, never ignored."""
    return Ec2Fault("UnsupportedOperation", f"The emulated region does not model {parameter} of {action}")


def eni_not_found(eni_id: str) -> Ec2Fault:
    """No ENI of that id exists (any more)."""
    return Ec2Fault(
        "InvalidNetworkInterfaceID.NotFound", f"The networkInterface ID '{eni_id}' does not exist"
    )


def instance_not_found(instance_id: str) -> Ec2Fault:
    """No instance of that id exists."""
    return Ec2Fault("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")


def subnet_not_found(subnet_id: str) -> Ec2Fault:
    """No subnet of that id exists."""
    return Ec2Fault("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist")


def vpc_not_found(vpc_id: str) -> Ec2Fault:
    """No VPC of that id exists."""
    return Ec2Fault("InvalidVpcID.NotFound", f"The vpc ID '{vpc_id}' does not exist")


def group_not_found(group_id: str, *, code: str = "InvalidGroup.NotFound") -> Ec2Fault:
    """No security group of that id exists; creating an ENI says so with a code of its own."""
    return Ec2Fault(code, f"The security group '{group_id}' does not exist")


def attachment_not_found(attachment_id: str) -> Ec2Fault:
    """No attachment of that id exists (any more)."""
    return Ec2Fault(
        "InvalidAttachmentID.NotFound", f"The networkInterface attachment ID '{attachment_id}' does not exist"
    )


def eni_in_use_delete(eni_id: str) -> Ec2Fault:
    """Delete of an ENI that is attached, attaching or detaching."""
    return invalid_value(f"Network interface '{eni_id}' is currently in use.")


def eni_in_use_attach(eni_id: str) -> Ec2Fault:
    """Attach of an ENI that is attached already."""
    return Ec2Fault("InvalidNetworkInterface.InUse", f"Interface: [{eni_id}] in use.")


def subnet_full() -> Ec2Fault:
    """The subnet has fewer free addresses than were asked for. EC2 then gives none at all."""
    return Ec2Fault(
        "InsufficientFreeAddressesInSubnet",
        "The specified subnet does not have enough free addresses to satisfy the request.",
    )


def subnet_fragmented() -> Ec2Fault:
    """The subnet has too few whole /28 blocks."""
    return Ec2Fault(
        "InsufficientCidrBlocks",
        "The specified subnet does not have enough free cidr blocks to satisfy the request.",
    )


def too_many_addresses(eni_id: str) -> Ec2Fault:
    """The ENI would hold more addresses and prefixes than its instance type allows."""
    return Ec2Fault(
        "PrivateIpAddressLimitExceeded",
        f"Number of private addresses will exceed limit on interface {eni_id}.",
    )


def throttled() -> Ec2Fault:
    """The account's bucket for this API is empty."""
    return Ec2Fault("RequestLimitExceeded", "Request limit exceeded.")

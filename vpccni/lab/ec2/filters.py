"""Filters and pages of the Describe calls.

Filter values match exactly, or by the wildcards ``*`` and ``?`` (EC2 API reference, "Filter").
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from vpccni.lab.ec2.entities import Eni, Taggable
from vpccni.lab.ec2.errors import Ec2Fault, invalid_combination, invalid_value

_T = TypeVar("_T", bound=Taggable)
_Item = TypeVar("_Item")
Getter = Callable[[Any], Iterable[str]]


def _attachment(attribute: str) -> Getter:
    def get(eni: Eni) -> Iterable[str]:
        if eni.attachment is None:
            return ()
        value = getattr(eni.attachment, attribute)
        return (str(value).lower() if isinstance(value, bool) else str(value),)

    return get


ENI_FILTERS: dict[str, Getter] = {
    "addresses.private-ip-address": lambda eni: eni.addresses,
    "attachment.attachment-id": _attachment("id"),
    "attachment.delete-on-termination": _attachment("delete_on_termination"),
    "attachment.device-index": _attachment("device_index"),
    "attachment.instance-id": lambda eni: () if eni.instance is None else (eni.instance.id,),
    "attachment.status": _attachment("status"),
    "availability-zone": lambda eni: (eni.subnet.zone,),
    "description": lambda eni: (eni.description,),
    "group-id": lambda eni: [group.id for group in eni.groups],
    "interface-type": lambda _: ("interface",),
    "mac-address": lambda eni: (eni.mac,),
    "network-interface-id": lambda eni: (eni.id,),
    "private-ip-address": lambda eni: eni.addresses,
    "status": lambda eni: (eni.status,),
    "subnet-id": lambda eni: (eni.subnet.id,),
    "vpc-id": lambda eni: (eni.subnet.vpc.id,),
}

INSTANCE_FILTERS: dict[str, Getter] = {
    "availability-zone": lambda instance: (instance.subnet.zone,),
    "instance-id": lambda instance: (instance.id,),
    "instance-state-name": lambda instance: (instance.state,),
    "instance-type": lambda instance: (instance.type.name,),
    "network-interface.network-interface-id": lambda instance: list(instance.enis),
    "private-ip-address": lambda instance: [eni.primary for eni in instance.enis.values()][:1],
    "subnet-id": lambda instance: (instance.subnet.id,),
    "vpc-id": lambda instance: (instance.subnet.vpc.id,),
}

SUBNET_FILTERS: dict[str, Getter] = {
    "availability-zone": lambda subnet: (subnet.zone,),
    "availabilityZone": lambda subnet: (subnet.zone,),
    "cidr": lambda subnet: (str(subnet.cidr),),
    "cidr-block": lambda subnet: (str(subnet.cidr),),
    "state": lambda _: ("available",),
    "subnet-id": lambda subnet: (subnet.id,),
    "vpc-id": lambda subnet: (subnet.vpc.id,),
}

GROUP_FILTERS: dict[str, Getter] = {
    "group-id": lambda group: (group.id,),
    "group-name": lambda group: (group.name,),
    "vpc-id": lambda group: (group.vpc.id,),
}

VPC_FILTERS: dict[str, Getter] = {
    "cidr": lambda vpc: (vpc.cidrs[0],),
    "state": lambda _: ("available",),
    "vpc-id": lambda vpc: (vpc.id,),
}


def exact_values(params: Mapping[str, Any], name: str) -> list[str] | None:
    """Return the values of a filter if it is there and free of wildcards: the way to an index."""
    for given in params.get("Filters") or ():
        if given.get("Name") == name:
            values = list(given.get("Values") or ())
            return None if any("*" in value or "?" in value for value in values) else values
    return None


def select(items: Iterable[_T], params: Mapping[str, Any], known: Mapping[str, Getter]) -> list[_T]:
    """Return the items that every filter lets pass.

    Raises:
        Ec2Fault: A filter is not known; it is refused, not ignored.
    """
    tests = [_test(given, known) for given in params.get("Filters") or ()]
    if not tests:
        return list(items)
    return [item for item in items if all(test(item) for test in tests)]


def _test(given: Mapping[str, Any], known: Mapping[str, Getter]) -> Callable[[Any], bool]:
    name = str(given.get("Name", ""))
    values = list(given.get("Values") or ())
    if not values:
        raise invalid_value(f"The filter '{name}' has no values")
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda item: key in item.tags and _matches(item.tags[key], values)
    if name == "tag-key":
        return lambda item: any(_matches(key, values) for key in item.tags)
    getter = known.get(name)
    if getter is None:
        raise invalid_value(f"The filter '{name}' is invalid")
    return lambda item: any(_matches(value, values) for value in getter(item))


def _matches(value: str, patterns: list[str]) -> bool:
    return any(
        value == pattern or (("*" in pattern or "?" in pattern) and fnmatchcase(value, pattern))
        for pattern in patterns
    )


def page(
    items: list[_Item],
    params: Mapping[str, Any],
    number_of: Callable[[_Item], int],
    ids_parameter: str,
    most: int,
) -> tuple[list[_Item], str | None]:
    """Return the page that was asked for, and the token of the next one.

    A token names the last item's place in the order of creation, so deleting between two pages skips nothing.

    Raises:
        Ec2Fault: Ids and page size exclude each other; the size is out of range; the token is not one of
        ours.
    """
    size = params.get("MaxResults")
    token = params.get("NextToken")
    if size is not None:
        if params.get(ids_parameter):
            raise invalid_combination(
                f"The parameter {ids_parameter} cannot be used with the parameter MaxResults"
            )
        if not 5 <= size <= most:
            raise invalid_value(
                f"Value ( {size} ) for parameter maxResults is invalid. "
                f"Expecting a value between 5 and {most}."
            )
    if token:
        last = _token_number(token)
        items = [item for item in items if number_of(item) > last]
    if size is None or len(items) <= size:
        return items, None
    items = items[:size]
    return items, base64.urlsafe_b64encode(f"after:{number_of(items[-1])}".encode()).decode()


def _token_number(token: str) -> int:
    try:
        kind, _, number = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        if kind == "after":
            return int(number)
    except (binascii.Error, UnicodeError, ValueError):
        pass  # answered below, as any other foreign token
    raise Ec2Fault("InvalidNextToken", "The token is not valid")

"""The Describe calls."""

from collections.abc import Mapping
from typing import Any

from vpccni.lab.ec2 import entities, errors, filters
from vpccni.lab.ec2.entities import Eni, Instance
from vpccni.lab.ec2.types import INSTANCE_TYPES, render_instance_type
from vpccni.lab.ec2.world import Request, World

Reply = dict[str, Any]


def _with_token(reply: Reply, token: str | None) -> Reply:
    if token is not None:
        reply["NextToken"] = token
    return reply


def describe_network_interfaces(world: World, request: Request) -> Reply:
    """EC2 DescribeNetworkInterfaces. One unknown id fails the whole call, as in EC2."""
    params = request.params
    found = filters.select(_eni_candidates(world, params), params, filters.ENI_FILTERS)
    lag_s = world.describe_lag_s
    if lag_s > 0:
        found = _visible(found, request.now - lag_s, is_by_id=bool(params.get("NetworkInterfaceIds")))
    found, token = filters.page(found, params, lambda eni: eni.number, "NetworkInterfaceIds", 1000)
    account_id = world.account_id
    if lag_s > 0:
        shown = [entities.eni_as_of(eni, request.now - lag_s) for eni in found]
        return _with_token({"NetworkInterfaces": shown}, token)
    return _with_token(
        {"NetworkInterfaces": [eni.rendered or entities.render_eni(eni, account_id) for eni in found]}, token
    )


def _visible(enis: list[Eni], instant: float, *, is_by_id: bool) -> list[Eni]:
    seen = []
    for eni in enis:
        if entities.eni_as_of(eni, instant) is not None:
            seen.append(eni)
        elif is_by_id:
            raise errors.eni_not_found(eni.id)
    return seen


def _eni_candidates(world: World, params: Mapping[str, Any]) -> list[Eni]:
    ids = params.get("NetworkInterfaceIds")
    if ids:
        return [world.eni(eni_id) for eni_id in dict.fromkeys(ids)]
    ids = filters.exact_values(params, "network-interface-id")
    if ids is not None:
        return sorted((world.enis[i] for i in set(ids) if i in world.enis), key=lambda eni: eni.number)
    ids = filters.exact_values(params, "attachment.instance-id")
    if ids is not None:
        instances = (world.instances[i] for i in set(ids) if i in world.instances)
        return sorted((eni for i in instances for eni in i.enis.values()), key=lambda eni: eni.number)
    return list(world.enis.values())


def describe_instances(world: World, request: Request) -> Reply:
    """EC2 DescribeInstances: every instance in a reservation of its own."""
    params = request.params
    ids = params.get("InstanceIds")
    candidates = [world.instance(i) for i in dict.fromkeys(ids)] if ids else list(world.instances.values())
    found = filters.select(candidates, params, filters.INSTANCE_FILTERS)
    found, token = filters.page(found, params, lambda instance: instance.number, "InstanceIds", 1000)
    return _with_token({"Reservations": [_reservation(world, instance) for instance in found]}, token)


def _reservation(world: World, instance: Instance) -> Reply:
    return {
        "ReservationId": instance.reservation_id,
        "OwnerId": world.account_id,
        "Groups": [],
        "Instances": [entities.render_instance(instance, world.account_id)],
    }


def describe_instance_types(world: World, request: Request) -> Reply:
    """EC2 DescribeInstanceTypes. Of its filters only ``instance-type`` is modelled."""
    params = request.params
    names = list(params.get("InstanceTypes") or ())
    unknown = [name for name in names if name not in INSTANCE_TYPES]
    if unknown:
        raise errors.Ec2Fault(
            "InvalidInstanceType",
            f"The following supplied instance types do not exist: [{', '.join(unknown)}]",
        )
    for given in params.get("Filters") or ():
        if given.get("Name") != "instance-type":
            raise errors.not_modelled(request.action, f"the filter '{given.get('Name')}'")
        names = [name for name in names or sorted(INSTANCE_TYPES) if name in given.get("Values", ())]
        if not names:
            return {"InstanceTypes": []}
    order = {name: place for place, name in enumerate(sorted(INSTANCE_TYPES), 1)}
    found, token = filters.page(
        sorted(set(names)) or sorted(INSTANCE_TYPES), params, order.__getitem__, "InstanceTypes", 100
    )
    return _with_token(
        {"InstanceTypes": [render_instance_type(INSTANCE_TYPES[name]) for name in found]}, token
    )


def describe_subnets(world: World, request: Request) -> Reply:
    """EC2 DescribeSubnets."""
    params = request.params
    ids = params.get("SubnetIds")
    candidates = [world.subnet(i) for i in dict.fromkeys(ids)] if ids else list(world.subnets.values())
    found = filters.select(candidates, params, filters.SUBNET_FILTERS)
    order = {subnet_id: place for place, subnet_id in enumerate(world.subnets, 1)}
    found, token = filters.page(found, params, lambda subnet: order[subnet.id], "SubnetIds", 1000)
    rendered = [entities.render_subnet(subnet, world.account_id, world.name) for subnet in found]
    return _with_token({"Subnets": rendered}, token)


def describe_vpcs(world: World, request: Request) -> Reply:
    """EC2 DescribeVpcs."""
    params = request.params
    ids = params.get("VpcIds")
    candidates = [world.vpc(i) for i in dict.fromkeys(ids)] if ids else list(world.vpcs.values())
    found = filters.select(candidates, params, filters.VPC_FILTERS)
    order = {vpc_id: place for place, vpc_id in enumerate(world.vpcs, 1)}
    found, token = filters.page(found, params, lambda vpc: order[vpc.id], "VpcIds", 1000)
    return _with_token({"Vpcs": [entities.render_vpc(vpc, world.account_id) for vpc in found]}, token)


def describe_security_groups(world: World, request: Request) -> Reply:
    """EC2 DescribeSecurityGroups. Rules are not modelled: the lists of permissions are empty."""
    params = request.params
    ids = params.get("GroupIds")
    for group_id in ids or ():
        if group_id not in world.groups:
            raise errors.group_not_found(group_id)
    candidates = [world.groups[i] for i in dict.fromkeys(ids)] if ids else list(world.groups.values())
    found = filters.select(candidates, params, filters.GROUP_FILTERS)
    order = {group_id: place for place, group_id in enumerate(world.groups, 1)}
    found, token = filters.page(found, params, lambda group: order[group.id], "GroupIds", 1000)
    rendered = [entities.render_security_group(group, world.account_id) for group in found]
    return _with_token({"SecurityGroups": rendered}, token)

"""The calls that change ENIs. Each checks everything before it changes anything."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from vpccni.lab.ec2 import errors
from vpccni.lab.ec2.entities import Eni, SecurityGroup, Subnet, render_eni
from vpccni.lab.ec2.types import IPV4_PER_ENI_UNATTACHED
from vpccni.lab.ec2.world import Request, World

Reply = dict[str, Any]

_KEPT_TOKENS: Final = 10_000


def create_network_interface(world: World, request: Request) -> Reply:
    """EC2 CreateNetworkInterface, with its ``ClientToken``.

    The same token with the same parameters answers with the ENI that it made the first time, as it is now, or
    as it was when the reply was first made if it has been deleted since (an idempotent retry does nothing
    anew).
    """
    params = request.params
    token = str(params.get("ClientToken") or "")
    fingerprint = b""
    if token:
        fingerprint = _fingerprint(params)
        earlier = world.eni_of_token.get(token)
        if earlier is not None:
            return _replay(world, token, fingerprint, earlier)
    subnet = world.subnet(str(request.required("SubnetId")))
    groups = world.security_groups(
        list(params.get("Groups") or ()), subnet.vpc, code="InvalidSecurityGroupID.NotFound"
    )
    tags = _tags_of(params.get("TagSpecifications") or ())
    eni = new_eni(world, request, subnet, groups)
    eni.tags.update(tags)
    world.changed(eni, request.now)
    reply: Reply = {"NetworkInterface": render_eni(eni, world.account_id)}
    if token:
        reply["ClientToken"] = token
        world.eni_of_token[token] = (fingerprint, reply["NetworkInterface"], eni.id)
        if len(world.eni_of_token) > _KEPT_TOKENS:
            del world.eni_of_token[next(iter(world.eni_of_token))]
    return reply


def _fingerprint(params: Mapping[str, Any]) -> bytes:
    asked = {name: value for name, value in params.items() if name != "ClientToken"}
    return msgspec.json.encode(asked, order="deterministic")


def _replay(world: World, token: str, fingerprint: bytes, earlier: tuple[bytes, Reply, str]) -> Reply:
    known, first_reply, eni_id = earlier
    if known != fingerprint:
        raise errors.Ec2Fault(
            "IdempotentParameterMismatch",
            f"The client token '{token}' was used with different parameters in an earlier request",
        )
    eni = world.enis.get(eni_id)
    return {
        "NetworkInterface": first_reply if eni is None else render_eni(eni, world.account_id),
        "ClientToken": token,
    }


def _tags_of(specifications: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for specification in specifications:
        kind = specification.get("ResourceType")
        if kind != "network-interface":
            raise errors.invalid_value(f"'{kind}' is not a valid taggable resource type for this operation.")
        for tag in specification.get("Tags") or ():
            key = str(tag.get("Key") or "")
            if key in tags:
                raise errors.invalid_value(f"Duplicate tag key '{key}' specified.")
            tags[key] = str(tag.get("Value") or "")
    check_tags(tags)
    return tags


def check_tags(tags: Mapping[str, str]) -> None:
    """Refuse what EC2 refuses in the tags of one resource, all of them given."""
    for key, value in tags.items():
        if not key or len(key) > 127:
            raise errors.invalid_value("Tag key exceeds the maximum length of 127 characters or is empty")
        if key.lower().startswith("aws:"):
            raise errors.invalid_value("Tag keys starting with 'aws:' are reserved for internal use")
        if len(value) > 255:
            raise errors.invalid_value("Tag value exceeds the maximum length of 255 characters")
    if len(tags) > 50:
        raise errors.Ec2Fault("TagLimitExceeded", "More than 50 tags specified")


def new_eni(world: World, request: Request, subnet: Subnet, groups: list[SecurityGroup]) -> Eni:
    """Make an ENI with the addresses that the request asks for; all of them or no ENI."""
    params = request.params
    primary, secondaries = _explicit_addresses(params)
    count = params.get("SecondaryPrivateIpAddressCount") or 0
    prefixes = params.get("Ipv4PrefixCount") or 0
    _check_counts(count, prefixes, secondaries)
    count, prefixes = request.capped(count), request.capped(prefixes)
    eni_id = world.ids.resource_id("eni")
    if 1 + len(secondaries) + count + prefixes > IPV4_PER_ENI_UNATTACHED:
        raise errors.too_many_addresses(eni_id)
    book = subnet.addresses
    explicit = [*([primary] if primary else []), *secondaries]
    book.take_these(explicit, eni_id)
    taken: list[str] = []
    try:
        taken = book.take((0 if primary else 1) + count, eni_id)
        blocks = book.take_prefixes(prefixes, eni_id) if prefixes else []
    except errors.Ec2Fault:
        book.give_back([*explicit, *taken])
        raise
    eni = Eni(
        id=eni_id,
        number=world.next_number(),
        mac=world.ids.mac(),
        subnet=subnet,
        description=str(params.get("Description") or ""),
        groups=groups,
        primary=primary or taken.pop(0),
        secondaries=dict.fromkeys([*secondaries, *taken]),
        prefixes=dict.fromkeys(blocks),
        created_at=request.now,
    )
    world.enis[eni.id] = eni
    return eni


def _explicit_addresses(params: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    primary = params.get("PrivateIpAddress")
    secondaries = []
    for given in params.get("PrivateIpAddresses") or ():
        address = str(given.get("PrivateIpAddress") or "")
        if given.get("Primary"):
            if primary:
                raise errors.invalid_combination("Only one primary private IP address can be specified")
            primary = address
        else:
            secondaries.append(address)
    return primary, secondaries


def _check_counts(count: int, prefixes: int, explicit: Sequence[str]) -> None:
    if count < 0 or prefixes < 0:
        raise errors.invalid_value("A count of addresses or prefixes must not be negative")
    if (count > 0) + (prefixes > 0) + bool(explicit) > 1:
        raise errors.invalid_combination(
            "Specify only one of a count of private addresses, private addresses, or a count of prefixes"
        )


def attach_network_interface(world: World, request: Request) -> Reply:
    """EC2 AttachNetworkInterface."""
    params = request.params
    eni = world.eni(str(request.required("NetworkInterfaceId")))
    instance = world.instance(str(request.required("InstanceId")))
    device_index = int(request.required("DeviceIndex"))
    card = int(params.get("NetworkCardIndex") or 0)
    limits = instance.type
    if instance.state not in ("running", "stopped", "pending"):
        raise errors.Ec2Fault("IncorrectState", f"Instance '{instance.id}' is not 'running' or 'stopped'.")
    if eni.attachment is not None:
        raise errors.eni_in_use_attach(eni.id)
    if eni.subnet.zone != instance.subnet.zone:
        raise errors.invalid_combination(
            "You may not attach a network interface to an instance if they are not in the same "
            "availability zone"
        )
    if not 0 <= card < limits.cards:
        raise errors.invalid_value(f"Network card index {card} is not valid for instance type {limits.name}")
    if device_index < 0 or instance.has_device(card, device_index):
        raise errors.invalid_value(
            f"Instance '{instance.id}' already has an interface attached at device index '{device_index}'."
        )
    on_card = sum(1 for e in instance.enis.values() if e.attachment is not None and e.attachment.card == card)
    if on_card >= limits.enis_by_card[card] or len(instance.enis) >= limits.enis:
        raise errors.Ec2Fault(
            "AttachmentLimitExceeded",
            f"Interface count {len(instance.enis) + 1} exceeds the limit for {limits.name}",
        )
    if eni.slots_used > limits.ipv4_per_eni:
        raise errors.too_many_addresses(eni.id)
    attachment = world.hang(eni, instance, card, device_index, request.now)
    return {"AttachmentId": attachment.id, "NetworkCardIndex": card}


def detach_network_interface(world: World, request: Request) -> Reply:
    """EC2 DetachNetworkInterface. ``Force`` is accepted and takes as long."""
    attachment_id = str(request.required("AttachmentId"))
    eni = world.eni_of_attachment.get(attachment_id)
    if eni is None or eni.attachment is None:
        raise errors.attachment_not_found(attachment_id)
    attachment = eni.attachment
    if attachment.device_index == 0 and attachment.card == 0:
        raise errors.Ec2Fault(
            "OperationNotPermitted",
            "The network interface at device index 0 and networkCard index 0 cannot be detached.",
        )
    if attachment.status == "detaching":
        raise errors.Ec2Fault("IncorrectState", f"Network interface '{eni.id}' is already being detached.")
    world.unhang(eni, attachment, request.now)
    return {}


def delete_network_interface(world: World, request: Request) -> Reply:
    """EC2 DeleteNetworkInterface: only what is available."""
    eni = world.eni(str(request.required("NetworkInterfaceId")))
    if eni.attachment is not None:
        raise errors.eni_in_use_delete(eni.id)
    world.destroy(eni)
    return {}


def modify_network_interface_attribute(world: World, request: Request) -> Reply:
    """EC2 ModifyNetworkInterfaceAttribute: one attribute a call."""
    params = request.params
    eni = world.eni(str(request.required("NetworkInterfaceId")))
    given = [
        n for n in ("Attachment", "Description", "Groups", "SourceDestCheck") if params.get(n) is not None
    ]
    if len(given) != 1:
        raise errors.invalid_combination("Exactly one attribute must be specified")
    match given[0]:
        case "Attachment":
            attachment_id = str(params["Attachment"].get("AttachmentId") or "")
            if eni.attachment is None or eni.attachment.id != attachment_id:
                raise errors.attachment_not_found(attachment_id)
            eni.attachment.delete_on_termination = bool(params["Attachment"].get("DeleteOnTermination"))
        case "Groups":
            eni.groups = world.security_groups(
                list(params["Groups"]), eni.subnet.vpc, code="InvalidGroup.NotFound"
            )
        case "Description":
            eni.description = str(params["Description"].get("Value") or "")
        case _:
            eni.source_dest_check = bool(params["SourceDestCheck"].get("Value"))
    world.changed(eni, request.now, addresses=given[0] == "SourceDestCheck")
    return {}


def assign_private_ip_addresses(world: World, request: Request) -> Reply:
    """EC2 AssignPrivateIpAddresses: all that was asked for or nothing; the reply names the new ones only."""
    params = request.params
    eni = world.eni(str(request.required("NetworkInterfaceId")))
    explicit = list(params.get("PrivateIpAddresses") or ())
    count = params.get("SecondaryPrivateIpAddressCount") or 0
    prefixes = params.get("Ipv4PrefixCount") or 0
    if params.get("AllowReassignment"):
        raise errors.not_modelled(request.action, "AllowReassignment")
    _check_counts(count, prefixes, explicit)
    if not explicit and not count and not prefixes:
        raise errors.missing("secondaryPrivateIpAddressCount")
    instance = eni.instance
    limit = IPV4_PER_ENI_UNATTACHED if instance is None else instance.type.ipv4_per_eni
    if eni.slots_used + len(explicit) + count + prefixes > limit:
        raise errors.too_many_addresses(eni.id)
    book = eni.subnet.addresses
    if explicit:
        _check_not_held(eni, explicit)
        book.take_these(explicit, eni.id)
        new = explicit
    else:
        new = book.take(request.capped(count), eni.id)
    blocks = book.take_prefixes(request.capped(prefixes), eni.id) if prefixes else []
    eni.secondaries.update(dict.fromkeys(new))
    eni.prefixes.update(dict.fromkeys(blocks))
    world.changed(eni, request.now, addresses=True)
    reply: Reply = {
        "NetworkInterfaceId": eni.id,
        "AssignedPrivateIpAddresses": [{"PrivateIpAddress": address} for address in new],
    }
    if blocks:
        reply["AssignedIpv4Prefixes"] = [{"Ipv4Prefix": block} for block in blocks]
    return reply


def _check_not_held(eni: Eni, addresses: Sequence[str]) -> None:
    """Say as AssignPrivateIpAddresses says it that an address belongs to some ENI already."""
    for address in addresses:
        try:
            holder = eni.subnet.addresses.holder_of(address)
        except ValueError:
            continue  # not an address at all: the book says so
        if holder is not None and holder.startswith("eni-"):
            raise errors.invalid_value(f"[{address}] assigned, but move is not allowed.")


def unassign_private_ip_addresses(world: World, request: Request) -> Reply:
    """EC2 UnassignPrivateIpAddresses: all of them are taken away, or none if one is not the ENI's."""
    params = request.params
    eni = world.eni(str(request.required("NetworkInterfaceId")))
    addresses = list(dict.fromkeys(params.get("PrivateIpAddresses") or ()))
    prefixes = list(dict.fromkeys(params.get("Ipv4Prefixes") or ()))
    if not addresses and not prefixes:
        raise errors.missing("privateIpAddress")
    if eni.primary in addresses:
        raise errors.invalid_value(f"The primary private address {eni.primary} cannot be unassigned")
    foreign = [a for a in addresses if a not in eni.secondaries] + [
        p for p in prefixes if p not in eni.prefixes
    ]
    if foreign:
        raise errors.invalid_value(f"Some of the specified addresses are not assigned to interface {eni.id}")
    for address in addresses:
        del eni.secondaries[address]
    for prefix in prefixes:
        del eni.prefixes[prefix]
    eni.subnet.addresses.give_back(addresses)
    eni.subnet.addresses.give_back_prefixes(prefixes)
    world.changed(eni, request.now, addresses=True)
    return {}


def create_tags(world: World, request: Request) -> Reply:
    """EC2 CreateTags: on every resource named, or on none."""
    resources = [world.taggable(str(resource)) for resource in request.required("Resources")]
    tags = {str(tag.get("Key") or ""): str(tag.get("Value") or "") for tag in request.required("Tags")}
    for resource in resources:
        check_tags({**resource.tags, **tags})
    for resource in resources:
        resource.tags.update(tags)
        if isinstance(resource, Eni):
            world.changed(resource, request.now)
    return {}


def delete_tags(world: World, request: Request) -> Reply:
    """EC2 DeleteTags: a value that is given must match; without ``Tags`` all of them go."""
    resources = [world.taggable(str(resource)) for resource in request.required("Resources")]
    for resource in resources:
        given = request.params.get("Tags")
        if not given:
            resource.tags.clear()
        for tag in given or ():
            key = str(tag.get("Key") or "")
            if "Value" not in tag or resource.tags.get(key) == tag["Value"]:
                resource.tags.pop(key, None)
        if isinstance(resource, Eni):
            world.changed(resource, request.now)
    return {}

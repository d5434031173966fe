"""The instance metadata service, version 2, of every instance of the region.

It tells of the network as it was ``lag_s`` ago, which is how the real one confuses agents, and can be told to
lie (`ImdsFault`). Paths: EC2 user guide, "Instance metadata categories". Lists are separated by newlines; a
field that has no value is absent (404), as there.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from vpccni.lab.ec2.entities import Instance
from vpccni.lab.ec2.imds_history import EniView, Snapshot
from vpccni.lab.ec2.world import World

ROLE: Final = "lab-node"
TOKEN_TTL_S_MAX: Final = 21_600  # IMDSv2: six hours
_TOKEN_TTL_HEADER: Final = "x-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105  # a header's name
_TOKEN_HEADER: Final = "x-aws-ec2-metadata-token"  # noqa: S105  # a header's name
_KEPT_TREES: Final = 256

ImdsFaultKind = Literal["missing_eni", "missing_address", "resurrected_address", "hang", "status", "latency"]


class ImdsReply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of IMDS. ``hangs``: it never comes. ``delay_s``: it comes that much later."""

    status: int
    body: str = ""
    headers: dict[str, str] = {}
    hangs: bool = False
    delay_s: float = 0.0


class ImdsFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way in which IMDS is wrong, for as long as it is armed.

    Attributes:
        kind: ``missing_eni`` hides ``eni_id``; ``missing_address`` hides ``address`` of ``eni_id``;
            ``resurrected_address`` shows ``address`` on ``eni_id`` although EC2 took it away; ``hang`` never
            answers; ``status`` answers ``status``; ``latency`` answers ``seconds`` later.
        instance_id: Whose IMDS; every instance's when None.
        path: For ``hang``, ``status`` and ``latency``: only paths that contain this.
        times: How many requests it hits; -1 for as long as it is armed.
    """

    kind: ImdsFaultKind
    instance_id: str | None = None
    eni_id: str = ""
    address: str = ""
    path: str = ""
    status: int = 500
    seconds: float = 0.0
    times: int = -1


class Imds:
    """All instances' metadata. ``lag_s`` (at least 0) may be changed at any time."""

    def __init__(self, world: World) -> None:
        self.lag_s = 0.0
        self._world = world
        self._faults: list[tuple[ImdsFault, list[int]]] = []
        self._trees: dict[tuple[str, Snapshot], dict[str, str]] = {}
        self._tokens: dict[str, tuple[str, float]] = {}
        self._token_count = 0
        self.request_count = 0

    def inject(self, fault: ImdsFault) -> None:
        """Arm a fault."""
        self._faults.append((fault, [fault.times]))

    def clear(self) -> None:
        """Disarm all faults."""
        self._faults.clear()

    def request(
        self, instance_id: str, method: str, path: str, headers: Mapping[str, str], now: float
    ) -> ImdsReply:
        """Answer a whole request, tokens included. Header names are in lower case."""
        self.request_count += 1
        upset = self._transport_fault(instance_id, path)
        if upset is not None:
            return upset
        if path.strip("/") == "latest/api/token":
            return self._put_token(instance_id, method, headers, now)
        if method not in ("GET", "HEAD"):
            return ImdsReply(status=405)
        holder, valid_until = self._tokens.get(headers.get(_TOKEN_HEADER, ""), ("", 0.0))
        if holder != instance_id or now >= valid_until:
            return ImdsReply(status=401)
        return self._lookup(instance_id, path, now)

    def get(self, instance_id: str, path: str, now: float) -> ImdsReply:
        """Answer a GET without asking for a token (for simulations)."""
        self.request_count += 1
        upset = self._transport_fault(instance_id, path)
        return upset if upset is not None else self._lookup(instance_id, path, now)

    def _put_token(self, instance_id: str, method: str, headers: Mapping[str, str], now: float) -> ImdsReply:
        if method != "PUT":
            return ImdsReply(status=405)
        try:
            ttl_s = int(headers.get(_TOKEN_TTL_HEADER, ""))
        except ValueError:
            return ImdsReply(status=400)
        if not 1 <= ttl_s <= TOKEN_TTL_S_MAX:
            return ImdsReply(status=400)
        self._token_count += 1
        token = hashlib.sha256(f"{instance_id}/{self._token_count}".encode()).hexdigest()[:56]
        self._tokens = {t: kept for t, kept in self._tokens.items() if kept[1] > now}
        self._tokens[token] = (instance_id, now + ttl_s)
        return ImdsReply(status=200, body=token, headers={_TOKEN_TTL_HEADER: str(ttl_s)})

    def _transport_fault(self, instance_id: str, path: str) -> ImdsReply | None:
        for fault, left in self._faults:
            if fault.kind not in ("hang", "status", "latency") or left[0] == 0:
                continue
            if fault.instance_id not in (None, instance_id) or fault.path not in path:
                continue
            if fault.kind == "latency":
                continue
            left[0] -= 1 if left[0] > 0 else 0
            return ImdsReply(status=fault.status, hangs=fault.kind == "hang")
        return None

    def _delay_s(self, instance_id: str, path: str) -> float:
        delay_s = 0.0
        for fault, left in self._faults:
            if fault.kind != "latency" or left[0] == 0 or fault.path not in path:
                continue
            if fault.instance_id in (None, instance_id):
                left[0] -= 1 if left[0] > 0 else 0
                delay_s += fault.seconds
        return delay_s

    def _lookup(self, instance_id: str, path: str, now: float) -> ImdsReply:
        instance = self._world.instances.get(instance_id)
        if instance is None or instance.state == "terminated":
            return ImdsReply(status=404)
        snapshot = self._world.history.as_of(instance_id, now - self.lag_s)
        snapshot = tuple(view for view in map(self._distort, snapshot) if view is not None)
        key = (instance_id, snapshot)
        tree = self._trees.get(key)
        if tree is None:
            if len(self._trees) >= _KEPT_TREES:
                del self._trees[next(iter(self._trees))]
            tree = self._trees[key] = _tree(self._world, instance, snapshot)
        body = tree.get("/".join(part for part in path.split("/") if part))
        delay_s = self._delay_s(instance_id, path) if self._faults else 0.0
        if body is None:
            return ImdsReply(status=404, delay_s=delay_s)
        return ImdsReply(status=200, body=body, delay_s=delay_s)

    def _distort(self, view: EniView) -> EniView | None:
        for fault, _ in self._faults:
            if fault.eni_id != view.eni_id:
                continue
            if fault.kind == "missing_eni":
                return None
            addresses = view.addresses
            if fault.kind == "missing_address":
                addresses = tuple(address for address in addresses if address != fault.address)
            elif fault.kind == "resurrected_address" and fault.address not in addresses:
                addresses = (*addresses, fault.address)
            view = msgspec.structs.replace(view, addresses=addresses)
        return view


def _tree(world: World, instance: Instance, snapshot: Snapshot) -> dict[str, str]:
    """Return every path with its text, directories included."""
    leaves = _instance_leaves(world, instance)
    primary = next((v for v in snapshot if v.device_index == 0 and v.card == 0), None)
    if primary is not None:
        leaves["mac"] = primary.mac
        leaves["security-groups"] = "\n".join(primary.group_names)
        if primary.addresses:
            leaves["local-ipv4"] = primary.addresses[0]
        if primary.public_ip:
            leaves["public-ipv4"] = primary.public_ip
    has_cards = instance.type.cards > 1
    for view in snapshot:
        for name, text in _eni_leaves(view, world.account_id, has_card=has_cards).items():
            leaves[f"network/interfaces/macs/{view.mac}/{name}"] = text
    texts = {f"latest/meta-data/{path}": text for path, text in leaves.items()}
    texts["latest/dynamic/instance-identity/document"] = _identity(
        world, instance, leaves.get("local-ipv4", "")
    )
    return _with_directories(texts)


def _with_directories(leaves: Mapping[str, str]) -> dict[str, str]:
    children: dict[str, dict[str, None]] = {}
    for path in leaves:
        parts = path.split("/")
        for depth in range(len(parts)):
            name = parts[depth] + ("" if depth == len(parts) - 1 else "/")
            children.setdefault("/".join(parts[:depth]), {})[name] = None
    tree = {path: "\n".join(sorted(names)) for path, names in children.items()}
    tree.update(leaves)
    return tree


def _instance_leaves(world: World, instance: Instance) -> dict[str, str]:
    zone = instance.subnet.zone
    credentials = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2000-01-01T00:00:00Z",
        "AccessKeyId": "ASIALABLABLABLABLAB0",
        "SecretAccessKey": "lab",
        "Token": "lab",
        "Expiration": "2099-01-01T00:00:00Z",  # the SDK compares it with the machine's own clock
    }
    return {
        "ami-id": "ami-00000000000000000",
        "hostname": _hostname(world, instance),
        "iam/security-credentials/" + ROLE: json.dumps(credentials),
        "instance-id": instance.id,
        "instance-life-cycle": "on-demand",
        "instance-type": instance.type.name,
        "local-hostname": _hostname(world, instance),
        "placement/availability-zone": zone,
        "placement/availability-zone-id": instance.subnet.zone_id,
        "placement/region": world.name,
        "services/domain": "amazonaws.com",
    }


def _hostname(world: World, instance: Instance) -> str:
    return f"ip-{instance.primary_eni.primary.replace('.', '-')}.{world.name}.compute.internal"


def _eni_leaves(view: EniView, account_id: str, *, has_card: bool) -> dict[str, str]:
    leaves = {
        "device-number": str(view.device_index),
        "interface-id": view.eni_id,
        "mac": view.mac,
        "owner-id": account_id,
        "security-group-ids": "\n".join(view.group_ids),
        "security-groups": "\n".join(view.group_names),
        "subnet-id": view.subnet_id,
        "subnet-ipv4-cidr-block": view.subnet_cidr,
        "vpc-id": view.vpc_id,
        "vpc-ipv4-cidr-block": view.vpc_cidrs[0],
        "vpc-ipv4-cidr-blocks": "\n".join(view.vpc_cidrs),
    }
    if view.addresses:
        leaves["local-ipv4s"] = "\n".join(view.addresses)
    if view.prefixes:
        leaves["ipv4-prefix"] = "\n".join(view.prefixes)
    if view.public_ip:
        leaves["public-ipv4s"] = view.public_ip
    if has_card:
        leaves["network-card"] = str(view.card)
    return leaves


def _identity(world: World, instance: Instance, private_ip: str) -> str:
    document: dict[str, Any] = {
        "accountId": world.account_id,
        "architecture": instance.type.architectures[-1],
        "availabilityZone": instance.subnet.zone,
        "imageId": "ami-00000000000000000",
        "instanceId": instance.id,
        "instanceType": instance.type.name,
        "privateIp": private_ip,
        "region": world.name,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2)

"""Opening the SDK's EC2 client without its weight.

Loaded as it comes, the client costs 35 MiB over aiohttp's own memory, most of it EC2's service model: 807
operations with their documentation. Here the model is cut down to our operations while it is read,
before it becomes Python objects, and the import and the reading happen on a worker thread.
"""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final

import msgspec

from vpccni import __version__
from vpccni.errors import Reason, TransientError

OPERATIONS: Final = frozenset(
    {
        "AssignPrivateIpAddresses",
        "AttachNetworkInterface",
        "CreateNetworkInterface",
        "CreateTags",
        "DeleteNetworkInterface",
        "DescribeInstanceTypes",
        "DescribeNetworkInterfaces",
        "DescribeSubnets",
        "DetachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "UnassignPrivateIpAddresses",
    }
)
"""Every EC2 operation that the agent calls. Others do not exist on the client."""

CONNECT_TIMEOUT_S: Final = 3.0
"""The endpoint is one hop away: what does not connect within this is not reachable."""
_CONNECTIONS_MAX: Final = 32
"""More than the EC2 budget ever has in flight, so that no call waits for a connection inside the SDK."""
_KEEPALIVE_S: Final = 12.0
"""Shorter than any endpoint keeps an idle connection: a request on a connection that the other side
just closed has an unknown outcome, and costs more than a new connection."""
_SERVICES: Final = ("ec2", "sts")
"""Services whose endpoints we need: our own, and the one behind web identity credentials."""


class _RawModel(msgspec.Struct):
    """The outline of a botocore ``service-2`` file; what is inside stays undecoded bytes."""

    metadata: dict[str, Any]
    operations: dict[str, msgspec.Raw]
    shapes: dict[str, msgspec.Raw]


class _RawPartition(msgspec.Struct):
    """The outline of a partition of botocore's ``endpoints`` file."""

    services: dict[str, msgspec.Raw]


def lean_service_model(encoded: bytes) -> dict[str, Any]:
    """A ``service-2`` document with our operations, the shapes that they reach, and no documentation.

    Raises:
        msgspec.DecodeError, KeyError: The document is not built as we know it.
    """
    raw = msgspec.json.decode(encoded, type=_RawModel)
    operations = {name: _lean(raw.operations[name]) for name in sorted(OPERATIONS)}
    shapes: dict[str, Any] = {}
    wanted = _shape_names(operations)
    while wanted:
        name = wanted.pop()
        if name not in shapes:
            shapes[name] = _lean(raw.shapes[name])
            wanted |= _shape_names(shapes[name])
    return {"version": "2.0", "metadata": raw.metadata, "operations": operations, "shapes": shapes}


def lean_endpoints(encoded: bytes) -> dict[str, Any]:
    """The ``endpoints`` document with only the services that we may call. Raises as the above."""
    document = msgspec.json.decode(encoded, type=dict[str, msgspec.Raw])
    partitions = []
    for item in msgspec.json.decode(document["partitions"], type=list[msgspec.Raw]):
        services = msgspec.json.decode(item, type=_RawPartition).services
        fields = msgspec.json.decode(item, type=dict[str, msgspec.Raw])
        partition = {name: msgspec.json.decode(value) for name, value in fields.items() if name != "services"}
        partition["services"] = {
            name: msgspec.json.decode(services[name]) for name in _SERVICES if name in services
        }
        partitions.append(partition)
    return {"partitions": partitions, "version": msgspec.json.decode(document["version"])}


def _lean(raw: msgspec.Raw) -> Any:
    return _without_documentation(msgspec.json.decode(raw))


def _without_documentation(node: Any) -> Any:
    """Drop documentation strings; a member that is *named* documentation is a dict and stays."""
    if isinstance(node, dict):
        return {
            key: _without_documentation(value)
            for key, value in node.items()
            if not (key == "documentation" and isinstance(value, str))
        }
    if isinstance(node, list):
        return [_without_documentation(item) for item in node]
    return node


def _shape_names(node: Any) -> set[str]:
    """Every shape that a piece of a service model refers to."""
    if isinstance(node, list):
        return set().union(*(_shape_names(item) for item in node))
    if not isinstance(node, dict):
        return set()
    names = set().union(*(_shape_names(value) for value in node.values()))
    if isinstance(node.get("shape"), str):
        names.add(node["shape"])
    return names


def _load_session() -> Any:
    """Import the SDK and read its data. Blocks for some 0.3 s: for a worker thread only."""
    from aiobotocore.session import AioSession  # 10 MiB and 0.2 s, on a thread
    from botocore.loaders import JSONFileLoader, create_loader  # as above

    class LeanFiles(JSONFileLoader):  # type: ignore[misc]
        """Reads the two big files without what we never use; every other file as it is."""

        def load_file(self, file_path: str) -> Any:
            try:
                lean = _load_lean(file_path)
            except (msgspec.DecodeError, KeyError):
                # A botocore that lays its files out otherwise costs memory, not function.
                lean = None
            return lean if lean is not None else super().load_file(file_path)

    session = AioSession()
    loader = create_loader(session.get_config_variable("data_path"))
    loader.file_loader = LeanFiles()
    session.register_component("data_loader", loader)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("ec2", kind)
    for name in ("partitions", "endpoints", "sdk-default-configuration"):
        loader.load_data(name)
    return session


@cache
def _load_lean(file_path: str) -> dict[str, Any] | None:
    """The lean form of a botocore data file, read once; ``None`` for files that are not big."""
    folder, kind = os.path.split(file_path)
    if kind == "service-2" and os.path.basename(os.path.dirname(folder)) == "ec2":
        packed = file_path + ".json.gz"
        if os.path.isfile(packed):
            with gzip.open(packed, "rb") as file:
                return lean_service_model(file.read())
    if kind == "endpoints" and os.path.isfile(file_path + ".json"):
        with open(file_path + ".json", "rb") as file:
            return lean_endpoints(file.read())
    return None


async def open_client(
    *, region: str, endpoint: str, timeout_s: float, before_send: Callable[..., Awaitable[None]]
) -> Any:
    """Build a client that makes one attempt for each call; ``before_send`` is told of each request.

    Credentials come from the SDK's chain: environment, web identity, container, instance role.

    Raises:
        TransientError: ``ec2_unauthorized``: the chain gave no credentials (yet).
        Exception: Whatever else the SDK says of region, endpoint or credentials; nothing was sent to EC2.
    """
    session = await asyncio.to_thread(_load_session)
    if await session.get_credentials() is None:
        raise TransientError(Reason.EC2_UNAUTHORIZED, "the SDK's chain gave no credentials", 5.0)

    from aiobotocore.config import AioConfig  # imported by the thread above

    config = AioConfig(
        connector_args={"keepalive_timeout": _KEEPALIVE_S},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=timeout_s,
        max_pool_connections=_CONNECTIONS_MAX,
        retries={"mode": "standard", "total_max_attempts": 1},
        user_agent=f"vpccni/{__version__}",
    )
    client = await session.create_client(
        "ec2", region_name=region or None, endpoint_url=endpoint or None, config=config
    ).__aenter__()
    client.meta.events.register("before-send.ec2", before_send)
    return client

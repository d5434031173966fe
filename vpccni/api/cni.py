"""The CNI protocol, without I/O: what a request must look like, and how answers are written.

Source: CNI specification 0.3.0 to 1.1.0 (github.com/containernetworking/cni, SPEC.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from vpccni.conflist import CNI_VERSIONS
from vpccni.errors import Reason, VpccniError, sentence
from vpccni.model import Address, Binding, PodRef, SandboxKey, parse_address

Version = Literal["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
VERSIONS: Final = CNI_VERSIONS
VERBS: Final = ("ADD", "DEL", "CHECK", "STATUS", "GC")

CODE_UNSUPPORTED_VERSION: Final = 1
CODE_UNKNOWN_CONTAINER: Final = 3
CODE_BAD_ENVIRONMENT: Final = 4
CODE_UNDECODABLE: Final = 6
CODE_BAD_CONFIG: Final = 7
CODE_TRY_AGAIN: Final = 11
CODE_NOT_AVAILABLE: Final = 50
CODE_OURS: Final = 100

_CODES: Final[dict[Reason, int]] = {
    Reason.UNSUPPORTED_VERSION: CODE_UNSUPPORTED_VERSION,
    Reason.UNKNOWN_CONTAINER: CODE_UNKNOWN_CONTAINER,
    Reason.BAD_ENVIRONMENT: CODE_BAD_ENVIRONMENT,
    Reason.BAD_REQUEST: CODE_UNDECODABLE,
    Reason.TOO_LARGE: CODE_UNDECODABLE,
    Reason.BAD_CONFIG: CODE_BAD_CONFIG,
    # What trying again will not change; 100 is the first code that the specification leaves to plugins.
    Reason.CHECK_FAILED: CODE_OURS,
    Reason.INTERFACE_EXISTS: CODE_OURS + 1,
    Reason.NETNS_GONE: CODE_OURS + 2,
    Reason.NOT_ALLOWED: CODE_OURS + 3,
    Reason.INTERNAL: CODE_OURS + 4,
    Reason.PORTMAP_MISSING: CODE_OURS + 5,
}

_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_IFNAME_BAD = re.compile(r"[/:%\s\x00]")  # %: the kernel would take it for a pattern
_NAME_MAX: Final = 200
"""Bytes of a container id or network name: runtimes use 64 and a dozen; both are written into the log."""
_NETNS_MAX: Final = 4095
"""PATH_MAX without its end."""
_GATEWAY: Final = "169.254.1.1"


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """What the CNI executable sends: its environment, and its standard input as ``config``."""

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    path: str = ""
    config: dict[str, Any] = {}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose every part was checked.

    Attributes:
        netns: Path of the sandbox's namespace. For a DEL that names none: what ``prevResult`` says.
        addresses: For DEL and CHECK: the IPv4 addresses that ``prevResult`` gives to this interface, as far as it
            can be read.
        valid: For GC: the attachments that the runtime still has, as (container id, ifname); ``None`` when
            the configuration does not list any, which is not the same as an empty list.
        host_ports: For ADD: the pod's host ports, as ``8080/tcp``, when the runtime gives them to us.
        takes_host_ports: Whether our entry of the conflist asks for host ports. It does so when no plugin of
            the list serves them; see :mod:`vpccni.conflist`.
    """

    verb: str
    version: str
    key: SandboxKey
    pod: PodRef
    netns: str
    previous: Mapping[str, Any] | None = None
    addresses: tuple[Address, ...] = ()
    valid: frozenset[tuple[str, str]] | None = None
    host_ports: tuple[str, ...] = ()
    takes_host_ports: bool = False


class CniFault(VpccniError):  # noqa: N818 - a fault is what the protocol carries
    """A request that cannot be served, with its CNI version as far as it is known."""

    def __init__(self, reason: Reason, detail: str, version: str = "1.1.0") -> None:
        super().__init__(reason, detail)
        self.version = version


class Wired(msgspec.Struct, frozen=True, kw_only=True):
    """What an ADD made, for its result."""

    host_ifname: str
    host_mac: str
    pod_mac: str
    ifname: str
    netns: str
    mtu: int
    bindings: tuple[Binding, ...]


class _Previous(msgspec.Struct, frozen=True):
    """The parts of a ``prevResult`` that are read here, for their shape alone."""

    interfaces: list[dict[str, Any]] | None = None
    ips: list[dict[str, Any]] | None = None
    routes: list[dict[str, Any]] | None = None
    dns: dict[str, Any] | None = None


class _Attachment(msgspec.Struct, frozen=True):
    """One of the attachments that the runtime still has (CNI spec 1.1, GC)."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _PortMapping(msgspec.Struct, frozen=True):
    """One entry of ``runtimeConfig.portMappings`` (CNI conventions), with its keys in lower case.

    The conventions say ``hostPort``, containerd says ``HostPort``, and portmap reads either, as Go does. Some
    runtimes list ports without a host port, too.
    """

    hostport: int = 0
    protocol: str = "tcp"


_decoder = msgspec.json.Decoder(Request)


def decode(body: bytes) -> Call:
    """Check a request and take it apart.

    A DEL is not refused for what it does not need (``CNI_ARGS``, ``prevResult``): refused for ever, it would
    keep its sandbox for ever.

    Raises:
        CniFault: with code 1 (version), 4 (environment), 6 (undecodable) or 7 (configuration).
    """
    try:
        return _take_apart(_decoder.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniFault(Reason.BAD_REQUEST, str(error)[:300]) from error


def _take_apart(request: Request) -> Call:
    config = request.config
    version = config.get("cniVersion", "0.3.0")
    if version not in VERSIONS:
        raise CniFault(
            Reason.UNSUPPORTED_VERSION, f"cniVersion {str(version)[:40]!r}; known: {', '.join(VERSIONS)}"
        )
    if request.command not in VERBS:
        raise CniFault(Reason.BAD_ENVIRONMENT, f"CNI_COMMAND {request.command[:40]!r}", version)
    network = config.get("name")
    if not isinstance(network, str) or len(network) > _NAME_MAX or not _CONTAINER_ID.match(network):
        raise CniFault(Reason.BAD_CONFIG, f"network name {str(network)[:80]!r}", version)
    if request.command == "CHECK" and version < "0.4.0":
        raise CniFault(Reason.UNSUPPORTED_VERSION, "CHECK needs cniVersion 0.4.0 or later", version)
    if request.command in ("STATUS", "GC"):
        if version < "1.1.0":
            raise CniFault(Reason.UNSUPPORTED_VERSION, f"{request.command} needs cniVersion 1.1.0", version)
        return Call(
            verb=request.command,
            version=version,
            key=SandboxKey(network, "", ""),
            pod=PodRef(),
            netns="",
            valid=_valid_attachments(config, version),
            takes_host_ports=_takes_host_ports(config),
        )
    _check_environment(request, version)
    is_del = request.command == "DEL"
    is_later = request.command in ("DEL", "CHECK")
    told_netns, addresses = told_by_result(config.get("prevResult") if is_later else None, request.ifname)
    return Call(
        verb=request.command,
        version=version,
        key=SandboxKey(network, request.container_id, request.ifname),
        pod=PodRef() if is_del else _pod(request.args, version),
        netns=request.netns or told_netns,
        previous=None if is_del else _previous(config, version),
        addresses=addresses,
        host_ports=_host_ports(config, version) if request.command == "ADD" else (),
        takes_host_ports=_takes_host_ports(config),
    )


def _check_environment(request: Request, version: str) -> None:
    missing = [
        name
        for name, value in (
            ("CNI_CONTAINERID", request.container_id),
            ("CNI_IFNAME", request.ifname),
            ("CNI_NETNS", request.netns if request.command != "DEL" else "-"),
        )
        if not value
    ]
    if missing:
        raise CniFault(Reason.BAD_ENVIRONMENT, f"missing {', '.join(missing)}", version)
    container_id, ifname = request.container_id, request.ifname
    if len(container_id) > _NAME_MAX or not _CONTAINER_ID.match(container_id):
        raise CniFault(Reason.BAD_ENVIRONMENT, f"CNI_CONTAINERID {container_id[:80]!r}", version)
    if len(ifname.encode()) > 15 or ifname in (".", "..") or _IFNAME_BAD.search(ifname):
        raise CniFault(Reason.BAD_ENVIRONMENT, f"CNI_IFNAME {ifname[:80]!r}", version)
    netns = request.netns
    if (
        request.command != "DEL"
        and netns
        and (not netns.startswith("/") or "\x00" in netns or len(netns.encode()) > _NETNS_MAX)
    ):
        raise CniFault(Reason.BAD_ENVIRONMENT, "CNI_NETNS is not an absolute path", version)


def _pod(args: str, version: str) -> PodRef:
    known = {"K8S_POD_NAME": "", "K8S_POD_NAMESPACE": "", "K8S_POD_UID": ""}
    for pair in filter(None, args.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise CniFault(Reason.BAD_ENVIRONMENT, f"CNI_ARGS: {pair[:80]!r} is not KEY=VALUE", version)
        if key in known:
            known[key] = value[:253]
    return PodRef(known["K8S_POD_NAMESPACE"], known["K8S_POD_NAME"], known["K8S_POD_UID"])


def _valid_attachments(config: Mapping[str, Any], version: str) -> frozenset[tuple[str, str]] | None:
    # The tag spec-v1.1.0 named the key cni.dev/attachments; libcni sends both.
    listed = config.get("cni.dev/valid-attachments", config.get("cni.dev/attachments"))
    if listed is None:
        return None
    try:
        attachments = msgspec.convert(listed, list[_Attachment])
    except msgspec.ValidationError as error:
        # Not taken for an empty list: that would doubt every sandbox of the network.
        raise CniFault(Reason.BAD_CONFIG, f"cni.dev/valid-attachments: {error}"[:300], version) from error
    return frozenset((each.container_id, each.ifname) for each in attachments)


def _takes_host_ports(config: Mapping[str, Any]) -> bool:
    capabilities = config.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("portMappings") is True


def _host_ports(config: Mapping[str, Any], version: str) -> tuple[str, ...]:
    given = config.get("runtimeConfig")
    listed = given.get("portMappings") if isinstance(given, dict) else None
    try:
        items = msgspec.convert(listed or [], list[dict[str, Any]])
        lowered = [{key.lower(): value for key, value in item.items()} for item in items]
        mappings = msgspec.convert(lowered, list[_PortMapping])
    except msgspec.ValidationError as error:
        # Not taken for an empty list: the pod would run without its host ports.
        raise CniFault(Reason.BAD_CONFIG, f"runtimeConfig.portMappings: {error}"[:300], version) from error
    return tuple(f"{each.hostport}/{each.protocol[:10]}" for each in mappings if each.hostport > 0)


def _previous(config: Mapping[str, Any], version: str) -> Mapping[str, Any] | None:
    """The ``prevResult``. Its shape is checked here, before anything is done, and not in the answer."""
    previous = config.get("prevResult")
    if previous is None:
        return None
    try:
        msgspec.convert(previous, _Previous)
    except msgspec.ValidationError as error:
        raise CniFault(Reason.BAD_CONFIG, f"prevResult: {error}"[:300], version) from error
    checked: Mapping[str, Any] = previous
    return checked


def told_by_result(result: Any, ifname: str) -> tuple[str, tuple[Address, ...]]:
    """What a ``prevResult``, ours or the original's, says of a sandbox: its namespace and its addresses.

    Nothing is refused: a DEL needs none of it. The original's has an interface that does not exist, whose
    ``sandbox`` is no namespace, and numbers where MACs should stand (its results, CNI 0.4.0).
    """
    parts: Mapping[str, Any] = result if isinstance(result, dict) else {}
    interfaces = _dicts(parts.get("interfaces"))
    here = {number for number, each in enumerate(interfaces) if each.get("name") == ifname}
    paths = [interfaces[number].get("sandbox") for number in sorted(here)]
    netns = next((path for path in paths if isinstance(path, str) and path.startswith("/")), "")
    addresses: list[Address] = []
    for entry in _dicts(parts.get("ips")):
        try:
            address = parse_address(str(entry.get("address", "")).partition("/")[0])
        except ValueError:
            continue
        number = entry.get("interface")
        is_here = number in here if isinstance(number, int) else False
        if ":" not in address and (is_here or not here):
            addresses.append(address)
    return netns[:_NETNS_MAX], tuple(addresses)


def _dicts(listed: Any) -> list[dict[str, Any]]:
    """The entries of a list, each at its place; an empty one for what is none."""
    return [each if isinstance(each, dict) else {} for each in listed] if isinstance(listed, list) else []


def result(version: str, wired: Wired, previous: Mapping[str, Any] | None = None) -> bytes:
    """The result of an ADD, in the asked version. A ``prevResult`` is passed on, with ours added."""
    before = previous or {}
    interfaces = list(before.get("interfaces") or [])
    first = len(interfaces)
    host: dict[str, Any] = {"name": wired.host_ifname, "mac": wired.host_mac}
    pod: dict[str, Any] = {"name": wired.ifname, "mac": wired.pod_mac, "sandbox": wired.netns}
    if version >= "1.1.0":
        host["mtu"] = pod["mtu"] = wired.mtu
    addresses = []
    for binding in wired.bindings:
        entry: dict[str, Any] = {
            "interface": first + 1,
            "address": f"{binding.address}/{32 if binding.family == 4 else 128}",
            "gateway": _GATEWAY,
        }
        if version < "1.0.0":
            entry["version"] = str(binding.family)
        addresses.append(entry)
    return msgspec.json.encode(
        {
            "cniVersion": version,
            "interfaces": [*interfaces, host, pod],
            "ips": [*(before.get("ips") or []), *addresses],
            "routes": [*(before.get("routes") or []), {"dst": "0.0.0.0/0", "gw": _GATEWAY}],
            "dns": before.get("dns") or {},
        }
    )


def status_body(version: str, warnings: Iterable[Reason]) -> bytes:
    """The answer to a STATUS that is a success: what troubles some pods and is no reason to call the node unfit.

    A STATUS that fails makes the node NotReady, and a cluster then moves every pod away from it.
    """
    told = [
        {"reason": str(reason), "msg": sentence(reason), "details": f"reason={reason}"} for reason in warnings
    ]
    return msgspec.json.encode({"cniVersion": version, "warnings": told} if told else {})


def code_of(reason: Reason, verb: str = "") -> int:
    """The CNI error code of a reason: STATUS says 50; what may pass says 11."""
    if verb == "STATUS" and reason not in (Reason.BAD_REQUEST, Reason.UNSUPPORTED_VERSION, Reason.BAD_CONFIG):
        return CODE_NOT_AVAILABLE
    return _CODES.get(reason, CODE_TRY_AGAIN)


def fault_body(version: str, reason: Reason, detail: str, verb: str = "") -> bytes:
    """A CNI error object. ``details`` begins with the reason code, for machines that read text."""
    return msgspec.json.encode(
        {
            "cniVersion": version,
            "code": code_of(reason, verb),
            "msg": sentence(reason, detail),
            "details": f"reason={reason}" + (f"; {detail}" if detail else ""),
            "reason": str(reason),
        }
    )

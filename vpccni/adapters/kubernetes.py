"""The Kubernetes port: a few questions to the API server, most about our own node.

In a pod, the service account's files are all that it takes, so the answers cost an aiohttp session and no more.
``kubernetes_asyncio`` (37 MiB and half a second, as importing any part of it imports every model) is loaded only
where a ``KUBECONFIG`` with its many ways to authenticate has to be read.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from vpccni import __version__
from vpccni.errors import Reason, TransientError
from vpccni.evidence import PodSeen
from vpccni.model import Address, PodRef, parse_address

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S: Final = 5.0
"""For a request, credentials included; all are made seldom."""
_PAGE: Final = 500
_WHOLE_PAGE: Final = 100
"""For pods with everything in them, some 10 KB each: a page is built and read within a fraction of the time limit."""
_POLICIES_MAX: Final = 10
"""That there is one is the question; a few names tell where to look."""
_POLICY_PATH: Final = "/apis/networking.k8s.aws/v1alpha1/policyendpoints"
_PAGES_MAX: Final = 100
_TOKEN_MAX_AGE_S: Final = 60.0
"""The kubelet renews a projected token minutes before its end; client-go reads it as often."""
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_FINISHED: Final = frozenset({"Succeeded", "Failed"})
_LIST_KINDS: Final = frozenset({"PodList", "PartialObjectMetadataList"})
_POLICY_KINDS: Final = frozenset({"PolicyEndpointList", "PartialObjectMetadataList"})
Answer = TypeVar("Answer")


class _Capacity(msgspec.Struct):
    pods: str | int | None = None


class _Status(msgspec.Struct):
    capacity: _Capacity | None = None


class _Node(msgspec.Struct):
    """What we read of a Node."""

    kind: str
    status: _Status | None = None


class _Annotations(msgspec.Struct, rename={"config_mirror": "kubernetes.io/config.mirror"}):
    """Of a pod's annotations the one that we read; the others are skipped without being built."""

    config_mirror: str = ""


class _Metadata(msgspec.Struct):
    uid: str
    annotations: _Annotations | None = None


class _Item(msgspec.Struct):
    metadata: _Metadata


class _ListMetadata(msgspec.Struct, rename={"next_page": "continue"}):
    next_page: str = ""


class _Pods(msgspec.Struct):
    """What we read of one page of pods. ``items`` must be there: absence of a list is not an empty list."""

    kind: str
    metadata: _ListMetadata
    items: list[_Item] | None


class _SeenAnnotations(
    msgspec.Struct, rename={"branch": "vpc.amazonaws.com/pod-eni", "mirror": "kubernetes.io/config.mirror"}
):
    branch: str = ""
    mirror: str = ""


class _SeenMetadata(msgspec.Struct):
    name: str
    namespace: str
    uid: str
    annotations: _SeenAnnotations | None = None


class _SeenSpec(msgspec.Struct, rename={"is_host_network": "hostNetwork"}):
    is_host_network: bool = False


class _SeenAddress(msgspec.Struct):
    ip: str = ""


class _SeenStatus(msgspec.Struct, rename={"pod_ip": "podIP", "pod_ips": "podIPs"}):
    phase: str = ""
    pod_ip: str = ""
    pod_ips: list[_SeenAddress] | None = None


class _SeenItem(msgspec.Struct):
    """What we read of a whole pod."""

    metadata: _SeenMetadata
    spec: _SeenSpec
    status: _SeenStatus | None = None


class _SeenPods(msgspec.Struct):
    """One page of whole pods; see ``_Pods``."""

    kind: str
    metadata: _ListMetadata
    items: list[_SeenItem] | None


class _PolicyMetadata(msgspec.Struct):
    name: str
    namespace: str


class _Policy(msgspec.Struct):
    metadata: _PolicyMetadata


class _Policies(msgspec.Struct):
    kind: str
    items: list[_Policy] | None


_NO_POLICIES: Final = _Policies(kind="PolicyEndpointList", items=None)


class Access(msgspec.Struct, frozen=True):
    """How to reach the API server.

    Attributes:
        url: Base URL.
        tls: For https; ``None`` for http.
        token: The bearer token, empty for none (client certificate, or no authentication).
        server_hostname: The name in the server's certificate, when it differs from the URL's.
    """

    url: str
    tls: ssl.SSLContext | None
    token: str
    server_hostname: str = ""


AccessSource = Callable[[], Awaitable[Access]]
"""Finds out how to reach the API server. May raise ``OSError``, ``ValueError`` or what a library raises."""


class ApiServerNode:
    """The ``KubernetesNode`` port over HTTPS. Every failure is ``TransientError``; nothing is repeated.

    Credentials are read anew every minute, and at once when the server no longer takes them (401).
    """

    def __init__(self, node: str, source: AccessSource) -> None:
        """Remember the node's name and where access comes from; nothing is opened."""
        self._node = node
        self._source = source
        self._access: Access | None = None
        self._access_until = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Lock()

    async def max_pods(self) -> int | None:
        """``status.capacity.pods`` of our node; ``None`` when the node does not say.

        Raises:
            TransientError: not reachable, not allowed, or no such node (yet).
        """
        node = await self._ask(f"/api/v1/nodes/{self._node}", {}, "application/json", _Node)
        if node.kind != "Node":
            raise _unavailable(f"the answer is a {node.kind or 'nothing'}, not a Node")
        capacity = node.status.capacity if node.status is not None else None
        text = str(capacity.pods if capacity is not None else "")
        return int(text) if text.isdecimal() else None

    async def pod_uids(self) -> frozenset[str]:
        """UIDs of all pods bound to our node, a static pod's under both that it has (see the port).

        No resource version is given, so the list is consistent with the newest state of the cluster; a
        list that is not whole raises. Raises as ``max_pods``.
        """
        uids: set[str] = set()
        query = {"fieldSelector": f"spec.nodeName={self._node}", "limit": str(_PAGE)}
        for _ in range(_PAGES_MAX):
            page = await self._ask("/api/v1/pods", query, _METADATA_ONLY, _Pods)
            if page.kind not in _LIST_KINDS:
                raise _unavailable(f"the answer is a {page.kind or 'nothing'}, not a list of pods")
            for item in page.items or ():
                uids.add(item.metadata.uid)
                if item.metadata.annotations is not None and item.metadata.annotations.config_mirror:
                    uids.add(item.metadata.annotations.config_mirror)
            if not page.metadata.next_page:
                return frozenset(uids)
            query["continue"] = page.metadata.next_page
        raise _unavailable(f"the list of pods has no end after {_PAGES_MAX} pages")

    async def pods(self) -> tuple[PodSeen, ...]:
        """All pods bound to our node, as ``pod_uids`` asks for them, with what tells whose an address is.

        The UID of a static pod is the one that the runtime knows (``kubernetes.io/config.mirror``), not that of
        its mirror pod. An address that is none is left out. Raises as ``max_pods``.
        """
        seen: list[PodSeen] = []
        query = {"fieldSelector": f"spec.nodeName={self._node}", "limit": str(_WHOLE_PAGE)}
        for _ in range(_PAGES_MAX):
            page = await self._ask("/api/v1/pods", query, "application/json", _SeenPods)
            if page.kind != "PodList":
                raise _unavailable(f"the answer is a {page.kind or 'nothing'}, not a list of pods")
            seen += map(_seen, page.items or ())
            if not page.metadata.next_page:
                return tuple(seen)
            query["continue"] = page.metadata.next_page
        raise _unavailable(f"the list of pods has no end after {_PAGES_MAX} pages")

    async def policy_endpoints(self) -> tuple[str, ...]:
        """``namespace/name`` of some PolicyEndpoint objects of the cluster; empty when there is none.

        A cluster that does not know the kind (404) has none. Raises as ``max_pods``.
        """
        query = {"limit": str(_POLICIES_MAX)}
        page = await self._ask(_POLICY_PATH, query, _METADATA_ONLY, _Policies, absent=_NO_POLICIES)
        if page.kind not in _POLICY_KINDS:
            raise _unavailable(f"the answer is a {page.kind or 'nothing'}, not a list of policy endpoints")
        return tuple(f"{each.metadata.namespace}/{each.metadata.name}" for each in page.items or ())

    async def close(self) -> None:
        """Release connections. Idempotent; the next question opens anew."""
        async with self._turn:
            session, self._session, self._access = self._session, None, None
            if session is not None:
                await session.close()

    async def _ask(
        self,
        path: str,
        query: Mapping[str, str],
        accept: str,
        kind: type[Answer],
        absent: Answer | None = None,
    ) -> Answer:
        """One GET, decoded; once more with fresh credentials after a 401. ``absent``: what a 404 stands for."""
        # One request at a time: the session may be replaced in between.
        async with self._turn:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status, body = await self._get(path, query, accept)
                    if status == 401:
                        self._access_until = 0.0
                        status, body = await self._get(path, query, accept)
                if status == 404 and absent is not None:
                    return absent
                if status != 200:
                    raise _unavailable(f"GET {path}: HTTP {status}")
                return msgspec.json.decode(body, type=kind)
            except msgspec.DecodeError as error:
                raise _unavailable(f"GET {path}: {error}") from error
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise _unavailable(f"GET {path}: {str(error) or type(error).__name__}") from error

    async def _get(self, path: str, query: Mapping[str, str], accept: str) -> tuple[int, bytes]:
        access = await self._fresh_access()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=access.tls or True, limit=2),
                trust_env=True,  # as client-go: a cluster behind a proxy says so in the environment
                headers={"User-Agent": f"vpccni/{__version__}"},
            )
        headers = {"Accept": accept}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        async with self._session.get(
            access.url + path,
            params=dict(query),
            headers=headers,
            allow_redirects=False,
            server_hostname=access.server_hostname or None,
        ) as response:
            return response.status, await response.read()

    async def _fresh_access(self) -> Access:
        now = asyncio.get_running_loop().time()
        if self._access is None or now >= self._access_until:
            try:
                access = await self._source()
            except (OSError, ValueError):
                raise
            except Exception as error:
                # Libraries that read a kubeconfig have error trees of their own.
                raise _unavailable(f"no access: {str(error) or type(error).__name__}") from error
            if self._session is not None and (self._access is None or self._access.tls is not access.tls):
                session, self._session = self._session, None
                await session.close()
            self._access, self._access_until = access, now + _TOKEN_MAX_AGE_S
        return self._access


async def open_node(
    node: str,
    *,
    endpoint: str = "",
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
) -> ApiServerNode | None:
    """The port, connected to nothing yet: by ``KUBECONFIG`` if that is set, else by the pod's service account.

    Args:
        node: The name of our Node.
        endpoint: URL to use in place of the one that the configuration holds.
        environ: Where ``KUBECONFIG`` and ``KUBERNETES_SERVICE_HOST`` and ``_PORT`` are looked up.
        service_account: Directory of ``token`` and ``ca.crt``.

    Returns:
        ``None`` when neither is there, or when the node's name is not known.
    """
    if not node:
        return None
    if environ.get("KUBECONFIG"):
        return ApiServerNode(node, KubeconfigAccess(environ["KUBECONFIG"], endpoint))
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if host and port:
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return ApiServerNode(node, ServiceAccountAccess(endpoint or url, service_account))
    return None


class ServiceAccountAccess:
    """Access by the files that the kubelet projects into a pod."""

    def __init__(self, url: str, files: Path) -> None:
        """Remember where they are; they may not be there yet."""
        self._url = _with_scheme(url)
        self._files = files
        self._tls: ssl.SSLContext | None = None
        self._authority = b""

    async def __call__(self) -> Access:
        """Read the token; build the TLS context when the authority's certificate has changed."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Access:
        token = (self._files / "token").read_text(encoding="ascii").strip()
        if not token:
            raise ValueError("the service account's token is empty")
        if self._url.startswith("https:"):
            authority = (self._files / "ca.crt").read_bytes()
            if self._tls is None or authority != self._authority:
                self._tls = ssl.create_default_context(cadata=authority.decode("ascii"))
                self._authority = authority
        return Access(self._url, self._tls, token)


class KubeconfigAccess:
    """Access by a kubeconfig, read with all that it may ask for by ``kubernetes_asyncio``."""

    def __init__(self, files: str, cluster_endpoint: str) -> None:
        """Remember the settings. ``files`` is as in ``KUBECONFIG``: paths with colons between them."""
        self._files = files
        self._cluster_endpoint = cluster_endpoint
        self._tls: ssl.SSLContext | None = None
        self._tls_made_of: tuple[Any, ...] = ()

    async def __call__(self) -> Access:
        """Read the configuration; runs the login program that it names."""
        client, config = await asyncio.to_thread(_import_kubernetes)
        found = client.Configuration()
        await config.load_kube_config(
            config_file=self._files, client_configuration=found, persist_config=False
        )
        url = _with_scheme(self._cluster_endpoint or found.host)
        made_of = (found.ssl_ca_cert, found.cert_file, found.key_file, found.verify_ssl)
        if url.startswith("https:") and (self._tls is None or made_of != self._tls_made_of):
            self._tls = await asyncio.to_thread(_tls_of, *made_of)
            self._tls_made_of = made_of
        token = str(found.api_key.get("BearerToken") or "").removeprefix("Bearer ").strip()
        return Access(url, self._tls, token, found.tls_server_name or "")


def _import_kubernetes() -> tuple[Any, Any]:
    from kubernetes_asyncio import client, config  # half a second: on a thread, and only with a KUBECONFIG

    return client, config


def _tls_of(authority: str | None, cert: str | None, key: str | None, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    if cert:
        context.load_cert_chain(cert, keyfile=key)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _seen(item: _SeenItem) -> PodSeen:
    annotations = item.metadata.annotations or _SeenAnnotations()
    status = item.status or _SeenStatus()
    texts = [each.ip for each in status.pod_ips or ()] or [status.pod_ip]
    return PodSeen(
        pod=PodRef(item.metadata.namespace, item.metadata.name, annotations.mirror or item.metadata.uid),
        addresses=tuple(dict.fromkeys(_addresses(texts))),
        is_host_network=item.spec.is_host_network,
        has_branch_eni=bool(annotations.branch),
        is_finished=status.phase in _FINISHED,
    )


def _addresses(texts: list[str]) -> Iterator[Address]:
    for text in texts:
        with suppress(ValueError):
            yield parse_address(text)


def _with_scheme(url: str) -> str:
    """The URL without a trailing slash; a bare host means https."""
    return (url if "://" in url else f"https://{url}").rstrip("/")


def _unavailable(detail: str) -> TransientError:
    return TransientError(Reason.INTERNAL, f"API server: {detail}")

"""The Kubernetes port against a mock API server, a rude one, and the fake."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fakes.ec2 import serving
from tests.fakes.kubernetes import FakeKubernetesNode
from vpccni.adapters import kubernetes
from vpccni.adapters.kubernetes import ApiServerNode, ServiceAccountAccess, open_node
from vpccni.errors import TransientError


def pods(*uids: str, more: str = "", kind: str = "PodList") -> dict[str, Any]:
    metadata = {"resourceVersion": "7", **({"continue": more} if more else {})}
    items = [{"metadata": {"uid": uid, "name": uid}, "spec": {"nodeName": "n1"}} for uid in uids]
    return {"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}


def node(capacity: dict[str, str] | None) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": "n1"}, "status": {"capacity": capacity, "images": [1, 2]}}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.fixture
async def api(kmock: Any, account: Path) -> AsyncIterator[ApiServerNode]:
    api = ApiServerNode("n1", ServiceAccountAccess(str(kmock.url), account))
    yield api
    await api.close()


def pod(uid: str, annotations: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "annotations": annotations}, "spec": {"nodeName": "n1"}}


CONFIG_HASH = "0dbc5bb8ad4b9c4a1a0ab8d5a5d7a6b3"
"""What kubelet makes of a static pod's manifest: an MD5, and K8S_POD_UID at the runtime."""


@pytest.fixture(params=["api server", "fake"])
async def both(request: Any, kmock: Any, api: ApiServerNode) -> Any:
    """A node with the pods a and b and a static pod, whose mirror pod is c."""
    if request.param == "fake":
        fake = FakeKubernetesNode(max_pods=29, uids=frozenset({"a", "b"}))
        fake.mirrors["c"] = CONFIG_HASH
        return fake
    listed = pods("a", "b")
    annotations = {"kubernetes.io/config.mirror": CONFIG_HASH, "kubernetes.io/config.source": "file"}
    listed["items"].append(pod("c", annotations))
    kmock["get /api/v1/nodes/n1"] << node({"pods": "29", "cpu": "2"})
    kmock["get /api/v1/pods"] << listed
    return api


async def test_both_questions_are_answered(both: Any) -> None:
    assert await both.max_pods() == 29
    assert await both.pod_uids() == frozenset({"a", "b", "c", CONFIG_HASH})


async def test_a_static_pod_is_listed_by_the_uid_that_the_runtime_knows_too(both: Any) -> None:
    """Its mirror pod has another UID; without the runtime's, a living static pod would count as absent."""
    assert {"c", CONFIG_HASH} <= await both.pod_uids()


@pytest.mark.parametrize(
    "annotations",
    [None, {}, {"kubernetes.io/config.mirror": ""}, {"kubernetes.io/config.hash": CONFIG_HASH}],
    ids=["null", "none", "empty", "another"],
)
async def test_annotations_of_no_mirror_pod_add_no_uid(
    kmock: Any, api: ApiServerNode, annotations: Any
) -> None:
    kmock["get /api/v1/pods"] << (pods() | {"items": [pod("a", annotations)]})
    assert await api.pod_uids() == frozenset({"a"})


async def test_the_list_is_of_our_node_fresh_and_of_metadata_only(kmock: Any, api: ApiServerNode) -> None:
    kmock["get /api/v1/pods"] << pods("a", kind="PartialObjectMetadataList")
    await api.pod_uids()
    (request,) = kmock["get /api/v1/pods"]
    assert dict(request.params) == {"fieldSelector": "spec.nodeName=n1", "limit": "500"}
    assert "PartialObjectMetadataList" in request.headers["Accept"]
    assert request.headers["Authorization"] == "Bearer first"


async def test_pages_are_followed(kmock: Any, api: ApiServerNode) -> None:
    def page(request: Any) -> dict[str, Any]:
        return pods("b") if request.params.get("continue") == "next" else pods("a", more="next")

    kmock["get /api/v1/pods"] << page
    assert await api.pod_uids() == frozenset({"a", "b"})


@pytest.mark.parametrize("capacity", [None, {}, {"cpu": "2"}, {"pods": "many"}, {"pods": "-1"}])
async def test_a_node_that_does_not_say_gives_none(kmock: Any, api: ApiServerNode, capacity: Any) -> None:
    kmock["get /api/v1/nodes/n1"] << node(capacity)
    assert await api.max_pods() is None


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kind": "PodList", "metadata": {}},
        {"kind": "Status", "metadata": {}, "items": []},
        {"kind": "PodList", "metadata": {}, "items": [{"metadata": {"name": "a"}}]},
        b"<html>login</html>",
        b"",
    ],
    ids=["nothing", "no items", "another kind", "no uid", "html", "empty"],
)
async def test_what_is_not_a_whole_list_is_never_an_empty_one(
    kmock: Any, api: ApiServerNode, answer: Any
) -> None:
    """A list of no pods is a witness against every lease of the node, so it must be one."""
    kmock["get /api/v1/pods"] << answer
    with pytest.raises(TransientError):
        await api.pod_uids()


async def test_a_list_of_no_pods_is_empty(kmock: Any, api: ApiServerNode) -> None:
    kmock["get /api/v1/pods"] << {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": None}
    assert await api.pod_uids() == frozenset()


@pytest.mark.parametrize("status", [403, 404, 410, 429, 500, 302])
async def test_any_other_status_is_transient(kmock: Any, api: ApiServerNode, status: int) -> None:
    kmock["get /api/v1/nodes/n1"] << status
    kmock["get /api/v1/pods"] << status
    for question in (api.max_pods, api.pod_uids):
        with pytest.raises(TransientError, match=str(status)):
            await question()


async def test_a_renewed_token_is_read_when_the_old_one_is_refused(account: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        is_known = request.headers["Authorization"] == "Bearer second"
        return web.json_response(pods("a")) if is_known else web.Response(status=401)

    app = web.Application()
    app.router.add_get("/api/v1/pods", answer)
    async with serving(app) as url:
        api = ApiServerNode("n1", ServiceAccountAccess(url, account))
        with pytest.raises(TransientError, match="401"):
            await api.pod_uids()
        (account / "token").write_text("second")
        assert await api.pod_uids() == frozenset({"a"})
        await api.close()


async def test_a_token_that_is_not_there_yet_is_transient(
    kmock: Any, api: ApiServerNode, account: Path
) -> None:
    (account / "token").unlink()
    with pytest.raises(TransientError, match="token"):
        await api.max_pods()
    (account / "token").write_text("first")
    kmock["get /api/v1/nodes/n1"] << node({"pods": "8"})
    assert await api.max_pods() == 8


async def test_a_refused_connection_is_transient(unused_tcp_port: int, account: Path) -> None:
    api = ApiServerNode("n1", ServiceAccountAccess(f"http://127.0.0.1:{unused_tcp_port}", account))
    for question in (api.max_pods, api.pod_uids):
        with pytest.raises(TransientError):
            await question()
    await api.close()


def _certificate() -> tuple[bytes, bytes]:
    """A certificate for the loopback that is its own authority, and its key."""
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "api")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), secret


async def test_in_a_pod_the_server_is_verified_by_the_cluster_s_authority(account: Path) -> None:
    certificate, key = _certificate()
    (account / "server.pem").write_bytes(key + certificate)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(account / "server.pem")

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(node({"pods": "8"}))

    app = web.Application()
    app.router.add_get("/api/v1/nodes/n1", answer)
    async with serving(app, tls) as url:
        api = ApiServerNode("n1", ServiceAccountAccess(url, account))
        (account / "ca.crt").write_bytes(_certificate()[0])
        with pytest.raises(TransientError, match="CERTIFICATE_VERIFY_FAILED"):
            await api.max_pods()
        await api.close()
        (account / "ca.crt").write_bytes(certificate)
        assert await api.max_pods() == 8
        await api.close()


@pytest.mark.slow
async def test_a_hanging_server_is_given_up(
    kmock: Any, api: ApiServerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "TIMEOUT_S", 0.2)
    kmock["get /api/v1/pods"] << (lambda: asyncio.sleep(1))
    before = time.monotonic()
    with pytest.raises(TransientError, match="TimeoutError"):
        await api.pod_uids()
    assert time.monotonic() - before < 0.9


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
contexts: [{name: one, context: {cluster: one, user: one}}]
clusters: [{name: one, cluster: {server: "%s"}}]
users: [{name: one, user: {token: from-the-file}}]
"""


@pytest.mark.slow
async def test_a_kubeconfig_gives_url_and_token(kmock: Any, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(KUBECONFIG % str(kmock.url).rstrip("/"))
    api = await open_node("n1", environ={"KUBECONFIG": str(tmp_path / "config")})
    assert api is not None
    kmock["get /api/v1/nodes/n1"] << node({"pods": "8"})
    assert await api.max_pods() == 8
    (request,) = kmock["get /api/v1/nodes/n1"]
    assert request.headers["Authorization"] == "Bearer from-the-file"
    await api.close()


@pytest.mark.slow
async def test_the_cluster_endpoint_wins_over_the_kubeconfig(kmock: Any, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(KUBECONFIG % "http://127.0.0.1:1")
    api = await open_node("n1", endpoint=str(kmock.url), environ={"KUBECONFIG": str(tmp_path / "config")})
    assert api is not None
    kmock["get /api/v1/nodes/n1"] << node({"pods": "8"})
    assert await api.max_pods() == 8
    await api.close()


@pytest.mark.slow
async def test_a_kubeconfig_that_cannot_be_used_is_transient(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("contexts: []\n")
    for path in (tmp_path / "config", tmp_path / "absent"):
        api = await open_node("n1", environ={"KUBECONFIG": str(path)})
        assert api is not None
        with pytest.raises(TransientError):
            await api.max_pods()
        await api.close()


IN_POD = {"KUBERNETES_SERVICE_HOST": "10.1.0.1", "KUBERNETES_SERVICE_PORT": "443"}


async def test_without_any_configuration_there_is_no_port() -> None:
    assert await open_node("n1", environ={}) is None
    assert await open_node("", environ=IN_POD) is None


@pytest.mark.parametrize(
    ("environ", "endpoint", "url"),
    [
        (IN_POD, "", "https://10.1.0.1:443"),
        (IN_POD, "https://api.example:6443/", "https://api.example:6443"),
        (IN_POD, "api.example", "https://api.example"),
        ({**IN_POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}, "", "https://[fd00::1]:443"),
    ],
)
async def test_in_a_pod_the_url_is_the_service_unless_an_endpoint_is_given(
    environ: dict[str, str], endpoint: str, url: str, tmp_path: Path
) -> None:
    api = await open_node("n1", endpoint=endpoint, environ=environ, service_account=tmp_path)
    assert api is not None
    assert isinstance(api._source, ServiceAccountAccess)
    assert api._source._url == url


def test_the_library_with_all_its_models_is_not_imported_in_a_pod() -> None:
    code = (
        "import asyncio, sys; from vpccni.adapters.kubernetes import open_node as a; "
        f"asyncio.run(a('n1', environ={IN_POD!r})); sys.exit('kubernetes_asyncio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

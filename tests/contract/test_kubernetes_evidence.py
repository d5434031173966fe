"""What the Kubernetes port tells of pods and policies for a take-over: a mock API server and the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kubernetes import FakeKubernetesNode
from vpccni.adapters.kubernetes import ApiServerNode, ServiceAccountAccess
from vpccni.errors import TransientError
from vpccni.evidence import PodSeen
from vpccni.model import Address, PodRef
from vpccni.ports import KubernetesNode

POLICIES = "/apis/networking.k8s.aws/v1alpha1/policyendpoints"
BRANCH = '[{"eniId":"eni-1","privateIp":"10.0.0.9","vlanID":3}]'


@pytest.fixture
async def api(kmock: Any, tmp_path: Path) -> AsyncIterator[ApiServerNode]:
    (tmp_path / "token").write_text("first")
    api = ApiServerNode("n1", ServiceAccountAccess(str(kmock.url), tmp_path))
    yield api
    await api.close()


def whole_pod(uid: str, **more: Any) -> dict[str, Any]:
    """A pod as the API server gives it, with much that nobody asked for."""
    return {
        "metadata": {
            "uid": uid,
            "name": f"web-{uid}",
            "namespace": "default",
            "annotations": {"kubernetes.io/config.source": "api"} | more.get("annotations", {}),
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "image": "i", "resources": {}}],
            **more.get("spec", {}),
        },
        "status": {"phase": "Running", "hostIP": "10.0.0.1", **more.get("status", {})},
    }


def whole_pods(*items: dict[str, Any], more: str = "") -> dict[str, Any]:
    metadata = {"resourceVersion": "7", **({"continue": more} if more else {})}
    return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": list(items)}


def seen(uid: str, *addresses: str, **more: Any) -> PodSeen:
    return PodSeen(pod=PodRef("default", f"web-{uid}", uid), addresses=tuple(map(Address, addresses)), **more)


@dataclass(frozen=True)
class Cluster:
    """An API server, and the port that asks it."""

    node: KubernetesNode
    bind: Callable[[list[tuple[dict[str, Any], PodSeen]]], Any]
    apply: Callable[[list[str]], Any]
    forbid_policies: Callable[[], Any]


@pytest.fixture(params=["api server", "fake"])
def cluster(request: Any, kmock: Any, api: ApiServerNode) -> Cluster:
    if request.param == "fake":
        fake = FakeKubernetesNode()

        def put(bound: list[tuple[dict[str, Any], PodSeen]]) -> None:
            for _, pod in bound:
                fake.put(pod)

        return Cluster(
            fake,
            put,
            fake.policies.update,
            lambda: setattr(fake, "is_policy_forbidden", True),
        )

    def apply(names: list[str]) -> None:
        items = [dict(zip(("namespace", "name"), each.split("/"), strict=True)) for each in names]
        kmock[f"get {POLICIES}"] << {
            "kind": "PolicyEndpointList",
            "metadata": {},
            "items": [{"metadata": each, "spec": {"policyRef": each}} for each in items],
        }

    def bind(bound: list[tuple[dict[str, Any], PodSeen]]) -> None:
        kmock["get /api/v1/pods"] << whole_pods(*(item for item, _ in bound))

    def forbid() -> None:
        kmock[f"get {POLICIES}"] << 403

    return Cluster(api, bind, apply, forbid)


BOUND = [
    (
        whole_pod("a", status={"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "FD00::0002"}]}),
        seen("a", "10.0.0.2", "fd00::2"),
    ),
    (
        whole_pod("b", spec={"hostNetwork": True}, status={"podIP": "10.0.0.1"}),
        seen("b", "10.0.0.1", is_host_network=True),
    ),
    (
        whole_pod(
            "c",
            annotations={"vpc.amazonaws.com/pod-eni": BRANCH},
            status={"phase": "Pending", "podIPs": None},
        ),
        seen("c", has_branch_eni=True),
    ),
    (
        whole_pod("d", status={"phase": "Succeeded", "podIPs": [{"ip": "10.0.0.2"}]}),
        seen("d", "10.0.0.2", is_finished=True),
    ),
    (
        whole_pod("e", status={"phase": "Failed", "podIPs": [{"ip": "10.0.0.3"}]}),
        seen("e", "10.0.0.3", is_finished=True),
    ),
]


async def test_pods_are_told_with_what_says_whose_an_address_is(cluster: Cluster) -> None:
    cluster.bind(BOUND)
    assert await cluster.node.pods() == tuple(pod for _, pod in BOUND)


async def test_a_node_without_pods_has_none(cluster: Cluster) -> None:
    cluster.bind([])
    assert await cluster.node.pods() == ()


async def test_some_policy_endpoints_are_named(cluster: Cluster) -> None:
    cluster.apply(["default/deny-all-x7k2p", "web/allow-b9d"])
    assert await cluster.node.policy_endpoints() == ("default/deny-all-x7k2p", "web/allow-b9d")


async def test_a_cluster_without_policy_endpoints_has_none(cluster: Cluster) -> None:
    cluster.apply([])
    assert await cluster.node.policy_endpoints() == ()


async def test_not_to_be_allowed_to_list_policy_endpoints_is_not_to_have_none(cluster: Cluster) -> None:
    cluster.forbid_policies()
    with pytest.raises(TransientError, match="403"):
        await cluster.node.policy_endpoints()


async def test_the_uid_of_a_static_pod_is_the_one_that_the_runtime_knows(
    kmock: Any, api: ApiServerNode
) -> None:
    mirror = whole_pod("mirror", annotations={"kubernetes.io/config.mirror": "static"})
    kmock["get /api/v1/pods"] << whole_pods(mirror)
    assert [pod.pod.uid for pod in await api.pods()] == ["static"]


@pytest.mark.parametrize("status", [None, {}, {"podIPs": []}, {"podIP": ""}, {"podIPs": [{"ip": "odd"}, {}]}])
async def test_a_pod_without_an_address_has_none(kmock: Any, api: ApiServerNode, status: Any) -> None:
    kmock["get /api/v1/pods"] << whole_pods(whole_pod("a") | {"status": status})
    assert await api.pods() == (seen("a"),)


async def test_whole_pods_are_asked_for_page_by_page(kmock: Any, api: ApiServerNode) -> None:
    def page(request: Any) -> dict[str, Any]:
        is_second = request.params.get("continue") == "next"
        return whole_pods(whole_pod("b")) if is_second else whole_pods(whole_pod("a"), more="next")

    kmock["get /api/v1/pods"] << page
    assert [pod.pod.uid for pod in await api.pods()] == ["a", "b"]
    first, second = kmock["get /api/v1/pods"]
    assert dict(first.params) == {"fieldSelector": "spec.nodeName=n1", "limit": "100"}
    assert dict(second.params) == dict(first.params) | {"continue": "next"}
    assert first.headers["Accept"] == "application/json"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kind": "PodList", "metadata": {}},
        {"kind": "Status", "metadata": {}, "items": []},
        {"kind": "PodList", "metadata": {}, "items": [{"metadata": {"uid": "a"}, "spec": {}}]},
        # Metadata alone would read as pods of the pool without addresses.
        {
            "kind": "PartialObjectMetadataList",
            "metadata": {},
            "items": [{"metadata": {"uid": "a", "name": "a", "namespace": "b"}}],
        },
        b"<html>login</html>",
        404,
        410,
    ],
    ids=["nothing", "no items", "another kind", "no name", "metadata", "html", "404", "410"],
)
async def test_what_is_not_a_whole_list_of_pods_is_no_list(
    kmock: Any, api: ApiServerNode, answer: Any
) -> None:
    kmock["get /api/v1/pods"] << answer
    with pytest.raises(TransientError):
        await api.pods()


async def test_policy_endpoints_are_asked_for_by_name_and_not_by_the_megabyte(
    kmock: Any, api: ApiServerNode
) -> None:
    metadata = {"name": "p", "namespace": "n"}
    kmock[f"get {POLICIES}"] << {"kind": "PartialObjectMetadataList", "items": [{"metadata": metadata}]}
    assert await api.policy_endpoints() == ("n/p",)
    (request,) = kmock[f"get {POLICIES}"]
    assert dict(request.params) == {"limit": "10"}
    assert "PartialObjectMetadataList" in request.headers["Accept"]


async def test_a_cluster_that_does_not_know_the_kind_has_no_policy_endpoints(
    kmock: Any, api: ApiServerNode
) -> None:
    kmock[f"get {POLICIES}"] << 404
    assert await api.policy_endpoints() == ()


@pytest.mark.parametrize("answer", [401, 429, 500, 503, {}, {"kind": "PodList", "items": []}, b"none"])
async def test_anything_else_says_nothing_of_policy_endpoints(
    kmock: Any, api: ApiServerNode, answer: Any
) -> None:
    kmock[f"get {POLICIES}"] << answer
    with pytest.raises(TransientError):
        await api.policy_endpoints()

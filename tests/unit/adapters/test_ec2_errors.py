"""What each failure of an EC2 call means, against an endpoint that fails in every way."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.fakes.ec2 import ScriptedEc2, error_xml, region_ec2
from vpccni.adapters.ec2 import AwsEc2
from vpccni.adapters.ec2.errors import redact
from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError, VpccniError
from vpccni.lab.ec2 import Fault, small_region
from vpccni.model import Cidr, EniId, InstanceId, SubnetId

ENI = EniId("eni-0123456789abcdef0")
NODE = InstanceId("i-0123456789abcdef0")
SUBNETS = (200, "<DescribeSubnetsResponse><subnetSet/></DescribeSubnetsResponse>")

Call = Callable[[AwsEc2], Awaitable[Any]]
DESCRIBE: Call = lambda ec2: ec2.describe_attached(NODE)  # noqa: E731
ASSIGN: Call = lambda ec2: ec2.assign_addresses(ENI, 2)  # noqa: E731
DETACH: Call = lambda ec2: ec2.detach_eni("eni-attach-1")  # noqa: E731
DELETE: Call = lambda ec2: ec2.delete_eni(ENI)  # noqa: E731
CREATE: Call = lambda ec2: ec2.create_eni(  # noqa: E731
    subnet=SubnetId("subnet-1"), groups=(), secondary_count=1, description="d", tags={}, token="t"
)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedEc2]:
    async with ScriptedEc2.serve() as server:
        yield server


@pytest.fixture
async def ec2(server: ScriptedEc2) -> AsyncIterator[AwsEc2]:
    ec2 = AwsEc2(region="lab-1", endpoint=server.url, timeout_s=0.3)
    yield ec2
    await ec2.close()


async def failure(call: Call, ec2: AwsEc2) -> VpccniError:
    with pytest.raises(VpccniError) as caught:
        await call(ec2)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "of_describe", "of_change"),
    [
        ((503, error_xml("RequestLimitExceeded")), "transient ec2_throttled", "transient ec2_throttled"),
        ((400, error_xml("Throttling")), "transient ec2_throttled", "transient ec2_throttled"),
        (
            (400, error_xml("Client.RequestLimitExceeded")),
            "transient ec2_throttled",
            "transient ec2_throttled",
        ),
        ((500, error_xml("InternalError")), "transient ec2_unreachable", "unknown ec2_unreachable"),
        ((503, error_xml("Unavailable")), "transient ec2_throttled", "unknown ec2_unreachable"),
        ((503, "<html>no upstream</html>"), "transient ec2_throttled", "unknown ec2_unreachable"),
        ((502, ""), "transient ec2_unreachable", "unknown ec2_unreachable"),
        ("reset", "transient ec2_unreachable", "unknown ec2_unreachable"),
        ("hang", "transient ec2_unreachable", "unknown ec2_unreachable"),
        ((200, "this is no XML"), "transient ec2_unreachable", "unknown ec2_unreachable"),
        (
            (403, error_xml("UnauthorizedOperation")),
            "permanent ec2_unauthorized",
            "permanent ec2_unauthorized",
        ),
        ((401, error_xml("AuthFailure")), "permanent ec2_unauthorized", "permanent ec2_unauthorized"),
        ((400, error_xml("RequestExpired")), "permanent ec2_unauthorized", "permanent ec2_unauthorized"),
        ((400, error_xml("ExpiredToken")), "permanent ec2_unauthorized", "permanent ec2_unauthorized"),
        ((400, error_xml("InsufficientFreeAddressesInSubnet")), None, "permanent subnet_exhausted"),
        ((400, error_xml("InsufficientCidrBlocks")), None, "permanent subnet_exhausted"),
        ((400, error_xml("PrivateIpAddressLimitExceeded")), None, "permanent instance_full"),
        ((400, error_xml("AttachmentLimitExceeded")), None, "permanent instance_full"),
        ((400, error_xml("InvalidParameterValue")), "permanent ec2_refused", "permanent ec2_refused"),
        ((404, "<nothing/>"), "permanent ec2_refused", "permanent ec2_refused"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, tuple) else None,
)
async def test_every_failure_is_translated(
    server: ScriptedEc2, ec2: AwsEc2, answer: Any, of_describe: str | None, of_change: str
) -> None:
    server.script = {"DescribeNetworkInterfaces": answer, "AssignPrivateIpAddresses": answer}
    kinds = {TransientError: "transient", PermanentError: "permanent", OutcomeUnknownError: "unknown"}
    for call, expected in ((DESCRIBE, of_describe), (ASSIGN, of_change)):
        if expected is not None:
            error = await failure(call, ec2)
            assert f"{kinds[type(error)]} {error.reason}" == expected
    assert len(server.seen) == (1 if of_describe is None else 2), "one attempt each, no retries of the SDK's"


async def test_a_permanent_error_carries_the_code_of_ec2(server: ScriptedEc2, ec2: AwsEc2) -> None:
    server.script = {"AssignPrivateIpAddresses": (400, error_xml("InsufficientCidrBlocks", "full"))}
    error = await failure(ASSIGN, ec2)
    assert isinstance(error, PermanentError)
    assert error.code == "InsufficientCidrBlocks"
    assert error.detail == "AssignPrivateIpAddresses: InsufficientCidrBlocks: full"


async def test_retry_after_is_passed_on(server: ScriptedEc2, ec2: AwsEc2) -> None:
    server.script = {
        "AssignPrivateIpAddresses": (503, error_xml("RequestLimitExceeded"), {"Retry-After": "7"}),
        "DetachNetworkInterface": (503, error_xml("RequestLimitExceeded"), {"Retry-After": "tomorrow"}),
    }
    first, second = await failure(ASSIGN, ec2), await failure(DETACH, ec2)
    assert isinstance(first, TransientError)
    assert isinstance(second, TransientError)
    assert (first.retry_after_s, second.retry_after_s) == (7.0, 0.0)


@pytest.mark.parametrize("call", [DESCRIBE, ASSIGN, CREATE], ids=["describe", "assign", "create"])
async def test_a_refused_connection_changed_nothing(call: Call) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can get the port
        ec2 = AwsEc2(region="lab-1", endpoint=f"http://127.0.0.1:{held.getsockname()[1]}")
        error = await failure(call, ec2)
        await ec2.close()
    assert isinstance(error, TransientError)
    assert error.reason is Reason.EC2_UNREACHABLE


async def test_a_name_that_does_not_resolve_changed_nothing() -> None:
    ec2 = AwsEc2(region="lab-1", endpoint="http://ec2.invalid:1")
    error = await failure(ASSIGN, ec2)
    await ec2.close()
    assert isinstance(error, TransientError)
    assert error.reason is Reason.EC2_UNREACHABLE


async def test_a_reset_on_a_kept_connection_is_unknown_although_the_sdk_calls_it_a_connect_error(
    server: ScriptedEc2, ec2: AwsEc2
) -> None:
    server.script = {"AssignPrivateIpAddresses": (400, error_xml("X"))}
    await failure(ASSIGN, ec2)
    server.script = {"AssignPrivateIpAddresses": "reset"}
    assert isinstance(await failure(ASSIGN, ec2), OutcomeUnknownError)


@pytest.mark.parametrize(
    "body",
    [
        "<CreateNetworkInterfaceResponse/>",
        "<CreateNetworkInterfaceResponse><networkInterface><status>pending</status></networkInterface>"
        "</CreateNetworkInterfaceResponse>",
    ],
    ids=["empty", "without an id"],
)
async def test_a_create_whose_reply_is_not_whole_is_unknown(
    server: ScriptedEc2, ec2: AwsEc2, body: str
) -> None:
    server.script = {"CreateNetworkInterface": (200, body), "DescribeSubnets": SUBNETS}
    assert isinstance(await failure(CREATE, ec2), OutcomeUnknownError)


async def test_an_assign_that_names_more_than_asked_and_nothing_known_is_unknown(
    server: ScriptedEc2, ec2: AwsEc2
) -> None:
    items = "".join(f"<item><privateIpAddress>10.0.0.{n}</privateIpAddress></item>" for n in range(5, 9))
    body = f"<R><assignedPrivateIpAddressesSet>{items}</assignedPrivateIpAddressesSet></R>"
    server.script = {"AssignPrivateIpAddresses": (200, body)}
    assert isinstance(await failure(ASSIGN, ec2), OutcomeUnknownError)


async def test_a_gone_eni_and_a_gone_attachment_count_as_done(server: ScriptedEc2, ec2: AwsEc2) -> None:
    server.script = {
        "DeleteNetworkInterface": (400, error_xml("InvalidNetworkInterfaceID.NotFound")),
        "DetachNetworkInterface": (400, error_xml("InvalidAttachmentID.NotFound")),
    }
    await ec2.delete_eni(ENI)
    await ec2.detach_eni("eni-attach-1")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidNetworkInterface.InUse", "x"),
        ("InvalidParameterValue", "Network interface 'eni-1' is currently in use."),
    ],
)
async def test_deleting_an_eni_that_is_still_leaving_may_be_tried_again(
    server: ScriptedEc2, ec2: AwsEc2, code: str, message: str
) -> None:
    server.script = {"DeleteNetworkInterface": (400, error_xml(code, message))}
    assert isinstance(await failure(DELETE, ec2), TransientError)


def _enis(*states: str) -> tuple[int, str]:
    items = "".join(
        f"<item><networkInterfaceId>eni-{n}</networkInterfaceId>"
        f"<attachment><attachmentId>eni-attach-1</attachmentId><status>{state}</status></attachment></item>"
        for n, state in enumerate(states)
    )
    return 200, f"<R><networkInterfaceSet>{items}</networkInterfaceSet></R>"


@pytest.mark.parametrize(("states", "is_done"), [(["detaching"], True), ([], True), (["attaching"], False)])
async def test_a_detach_in_the_wrong_state_is_done_only_when_it_is_leaving(
    server: ScriptedEc2, ec2: AwsEc2, states: list[str], is_done: bool
) -> None:
    server.script = {
        "DetachNetworkInterface": (400, error_xml("IncorrectState")),
        "DescribeNetworkInterfaces": _enis(*states),
    }
    if is_done:
        await ec2.detach_eni("eni-attach-1")
    else:
        assert isinstance(await failure(DETACH, ec2), PermanentError)
    assert server.seen[1]["Filter.1.Name"] == "attachment.attachment-id"


async def test_pages_are_followed_and_sorted(server: ScriptedEc2, ec2: AwsEc2) -> None:
    def page(form: dict[str, str]) -> tuple[int, str]:
        ids = ("eni-c", "eni-a") if "NextToken" not in form else ("eni-b",)
        items = "".join(f"<item><networkInterfaceId>{eni}</networkInterfaceId></item>" for eni in ids)
        more = "" if "NextToken" in form else "<nextToken>2</nextToken>"
        return 200, f"<R><networkInterfaceSet>{items}</networkInterfaceSet>{more}</R>"

    server.script = {"DescribeNetworkInterfaces": page}
    facts = await ec2.describe_attached(NODE)
    assert [eni.id for eni in facts] == ["eni-a", "eni-b", "eni-c"]
    assert (facts[0].card, facts[0].device, facts[0].tags, facts[0].cidrs) == (0, -1, {}, ())


async def test_pages_that_never_end_are_given_up(server: ScriptedEc2, ec2: AwsEc2) -> None:
    server.script = {"DescribeNetworkInterfaces": (200, "<R><nextToken>again</nextToken></R>")}
    assert isinstance(await failure(DESCRIBE, ec2), TransientError)
    assert len(server.seen) == 100


async def test_facts_hold_prefixes_and_no_account_numbers(server: ScriptedEc2, ec2: AwsEc2) -> None:
    body = """<R><networkInterfaceSet><item><networkInterfaceId>eni-a</networkInterfaceId>
      <macAddress>02:AA:BB:CC:DD:EE</macAddress><privateIpAddress>10.0.0.4</privateIpAddress>
      <privateIpAddressesSet>
        <item><privateIpAddress>10.0.0.10</privateIpAddress><primary>false</primary></item>
        <item><privateIpAddress>10.0.0.4</privateIpAddress><primary>true</primary></item>
        <item><privateIpAddress>10.0.0.9</privateIpAddress><primary>false</primary></item>
      </privateIpAddressesSet>
      <ipv4PrefixSet><item><ipv4Prefix>10.0.0.64/28</ipv4Prefix></item></ipv4PrefixSet>
      <tagSet><item><key>aws:cloudformation:stack-id</key><value>arn:aws:x::123456789012:y</value></item>
        <item><key>team</key><value>123456789012</value></item></tagSet>
      </item></networkInterfaceSet></R>"""
    server.script = {"DescribeNetworkInterfaces": (200, body)}
    (eni,) = await ec2.describe_attached(NODE)
    assert eni.cidrs == ("10.0.0.9/32", "10.0.0.10/32", "10.0.0.64/28")
    assert eni.mac == "02:aa:bb:cc:dd:ee"
    assert eni.tags == {"team": "…"}


async def test_a_denied_describe_subnets_is_not_asked_again_and_leaves_the_cidr_empty(
    server: ScriptedEc2, ec2: AwsEc2
) -> None:
    item = "<item><networkInterfaceId>eni-a</networkInterfaceId><subnetId>subnet-1</subnetId></item>"
    server.script = {
        "DescribeNetworkInterfaces": (200, f"<R><networkInterfaceSet>{item}</networkInterfaceSet></R>"),
        "DescribeSubnets": (403, error_xml("UnauthorizedOperation")),
    }
    for _ in range(2):
        (eni,) = await ec2.describe_attached(NODE)
        assert eni.subnet_cidr == ""
    assert ec2.calls == {"DescribeNetworkInterfaces": 2, "DescribeSubnets": 1}


async def test_larger_cidrs_are_unassigned_as_prefixes_and_nothing_is_no_call(
    server: ScriptedEc2, ec2: AwsEc2
) -> None:
    server.script = {"UnassignPrivateIpAddresses": (200, "<R/>")}
    await ec2.unassign_addresses(ENI, ())
    assert await ec2.assign_addresses(ENI, 0) == ()
    await ec2.tag_eni(ENI, {})
    assert server.seen == []
    await ec2.unassign_addresses(ENI, (Cidr("10.0.0.9/32"), Cidr("10.0.0.64/28")))
    assert server.seen[0]["PrivateIpAddress.1"] == "10.0.0.9"
    assert server.seen[0]["Ipv4Prefix.1"] == "10.0.0.64/28"


async def test_the_hook_hears_of_every_call_and_requests_name_us(server: ScriptedEc2) -> None:
    heard: list[tuple[str, str]] = []
    ec2 = AwsEc2(
        region="lab-1",
        endpoint=server.url,
        on_call=lambda action, seconds, outcome: heard.append((action, outcome)) if seconds >= 0 else None,
    )
    server.script = {
        "DescribeNetworkInterfaces": _enis(),
        "DetachNetworkInterface": (400, error_xml("InvalidAttachmentID.NotFound")),
        "DeleteNetworkInterface": "reset",
    }
    await ec2.describe_attached(NODE)
    await ec2.detach_eni("eni-attach-1")
    await failure(DELETE, ec2)
    await ec2.close()
    assert heard[:2] == [
        ("DescribeNetworkInterfaces", "ok"),
        ("DetachNetworkInterface", "InvalidAttachmentID.NotFound"),
    ]
    assert heard[2][0] == "DeleteNetworkInterface"
    assert heard[2][1] in {"ConnectionClosedError", "EndpointConnectionError"}
    assert server.headers[0]["User-Agent"].startswith("vpccni/")


async def test_a_cancelled_call_is_reported_and_stays_cancelled(server: ScriptedEc2) -> None:
    heard: list[str] = []
    ec2 = AwsEc2(region="lab-1", endpoint=server.url, on_call=lambda _a, _s, outcome: heard.append(outcome))
    server.script = {"DescribeNetworkInterfaces": "hang"}
    await ec2.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ec2.describe_attached(NODE)
    await ec2.close()
    assert heard == ["cancelled"]


async def test_without_credentials_nothing_is_sent_and_it_may_be_tried_again(
    server: ScriptedEc2, ec2: AwsEc2, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    error = await failure(ASSIGN, ec2)
    assert isinstance(error, TransientError)
    assert error.reason is Reason.EC2_UNAUTHORIZED
    assert server.seen == []

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "came-later")
    server.script = {"DescribeNetworkInterfaces": _enis()}
    assert await ec2.describe_attached(NODE) == ()


async def test_without_a_region_it_waits_until_one_is_known(server: ScriptedEc2) -> None:
    ec2 = AwsEc2(endpoint=server.url)
    assert isinstance(await failure(DESCRIBE, ec2), TransientError)
    ec2.use_region("lab-1")
    server.script = {"DescribeNetworkInterfaces": _enis()}
    assert await ec2.describe_attached(NODE) == ()
    await ec2.close()


async def test_the_endpoint_comes_from_the_environment_of_the_sdk(
    server: ScriptedEc2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", server.url)
    monkeypatch.setenv("AWS_REGION", "lab-1")
    ec2 = AwsEc2()
    server.script = {"DescribeNetworkInterfaces": _enis()}
    assert await ec2.describe_attached(NODE) == ()
    await ec2.close()


async def test_closing_twice_is_fine_and_a_closed_client_refuses(ec2: AwsEc2) -> None:
    await ec2.open()
    await ec2.close()
    await ec2.close()
    assert (await failure(DESCRIBE, ec2)).reason is Reason.STOPPING


async def test_a_lost_reply_in_the_region_is_unknown_and_the_token_settles_it() -> None:
    region = small_region()
    subnet = next(iter(region.world.subnets))
    region.faults.inject(Fault(action="CreateNetworkInterface", kind="lost_reply"))
    ec2 = region_ec2(region, lambda: 0.0)

    async def create() -> Any:
        return await ec2.create_eni(
            subnet=SubnetId(subnet), groups=(), secondary_count=2, description="d", tags={}, token="one"
        )

    with pytest.raises(OutcomeUnknownError):
        await create()
    assert len(region.world.enis) == 1
    eni = await create()
    assert list(region.world.enis) == [eni.id]
    await ec2.close()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            "User: arn:aws:sts::123456789012:assumed-role/x/i-0a is not authorized",
            "User: arn:… is not authorized",
        ),
        ("denied. Encoded authorization failure message: Zm9v-YmFy_", "denied."),
        ("account 123456789012.", "account …."),
        ("failed (Request ID: 5b1f-aa)", "failed"),
        ("id 5b1fca9e-1b7c-4f9e-9d4c-0123456789ab", "id …"),
        ("key AKIAIOSFODNN7EXAMPLE", "key …"),
        ("eni-012345678901 and i-0123456789abcdef0 stay", "eni-012345678901 and i-0123456789abcdef0 stay"),
        ("10.0.0.9 stays", "10.0.0.9 stays"),
    ],
)
def test_what_must_not_enter_the_log_is_taken_out(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_importing_the_adapter_does_not_import_the_sdk() -> None:
    code = "import sys, vpccni.adapters.ec2; sys.exit(bool({'botocore', 'aiohttp'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

import asyncio

import pytest

from vpccni.lab.ec2 import FOR_EVER, Ec2Fault, Fault, InProcessEc2, ReplyLost
from vpccni.lab.ec2.throttle import Rate


def assign(bench, eni_id, count=1, now=1.0):
    params = {"NetworkInterfaceId": eni_id, "SecondaryPrivateIpAddressCount": count}
    return bench.region.handle("AssignPrivateIpAddresses", params, now)


def test_a_lost_reply_was_applied_and_a_dropped_request_was_not(bench):
    eni_id, _ = bench.attached()
    bench.region.faults.inject(Fault(action="AssignPrivateIpAddresses", kind="lost_reply"))
    bench.region.faults.inject(Fault(action="AssignPrivateIpAddresses", kind="dropped_request"))
    lost, dropped = assign(bench, eni_id), assign(bench, eni_id)
    assert isinstance(lost, ReplyLost)
    assert lost.applied
    assert isinstance(dropped, ReplyLost)
    assert not dropped.applied
    assert len(bench.addresses(eni_id)) == 2
    assert [c.outcome for c in bench.region.journal.calls(action="AssignPrivateIpAddresses")] == [
        "lost_reply",
        "dropped_request",
    ]


def test_a_fault_hits_the_calls_it_is_told_to_and_no_others(bench):
    eni_id, _ = bench.attached()
    bench.region.faults.inject(
        Fault(action="AssignPrivateIpAddresses", kind="error", code="UnauthorizedOperation", skip=1, times=2)
    )
    answers = [assign(bench, eni_id) for _ in range(4)]
    assert [isinstance(a, Ec2Fault) and a.code for a in answers] == [
        False,
        "UnauthorizedOperation",
        "UnauthorizedOperation",
        False,
    ]
    assert bench.region.faults.armed == []


def test_a_fault_can_be_narrowed_to_one_eni_by_value_or_by_a_function(bench):
    first, _ = bench.attached(1)
    second, _ = bench.attached(2)
    bench.region.faults.inject(
        Fault(action="*", kind="throttle", times=FOR_EVER, where={"NetworkInterfaceId": second})
    )
    assert isinstance(assign(bench, first), dict)
    refused = assign(bench, second)
    assert isinstance(refused, Ec2Fault)
    assert (refused.code, refused.status) == ("RequestLimitExceeded", 503)
    bench.region.faults.clear()
    bench.region.faults.inject(
        Fault(action="*", kind="error"), lambda _, params: params.get("SecondaryPrivateIpAddressCount") == 2
    )
    assert isinstance(assign(bench, second, 1), dict)
    assert isinstance(assign(bench, second, 2), Ec2Fault)


def test_a_partial_success_gives_fewer_addresses_and_says_nothing(bench):
    eni_id, _ = bench.attached()
    bench.region.faults.inject(Fault(action="AssignPrivateIpAddresses", kind="partial", give=2))
    assert len(assign(bench, eni_id, 5)["AssignedPrivateIpAddresses"]) == 2
    assert len(bench.addresses(eni_id)) == 3


def test_random_faults_are_the_same_for_the_same_seed_and_near_their_rate(make_bench):
    def outcomes(seed):
        bench = make_bench()
        bench.region.faults.randomize(seed, 0.3, (Fault(action="*", kind="error", code="InternalError"),))
        for n in range(400):
            bench.region.handle("DescribeSubnets", {}, float(n))
        return [call.outcome for call in bench.region.journal.calls()]

    first = outcomes(5)
    assert first == outcomes(5)
    assert first != outcomes(6)
    assert 80 <= first.count("InternalError") <= 160


def test_an_empty_bucket_refuses_and_refills_with_time(bench):
    bench.region.throttle.enable({"CreateTags": Rate(2, 0.5)})
    params = {"Resources": [bench.instance.id], "Tags": [{"Key": "a", "Value": "b"}]}

    def outcome(now):
        answer = bench.region.handle("CreateTags", params, now)
        return answer.code if isinstance(answer, Ec2Fault) else "ok"

    assert [outcome(10.0), outcome(10.0), outcome(10.0)] == ["ok", "ok", "RequestLimitExceeded"]
    assert outcome(11.0) == "RequestLimitExceeded"  # half a token
    assert outcome(12.0) == "ok"
    assert isinstance(bench.region.handle("DescribeSubnets", {}, 12.0), dict)  # a bucket of its own


def test_the_journal_counts_calls_and_keeps_their_outcome(bench):
    bench.create()
    bench.refused("DeleteNetworkInterface", NetworkInterfaceId="eni-0")
    journal = bench.region.journal
    assert journal.count_by_action == {"CreateNetworkInterface": 1, "DeleteNetworkInterface": 1}
    assert journal.count_by_outcome == {"ok": 1, "InvalidNetworkInterfaceID.NotFound": 1}
    (last,) = journal.calls(after=1)
    assert (last.number, last.at, last.params) == (2, 1.0, {"NetworkInterfaceId": "eni-0"})


class VirtualTime:
    """A clock that a sleeper moves by itself; enough for one task."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def virtual():
    return VirtualTime()


@pytest.fixture
def client(bench, virtual):
    bench.region.latency_s = {"CreateNetworkInterface": 0.6, "*": 0.1}
    return InProcessEc2(bench.region, lambda: virtual.now, virtual.sleep)


async def test_an_in_process_call_takes_its_latency_and_is_applied_halfway(bench, client, virtual):
    await client.call("CreateNetworkInterface", {"SubnetId": bench.subnet_a.id})
    assert virtual.slept == [0.3, 0.3]
    assert bench.region.journal.calls()[-1].at == pytest.approx(0.3)
    await client.call("DescribeSubnets", {})
    assert virtual.now == pytest.approx(0.7)


async def test_an_in_process_call_raises_what_ec2_refuses_and_what_the_network_loses(bench, client):
    with pytest.raises(Ec2Fault, match=r"InvalidSubnetID\.NotFound"):
        await client.call("CreateNetworkInterface", {"SubnetId": "subnet-0"})
    bench.region.faults.inject(Fault(action="CreateNetworkInterface", kind="lost_reply"))
    with pytest.raises(ReplyLost) as lost:
        await client.call("CreateNetworkInterface", {"SubnetId": bench.subnet_a.id})
    assert lost.value.applied


async def test_a_slow_call_takes_longer_and_a_throttled_one_hardly_any_time(bench, client, virtual):
    bench.region.faults.inject(Fault(action="*", kind="latency", seconds=5.0))
    bench.region.faults.inject(Fault(action="*", kind="throttle"))
    await client.call("DescribeSubnets", {})
    assert virtual.now == pytest.approx(5.1)
    with pytest.raises(Ec2Fault, match="RequestLimitExceeded"):
        await client.call("DescribeSubnets", {})
    assert virtual.now == pytest.approx(5.12)


async def test_a_hanging_call_ends_only_when_its_caller_gives_up(bench):
    hour = asyncio.Event()

    async def sleep(seconds):
        if seconds:
            await hour.wait()

    client = InProcessEc2(bench.region, lambda: 1.0, sleep)
    bench.region.faults.inject(Fault(action="CreateNetworkInterface", kind="hang", applied=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.call("CreateNetworkInterface", {"SubnetId": bench.subnet_a.id})
    assert len(bench.region.world.enis) == 2

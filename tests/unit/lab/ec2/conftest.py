"""One small region with one instance, and shorthand for calling it."""

from types import SimpleNamespace

import pytest

from vpccni.lab.ec2 import Ec2Fault, LinkEvent, small_region


class Bench(SimpleNamespace):
    """A region, its first subnet, one m5.large in it, and the calls that most tests begin with."""

    def __init__(self, instance_type="m5.large", **settings):
        super().__init__()
        self.region = small_region(7, **settings)
        self.subnet_a, self.subnet_b = self.region.world.subnets.values()
        self.events: list[LinkEvent] = []
        self.region.subscribe(self.events.append)
        self.instance = self.region.launch_instance(self.subnet_a.id, instance_type, now=0.0)

    def ok(self, action, now=1.0, **params):
        answer = self.region.handle(action, params, now)
        assert isinstance(answer, dict), answer
        return answer

    def refused(self, action, now=1.0, **params):
        answer = self.region.handle(action, params, now)
        assert isinstance(answer, Ec2Fault), answer
        return answer

    def create(self, now=1.0, **params):
        params.setdefault("SubnetId", self.subnet_a.id)
        return self.ok("CreateNetworkInterface", now, **params)["NetworkInterface"]

    def attach(self, eni_id, device_index, now=1.0, **params):
        return self.ok(
            "AttachNetworkInterface",
            now,
            NetworkInterfaceId=eni_id,
            InstanceId=self.instance.id,
            DeviceIndex=device_index,
            **params,
        )["AttachmentId"]

    def attached(self, device_index=1, now=1.0, **params):
        """Create and attach an ENI; return its id and its attachment's."""
        eni_id = self.create(now, **params)["NetworkInterfaceId"]
        return eni_id, self.attach(eni_id, device_index, now)

    def describe(self, eni_id, now=1.0):
        (eni,) = self.ok("DescribeNetworkInterfaces", now, NetworkInterfaceIds=[eni_id])["NetworkInterfaces"]
        return eni

    def addresses(self, eni_id, now=1.0):
        return [a["PrivateIpAddress"] for a in self.describe(eni_id, now)["PrivateIpAddresses"]]


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def make_bench():
    return Bench

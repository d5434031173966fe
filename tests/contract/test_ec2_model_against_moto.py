"""The same calls against our region and against moto, where moto implements them.

Every story is told once to each cloud; what it observed must be equal, except for the observations that
``KNOWN_DIFFERENCES`` names, and those must still differ: a difference that has gone must leave the list.
"""

from types import SimpleNamespace

import boto3  # type: ignore[import-untyped]
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from vpccni.lab.ec2 import Ec2Fault, Region
from vpccni.lab.ec2.types import INSTANCE_TYPES

pytestmark = pytest.mark.slow  # moto takes a second to import

# observation -> why the clouds differ; ours follows EC2 in each of them.
KNOWN_DIFFERENCES = {
    "attach: more than the type allows": "moto has no instance limits",
    "attach: device index in use": "moto lets two ENIs share a device index",
    "attach: eni in use": "moto attaches an attached ENI anew",
    "assign: exceeds the limit of the type": "moto has no address limits",
    "assign: reply": "moto's reply lists every address of the ENI, ours the new ones as EC2 does",
    "assign: without any count": "moto takes a request for nothing",
    "create: same token": "moto ignores ClientToken",
    "create: unknown group": "moto invents the group",
    "delete: attached eni": "moto deletes an attached ENI",
    "detach: primary": "moto allows it while another ENI is attached",
    "describe: unknown filter": "moto raises NotImplementedError, EC2 InvalidParameterValue",
    "modify: delete on termination": "moto ignores the attachment attribute",
    "unassign: foreign address": "moto ignores addresses that the ENI does not have",
    "unassign: primary": "moto takes the primary address away",
}


class Refused(str):
    """The code with which a call was refused."""

    __slots__ = ()


class OurCloud:
    """Our model."""

    name = "ours"

    def __init__(self):
        self.region = Region(1)
        vpc = self.region.add_vpc("10.0.0.0/16")
        a = self.region.add_subnet(vpc.id, "a", "10.0.1.0/24")
        b = self.region.add_subnet(vpc.id, "b", "10.0.2.0/24")
        instance = self.region.launch_instance(a.id, "m5.large", public_ip=False)
        self.ids = SimpleNamespace(vpc=vpc.id, a=a.id, b=b.id, instance=instance.id)
        self.zone_prefix = "lab-1"

    def call(self, action, **params):
        answer = self.region.handle(action, params, 1.0)
        return Refused(answer.code) if isinstance(answer, Ec2Fault) else answer


class MotoCloud:
    """Moto, in this process."""

    name = "moto"

    def __init__(self):
        self.client = boto3.client(
            "ec2", region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
        )
        vpc = self.client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        a, b = (
            self.client.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=f"us-east-1{zone}")[
                "Subnet"
            ]["SubnetId"]
            for cidr, zone in (("10.0.1.0/24", "a"), ("10.0.2.0/24", "b"))
        )
        (instance,) = self.client.run_instances(
            ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="m5.large", SubnetId=a
        )["Instances"]
        self.ids = SimpleNamespace(vpc=vpc, a=a, b=b, instance=instance["InstanceId"])
        self.zone_prefix = "us-east-1"

    def call(self, action, **params):
        method = "".join("_" + c.lower() if c.isupper() else c for c in action).lstrip("_")
        try:
            answer = getattr(self.client, method)(**params)
        except ClientError as error:
            return Refused(error.response["Error"]["Code"])
        except NotImplementedError:
            return Refused("not implemented")
        answer.pop("ResponseMetadata")
        return answer


class Teller:
    """Tells a story to one cloud and writes down what it observed."""

    def __init__(self, cloud):
        self.cloud = cloud
        self.ids = cloud.ids
        self.observed = {}

    def note(self, name, value):
        assert name not in self.observed
        self.observed[name] = value

    def call(self, action, **params):
        answer = self.cloud.call(action, **params)
        assert not isinstance(answer, Refused), (self.cloud.name, action, answer)
        return answer

    def outcome(self, action, **params):
        answer = self.cloud.call(action, **params)
        return answer if isinstance(answer, Refused) else "ok"

    def create(self, **params):
        params.setdefault("SubnetId", self.ids.a)
        return self.call("CreateNetworkInterface", **params)["NetworkInterface"]

    def attached(self, device_index=1, **params):
        eni_id = self.create(**params)["NetworkInterfaceId"]
        reply = self.call(
            "AttachNetworkInterface",
            NetworkInterfaceId=eni_id,
            InstanceId=self.ids.instance,
            DeviceIndex=device_index,
        )
        return eni_id, reply["AttachmentId"]

    def describe(self, eni_id):
        (eni,) = self.call("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni_id])["NetworkInterfaces"]
        return eni

    def addresses(self, eni_id):
        return [a["PrivateIpAddress"] for a in self.describe(eni_id)["PrivateIpAddresses"]]

    def primary_eni(self):
        given = [{"Name": "attachment.instance-id", "Values": [self.ids.instance]}]
        (eni,) = self.call("DescribeNetworkInterfaces", Filters=given)["NetworkInterfaces"]
        return eni


def creating(teller):
    eni = teller.create(
        Description="d",
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "k", "Value": "v"}]}],
    )
    teller.note("create: status", eni["Status"])
    teller.note("create: description", eni["Description"])
    teller.note("create: tags", eni["TagSet"])
    teller.note("create: groups", [group["GroupName"] for group in eni["Groups"]])
    teller.note("create: subnet and vpc", (eni["SubnetId"] == teller.ids.a, eni["VpcId"] == teller.ids.vpc))
    teller.note("create: one primary address", [a["Primary"] for a in eni["PrivateIpAddresses"]])
    teller.note("create: type", (eni["InterfaceType"], eni["SourceDestCheck"], eni["RequesterManaged"]))
    teller.note("create: form of the ids", (eni["NetworkInterfaceId"][:4], eni["MacAddress"][:2]))
    given = teller.create(PrivateIpAddresses=[{"Primary": True, "PrivateIpAddress": "10.0.1.77"}])
    teller.note("create: address by name", given["PrivateIpAddress"])
    counted = teller.create(SecondaryPrivateIpAddressCount=3)
    teller.note("create: count of secondaries", len(counted["PrivateIpAddresses"]))
    teller.note("create: unknown subnet", teller.outcome("CreateNetworkInterface", SubnetId="subnet-0"))
    params = {"SubnetId": teller.ids.a, "Groups": ["sg-0"]}
    teller.note("create: unknown group", teller.outcome("CreateNetworkInterface", **params))
    twice = [teller.create(ClientToken="t")["NetworkInterfaceId"] for _ in range(2)]
    teller.note("create: same token", len(set(twice)))


def attaching(teller):
    eni_id, attachment_id = teller.attached(1, Description="x")
    eni = teller.describe(eni_id)
    hung = eni["Attachment"]
    teller.note("attach: status", (eni["Status"], hung["Status"], hung["DeviceIndex"]))
    teller.note("attach: whose", hung["InstanceId"] == teller.ids.instance)
    teller.note("attach: id", hung["AttachmentId"] == attachment_id)
    teller.note("attach: form of the id", attachment_id[:11])
    teller.note("attach: members", sorted(set(hung) - {"AttachTime"}))
    (reservation,) = teller.call("DescribeInstances", InstanceIds=[teller.ids.instance])["Reservations"]
    (instance,) = reservation["Instances"]
    teller.note(
        "instance: its enis", sorted(e["Attachment"]["DeviceIndex"] for e in instance["NetworkInterfaces"])
    )
    teller.note("instance: state", instance["State"])
    teller.note("instance: type", instance["InstanceType"])
    zone = instance["Placement"]["AvailabilityZone"]
    teller.note("instance: zone", zone.removeprefix(teller.cloud.zone_prefix))
    params = {"NetworkInterfaceId": eni_id, "InstanceId": teller.ids.instance}
    teller.note(
        "delete: unknown eni", teller.outcome("DeleteNetworkInterface", NetworkInterfaceId="eni-0123")
    )
    unknown = {"NetworkInterfaceId": "eni-0123", "InstanceId": teller.ids.instance, "DeviceIndex": 2}
    teller.note("attach: unknown eni", teller.outcome("AttachNetworkInterface", **unknown))
    nowhere = {"NetworkInterfaceId": eni_id, "InstanceId": "i-0123", "DeviceIndex": 2}
    teller.note("attach: unknown instance", teller.outcome("AttachNetworkInterface", **nowhere))
    attachment = {"AttachmentId": attachment_id, "DeleteOnTermination": True}
    teller.call("ModifyNetworkInterfaceAttribute", NetworkInterfaceId=eni_id, Attachment=attachment)
    teller.note("modify: delete on termination", teller.describe(eni_id)["Attachment"]["DeleteOnTermination"])
    teller.note("attach: eni in use", teller.outcome("AttachNetworkInterface", DeviceIndex=2, **params))


def attaching_too_much(teller):
    teller.attached(1)
    other = {"NetworkInterfaceId": teller.create()["NetworkInterfaceId"], "InstanceId": teller.ids.instance}
    teller.note(
        "attach: device index in use", teller.outcome("AttachNetworkInterface", DeviceIndex=1, **other)
    )
    teller.cloud.call("AttachNetworkInterface", DeviceIndex=2, **other)
    fourth = {"NetworkInterfaceId": teller.create()["NetworkInterfaceId"], "InstanceId": teller.ids.instance}
    teller.note(
        "attach: more than the type allows", teller.outcome("AttachNetworkInterface", DeviceIndex=3, **fourth)
    )


def detaching(teller):
    eni_id, attachment_id = teller.attached(1)
    unknown = teller.outcome("DetachNetworkInterface", AttachmentId="eni-attach-0123")
    teller.note("detach: unknown", unknown)
    teller.call("DetachNetworkInterface", AttachmentId=attachment_id)
    eni = teller.describe(eni_id)
    teller.note("detach: available again", (eni["Status"], "Attachment" in eni))
    again = teller.outcome("DetachNetworkInterface", AttachmentId=attachment_id)
    teller.note("detach: twice", again)
    teller.call("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
    teller.note("delete: twice", teller.outcome("DeleteNetworkInterface", NetworkInterfaceId=eni_id))
    gone = teller.outcome("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni_id])
    teller.note("delete: describe afterwards", gone)
    primary = teller.primary_eni()["Attachment"]["AttachmentId"]
    teller.attached(1)
    teller.note("detach: primary", teller.outcome("DetachNetworkInterface", AttachmentId=primary))


def deleting_what_is_attached(teller):
    eni_id, _ = teller.attached(1)
    teller.note("delete: attached eni", teller.outcome("DeleteNetworkInterface", NetworkInterfaceId=eni_id))


def addressing(teller):
    eni_id, _ = teller.attached(1)
    (primary,) = teller.addresses(eni_id)
    reply = teller.call(
        "AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=3
    )
    teller.note("assign: reply names the eni", reply["NetworkInterfaceId"] == eni_id)
    teller.note("assign: reply", len(reply["AssignedPrivateIpAddresses"]))
    held = teller.addresses(eni_id)
    teller.note("assign: held afterwards", (held[0] == primary, len(held), len(set(held))))
    flags = [a["Primary"] for a in teller.describe(eni_id)["PrivateIpAddresses"]]
    teller.note("assign: the primary stays primary", flags)
    teller.call("AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=["10.0.1.200"])
    teller.note("assign: by name", "10.0.1.200" in teller.addresses(eni_id))
    teller.call("UnassignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=held[1:3])
    teller.note("unassign: what stays", teller.addresses(eni_id) == [primary, held[3], "10.0.1.200"])
    nothing = teller.outcome("AssignPrivateIpAddresses", NetworkInterfaceId=eni_id)
    teller.note("assign: without any count", nothing)
    too_many = {"NetworkInterfaceId": eni_id, "SecondaryPrivateIpAddressCount": 20}
    teller.note(
        "assign: exceeds the limit of the type", teller.outcome("AssignPrivateIpAddresses", **too_many)
    )
    unknown = {"NetworkInterfaceId": "eni-0123", "SecondaryPrivateIpAddressCount": 1}
    teller.note("assign: unknown eni", teller.outcome("AssignPrivateIpAddresses", **unknown))
    foreign = {"NetworkInterfaceId": eni_id, "PrivateIpAddresses": ["10.0.1.250"]}
    teller.note("unassign: foreign address", teller.outcome("UnassignPrivateIpAddresses", **foreign))
    own = {"NetworkInterfaceId": eni_id, "PrivateIpAddresses": [primary]}
    teller.note("unassign: primary", teller.outcome("UnassignPrivateIpAddresses", **own))


def describing(teller):
    attached, _ = teller.attached(1, Description="aws-K8S-1")
    free = teller.create(SubnetId=teller.ids.b, Description="other")["NetworkInterfaceId"]
    teller.call("CreateTags", Resources=[free], Tags=[{"Key": "c", "Value": "1"}, {"Key": "d", "Value": "2"}])
    teller.call("DeleteTags", Resources=[free], Tags=[{"Key": "d"}])
    teller.note("tags: what stays", teller.describe(free)["TagSet"])
    names = {attached: "attached", free: "free"}

    def found(name, *values):
        given = [{"Name": "vpc-id", "Values": [teller.ids.vpc]}, {"Name": name, "Values": list(values)}]
        reply = teller.call("DescribeNetworkInterfaces", Filters=given)
        seen = [names.get(e["NetworkInterfaceId"], "primary") for e in reply["NetworkInterfaces"]]
        teller.note(f"describe: {name} {len(values)}", sorted(seen))

    found("attachment.instance-id", teller.ids.instance)
    found("subnet-id", teller.ids.b)
    found("description", "aws-K8S-*")
    found("network-interface-id", attached, free)
    found("tag:c", "1")
    found("tag:c", "2", "3")
    found("tag-key", "c")
    found("private-ip-address", teller.addresses(attached)[0])
    strange = [{"Name": "colour", "Values": ["red"]}]
    teller.note("describe: unknown filter", teller.outcome("DescribeNetworkInterfaces", Filters=strange))
    teller.note("describe: unknown instance", teller.outcome("DescribeInstances", InstanceIds=["i-0123"]))
    teller.note("describe: unknown subnet", teller.outcome("DescribeSubnets", SubnetIds=["subnet-0123"]))
    teller.note("describe: unknown vpc", teller.outcome("DescribeVpcs", VpcIds=["vpc-0123"]))
    teller.note("describe: unknown group", teller.outcome("DescribeSecurityGroups", GroupIds=["sg-0123"]))
    (subnet,) = teller.call("DescribeSubnets", SubnetIds=[teller.ids.b])["Subnets"]
    teller.note(
        "subnet: cidr and state", (subnet["CidrBlock"], subnet["State"], subnet["VpcId"] == teller.ids.vpc)
    )
    given = [{"Name": "vpc-id", "Values": [teller.ids.vpc]}]
    groups = teller.call("DescribeSecurityGroups", Filters=given)["SecurityGroups"]
    teller.note("groups: of the vpc", [group["GroupName"] for group in groups])


STORIES = [
    creating,
    attaching,
    attaching_too_much,
    detaching,
    deleting_what_is_attached,
    addressing,
    describing,
]


@pytest.fixture
def moto_cloud():
    with mock_aws():
        yield MotoCloud()


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_both_clouds_tell_the_same_story_except_where_the_list_says(story, moto_cloud):
    ours, theirs = Teller(OurCloud()), Teller(moto_cloud)
    story(ours)
    story(theirs)
    assert set(ours.observed) == set(theirs.observed)
    differing = {name for name in ours.observed if ours.observed[name] != theirs.observed[name]}
    listed = differing & set(KNOWN_DIFFERENCES)
    assert differing == listed, {
        name: (ours.observed[name], theirs.observed[name]) for name in differing - listed
    }
    stale = (set(ours.observed) & set(KNOWN_DIFFERENCES)) - differing
    assert not stale, f"no longer different, take them off the list: {sorted(stale)}"


def test_every_listed_difference_is_observed_by_a_story(moto_cloud):
    observed = set()
    for story in STORIES:
        teller = Teller(OurCloud())
        story(teller)
        observed |= set(teller.observed)
    assert set(KNOWN_DIFFERENCES) <= observed


def test_the_table_of_instance_types_is_what_moto_recorded_from_ec2(moto_cloud):
    """A sample: moto takes seconds to render them all, and tests/unit/test_instance_types.py compares each row."""
    odd = {"c1.medium", "i7ie.48xlarge", "m1.small", "m4.4xlarge", "m5.metal", "p4d.24xlarge", "p5.48xlarge"}
    names = sorted(odd.union(sorted(INSTANCE_TYPES)[::40]))
    answer = OurCloud().call("DescribeInstanceTypes", InstanceTypes=names)
    ours = {kind["InstanceType"]: kind for kind in answer["InstanceTypes"]}
    theirs = moto_cloud.call("DescribeInstanceTypes", InstanceTypes=names)["InstanceTypes"]
    assert len(theirs) == len(ours) == len(names)
    for kind in theirs:
        own = ours[kind["InstanceType"]]
        network, own_network = kind["NetworkInfo"], own["NetworkInfo"]
        for name in (
            "MaximumNetworkInterfaces",
            "MaximumNetworkCards",
            "Ipv4AddressesPerInterface",
            "Ipv6AddressesPerInterface",
            "DefaultNetworkCardIndex",
        ):
            assert own_network[name] == network[name], (kind["InstanceType"], name)
        cards = [(c["NetworkCardIndex"], c["MaximumNetworkInterfaces"]) for c in network["NetworkCards"]]
        assert [
            (c["NetworkCardIndex"], c["MaximumNetworkInterfaces"]) for c in own_network["NetworkCards"]
        ] == cards
        assert own.get("Hypervisor") == kind.get("Hypervisor")
        assert own["BareMetal"] == kind["BareMetal"]
        assert own["VCpuInfo"]["DefaultVCpus"] == kind["VCpuInfo"]["DefaultVCpus"]
        assert own["MemoryInfo"] == kind["MemoryInfo"]
        assert (
            own["ProcessorInfo"]["SupportedArchitectures"] == kind["ProcessorInfo"]["SupportedArchitectures"]
        )

import pytest

from vpccni.lab.ec2 import Timing, small_region
from vpccni.lab.ec2.types import INSTANCE_TYPES


def tags(**pairs):
    return [{"Key": key, "Value": value} for key, value in pairs.items()]


# Creating ----------------------------------------------------------------------------------------------


def test_a_new_eni_is_available_and_has_what_was_asked_for(bench):
    eni = bench.create(
        Description="aws-K8S-x",
        SecondaryPrivateIpAddressCount=3,
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags(owner="me")}],
    )
    assert eni["Status"] == "available"
    assert "Attachment" not in eni
    assert [a["Primary"] for a in eni["PrivateIpAddresses"]] == [True, False, False, False]
    assert eni["TagSet"] == tags(owner="me")
    assert [g["GroupName"] for g in eni["Groups"]] == ["default"]
    assert bench.describe(eni["NetworkInterfaceId"]) == eni


def test_an_exhausted_subnet_refuses_the_eni_and_keeps_none_of_its_addresses(bench):
    free = bench.subnet_a.addresses.free_count
    bench.subnet_a.addresses.take(free - 3, "eni-elsewhere")
    refused = bench.refused(
        "CreateNetworkInterface", SubnetId=bench.subnet_a.id, SecondaryPrivateIpAddressCount=3
    )
    assert refused.code == "InsufficientFreeAddressesInSubnet"
    assert bench.subnet_a.addresses.free_count == 3
    assert len(bench.create(SecondaryPrivateIpAddressCount=2)["PrivateIpAddresses"]) == 3
    (subnet,) = bench.ok("DescribeSubnets", SubnetIds=[bench.subnet_a.id])["Subnets"]
    assert subnet["AvailableIpAddressCount"] == 0


def test_deleting_an_eni_gives_all_its_addresses_and_prefixes_back(bench):
    free = bench.subnet_a.addresses.free_count
    eni = bench.create(Ipv4PrefixCount=2)
    assert len(eni["Ipv4Prefixes"]) == 2
    assert bench.subnet_a.addresses.free_count == free - 33
    bench.ok("DeleteNetworkInterface", NetworkInterfaceId=eni["NetworkInterfaceId"])
    assert bench.subnet_a.addresses.free_count == free


def test_prefixes_that_are_not_to_be_had_leave_no_address_behind(bench):
    free = bench.subnet_a.addresses.free_count
    blocks = bench.subnet_a.addresses.take_prefixes(250, "eni-elsewhere")
    refused = bench.refused("CreateNetworkInterface", SubnetId=bench.subnet_a.id, Ipv4PrefixCount=10)
    assert refused.code == "InsufficientCidrBlocks"
    bench.subnet_a.addresses.give_back_prefixes(blocks)
    assert bench.subnet_a.addresses.free_count == free


def test_the_same_token_with_the_same_parameters_makes_one_eni(bench):
    first = bench.create(ClientToken="t", SecondaryPrivateIpAddressCount=1)
    again = bench.create(ClientToken="t", SecondaryPrivateIpAddressCount=1)
    assert again["NetworkInterfaceId"] == first["NetworkInterfaceId"]
    assert len(bench.ok("DescribeNetworkInterfaces")["NetworkInterfaces"]) == 2  # it and the primary


def test_the_same_token_with_other_parameters_is_refused(bench):
    bench.create(ClientToken="t", SecondaryPrivateIpAddressCount=1)
    refused = bench.refused(
        "CreateNetworkInterface",
        SubnetId=bench.subnet_a.id,
        ClientToken="t",
        SecondaryPrivateIpAddressCount=2,
    )
    assert refused.code == "IdempotentParameterMismatch"


def test_a_token_shows_the_eni_as_it_is_now_and_makes_no_second_one_after_it_was_deleted(bench):
    eni_id = bench.create(ClientToken="t")["NetworkInterfaceId"]
    bench.attach(eni_id, 1)
    assert bench.create(ClientToken="t")["Status"] == "in-use"
    other = bench.create(ClientToken="u")["NetworkInterfaceId"]
    bench.ok("DeleteNetworkInterface", NetworkInterfaceId=other)
    assert bench.create(ClientToken="u")["NetworkInterfaceId"] == other
    assert bench.refused("DescribeNetworkInterfaces", NetworkInterfaceIds=[other]).code.endswith("NotFound")


def test_a_refused_creation_leaves_its_token_unused(bench):
    bench.subnet_a.addresses.take(bench.subnet_a.addresses.free_count, "eni-elsewhere")
    bench.refused("CreateNetworkInterface", SubnetId=bench.subnet_a.id, ClientToken="t")
    assert bench.create(SubnetId=bench.subnet_b.id, ClientToken="t")["SubnetId"] == bench.subnet_b.id


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"SubnetId": "subnet-0"}, "InvalidSubnetID.NotFound"),
        ({}, "MissingParameter"),
        ({"Groups": ["sg-0"]}, "InvalidSecurityGroupID.NotFound"),
        ({"SecondaryPrivateIpAddressCount": 1, "Ipv4PrefixCount": 1}, "InvalidParameterCombination"),
        ({"SecondaryPrivateIpAddressCount": -1}, "InvalidParameterValue"),
        ({"SecondaryPrivateIpAddressCount": 64}, "PrivateIpAddressLimitExceeded"),
        ({"Ipv6AddressCount": 1}, "UnsupportedOperation"),
        ({"DryRun": True}, "DryRunOperation"),
        (
            {"TagSpecifications": [{"ResourceType": "instance", "Tags": []}]},
            "InvalidParameterValue",
        ),
        (
            {"TagSpecifications": [{"ResourceType": "network-interface", "Tags": tags(**{"aws:x": "y"})}]},
            "InvalidParameterValue",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "nothing",
)
def test_a_bad_creation_is_refused_by_ec2s_own_code_and_changes_nothing(bench, params, code):
    free = bench.subnet_a.addresses.free_count
    if params and "SubnetId" not in params:
        params = {"SubnetId": bench.subnet_a.id, **params}
    assert bench.refused("CreateNetworkInterface", **params).code == code
    assert bench.subnet_a.addresses.free_count == free


# Attaching and detaching -------------------------------------------------------------------------------


def test_an_attach_settles_and_a_detach_frees_the_eni_each_in_its_own_time(make_bench):
    bench = make_bench(timing=Timing(attach_settle_s=2.0, detach_settle_s=3.0))
    eni_id, attachment_id = bench.attached(now=10.0)
    assert bench.describe(eni_id, 11.9)["Attachment"]["Status"] == "attaching"
    assert bench.region.pending_until() == 12.0
    assert bench.describe(eni_id, 12.0)["Attachment"]["Status"] == "attached"
    assert bench.region.pending_until() is None

    bench.ok("DetachNetworkInterface", 20.0, AttachmentId=attachment_id)
    detaching = bench.describe(eni_id, 22.9)
    assert (detaching["Status"], detaching["Attachment"]["Status"]) == ("in-use", "detaching")
    refused = bench.refused("DeleteNetworkInterface", 22.9, NetworkInterfaceId=eni_id)
    assert refused.code == "InvalidParameterValue"
    assert refused.message == f"Network interface '{eni_id}' is currently in use."
    assert bench.refused("DetachNetworkInterface", 22.9, AttachmentId=attachment_id).code == "IncorrectState"
    assert bench.describe(eni_id, 23.0)["Status"] == "available"
    bench.ok("DeleteNetworkInterface", 23.0, NetworkInterfaceId=eni_id)
    assert (
        bench.refused("DetachNetworkInterface", 24.0, AttachmentId=attachment_id).code
        == "InvalidAttachmentID.NotFound"
    )


def test_a_detach_before_the_attach_settled_wins(make_bench):
    bench = make_bench(timing=Timing(attach_settle_s=5.0, detach_settle_s=1.0))
    eni_id, attachment_id = bench.attached(now=1.0)
    bench.ok("DetachNetworkInterface", 2.0, AttachmentId=attachment_id)
    assert bench.describe(eni_id, 3.0)["Status"] == "available"
    assert bench.describe(eni_id, 9.0)["Status"] == "available"


def test_an_instance_takes_no_more_enis_than_its_type_allows(bench):
    bench.attached(1)
    bench.attached(2)
    refused = bench.refused(
        "AttachNetworkInterface",
        NetworkInterfaceId=bench.create()["NetworkInterfaceId"],
        InstanceId=bench.instance.id,
        DeviceIndex=3,
    )
    assert (refused.code, refused.message) == (
        "AttachmentLimitExceeded",
        "Interface count 4 exceeds the limit for m5.large",
    )


def test_a_detaching_eni_still_counts_against_the_limit_and_holds_its_index(make_bench):
    bench = make_bench(timing=Timing(detach_settle_s=5.0))
    _, attachment_id = bench.attached(1)
    bench.attached(2)
    bench.ok("DetachNetworkInterface", 2.0, AttachmentId=attachment_id)
    spare = bench.create()["NetworkInterfaceId"]
    params = {"NetworkInterfaceId": spare, "InstanceId": bench.instance.id}
    assert (
        bench.refused("AttachNetworkInterface", 3.0, DeviceIndex=3, **params).code
        == "AttachmentLimitExceeded"
    )
    assert (
        bench.refused("AttachNetworkInterface", 3.0, DeviceIndex=1, **params).code == "InvalidParameterValue"
    )
    bench.ok("AttachNetworkInterface", 7.0, DeviceIndex=1, **params)


def test_a_device_index_is_unique_on_its_card_and_free_on_another(make_bench):
    bench = make_bench("p4d.24xlarge")
    bench.attached(1)
    eni_id = bench.create()["NetworkInterfaceId"]
    params = {"NetworkInterfaceId": eni_id, "InstanceId": bench.instance.id}
    refused = bench.refused("AttachNetworkInterface", DeviceIndex=1, **params)
    assert refused.message == (
        f"Instance '{bench.instance.id}' already has an interface attached at device index '1'."
    )
    assert bench.refused("AttachNetworkInterface", DeviceIndex=1, NetworkCardIndex=4, **params).code == (
        "InvalidParameterValue"
    )
    assert (
        bench.ok("AttachNetworkInterface", DeviceIndex=1, NetworkCardIndex=3, **params)["NetworkCardIndex"]
        == 3
    )


def test_what_cannot_be_attached_is_refused_by_ec2s_own_code(bench):
    eni_id, _ = bench.attached()
    elsewhere = bench.create(SubnetId=bench.subnet_b.id)["NetworkInterfaceId"]
    crowded = bench.create(SecondaryPrivateIpAddressCount=10)["NetworkInterfaceId"]

    def code(eni, instance=bench.instance.id):
        return bench.refused(
            "AttachNetworkInterface", NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=2
        ).code

    assert code(eni_id) == "InvalidNetworkInterface.InUse"
    assert code(elsewhere) == "InvalidParameterCombination"
    assert code(crowded) == "PrivateIpAddressLimitExceeded"
    assert code("eni-0") == "InvalidNetworkInterfaceID.NotFound"
    assert code(elsewhere, "i-0") == "InvalidInstanceID.NotFound"
    assert code("nonsense") == "InvalidNetworkInterfaceId.Malformed"


def test_the_primary_eni_cannot_be_detached(bench):
    attachment_id = bench.instance.primary_eni.attachment.id
    refused = bench.refused("DetachNetworkInterface", AttachmentId=attachment_id, Force=True)
    assert refused.code == "OperationNotPermitted"


# Addresses ---------------------------------------------------------------------------------------------


def test_assigning_answers_with_the_new_addresses_only(bench):
    eni_id, _ = bench.attached(SecondaryPrivateIpAddressCount=2)
    before = bench.addresses(eni_id)
    reply = bench.ok("AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=3)
    new = [a["PrivateIpAddress"] for a in reply["AssignedPrivateIpAddresses"]]
    assert len(new) == 3
    assert bench.addresses(eni_id) == before + new


def test_addresses_and_prefixes_share_the_slots_that_the_type_allows(bench):
    eni_id, _ = bench.attached(SecondaryPrivateIpAddressCount=5)
    reply = bench.ok("AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, Ipv4PrefixCount=3)
    assert reply["AssignedPrivateIpAddresses"] == []
    assert len(reply["AssignedIpv4Prefixes"]) == 3
    too_many = {"NetworkInterfaceId": eni_id, "SecondaryPrivateIpAddressCount": 2}
    assert bench.refused("AssignPrivateIpAddresses", **too_many).code == "PrivateIpAddressLimitExceeded"
    too_many = {"NetworkInterfaceId": eni_id, "Ipv4PrefixCount": 2}
    assert bench.refused("AssignPrivateIpAddresses", **too_many).code == "PrivateIpAddressLimitExceeded"
    bench.ok("AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=1)


def test_an_exhausted_subnet_assigns_nothing_at_all(bench):
    eni_id, _ = bench.attached()
    bench.subnet_a.addresses.take(bench.subnet_a.addresses.free_count - 2, "eni-elsewhere")
    refused = bench.refused(
        "AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=3
    )
    assert refused.code == "InsufficientFreeAddressesInSubnet"
    assert len(bench.addresses(eni_id)) == 1


def test_an_address_of_another_eni_cannot_be_taken_from_it(bench):
    holder, _ = bench.attached(1, SecondaryPrivateIpAddressCount=1)
    eni_id, _ = bench.attached(2)
    wanted = bench.addresses(holder)[1]
    refused = bench.refused(
        "AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=[wanted]
    )
    assert (refused.code, refused.message) == (
        "InvalidParameterValue",
        f"[{wanted}] assigned, but move is not allowed.",
    )


def test_unassigning_takes_all_or_nothing_and_never_the_primary(bench):
    eni_id, _ = bench.attached(SecondaryPrivateIpAddressCount=2)
    primary, first, second = bench.addresses(eni_id)
    for wrong in (primary, "10.0.9.9"):
        refused = bench.refused(
            "UnassignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=[first, wrong]
        )
        assert refused.code == "InvalidParameterValue"
    assert bench.addresses(eni_id) == [primary, first, second]
    bench.ok("UnassignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=[first])
    assert bench.addresses(eni_id) == [primary, second]


# Describing --------------------------------------------------------------------------------------------


def test_an_unknown_id_fails_the_whole_describe_and_is_named_in_quotes(bench):
    known = bench.create()["NetworkInterfaceId"]
    refused = bench.refused("DescribeNetworkInterfaces", NetworkInterfaceIds=[known, "eni-0dead"])
    assert refused.code == "InvalidNetworkInterfaceID.NotFound"
    assert refused.message.split("'")[1] == "eni-0dead"


def test_filters_select_by_each_property_and_all_of_them_must_match(bench):
    attached, _ = bench.attached(Description="aws-K8S-1", SecondaryPrivateIpAddressCount=1)
    free = bench.create(SubnetId=bench.subnet_b.id, Description="other")["NetworkInterfaceId"]
    bench.ok("CreateTags", Resources=[free], Tags=tags(cluster="c1"))

    def found(**filters):
        given = [{"Name": name, "Values": values} for name, values in filters.items()]
        reply = bench.ok("DescribeNetworkInterfaces", Filters=given)
        return [eni["NetworkInterfaceId"] for eni in reply["NetworkInterfaces"]]

    primary = bench.instance.primary_eni.id
    assert found(**{"attachment.instance-id": [bench.instance.id]}) == [primary, attached]
    assert found(**{"attachment.instance-id": ["i-*"], "status": ["in-use"]}) == [primary, attached]
    assert found(status=["available"]) == [free]
    assert found(**{"tag:cluster": ["c1", "c2"]}) == [free]
    assert found(**{"tag:cluster": ["c2"]}) == []
    assert found(**{"tag-key": ["cluster"]}) == [free]
    assert found(**{"subnet-id": [bench.subnet_a.id]}) == [primary, attached]
    assert found(**{"vpc-id": [bench.subnet_a.vpc.id], "description": ["aws-K8S-*"]}) == [attached]
    assert found(**{"private-ip-address": [bench.addresses(attached)[1]]}) == [attached]
    assert found(**{"network-interface-id": [free, "eni-0gone"]}) == [free]
    refused = bench.refused("DescribeNetworkInterfaces", Filters=[{"Name": "colour", "Values": ["red"]}])
    assert refused.code == "InvalidParameterValue"


def test_pages_show_every_eni_once_even_when_some_are_deleted_in_between(bench):
    ids = [bench.create()["NetworkInterfaceId"] for _ in range(12)]
    seen, token = [], None
    while True:
        reply = bench.ok("DescribeNetworkInterfaces", MaxResults=5, NextToken=token)
        batch = [eni["NetworkInterfaceId"] for eni in reply["NetworkInterfaces"]]
        seen += batch
        for eni_id in batch:
            if eni_id in ids:
                bench.ok("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
        token = reply.get("NextToken")
        if token is None:
            break
    assert seen == [bench.instance.primary_eni.id, *ids]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"MaxResults": 4}, "InvalidParameterValue"),
        ({"MaxResults": 5, "NextToken": "zzz"}, "InvalidNextToken"),
        ({"MaxResults": 5, "NetworkInterfaceIds": ["PRIMARY"]}, "InvalidParameterCombination"),
    ],
    ids=["page_too_small", "foreign_token", "ids_and_pages"],
)
def test_a_bad_page_is_refused(bench, params, code):
    if "NetworkInterfaceIds" in params:
        params = {**params, "NetworkInterfaceIds": [bench.instance.primary_eni.id]}
    assert bench.refused("DescribeNetworkInterfaces", **params).code == code


def test_instances_show_their_enis_and_what_hangs_where(bench):
    eni_id, attachment_id = bench.attached(2)
    (reservation,) = bench.ok("DescribeInstances", InstanceIds=[bench.instance.id])["Reservations"]
    (instance,) = reservation["Instances"]
    assert instance["State"]["Name"] == "running"
    assert instance["Placement"]["AvailabilityZone"] == "lab-1a"
    hung = {e["NetworkInterfaceId"]: e["Attachment"]["DeviceIndex"] for e in instance["NetworkInterfaces"]}
    assert hung == {bench.instance.primary_eni.id: 0, eni_id: 2}
    assert instance["NetworkInterfaces"][1]["Attachment"]["AttachmentId"] == attachment_id


def test_subnets_groups_and_vpcs_are_found_by_filter(bench):
    vpc_id = bench.subnet_a.vpc.id
    in_b = bench.ok("DescribeSubnets", Filters=[{"Name": "availability-zone", "Values": ["lab-1b"]}])
    assert [s["SubnetId"] for s in in_b["Subnets"]] == [bench.subnet_b.id]
    named = bench.ok("DescribeSubnets", Filters=[{"Name": "tag:Name", "Values": ["lab-a"]}])
    assert [s["SubnetId"] for s in named["Subnets"]] == [bench.subnet_a.id]
    (group,) = bench.ok("DescribeSecurityGroups")["SecurityGroups"]
    assert group["GroupName"] == "default"
    (vpc,) = bench.ok("DescribeVpcs", VpcIds=[vpc_id])["Vpcs"]
    assert vpc["CidrBlock"] == "10.0.0.0/16"


@pytest.mark.parametrize(
    ("action", "params", "code"),
    [
        ("DescribeSubnets", {"SubnetIds": ["subnet-0"]}, "InvalidSubnetID.NotFound"),
        ("DescribeInstances", {"InstanceIds": ["i-0"]}, "InvalidInstanceID.NotFound"),
        ("DescribeSecurityGroups", {"GroupIds": ["sg-0"]}, "InvalidGroup.NotFound"),
        ("DescribeVpcs", {"VpcIds": ["vpc-0"]}, "InvalidVpcID.NotFound"),
        ("DescribeInstanceTypes", {"InstanceTypes": ["x9.huge"]}, "InvalidInstanceType"),
        ("DeleteNetworkInterface", {"NetworkInterfaceId": "eni-0"}, "InvalidNetworkInterfaceID.NotFound"),
        ("DetachNetworkInterface", {"AttachmentId": "eni-attach-0"}, "InvalidAttachmentID.NotFound"),
        ("CreateTags", {"Resources": ["what-0"], "Tags": tags(a="b")}, "InvalidID"),
        ("MakeCoffee", {}, "InvalidAction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_exist_is_answered_with_ec2s_own_code(bench, action, params, code):
    assert bench.refused(action, **params).code == code


def test_instance_types_tell_limits_cards_and_hypervisor(bench):
    reply = bench.ok("DescribeInstanceTypes", InstanceTypes=["p4d.24xlarge", "m4.4xlarge"])
    xen, big = reply["InstanceTypes"]
    assert (xen["InstanceType"], xen["Hypervisor"], xen["BareMetal"]) == ("m4.4xlarge", "xen", False)
    assert [c["MaximumNetworkInterfaces"] for c in big["NetworkInfo"]["NetworkCards"]] == [15, 15, 15, 15]
    assert big["NetworkInfo"]["MaximumNetworkInterfaces"] == 60
    everything = bench.ok("DescribeInstanceTypes")["InstanceTypes"]
    assert {t["InstanceType"] for t in everything} == set(INSTANCE_TYPES)


def test_a_lagging_describe_shows_enis_as_they_were_and_new_ones_not_yet(bench):
    bench.region.world.describe_lag_s = 3.0
    eni_id = bench.create(10.0)["NetworkInterfaceId"]
    bench.ok("AssignPrivateIpAddresses", 20.0, NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=2)
    bench.region.world.describe_lag_s = 0.0
    assert len(bench.addresses(eni_id, 20.0)) == 3
    bench.region.world.describe_lag_s = 3.0
    young = bench.create(21.0)["NetworkInterfaceId"]
    assert len(bench.addresses(eni_id, 22.9)) == 1
    assert len(bench.addresses(eni_id, 23.0)) == 3
    assert bench.refused("DescribeNetworkInterfaces", 23.9, NetworkInterfaceIds=[young]).code.endswith(
        "NotFound"
    )
    assert len(bench.ok("DescribeNetworkInterfaces", 23.9)["NetworkInterfaces"]) == 2
    assert bench.describe(young, 24.0)["NetworkInterfaceId"] == young


# Changing and tagging ----------------------------------------------------------------------------------


def test_attributes_are_changed_one_a_call(bench):
    eni_id, attachment_id = bench.attached()
    group = bench.region.add_security_group(bench.subnet_a.vpc.id, "web")
    params = {"NetworkInterfaceId": eni_id}
    bench.ok(
        "ModifyNetworkInterfaceAttribute",
        Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True},
        **params,
    )
    bench.ok("ModifyNetworkInterfaceAttribute", Groups=[group.id], **params)
    bench.ok("ModifyNetworkInterfaceAttribute", SourceDestCheck={"Value": False}, **params)
    eni = bench.describe(eni_id)
    assert eni["Attachment"]["DeleteOnTermination"] is True
    assert [g["GroupId"] for g in eni["Groups"]] == [group.id]
    assert eni["SourceDestCheck"] is False
    both = {"Groups": [group.id], "Description": {"Value": "x"}}
    assert (
        bench.refused("ModifyNetworkInterfaceAttribute", **params, **both).code
        == "InvalidParameterCombination"
    )


def test_tags_are_set_and_deleted_and_a_value_that_differs_protects_its_tag(bench):
    eni_id = bench.create()["NetworkInterfaceId"]
    bench.ok("CreateTags", Resources=[eni_id, bench.instance.id], Tags=tags(a="1", b="2"))
    bench.ok("DeleteTags", Resources=[eni_id], Tags=[{"Key": "a", "Value": "other"}, {"Key": "b"}])
    assert bench.describe(eni_id)["TagSet"] == tags(a="1")
    assert bench.instance.tags == {"a": "1", "b": "2"}


# Instances ---------------------------------------------------------------------------------------------


def test_termination_deletes_enis_by_their_flag_and_frees_the_others(bench):
    kept, _ = bench.attached(1)
    doomed, attachment_id = bench.attached(2)
    bench.ok(
        "ModifyNetworkInterfaceAttribute",
        NetworkInterfaceId=doomed,
        Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True},
    )
    primary = bench.instance.primary_eni.id
    bench.region.terminate_instance(bench.instance.id, 5.0)
    assert bench.describe(kept, 5.0)["Status"] == "available"
    for gone in (primary, doomed):
        assert bench.refused("DescribeNetworkInterfaces", 5.0, NetworkInterfaceIds=[gone]).code.endswith(
            "NotFound"
        )
    (reservation,) = bench.ok("DescribeInstances", 5.0)["Reservations"]
    assert reservation["Instances"][0]["State"]["Name"] == "terminated"
    params = {"NetworkInterfaceId": kept, "InstanceId": bench.instance.id, "DeviceIndex": 1}
    assert bench.refused("AttachNetworkInterface", 6.0, **params).code == "IncorrectState"


def test_the_same_seed_and_the_same_calls_give_the_same_world():
    def story(seed):
        region = small_region(seed)
        subnet_id = next(iter(region.world.subnets))
        instance = region.launch_instance(subnet_id)
        eni = region.handle("CreateNetworkInterface", {"SubnetId": subnet_id}, 1.0)
        return instance.id, subnet_id, eni

    assert story(1) == story(1)
    assert story(1)[0] != story(2)[0]

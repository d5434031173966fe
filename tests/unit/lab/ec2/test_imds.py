import json

import pytest

from vpccni.lab.ec2 import ImdsFault

META = "latest/meta-data/"


def text(bench, path, now=1.0):
    reply = bench.region.imds_get(bench.instance.id, META + path, now)
    assert reply.status == 200, (path, reply)
    return reply.body


def status(bench, path, now=1.0):
    return bench.region.imds_get(bench.instance.id, META + path, now).status


def macs(bench, now=1.0):
    return text(bench, "network/interfaces/macs/", now).split()


def addresses(bench, mac, now=1.0):
    return text(bench, f"network/interfaces/macs/{mac}/local-ipv4s", now).split()


def test_the_instance_tells_who_and_where_it_is(bench):
    eni = bench.instance.primary_eni
    assert text(bench, "instance-id") == bench.instance.id
    assert text(bench, "instance-type") == "m5.large"
    assert text(bench, "placement/availability-zone") == "lab-1a"
    assert text(bench, "local-ipv4") == "10.0.0.4"
    assert text(bench, "mac") == eni.mac
    document = json.loads(
        bench.region.imds_get(bench.instance.id, "latest/dynamic/instance-identity/document", 1.0).body
    )
    assert document["region"] == "lab-1"
    assert document["accountId"] == "000000000000"
    assert (document["instanceId"], document["availabilityZone"]) == (bench.instance.id, "lab-1a")


def test_every_field_of_an_eni_is_there_and_absent_ones_are_404(bench):
    eni = bench.instance.primary_eni
    base = f"network/interfaces/macs/{eni.mac}"
    assert macs(bench) == [f"{eni.mac}/"]
    assert text(bench, f"{base}/interface-id") == eni.id
    assert text(bench, f"{base}/device-number") == "0"
    assert text(bench, f"{base}/subnet-id") == bench.subnet_a.id
    assert text(bench, f"{base}/vpc-id") == bench.subnet_a.vpc.id
    assert text(bench, f"{base}/subnet-ipv4-cidr-block") == "10.0.0.0/20"
    assert text(bench, f"{base}/vpc-ipv4-cidr-blocks") == "10.0.0.0/16"
    assert text(bench, f"{base}/security-group-ids") == eni.groups[0].id
    fields = text(bench, base).split()
    assert {"interface-id", "local-ipv4s", "security-group-ids"} <= set(fields)
    for absent in ("network-card", "ipv4-prefix", "ipv6s", "ipv6-prefix", "vpc-ipv6-cidr-blocks"):
        assert absent not in fields
        assert status(bench, f"{base}/{absent}") == 404
    assert status(bench, "ipv6") == 404


def test_cards_and_prefixes_are_told_where_there_are_some(make_bench):
    bench = make_bench("p4d.24xlarge")
    eni_id = bench.create(Ipv4PrefixCount=2)["NetworkInterfaceId"]
    bench.attach(eni_id, 1, NetworkCardIndex=2)
    eni = bench.describe(eni_id)
    base = f"network/interfaces/macs/{eni['MacAddress']}"
    assert text(bench, f"{base}/network-card") == "2"
    assert text(bench, f"{base}/ipv4-prefix").split() == [p["Ipv4Prefix"] for p in eni["Ipv4Prefixes"]]


def test_a_lagging_service_shows_the_world_as_it_was(bench):
    bench.region.imds.lag_s = 5.0
    eni_id, attachment_id = bench.attached(1, now=10.0, SecondaryPrivateIpAddressCount=1)
    mac = bench.describe(eni_id, 10.0)["MacAddress"]
    bench.ok("AssignPrivateIpAddresses", 12.0, NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=1)
    bench.ok("DetachNetworkInterface", 20.0, AttachmentId=attachment_id)
    assert f"{mac}/" not in macs(bench, 14.9)
    assert len(addresses(bench, mac, 15.0)) == 2
    assert len(addresses(bench, mac, 17.0)) == 3
    assert f"{mac}/" in macs(bench, 24.9)
    assert f"{mac}/" not in macs(bench, 25.0)


def test_a_service_without_lag_shows_a_change_at_once_and_drops_a_detaching_eni(bench):
    eni_id, attachment_id = bench.attached(1)
    assert len(macs(bench)) == 2
    bench.region.timing.detach_settle_s = 100.0
    bench.ok("DetachNetworkInterface", 2.0, AttachmentId=attachment_id)
    assert len(macs(bench, 2.0)) == 1
    assert bench.describe(eni_id, 2.0)["Attachment"]["Status"] == "detaching"


def test_a_lying_service_hides_an_eni_and_shows_addresses_that_are_gone(bench):
    eni_id, _ = bench.attached(1, SecondaryPrivateIpAddressCount=1)
    mac = bench.describe(eni_id)["MacAddress"]
    primary, second = bench.addresses(eni_id)
    imds = bench.region.imds
    imds.inject(ImdsFault(kind="resurrected_address", eni_id=eni_id, address="10.0.7.7"))
    imds.inject(ImdsFault(kind="missing_address", eni_id=eni_id, address=second))
    assert addresses(bench, mac) == [primary, "10.0.7.7"]
    imds.inject(ImdsFault(kind="missing_eni", eni_id=eni_id))
    assert len(macs(bench)) == 1
    imds.clear()
    assert addresses(bench, mac) == [primary, second]


def test_a_sick_service_is_silent_or_answers_errors_for_as_long_as_told(bench):
    imds = bench.region.imds
    imds.inject(ImdsFault(kind="status", status=503, path="macs", times=2))
    assert [status(bench, "network/interfaces/macs/") for _ in range(3)] == [503, 503, 200]
    imds.inject(ImdsFault(kind="hang", instance_id="i-other"))
    assert status(bench, "mac") == 200
    imds.inject(ImdsFault(kind="hang"))
    assert bench.region.imds_get(bench.instance.id, META + "mac", 1.0).hangs
    imds.clear()
    imds.inject(ImdsFault(kind="latency", seconds=2.0, times=1))
    assert bench.region.imds_get(bench.instance.id, META + "mac", 1.0).delay_s == 2.0
    assert bench.region.imds_get(bench.instance.id, META + "mac", 1.0).delay_s == 0.0


TTL = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "x-aws-ec2-metadata-token"


def ask(bench, method, path, now=1.0, **headers):
    return bench.region.imds.request(bench.instance.id, method, path, headers, now)


def test_nothing_is_told_without_a_token_that_is_still_valid(bench):
    assert ask(bench, "GET", f"/{META}mac").status == 401
    token = ask(bench, "PUT", "/latest/api/token", 10.0, **{TTL: "60"})
    assert (token.status, token.headers[TTL]) == (200, "60")
    assert ask(bench, "GET", f"/{META}mac", 69.9, **{TOKEN: token.body}).status == 200
    assert ask(bench, "GET", f"/{META}mac", 70.0, **{TOKEN: token.body}).status == 401
    assert ask(bench, "GET", f"/{META}mac", 20.0, **{TOKEN: "guessed"}).status == 401


def test_a_token_is_good_for_its_own_instance_only(bench):
    other = bench.region.launch_instance(bench.subnet_b.id, now=1.0)
    token = ask(bench, "PUT", "/latest/api/token", **{TTL: "60"}).body
    reply = bench.region.imds.request(other.id, "GET", f"/{META}mac", {TOKEN: token}, 2.0)
    assert reply.status == 401


@pytest.mark.parametrize("ttl", ["", "0", "21601", "soon"])
def test_a_token_needs_a_sensible_lifetime(bench, ttl):
    assert ask(bench, "PUT", "/latest/api/token", **{TTL: ttl}).status == 400
    assert ask(bench, "GET", "/latest/api/token", **{TTL: ttl}).status == 405


def test_a_terminated_instance_is_told_nothing(bench):
    bench.region.terminate_instance(bench.instance.id, 2.0)
    assert status(bench, "mac", 3.0) == 404

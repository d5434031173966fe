from vpccni.lab.ec2 import AddressesChanged, LinkPlugged, LinkUnplugged, Timing


def kinds(bench):
    return [type(event).__name__ for event in bench.events]


def test_a_launched_instance_has_its_primary_link_at_once(bench):
    (event,) = bench.events
    eni = bench.instance.primary_eni
    assert event == LinkPlugged(
        at=0.0,
        instance_id=bench.instance.id,
        eni_id=eni.id,
        mac=eni.mac,
        device_index=0,
        card=0,
        subnet_id=bench.subnet_a.id,
        subnet_cidr="10.0.0.0/20",
        primary="10.0.0.4",
        public_ip="203.0.113.1",
    )


def test_a_link_appears_some_time_after_its_attach_with_what_the_eni_owns_by_then(make_bench):
    bench = make_bench(timing=Timing(link_delay_s=2.0))
    eni_id, _ = bench.attached(1, now=10.0)
    bench.ok("AssignPrivateIpAddresses", 11.0, NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=1)
    assert kinds(bench) == ["LinkPlugged", "AddressesChanged"]
    assert bench.region.pending_until() == 12.0
    bench.region.advance(12.5)
    plugged = bench.events[-1]
    assert isinstance(plugged, LinkPlugged)
    assert plugged.at == 12.0
    assert (plugged.primary, *plugged.secondaries) == tuple(bench.addresses(eni_id, 12.5))


def test_a_detach_before_the_link_appeared_means_that_it_never_does(make_bench):
    bench = make_bench(timing=Timing(link_delay_s=2.0, detach_settle_s=1.0))
    _, attachment_id = bench.attached(1, now=10.0)
    bench.ok("DetachNetworkInterface", 11.0, AttachmentId=attachment_id)
    bench.region.advance(20.0)
    assert kinds(bench) == ["LinkPlugged"]  # the primary's


def test_a_detached_and_attached_again_eni_unplugs_and_plugs(bench):
    eni_id, attachment_id = bench.attached(1, now=1.0)
    bench.ok("DetachNetworkInterface", 2.0, AttachmentId=attachment_id)
    bench.attach(eni_id, 2, 3.0)
    assert kinds(bench)[1:] == ["LinkPlugged", "LinkUnplugged", "LinkPlugged"]
    assert bench.events[2].eni_id == eni_id
    assert bench.events[3].device_index == 2


def test_every_change_of_addresses_tells_all_that_the_eni_owns(bench):
    eni_id, _ = bench.attached(1, SecondaryPrivateIpAddressCount=1)
    primary, second = bench.addresses(eni_id)
    bench.ok("UnassignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=[second])
    bench.ok("AssignPrivateIpAddresses", NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
    gone, prefix = bench.events[-2:]
    assert gone == AddressesChanged(
        at=1.0, eni_id=eni_id, instance_id=bench.instance.id, addresses=(primary,)
    )
    assert prefix.addresses == (primary,)
    assert len(prefix.prefixes) == 1


def test_termination_unplugs_every_link_and_the_list_of_links_is_what_events_said(bench):
    eni_id, _ = bench.attached(1)
    assert [link.eni_id for link in bench.region.links(bench.instance.id)] == [
        bench.instance.primary_eni.id,
        eni_id,
    ]
    bench.region.terminate_instance(bench.instance.id, 5.0)
    assert [e.eni_id for e in bench.events if isinstance(e, LinkUnplugged)][1] == eni_id
    assert bench.region.links() == []

"""One event of every kind, and short ways to make records of them."""

from __future__ import annotations

from vpccni.events import address, adoption, decision, effect, eni, node, sandbox
from vpccni.events.codec import Event, Record
from vpccni.model import (
    Address,
    Binding,
    Cidr,
    EniFacts,
    EniId,
    InstanceFacts,
    InstanceId,
    InstanceLimits,
    IntentId,
    LeaseId,
    Mac,
    PodRef,
    SandboxKey,
    Seq,
    Stamp,
    SubnetId,
)

BOOT = "6d2e0b5e-5a63-4b8e-9d0a-0b1f5f0c7a11"
ENI = EniId("eni-0a1b2c3d4e5f60718")
SUBNET = SubnetId("subnet-0a1b2c3d4e5f60718")
KEY = SandboxKey("aws-cni", "c0ffee" * 10 + "beef", "eth0")
POD = PodRef("shop", "cart-7d4b9", "1b4e28ba-2fa1-11d2-883f-0016d3cca427")
BINDING = Binding(family=4, address=Address("10.0.3.7"), eni=ENI, card=0, device=1, table=2)
CIDRS = (Cidr("10.0.3.7/32"), Cidr("10.0.3.8/32"))
FACTS = EniFacts(
    id=ENI,
    mac=Mac("0a:1b:2c:3d:4e:5f"),
    subnet=SUBNET,
    subnet_cidr=Cidr("10.0.0.0/19"),
    primary=Address("10.0.3.6"),
    groups=("sg-0a1b2c3d",),
    tags={"node.k8s.amazonaws.com/instance_id": "i-0a1b2c3d4e5f60718"},
    status="in-use",
    attachment="eni-attach-0a1b2c3d",
    attachment_status="attached",
    device=1,
    delete_on_termination=True,
)
INSTANCE = InstanceFacts(
    id=InstanceId("i-0a1b2c3d4e5f60718"),
    type="m5.large",
    az="eu-central-1a",
    region="eu-central-1",
    primary_mac=Mac("0a:1b:2c:3d:4e:00"),
    vpc_cidrs=(Cidr("10.0.0.0/16"),),
)

LINK = sandbox.SandboxLink(
    ifname="eth0", host_ifname="eni1a2b3c4d5e6", host_ifindex=12, alias="vpccni:c0ffee:eth0"
)
NOW = Stamp(1_700_000_000_000_000_000, 77, BOOT)

EVENTS: tuple[Event, ...] = (
    node.LogCreated(log_id="6f" * 16),
    node.AgentStarted(boot_id=BOOT, version="0.1.0"),
    node.BootChanged(
        old="an-older-boot", new=BOOT, last=Stamp(1_700_000_000_000_000_000, 77, "an-older-boot")
    ),
    node.InstanceObserved(instance=INSTANCE),
    node.InstanceDoubted(instance=InstanceId("i-0ffffffffffffffff"), detail="one reading"),
    node.LimitsObserved(type="m5.large", limits=InstanceLimits(enis_max=3, ipv4_per_eni=10)),
    node.PolicyObserved(settings={"WARM_IP_TARGET": "3", "MINIMUM_IP_TARGET": "10"}),
    node.MaxPodsObserved(max_pods=29, source="kubelet"),
    node.SchedulingObserved(schedulable=True),
    node.SubnetObserved(subnet=SUBNET, cidr=Cidr("10.0.0.0/19"), az="eu-central-1a", free=8_000),
    node.NetworkConfigObserved(vpc_cidrs=(Cidr("10.0.0.0/16"), Cidr("100.64.0.0/16"))),
    node.InvariantBroken(name="two_leases", detail="10.0.3.7"),
    node.LogRestored(missing=("events.sqlite", "events.sqlite-wal"), events=29),
    effect.EffectIntended(
        kind="create", token="t-1", subnet=SUBNET, groups=("sg-1",), count=9, reason="demand"
    ),
    effect.EffectConfirmed(intent=IntentId(11), kind="create", eni=ENI),
    effect.EffectFailed(intent=IntentId(11), kind="assign", reason="ec2_throttled", transient=True),
    effect.EffectUnknown(intent=IntentId(11), kind="attach", detail="no reply in 10 s", eni=ENI),
    effect.EffectAbandoned(intent=IntentId(11), kind="assign", reason="the ENI is gone", eni=ENI),
    eni.EniAdopted(facts=FACTS, managed=True, origin="created", table=2),
    eni.EniAttached(eni=ENI, attachment="eni-attach-0a1b2c3d", device=1, card=0, table=2),
    eni.EniLinkReady(eni=ENI, ifname="ens6", ifindex=3),
    eni.EniLinkLost(eni=ENI, detail="the link vanished"),
    eni.EniSuspected(eni=ENI, source="imds", readings=1),
    eni.EniCleared(eni=ENI, source="ec2"),
    eni.EniDetached(eni=ENI),
    eni.EniGone(eni=ENI, source="reply"),
    address.CidrsOwned(eni=ENI, cidrs=CIDRS, source="reply"),
    address.CidrsReleased(eni=ENI, cidrs=CIDRS[1:], source="reply"),
    address.CidrSuspected(eni=ENI, cidr=CIDRS[0], source="ec2", readings=2),
    address.CidrCleared(eni=ENI, cidr=CIDRS[0], source="ec2"),
    sandbox.AddRequested(key=KEY, pod=POD),
    sandbox.AddressAssigned(
        key=KEY, pod=POD, bindings=(BINDING,), netns="/var/run/netns/cni-1", netns_inode=4
    ),
    sandbox.AddressHeld(
        bindings=(BINDING,), netns="/var/run/netns/cni-2", evidence=("kernel",), since=NOW, detail="no key"
    ),
    sandbox.LeaseLocated(lease=LeaseId(29), bindings=(BINDING,)),
    sandbox.LeaseIdentified(lease=LeaseId(29), key=KEY, pod=POD, source="add"),
    sandbox.SandboxWired(lease=LeaseId(29), links=(LINK,)),
    sandbox.AddFailed(key=KEY, pod=POD, reason="netns_gone", detail="ENOENT", lease=LeaseId(29)),
    sandbox.LeaseEnded(
        lease=LeaseId(29), cause="del", key=KEY, pod=POD, bindings=(BINDING,), sources=("runtime",)
    ),
    sandbox.SandboxUnwired(lease=LeaseId(29)),
    sandbox.LeaseSuspected(lease=LeaseId(29), source="netns"),
    sandbox.LeaseCleared(lease=LeaseId(29), source="api"),
    sandbox.AddressUnexplained(ifname="eni1a2b3c4d5e6", ifindex=12, detail="no route"),
    adoption.NodeSurveyed(why="new_log", leases=2, holds=1, sources={"kernel": "read"}, last_use=NOW),
    adoption.OtherAgentObserved(is_alive=True, detail="ipamd.sock answers"),
    adoption.CheckpointImported(digest="ab" * 32, allocations=12),
    adoption.CheckpointExported(digest="cd" * 32, allocations=11),
    adoption.ModeChanged(mode="hand_back", reason="asked for"),
    adoption.ForeignObjectRemoved(kind="rule", text="512: from all to 10.0.3.7 lookup main"),
    decision.PlanMade(reason="1 free, target 3", steps=("assign 2 on " + ENI,), constraints=("attach: 4 s",)),
)
"""In the order of ``codec.KINDS``; the golden log of a release is made of them, never change one."""


def record(seq: int, event: Event | None = None, cause: int = 0) -> Record:
    """A record at this position; its event is one of ``EVENTS``, if none is given."""
    stamp = Stamp(1_760_000_000_000_000_000 + seq * 1_000_000, 5_000_000_000 + seq * 1_000_000, BOOT)
    return Record(Seq(seq), stamp, event or EVENTS[(seq - 1) % len(EVENTS)], cause)


def records(first: int, last: int) -> list[Record]:
    """Records ``first`` to ``last``, inclusive."""
    return [record(seq) for seq in range(first, last + 1)]

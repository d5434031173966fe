"""A node with a /28 on its primary ENI, as one that is taken over has: it is used, and kept while it is."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

from tests.sim.stage import Stage, play
from vpccni.lab.ec2 import Ec2Fault


def test_a_prefix_is_kept_for_as_long_as_one_pod_lives_in_it():
    """1. The node comes with a /28. 2. Pods fill it. 3. All but its last one go: most of the pool is too much."""

    async def scenario(stage: Stage):
        node = stage.machine("m5.large", {"WARM_IP_TARGET": "1"})
        primary = stage.primary_of(node)
        params = {"NetworkInterfaceId": primary.id, "Ipv4PrefixCount": 1}
        made = stage.region.perform("AssignPrivateIpAddresses", params, stage.loop.time())
        assert not isinstance(made, Ec2Fault)
        prefix = made["AssignedIpv4Prefixes"][0]["Ipv4Prefix"]
        node.start()
        await stage.ready(node)
        pods = await stage.pods(node, 20)
        inside = [pod for pod in pods if ip_address(pod.address) in ip_network(prefix)]
        assert len(inside) == 16
        last = max(inside, key=lambda pod: ip_address(pod.address))
        await stage.delete(node, *[pod for pod in pods if pod is not last])
        await asyncio.sleep(300)
        assert not stage.broken, stage.broken
        await stage.again(node, last)
        assert set(stage.state(node).enis[primary.id].cidrs) >= {prefix}
        assert len(stage.owned(node)) <= 1  # All the rest was given back.

    play(scenario)

"""What a CNI result and a CNI error must look like, written from the specification and not from our code."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

INTERFACE_KEYS = {"name", "mac", "sandbox"}
INTERFACE_KEYS_110 = INTERFACE_KEYS | {"mtu", "socketPath", "pciID"}
ROUTE_KEYS = {"dst", "gw"}
ROUTE_KEYS_110 = ROUTE_KEYS | {"mtu", "advmss", "priority", "table", "scope"}
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")
CODES = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51}


def check_result(result: dict[str, Any], version: str) -> None:
    """Assert that ``result`` is a valid ADD result of this version (CNI spec, section 5)."""
    assert result["cniVersion"] == version
    assert set(result) <= {"cniVersion", "interfaces", "ips", "routes", "dns"}
    is_110 = version == "1.1.0"
    for interface in result["interfaces"]:
        assert set(interface) <= (INTERFACE_KEYS_110 if is_110 else INTERFACE_KEYS)
        assert interface["name"]
        assert len(interface["name"]) <= 15
        assert MAC.match(interface["mac"])
        assert isinstance(interface.get("mtu", 0), int)
    for ip in result["ips"]:
        _check_ip(ip, result["interfaces"], version)
    for route in result["routes"]:
        assert set(route) <= (ROUTE_KEYS_110 if is_110 else ROUTE_KEYS)
        ipaddress.ip_network(route["dst"])
        ipaddress.ip_address(route["gw"])
    assert set(result["dns"]) <= {"nameservers", "domain", "search", "options"}


def _check_ip(ip: dict[str, Any], interfaces: list[dict[str, Any]], version: str) -> None:
    address = ipaddress.ip_interface(ip["address"])
    ipaddress.ip_address(ip["gateway"])
    if version in ("0.3.0", "0.3.1", "0.4.0"):
        assert set(ip) <= {"version", "address", "gateway", "interface"}
        assert ip["version"] == str(address.version)
    else:
        assert set(ip) <= {"address", "gateway", "interface"}
    assert 0 <= ip["interface"] < len(interfaces)
    assert "sandbox" in interfaces[ip["interface"]]


def check_error(error: dict[str, Any]) -> None:
    """Assert that ``error`` is a valid CNI error, and names its reason."""
    assert set(error) == {"cniVersion", "code", "msg", "details", "reason"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", error["cniVersion"])
    assert error["code"] in CODES or error["code"] >= 100
    assert error["msg"].strip()
    assert error["details"].startswith(f"reason={error['reason']}")

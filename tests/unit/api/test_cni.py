"""The CNI protocol without I/O: what is accepted, what is refused with which code, and what answers look like."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.api.shapes import check_error, check_result
from vpccni.api import cni
from vpccni.api.cni import CniFault, Wired
from vpccni.errors import EXPLANATIONS, Reason
from vpccni.model import Address, Binding, EniId, PodRef, SandboxKey

ABSENT = object()


def request(config=None, **changes):
    """A good ADD with some parts replaced, or left out (``ABSENT``)."""
    whole = {
        "command": "ADD",
        "containerId": "abc123",
        "netns": "/run/netns/x",
        "ifname": "eth0",
        "args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
        "path": "/opt/cni/bin",
        "config": {"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni"} | (config or {}),
    } | changes
    whole["config"] = {key: value for key, value in whole["config"].items() if value is not ABSENT}
    return json.dumps({key: value for key, value in whole.items() if value is not ABSENT}).encode()


def fault_of(body: bytes, verb: str = "") -> tuple[int, Reason]:
    with pytest.raises(CniFault) as caught:
        cni.decode(body)
    fault = caught.value
    check_error(json.loads(cni.fault_body(fault.version, fault.reason, fault.detail, verb)))
    return cni.code_of(fault.reason, verb), fault.reason


def wired(*bindings: Binding) -> Wired:
    return Wired(
        host_ifname="eni1234567890a",
        host_mac="02:00:00:00:00:01",
        pod_mac="02:00:00:00:00:02",
        ifname="eth0",
        netns="/run/netns/x",
        mtu=9001,
        bindings=bindings or (binding("10.0.3.7"),),
    )


def binding(address: str) -> Binding:
    family = 6 if ":" in address else 4
    return Binding(family=family, address=Address(address), eni=EniId("eni-1"), card=0, device=0, table=254)


# -- requests ---------------------------------------------------------------------------------------


def test_a_good_add_is_taken_apart():
    call = cni.decode(request())
    assert call.verb == "ADD"
    assert call.version == "1.1.0"
    assert call.key == SandboxKey("aws-cni", "abc123", "eth0")
    assert call.pod == PodRef("shop", "web-0", "u-1")
    assert call.netns == "/run/netns/x"
    assert call.previous is None
    assert call.valid is None


MAPPED = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
    {"hostPort": 53, "protocol": "udp"},
]


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        ({"portMappings": MAPPED}, ("8080/tcp", "53/udp")),
        (
            {"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]},
            ("8080/tcp",),
        ),
        ({"portMappings": [{"hostPort": 0, "containerPort": 80}, {"containerPort": 443}]}, ()),
        ({"portMappings": []}, ()),
        ({"portMappings": None}, ()),
        ({"io.kubernetes.cri.pod-annotations": {}}, ()),
        (None, ()),
        (ABSENT, ()),
    ],
    ids=[
        "two",
        "containerd's keys",
        "without host ports",
        "empty",
        "null",
        "other capabilities",
        "null at all",
        "absent",
    ],
)
def test_the_host_ports_that_the_runtime_gives_to_us_are_known(given, ports):
    assert cni.decode(request({"runtimeConfig": given})).host_ports == ports
    assert cni.decode(request({"runtimeConfig": given}, command="DEL")).host_ports == ()


@pytest.mark.parametrize("mappings", [7, "8080", {"hostPort": 8080}, [8080], [{"hostPort": "8080"}]], ids=str)
def test_host_ports_that_cannot_be_read_are_not_taken_for_none(mappings):
    body = {"runtimeConfig": {"portMappings": mappings}}
    assert fault_of(request(body)) == (7, Reason.BAD_CONFIG)
    assert cni.decode(request(body, command="DEL")).verb == "DEL"


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize(
    ("capabilities", "takes"),
    [
        ({"portMappings": True}, True),
        ({"portMappings": False}, False),
        ({}, False),
        ([], False),
        (ABSENT, False),
    ],
    ids=["asked", "not asked", "others", "no object", "absent"],
)
def test_whether_our_entry_asks_for_host_ports_is_known(verb, capabilities, takes):
    body = request({"capabilities": capabilities}, command=verb)
    assert cni.decode(body).takes_host_ports is takes


@pytest.mark.parametrize("version", cni.VERSIONS)
def test_every_version_adds_and_deletes(version):
    for command in ("ADD", "DEL"):
        assert cni.decode(request({"cniVersion": version}, command=command)).version == version


VERSION_VERBS = [
    (verb, version, version >= first)
    for verb, first in (("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0"))
    for version in cni.VERSIONS
]


@pytest.mark.parametrize(("verb", "version", "is_known"), VERSION_VERBS)
def test_a_verb_is_refused_before_the_version_that_brought_it(verb, version, is_known):
    body = request({"cniVersion": version}, command=verb)
    if is_known:
        assert cni.decode(body).verb == verb
    else:
        assert fault_of(body) == (1, Reason.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    "version", ["9.9.9", "0.2.0", "1.1.1", "", "1.1", " 1.1.0", "1.1.0\n", 1, 1.1, None, [], {}, True, 10**40]
)
def test_an_unknown_version_is_code_1_whatever_its_type(version):
    assert fault_of(request({"cniVersion": version})) == (1, Reason.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"containerId": ""}, "CNI_CONTAINERID"),
        ({"containerId": ABSENT}, "CNI_CONTAINERID"),
        ({"containerId": "-abc"}, "CNI_CONTAINERID"),
        ({"containerId": "a/../b"}, "CNI_CONTAINERID"),
        ({"containerId": "a\x00b"}, "CNI_CONTAINERID"),
        ({"containerId": "abc\n"}, "CNI_CONTAINERID"),
        ({"containerId": "ä"}, "CNI_CONTAINERID"),
        ({"containerId": "a" * 201}, "CNI_CONTAINERID"),
        ({"ifname": ""}, "CNI_IFNAME"),
        ({"ifname": "a" * 16}, "CNI_IFNAME"),
        ({"ifname": "ä" * 8}, "CNI_IFNAME"),
        ({"ifname": "."}, "CNI_IFNAME"),
        ({"ifname": ".."}, "CNI_IFNAME"),
        ({"ifname": "eth/0"}, "CNI_IFNAME"),
        ({"ifname": "eth:0"}, "CNI_IFNAME"),
        ({"ifname": "eth 0"}, "CNI_IFNAME"),
        ({"ifname": "eth\t0"}, "CNI_IFNAME"),
        ({"ifname": "eth0\x00"}, "CNI_IFNAME"),
        ({"netns": ""}, "CNI_NETNS"),
        ({"netns": "run/netns/x"}, "CNI_NETNS"),
        ({"netns": "/run/\x00"}, "CNI_NETNS"),
        ({"netns": "/" + "x" * 4095}, "CNI_NETNS"),
        ({"command": "ADD "}, "CNI_COMMAND"),
        ({"command": "add"}, "CNI_COMMAND"),
        ({"command": ""}, "CNI_COMMAND"),
        ({"command": "VERSION"}, "CNI_COMMAND"),
        ({"args": "K8S_POD_NAME"}, "CNI_ARGS"),
        ({"args": "K8S_POD_NAME=a=b"}, "CNI_ARGS"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_environment_is_code_4_and_names_the_variable(changes, named):
    with pytest.raises(CniFault) as caught:
        cni.decode(request(**changes))
    assert named in caught.value.detail
    assert cni.code_of(caught.value.reason) == 4


def test_all_missing_variables_are_named_at_once():
    with pytest.raises(CniFault) as caught:
        cni.decode(request(containerId="", netns="", ifname=""))
    for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"):
        assert name in caught.value.detail


def test_a_del_needs_no_netns():
    assert cni.decode(request(command="DEL", netns="")).netns == ""


@pytest.mark.parametrize("changes", [{"args": "broken"}, {"config": {"prevResult": 5}}], ids=["args", "prev"])
def test_a_del_is_not_refused_for_what_it_does_not_need(changes):
    """Refused once it is refused for ever, and the runtime can never take the sandbox down."""
    config = changes.pop("config", None)
    assert cni.decode(request(config, command="DEL", **changes)).verb == "DEL"


ORIGINAL = {
    "cniVersion": "0.4.0",
    "interfaces": [
        {"name": "eni0d7763386da"},
        {"name": "eth0", "mac": "2", "sandbox": "/var/run/netns/cni-x"},
        {"name": "dummy0d7763386da", "mac": "0", "sandbox": "1"},
    ],
    "ips": [{"version": "4", "interface": 1, "address": "10.0.97.30/32"}],
    "dns": {},
}
"""What amazon-vpc-cni-k8s prints: a table number for a MAC, and a last interface that does not exist."""


@pytest.mark.parametrize("command", ["DEL", "CHECK"])
@pytest.mark.parametrize(
    ("previous", "netns", "addresses"),
    [
        (ORIGINAL, "/var/run/netns/cni-x", ("10.0.97.30",)),
        (json.loads(cni.result("1.1.0", wired())), "/run/netns/x", ("10.0.3.7",)),
        ({"ips": [{"address": "10.0.3.7/32"}]}, "", ("10.0.3.7",)),
        (ORIGINAL | {"interfaces": [{"name": "eth1", "sandbox": "/x"}]}, "", ("10.0.97.30",)),
        (
            ORIGINAL | {"ips": [*ORIGINAL["ips"], {"interface": 0, "address": "10.0.97.31/32"}]},
            "/var/run/netns/cni-x",
            ("10.0.97.30",),
        ),
        (ORIGINAL | {"ips": [{"interface": 1, "address": "2001:db8::5/128"}]}, "/var/run/netns/cni-x", ()),
        ({}, "", ()),
    ],
    ids=["original", "ours", "no interfaces", "another interface", "two addresses", "IPv6", "empty"],
)
def test_a_later_call_knows_what_its_sandbox_had(command, previous, netns, addresses):
    """The runtime's own netns wins; a result only helps out."""
    given = {"prevResult": previous}
    call = cni.decode(request(given, command=command))
    assert (call.netns, call.addresses) == ("/run/netns/x", addresses)
    if command == "DEL":
        assert cni.decode(request(given, command=command, netns="")).netns == netns


@pytest.mark.parametrize(
    "previous",
    [
        5, "x", [], None, {"interfaces": 5, "ips": "x"}, {"interfaces": [None, 5], "ips": [None, 5]},
        {"ips": [{"address": 5}, {"address": "x"}, {"address": None}, {}]},
        {"interfaces": [{"name": [], "sandbox": 5}], "ips": [{"interface": [], "address": {}}]},
        {"interfaces": [{"name": "eth0", "sandbox": 5}], "ips": [{"interface": [], "address": "10.0.0.1"}]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_del_reads_nothing_out_of_a_result_that_is_none(previous):
    call = cni.decode(request({"prevResult": previous}, command="DEL", netns=""))
    assert (call.netns, call.addresses) == ("", ())


def test_an_add_takes_no_address_for_its_own_from_the_plugin_before_it():
    assert cni.decode(request({"prevResult": ORIGINAL})).addresses == ()


@pytest.mark.parametrize(
    ("args", "pod"),
    [
        ("", PodRef()),
        (";;", PodRef()),
        ("IgnoreUnknown=1", PodRef()),
        ("FOO=bar;K8S_POD_NAME=a", PodRef("", "a", "")),
        ("K8S_POD_NAME=;K8S_POD_UID=u", PodRef("", "", "u")),
        ("K8S_POD_NAME=a;K8S_POD_NAME=b", PodRef("", "b", "")),
        ("K8S_POD_NAME=" + "n" * 500, PodRef("", "n" * 253, "")),
        (";".join(f"KEY{number}=x" for number in range(1000)), PodRef()),
    ],
    ids=lambda value: str(value)[:30],
)
def test_cni_args_give_the_pod_and_the_rest_is_ignored(args, pod):
    assert cni.decode(request(args=args)).pod == pod


@pytest.mark.parametrize("name", [ABSENT, None, "", 5, [], {}, "-a", "a b", "a\n", "ä", "a" * 201])
def test_a_bad_network_name_is_code_7(name):
    assert fault_of(request({"name": name})) == (7, Reason.BAD_CONFIG)


@pytest.mark.parametrize(
    "previous",
    [5, "x", [], {"interfaces": 5}, {"interfaces": {}}, {"interfaces": ["x"]}, {"ips": [None]}, {"ips": "x"},
     {"routes": [[]]}, {"dns": []}],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_a_malformed_previous_result_is_refused_before_anything_is_done(command, previous):
    assert fault_of(request({"prevResult": previous}, command=command)) == (7, Reason.BAD_CONFIG)


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_takes_either_name_of_its_list(key):
    body = request({key: [{"containerID": "a", "ifname": "eth0"}]}, command="GC", containerId="", netns="")
    assert cni.decode(body).valid == frozenset({("a", "eth0")})


def test_an_absent_gc_list_is_not_an_empty_one():
    assert cni.decode(request(command="GC")).valid is None
    assert cni.decode(request({"cni.dev/valid-attachments": []}, command="GC")).valid == frozenset()


@pytest.mark.parametrize(
    "listed",
    ["", {}, 0, False, "x", [1], ["x"], [{}], [{"containerID": "a"}], [{"containerID": 5, "ifname": "e"}]],
    ids=repr,
)
def test_a_gc_list_of_another_shape_is_refused_and_not_taken_for_an_empty_one(listed):
    body = request({"cni.dev/valid-attachments": listed}, command="GC")
    assert fault_of(body) == (7, Reason.BAD_CONFIG)


WRONG_BODIES = {
    "empty": b"",
    "nul": b"\x00",
    "text": b"ADD",
    "null": b"null",
    "list": b"[]",
    "no command": b"{}",
    "half": request()[:-1],
    "two": request() + request(),
    "trailing": request() + b"x",
    "not utf-8": request().replace(b"abc123", b"abc\xff23"),
    "lone surrogate": request().replace(b"abc123", b"abc\\ud800"),
    "command of another type": request(command=5),
    "netns of another type": request(netns=["/x"]),
    "args of another type": request(args={"K8S_POD_NAME": "a"}),
    "config a list": b'{"command":"ADD","config":[]}',
    "config null": b'{"command":"ADD","config":null}',
    "an integer of 5000 digits": b'{"command":"ADD","config":{"cniVersion":' + b"9" * 5000 + b"}}",
    "a float without end": b'{"command":"ADD","config":{"cniVersion":1e999}}',
    "nan": b'{"command":"ADD","config":{"cniVersion":NaN}}',
    "100,000 deep": b'{"command":"ADD","config":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
}


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES.keys())
def test_what_cannot_be_decoded_is_code_6(body):
    assert fault_of(body) == (6, Reason.BAD_REQUEST)


@pytest.mark.parametrize("depth", range(900, 1001, 5))
def test_nesting_near_the_interpreters_limit_is_a_fault_and_not_a_crash(depth):
    nested = b"[" * depth + b"]" * depth
    for place in (b'{"name":', b'{"cniVersion":', b'{"cniVersion":"1.1.0","name":"n","prevResult":'):
        code, _ = fault_of(b'{"command":"ADD","containerId":"c","netns":"/n","ifname":"e","config":'
                           + place + nested + b"}}")  # fmt: skip
        assert code in (1, 6, 7)


def test_ten_megabytes_are_decoded_or_refused_but_held_once():
    call = cni.decode(request({"ignored": "x" * 10_000_000}))
    assert call.verb == "ADD"
    assert call.previous is None
    fault = fault_of(request({"name": "x" * 10_000_000}))
    assert fault == (7, Reason.BAD_CONFIG)


def test_a_fault_never_repeats_more_than_a_little_of_what_was_sent():
    for body in (request(args="x" * 900_000), request(containerId="x" * 900_000), b"[" * 900_000):
        with pytest.raises(CniFault) as caught:
            cni.decode(body)
        assert len(cni.fault_body("1.1.0", caught.value.reason, caught.value.detail)) < 1500


def test_of_a_key_that_comes_twice_the_last_counts_and_unknown_keys_do_not():
    body = request().replace(b'"command": "ADD"', b'"command": "ADD", "command": "DEL", "more": {"a": 1}')
    assert cni.decode(body).verb == "DEL"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
configs = st.fixed_dictionaries(
    {"cniVersion": st.sampled_from(cni.VERSIONS) | json_values, "name": st.just("net") | json_values},
    optional={
        "prevResult": st.fixed_dictionaries(
            {}, optional={"ips": json_values, "interfaces": json_values, "routes": json_values}
        )
        | json_values,
        "cni.dev/valid-attachments": json_values,
        "cni.dev/attachments": json_values,
    },
)
requests = st.fixed_dictionaries(
    {"command": st.sampled_from((*cni.VERBS, "VERSION")) | json_values, "config": configs | json_values},
    optional={
        "containerId": st.text(max_size=30) | json_values,
        "netns": st.sampled_from(["/a", "a", ""]) | json_values,
        "ifname": st.text(max_size=20) | json_values,
        "args": st.text(alphabet="K8S_POD_NAME=;", max_size=30) | json_values,
    },
)


@settings(max_examples=300, deadline=None)
@given(requests)
def test_whatever_is_asked_is_a_call_that_can_be_answered_or_a_fault(asked):
    try:
        call = cni.decode(json.dumps(asked).encode())
    except CniFault as fault:
        check_error(json.loads(cni.fault_body(fault.version, fault.reason, fault.detail)))
    else:
        json.loads(cni.result(call.version, wired(), call.previous))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=40).map(lambda junk: request() + junk))
def test_whatever_the_bytes_are_nothing_but_a_fault_is_raised(body):
    with contextlib.suppress(CniFault):
        cni.decode(body)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 300), st.binary(min_size=1, max_size=3))
def test_a_request_with_bytes_changed_in_it_is_a_call_or_a_fault(at, junk):
    whole = request()
    with contextlib.suppress(CniFault):
        cni.decode(whole[:at] + junk + whole[at + len(junk) :])


# -- answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", cni.VERSIONS)
def test_a_result_has_the_shape_of_the_version_that_was_asked(version):
    result = json.loads(cni.result(version, wired()))
    check_result(result, version)
    host, pod = result["interfaces"]
    assert host == {"name": "eni1234567890a", "mac": "02:00:00:00:00:01"} | mtu(version)
    assert pod == {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"} | mtu(version)
    assert [ip["address"] for ip in result["ips"]] == ["10.0.3.7/32"]
    assert result["interfaces"][result["ips"][0]["interface"]] == pod
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]


def mtu(version):
    return {"mtu": 9001} if version == "1.1.0" else {}


@pytest.mark.parametrize("version", cni.VERSIONS)
def test_a_previous_result_is_passed_on_and_ours_is_added_behind_it(version):
    previous = {
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "127.0.0.1/8", "gateway": "127.0.0.1", "interface": 0}
                | ({"version": "4"} if version < "1.0.0" else {})],
        "routes": [{"dst": "192.0.2.0/24", "gw": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }  # fmt: skip
    result = json.loads(cni.result(version, wired(), previous))
    check_result(result, version)
    assert result["interfaces"][:1] == previous["interfaces"]
    assert result["ips"][:1] == previous["ips"]
    assert result["routes"][:1] == previous["routes"]
    assert result["dns"] == previous["dns"]
    assert result["interfaces"][result["ips"][1]["interface"]]["name"] == "eth0"


@pytest.mark.parametrize("previous", [{}, {"ips": None, "interfaces": None, "routes": None, "dns": None}])
def test_a_previous_result_of_nothing_adds_nothing(previous):
    assert cni.result("1.1.0", wired(), previous) == cni.result("1.1.0", wired())


def test_every_reason_has_a_code_that_the_specification_allows():
    for reason in Reason:
        for verb in ("ADD", "STATUS"):
            check_error(json.loads(cni.fault_body("1.1.0", reason, "detail", verb)))
        assert reason in EXPLANATIONS


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.UNSUPPORTED_VERSION, 1),
        (Reason.UNKNOWN_CONTAINER, 3),
        (Reason.BAD_ENVIRONMENT, 4),
        (Reason.BAD_REQUEST, 6),
        (Reason.TOO_LARGE, 6),
        (Reason.BAD_CONFIG, 7),
        (Reason.NO_ADDRESS, 11),
        (Reason.SUBNET_EXHAUSTED, 11),
        (Reason.LOG_DISK_FULL, 11),
        (Reason.KERNEL_REFUSED, 11),
        (Reason.TOO_BUSY, 11),
        (Reason.CHECK_FAILED, 100),
        (Reason.INTERFACE_EXISTS, 101),
        (Reason.NETNS_GONE, 102),
        (Reason.INTERNAL, 104),
    ],
)
def test_what_may_pass_is_code_11_and_what_will_not_is_another(reason, code):
    assert cni.code_of(reason, "ADD") == code


def test_status_says_50_for_whatever_keeps_adds_from_being_served():
    for reason in (Reason.NODE_NOT_INITIALIZED, Reason.STOPPING, Reason.LOG_DISK_FULL, Reason.INTERNAL):
        assert cni.code_of(reason, "STATUS") == 50
    assert cni.code_of(Reason.BAD_CONFIG, "STATUS") == 7

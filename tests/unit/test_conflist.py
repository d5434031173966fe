"""The list of plugins: what is ours is replaced, what is others' stays, and its versions are everybody's."""

import json

import pytest

from vpccni.conflist import CNI_VERSIONS, Executable, merge, read_list
from vpccni.settings import Settings

ALL = Executable(is_there=True, versions=frozenset(CNI_VERSIONS))
DEBIANS = Executable(is_there=True, versions=frozenset({"0.1.0", "0.2.0", *CNI_VERSIONS}) - {"1.1.0"})
ABSENT = Executable(is_there=False, problem="There is no executable /opt/cni/bin/it")
SILENT = Executable(is_there=True, problem="/opt/cni/bin/it did not say its versions within 3 s")

OURS = {
    "type": "aws-cni",
    "name": "aws-cni",
    "vethPrefix": "eni",
    "mtu": "9001",
    "pluginLogFile": "/var/log/aws-routed-eni/plugin.log",
    "pluginLogLevel": "debug",
    "capabilities": {"io.kubernetes.cri.pod-annotations": True},
}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
ISTIO = {
    "type": "istio-cni",
    "name": "istio-cni",
    "log_level": "info",
    "plugin_log_level": "info",
    "kubernetes": {"kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig", "exclude_namespaces": ["a", "b"]},
}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
TUNING = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}

# What amazon-vpc-cni-k8s v1.23.1 installs on an IPv4 node.
STOCK_AWS_CNI = OURS | {"podSGEnforcingMode": "strict", "pluginLogLevel": "DEBUG"}
STOCK_EGRESS = {
    "type": "egress-cni",
    "name": "egress-cni",
    "mtu": "9001",
    "enabled": "false",
    "randomizeSNAT": "prng",
    "nodeIP": "",
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "fd00::ac:00/118"}]],
        "routes": [{"dst": "::/0"}],
        "dataDir": "/run/cni/v4pd/egress-v6-ipam",
    },
    "pluginLogFile": "/var/log/aws-routed-eni/egress-v6-plugin.log",
    "pluginLogLevel": "DEBUG",
}


def stock(*plugins, **top):
    return {"cniVersion": "0.4.0", "name": "aws-cni", "disableCheck": True, **top, "plugins": list(plugins)}


def merged(old, /, settings=None, *, socket="/var/run/aws-node/vpccni.sock", **answers):
    """The new list for an old one, and the notes by name. Executables are there unless they are named."""
    content = old if old is None or isinstance(old, bytes) else json.dumps(old).encode()
    found = read_list(content)
    answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
    executables = {name: answers.get(name, ALL) for name in found.executables()}
    made = merge(found, settings or Settings(), executables, socket=socket)
    again = merge(read_list(made.content), settings or Settings(), executables, socket=socket)
    assert again.content == made.content, "the second time nothing is to be changed"
    assert made.content.endswith(b"}\n")
    return json.loads(made.content), {note.name: note for note in made.notes}


def types(conflist):
    return [entry["type"] for entry in conflist["plugins"]]


# -- what is ours -----------------------------------------------------------------------------------------


def test_where_there_is_no_file_the_list_has_what_runtimes_and_the_plugin_need():
    settings = Settings(veth_prefix='e"i', pod_mtu=1500, plugin_log_file="", plugin_log_level="info")
    conflist, notes = merged(None, settings)
    assert conflist == {
        "cniVersion": "0.4.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "aws-cni",
        "plugins": [
            {
                "type": "aws-cni",
                "name": "aws-cni",
                "vethPrefix": 'e"i',
                "mtu": "1500",
                "pluginLogFile": "",
                "pluginLogLevel": "info",
                "capabilities": {"io.kubernetes.cri.pod-annotations": True},
            },
            PORTMAP,
        ],
    }
    assert notes == {}


def test_the_originals_list_becomes_ours():
    conflist, notes = merged(stock(STOCK_AWS_CNI, STOCK_EGRESS, PORTMAP))
    assert conflist["plugins"] == [OURS, PORTMAP]
    assert "disableCheck" not in conflist
    assert notes == {}


def test_an_egress_plugin_that_is_switched_on_stays():
    egress = STOCK_EGRESS | {"enabled": "true"}
    assert merged(stock(STOCK_AWS_CNI, egress, PORTMAP))[0]["plugins"] == [OURS, egress, PORTMAP]


def test_only_unusual_paths_are_named():
    assert merged(None, socket="/s/x.sock")[0]["plugins"][0]["socket"] == "/s/x.sock"
    assert not {"socket", "spool"} & set(merged(None)[0]["plugins"][0])


def test_our_entry_stands_once_and_where_it_stood():
    before = {"type": "first"}
    old = stock(before, STOCK_AWS_CNI, ISTIO, OURS | {"mtu": "1"}, PORTMAP)
    assert merged(old)[0]["plugins"] == [before, OURS, ISTIO, PORTMAP]


def test_in_a_list_without_us_we_come_first():
    assert merged(stock(ISTIO))[0]["plugins"] == [OURS, PORTMAP, ISTIO]


# -- what is others' --------------------------------------------------------------------------------------


def test_foreign_entries_keep_their_order_and_every_key():
    old = stock(STOCK_AWS_CNI, STOCK_EGRESS, ISTIO, PORTMAP, BANDWIDTH, TUNING)
    conflist = merged(old)[0]
    assert conflist["plugins"] == [OURS, ISTIO, PORTMAP, BANDWIDTH, TUNING]
    assert list(conflist["plugins"][1]) == list(ISTIO)


def test_portmap_keeps_the_options_that_somebody_gave_it():
    portmap = PORTMAP | {"snat": False, "masqAll": True, "conditionsV4": ["!", "-d", "192.0.2.0/24"]}
    assert merged(stock(STOCK_AWS_CNI, STOCK_EGRESS, portmap))[0]["plugins"] == [OURS, portmap]


def test_unknown_top_level_keys_stay():
    conflist = merged(stock(OURS, PORTMAP, disableGC=True, **{"x.example/owner": {"team": "net"}}))[0]
    assert conflist["disableGC"] is True
    assert conflist["x.example/owner"] == {"team": "net"}


def test_a_disable_check_that_somebody_put_into_our_list_stays():
    assert merged(stock(OURS, PORTMAP))[0]["disableCheck"] is True


@pytest.mark.parametrize(
    ("plugins", "name", "kept"),
    [
        ([STOCK_AWS_CNI], "pods-of-team.a", "pods-of-team.a"),
        ([STOCK_AWS_CNI], "no name/at all", "aws-cni"),
        ([STOCK_AWS_CNI], 7, "aws-cni"),
        ([ISTIO], "somebody-elses", "aws-cni"),
    ],
    ids=["living pods have it", "not valid", "not a text", "never ours"],
)
def test_the_networks_name_stays_when_pods_of_that_network_may_live(plugins, name, kept):
    assert merged(stock(*plugins, name=name))[0]["name"] == kept


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"plugins":{}}',
        b'{"plugins":["aws-cni"]}',
        b'{"plugins":[{"name":"x"}]}',
        b'{"plugins":[{"type":""}]}',
        b'{"type":"aws-cni","plugins":null}',
        b"[" * 100_000,
    ],
    ids=str,
)
def test_what_is_no_list_of_plugins_is_told_and_nothing_of_it_is_kept(content):
    found = read_list(content)
    assert found.problem
    assert (found.top, found.entries) == ({}, ())


# -- versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoken", "offered"),
    [
        (frozenset(CNI_VERSIONS), ["0.4.0", "1.0.0", "1.1.0"]),
        (DEBIANS.versions, ["0.4.0", "1.0.0"]),
        (frozenset({"0.3.1", "0.4.0", "1.1.0"}), ["0.4.0", "1.1.0"]),
        (frozenset({"0.1.0", "0.3.0", "0.3.1"}), ["0.3.1"]),
        (frozenset({"1.0.0", "1.1.0", "1.2.0"}), ["1.0.0", "1.1.0"]),
        (frozenset({"0.2.0"}), ["0.4.0"]),
        (frozenset(), ["0.4.0"]),
    ],
    ids=["all", "Debian's", "a gap", "old", "new", "none in common", "it does not say"],
)
def test_the_versions_offered_are_those_that_every_executable_speaks(spoken, offered):
    conflist, _ = merged(stock(OURS, PORTMAP, ISTIO), istio_cni=Executable(is_there=True, versions=spoken))
    assert conflist["cniVersions"] == offered
    assert conflist["cniVersion"] == offered[0]


def test_our_own_executable_counts_as_well():
    assert merged(None, aws_cni=DEBIANS)[0]["cniVersions"] == ["0.4.0", "1.0.0"]


def test_executables_that_are_not_in_the_list_do_not_count():
    conflist, _ = merged(stock(STOCK_AWS_CNI, STOCK_EGRESS, PORTMAP), egress_cni=DEBIANS)
    assert conflist["cniVersions"][-1] == "1.1.0"


def test_a_plugin_that_holds_the_version_down_is_named():
    _, notes = merged(stock(OURS, PORTMAP, ISTIO), portmap=DEBIANS)
    assert list(notes) == ["cni_version_limited"]
    assert "portmap speaks CNI up to 1.0.0" in notes["cni_version_limited"].detail
    assert not notes["cni_version_limited"].is_warning


def test_plugins_without_a_common_version_are_warned_of():
    _, notes = merged(stock(OURS, ISTIO), istio_cni=Executable(is_there=True, versions=frozenset({"0.2.0"})))
    assert "istio-cni does not speak CNI 0.4.0" in notes["cni_versions_differ"].detail


# -- executables that are missing -------------------------------------------------------------------------


def test_a_foreign_entry_whose_executable_is_missing_stays_and_is_warned_of():
    conflist, notes = merged(stock(STOCK_AWS_CNI, STOCK_EGRESS, PORTMAP, ISTIO), istio_cni=ABSENT)
    assert conflist["plugins"] == [OURS, PORTMAP, ISTIO]
    assert conflist["cniVersions"] == ["0.4.0"]
    (note,) = notes.values()
    assert note.is_warning
    assert note.name == "cni_executable_missing"
    assert "istio-cni" in note.detail


def test_an_executable_that_does_not_say_its_versions_is_warned_of():
    conflist, notes = merged(stock(OURS, PORTMAP, ISTIO), istio_cni=SILENT)
    assert conflist["cniVersions"] == ["0.4.0"]
    assert SILENT.problem in notes["cni_executable_silent"].detail


def test_without_its_executable_portmap_is_set_aside_and_comes_back_with_its_options():
    portmap = PORTMAP | {"masqAll": True}
    without, notes = merged(stock(STOCK_AWS_CNI, STOCK_EGRESS, portmap, ISTIO), portmap=ABSENT)
    assert types(without) == ["aws-cni", "istio-cni"]
    assert without["plugins"][0]["capabilities"]["portMappings"] is True
    assert ABSENT.problem in notes["no_portmap"].detail
    conflist, notes = merged(without)
    assert conflist["plugins"] == [OURS, portmap, ISTIO]
    assert notes == {}


def test_where_nobody_takes_host_ports_our_entry_asks_for_them():
    """The runtime then gives a pod's host ports to us, and the agent refuses the pod."""
    capabilities = {"io.kubernetes.cri.pod-annotations": True, "portMappings": True}
    asking = OURS | {"capabilities": capabilities}
    assert merged(None, portmap=ABSENT)[0]["plugins"] == [asking]
    assert merged(None, portmap=ABSENT)[0]["cniVersions"][-1] == "1.1.0"
    deaf = {"type": "portmap", "capabilities": {"bandwidth": True}}
    conflist, notes = merged(stock(OURS, deaf, BANDWIDTH))
    assert conflist["plugins"] == [asking, deaf, BANDWIDTH]
    assert list(notes) == ["no_portmap"]


def test_a_portmap_that_somebody_put_in_wins_over_the_one_that_was_set_aside():
    without, _ = merged(stock(STOCK_AWS_CNI, PORTMAP | {"masqAll": True}, ISTIO), portmap=ABSENT)
    without["plugins"].append(PORTMAP)
    assert merged(without)[0]["plugins"] == [OURS, ISTIO, PORTMAP]
    assert merged(merged(without, portmap=ABSENT)[0])[0]["plugins"] == [OURS, PORTMAP, ISTIO]


def test_our_place_is_counted_without_a_portmap_before_us():
    conflist, _ = merged(stock(PORTMAP, ISTIO, OURS, TUNING), portmap=ABSENT)
    assert types(conflist) == ["istio-cni", "aws-cni", "tuning"]


def test_where_another_plugin_takes_host_ports_portmap_is_not_added():
    """Two that translate the same port would be one too many."""
    other = {"type": "somebodys-ports", "capabilities": {"portMappings": True}}
    conflist, notes = merged(stock(OURS, other), portmap=DEBIANS)
    assert types(conflist) == ["aws-cni", "somebodys-ports"]
    assert conflist["cniVersions"][-1] == "1.1.0"
    assert notes == {}

"""Whatever others have put into the conflist is in it after merging, and merging twice is merging once."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from vpccni.conflist import CNI_VERSIONS, Executable, merge, read_list
from vpccni.settings import Settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
TYPES = st.sampled_from(["aws-cni", "egress-cni", "portmap", "istio-cni", "linkerd-cni", "tuning", "a/b"])
ENTRIES = st.builds(
    lambda name, options: options | {"type": name},
    TYPES,
    st.fixed_dictionaries({}, optional={"capabilities": st.just({"portMappings": True})})
    | st.dictionaries(
        st.sampled_from(["enabled", "capabilities", "portmapSetAside", "podSGEnforcingMode"]) | st.text(),
        VALUES,
    ),
)
LISTS = st.builds(
    lambda top, plugins: top | {"plugins": plugins},
    st.dictionaries(
        st.sampled_from(["name", "cniVersion", "cniVersions", "disableCheck"]) | st.text(), VALUES
    ),
    st.lists(ENTRIES, max_size=6),
)
EXECUTABLES = st.builds(
    lambda is_there, versions: Executable(is_there=is_there, versions=versions if is_there else frozenset()),
    st.booleans(),
    st.frozensets(st.sampled_from([*CNI_VERSIONS, "0.2.0", "9.0.0"])),
)
RENDERED = {"plugins", "name", "cniVersion", "cniVersions", "disableCheck"}


def others(conflist):
    """What is neither ours to write nor portmap's, which may be set aside."""
    return [
        json.dumps(entry)
        for entry in conflist["plugins"]
        if entry["type"] not in ("aws-cni", "portmap")
        and not (entry["type"] == "egress-cni" and entry.get("enabled") not in ("true", True))
    ]


def takes_host_ports(entry):
    capabilities = entry.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("portMappings") is True


@given(old=LISTS, data=st.data())
def test_what_others_have_put_in_survives_and_the_second_time_changes_nothing(old, data):
    content = json.dumps(old).encode(errors="surrogatepass")
    found = read_list(content)
    assert not found.problem
    executables = {name: data.draw(EXECUTABLES, label=name) for name in sorted(found.executables())}
    made = merge(found, Settings(), executables)
    new = json.loads(made.content)
    assert others(new) == others(old)
    assert {key: value for key, value in new.items() if key not in RENDERED} == {
        key: value for key, value in old.items() if key not in RENDERED
    }
    assert [entry["type"] for entry in new["plugins"]].count("aws-cni") == 1
    assert ("portmap" in [entry["type"] for entry in new["plugins"]]) <= executables["portmap"].is_there
    takers = [entry["type"] for entry in new["plugins"] if takes_host_ports(entry)]
    assert takers, "a pod's host ports would be dropped without a word"
    assert made.serves_host_ports is ("aws-cni" not in takers)
    assert new["cniVersion"] in new["cniVersions"]
    assert merge(read_list(made.content), Settings(), executables).content == made.content


@given(content=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_either_read_or_told_of(content):
    found = read_list(content)
    assert bool(found.problem) or all(entry["type"] for entry in found.entries)

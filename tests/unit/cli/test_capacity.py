"""``vpccni capacity``: what it prints, and what it refuses."""

import json

import pytest

from vpccni.cli import main as cli


@pytest.fixture
def capacity(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vpccni", "capacity", *arguments])
        status = cli.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


PREFIXES = "ENABLE_PREFIX_DELEGATION=true"
CUSTOM = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true"


def test_it_tells_what_to_tell_kubelet_and_why(capacity):
    status, out, _ = capacity("--instance-type", "m5.large")
    assert status == 0
    assert out.splitlines()[0] == "m5.large: 29 pods (kubelet --max-pods=29)"
    assert "3 ENIs x 9 = 27" in out
    assert "27 + 2 on the host's network = 29" in out


@pytest.mark.parametrize(
    ("arguments", "pods"),
    [
        (["-t", "m5.large"], 29),
        (["-t", "m5.xlarge", "--set", CUSTOM], 44),
        (["-t", "m5.large", "--set", PREFIXES], 110),
        (["-t", "m5.8xlarge", "--set", PREFIXES], 250),
        (["-t", "m5.large", "--set", "MAX_ENI=1"], 11),
        (["-t", "m5.large", "--set", "MAX_ENI="], 29),
        (["-t", "p4d.24xlarge"], 737),
        (["-t", "4x15"], 58),
        (["-t", "m5.large", "--set", PREFIXES, "--set", "ENABLE_IPv6=true"], 110),
    ],
)
def test_the_number_alone_is_for_command_lines(capacity, arguments, pods):
    assert capacity(*arguments, "--number") == (0, f"{pods}\n", "")


def test_json_has_every_figure_and_the_settings_that_it_is_for(capacity):
    status, out, _ = capacity(
        "-t", "p4d.24xlarge", "--json", "--set", "WARM_IP_TARGET=5", "--set", "MAX_ENI=4"
    )
    said = json.loads(out)
    assert status == 0
    assert (said["max_pods"], said["recommended"], said["enis"], said["enis_by_card"]) == (
        198,
        198,
        4,
        [15] * 4,
    )
    assert said["settings"] == {"WARM_IP_TARGET": "5", "MAX_ENI": "4"}
    assert any("does not depend on WARM_IP_TARGET" in note for note in said["notes"])
    assert any("3 further network cards" in note for note in said["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-t", "m4.large", "--set", PREFIXES], "neither Nitro nor bare metal"),
        (["-t", "m5.large", "--set", CUSTOM, "--set", "MAX_ENI=1"], "No ENI is left for pods"),
        (["-t", "m5.large", "--set", "ENABLE_POD_ENI=true"], "9 addresses fewer"),
        (["-t", "4x15"], "depends on the vCPUs"),
    ],
)
def test_what_the_number_hides_is_said(capacity, arguments, said):
    status, out, _ = capacity(*arguments)
    assert (status, said in out) == (0, True), out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-t", "m5.lrge"], "Did you mean m5.large"),
        (["-t", "100x15"], "can be given by its limits"),
        (["-t", "m5.large", "--set", "MAX_ENIS=3"], "Did you mean MAX_ENI?"),
        (["-t", "m5.large", "--set", "MAX_ENI"], "takes NAME=VALUE"),
        (["-t", "m5.large", "--set", "MAX_ENI=some", "--set", "ENABLE_IPv6=si"], "ENABLE_IPv6='si' must be"),
        (["-t", "m5.large", "--set", "ENABLE_IPv6=true"], "needs ENABLE_PREFIX_DELEGATION=true"),
        (["-t", "m5.large", "--set", "ENABLE_IPv6=true", "--set", CUSTOM], "exclude each other"),
        (["-t", "m4.large", "--set", "ENABLE_IPv6=true", "--set", PREFIXES], "needs Nitro or bare metal"),
        ([], "--instance-type"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_2(capacity, arguments, said):
    status, out, err = capacity(*arguments)
    assert (status, out) == (2, "")
    assert said in err

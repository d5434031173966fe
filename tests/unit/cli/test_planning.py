"""``vpccni plan``: what it prints, and what it refuses."""

import json

import pytest

from vpccni.cli import main as cli


@pytest.fixture
def plan(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vpccni", "plan", *arguments])
        status = cli.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_plan_is_a_table_of_calls_with_reasons_then_what_is_there_then_the_sum(plan):
    status, out, _ = plan("--instance-type", "m5.xlarge", "--pods", "40", "--set", "WARM_IP_TARGET=5")
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "m5.xlarge: up to 4 ENIs with 14 addresses for pods each."
    assert lines[1].startswith("The pool keeps 5 addresses free")
    assert lines[3] == "pods wait EC2 call ENI addresses why"
    assert lines[4].startswith("0 0 AssignPrivateIpAddresses eni-00 5 The pool has fewer")
    assert "CreateNetworkInterface eni-03 3" in lines
    assert "Settled: The targets are met." in lines
    assert "eni-00 0 14 14 0" in lines
    assert "together 45 40 5" in lines
    assert lines[-1].startswith(
        "EC2 calls that change something: 11, 0.28 a pod (AssignPrivateIpAddresses 2,"
    )


def test_json_has_the_turns_the_enis_and_the_calls(plan):
    status, out, _ = plan("-t", "t3.small", "-p", "9", "--json", "--set", "WARM_ENI_TARGET=0", "--one-by-one")
    said = json.loads(out)
    assert status == 0
    assert said["settings"] == {"WARM_ENI_TARGET": "0"}
    assert [eni["pods"] for eni in said["enis"]] == [3, 3, 3]
    assert said["calls"]["CreateNetworkInterface"] == 2
    assert said["turns"][0]["calls"] == [{"action": "AssignPrivateIpAddresses", "eni": "eni-00", "count": 3}]
    assert said["refused"] == {}


def test_a_pool_that_can_have_nothing_makes_no_call(plan):
    status, out, _ = plan("-t", "1x1", "-p", "0")
    assert (status, "EC2 calls that change something: 0" in out) == (0, True)


def test_max_eni_lowers_what_the_first_line_promises(plan):
    assert plan("-t", "m5.large", "-p", "3", "--set", "MAX_ENI=1")[1].startswith("m5.large: up to 1 ENI")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-t", "m5.lrge", "-p", "1"], "Did you mean m5.large"),
        (["-t", "t3.small", "-p", "10"], "t3.small has addresses for 9 (3 ENIs x 3)"),
        (["-t", "t3.small", "-p", "7", "--set", "MAX_ENI=2"], "has addresses for 6 (2 ENIs x 3)"),
        (["-t", "t3.small", "-p", "5", "--set", "VPCCNI_MAX_PODS=4"], "more than VPCCNI_MAX_PODS=4"),
        (["-t", "t3.small", "-p", "1", "--set", "ENABLE_POD_ENCRYPTION=true"], "not built yet"),
        (["-t", "t3.small", "-p", "1", "--set", "WARM_IP_TARGET=-3"], "must be a decimal integer"),
        (["-t", "t3.small", "-p", "1", "--set", "IP_COOLDOWN_PERIOD=x", "--set", "POD_MTU=1"], "POD_MTU='1'"),
        (["-t", "t3.small", "-p", "1", "--set", "WARM_IP_TARGT=3"], "Did you mean WARM_IP_TARGET?"),
        (["-t", "t3.small", "-p", "-1"], "--pods"),
        (["-t", "t3.small", "-p", "2001"], "--pods"),
        (["-p", "1"], "--instance-type"),
        (["-t", "t3.small"], "--pods"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_2(plan, arguments, said):
    status, out, err = plan(*arguments)
    assert (status, out) == (2, "")
    assert said in err

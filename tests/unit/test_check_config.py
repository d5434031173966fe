"""``vpccni agent --check-config``: everything that is wrong with an environment, at once, and nothing starts."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.unit.test_settings import stock_environment
from vpccni import app, check_config
from vpccni.check_config import as_text, check
from vpccni.pool_sentence import policy_sentence
from vpccni.settings import Settings, read_settings

BAD = {
    "WARM_IP_TARGET": "5",
    "AWS_VPC_ENI_MTU": "99",
    "ENABLE_POD_ENCRYPTION": "true",
    "AWS_VPC_K8S_PLUGIN_LOGLEVEL": "INFO",
    "MAX_ENI": "many",
}


def outcomes(environ):
    return {one.name: one.outcome for one in check(environ).found}


def test_the_environment_of_the_originals_manifest_would_start_without_a_word():
    checked = check(stock_environment("aws-node"))
    assert checked.would_start
    assert (checked.reading.problems, checked.reading.warnings) == ((), ())
    assert len(checked.found) == len(stock_environment("aws-node"))
    assert "The agent would start." in as_text(checked)


def test_all_problems_are_told_at_once_and_each_variable_with_what_comes_of_it():
    checked = check(BAD)
    assert not checked.would_start
    assert [one.name for one in checked.reading.problems] == ["AWS_VPC_ENI_MTU", "ENABLE_POD_ENCRYPTION"]
    assert outcomes(BAD) == {
        "WARM_IP_TARGET": "in effect",
        "AWS_VPC_ENI_MTU": "refused",
        "ENABLE_POD_ENCRYPTION": "refused",
        "MAX_ENI": "see the warning",
        "AWS_VPC_K8S_PLUGIN_LOGLEVEL": "unknown, no effect",
    }
    text = as_text(checked)
    for said in (
        "576 to 9001",
        "is called AWS_VPC_K8S_PLUGIN_LOG_LEVEL",
        "MAX_ENI='many'",
        "would not start",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("name", "value", "outcome"),
    [
        ("WARM_ENI_TARGET", "1", "in effect, the default"),
        ("WARM_ENI_TARGET", "", "empty, as if unset"),
        ("ENABLE_NFTABLES", "false", "no effect"),
        ("ENABLE_POD_ENI", "false", "switched off"),
        ("AWS_REGION", "eu-west-1", "for the SDK"),
        ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "", "in effect"),
    ],
)
def test_what_comes_of_a_variable_is_said_in_a_few_words(name, value, outcome):
    assert outcomes({name: value}) == {name: outcome}


def test_the_check_is_fit_to_be_passed_on():
    text = as_text(
        check(
            {
                "AWS_SECRET_ACCESS_KEY": "hush",
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
                "AWS_ENDPOINT_URL_EC2": "http://me:hush@127.0.0.1:1",
                "CLUSTER_NAME": "a\x1b[2Jb",
            }
        )
    )
    assert "hush" not in text
    assert "123456789012" not in text
    assert "\x1b" not in text


def test_an_environment_without_settings_is_told_so():
    assert as_text(check({"PATH": "/bin"})).startswith("No setting is set.\n")


@pytest.mark.parametrize(("environ", "status"), [({"WARM_IP_TARGET": "5"}, 0), (BAD, 2)])
def test_the_exit_status_and_json_are_for_a_hook(environ, status, capsys):
    assert check_config.main(["--check-config", "--json"], environ) == status
    told = json.loads(capsys.readouterr().out)
    assert told["would_start"] is (status == 0)
    assert "WARM_IP_TARGET" in told["warm_pool"]
    assert [one["reason"] for one in told["problems"]] == ["bad_setting", "feature_not_supported"][:status]


def test_the_agents_own_entry_checks_too_and_starts_nothing(capsys, monkeypatch):
    monkeypatch.setattr(app, "_run", None)
    assert app.main(["--check-config"], BAD) == 2
    assert "Refused:" in capsys.readouterr().out


def test_json_without_the_check_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["--json"], {})
    assert ended.value.code == 2
    assert "--check-config" in capsys.readouterr().err


def test_the_agents_log_begins_with_the_policy_in_one_sentence(monkeypatch):
    async def run(settings, options):
        """Nothing is started."""

    lines: list[tuple[str, dict[str, object]]] = []
    note = SimpleNamespace(info=lambda event, **fields: lines.append((event, fields)))
    for name, double in {
        "_run": run,
        "_log": note,
        "_set_up_log": lambda *_: None,
        "_allow_many_files": list,
    }.items():
        monkeypatch.setattr(app, name, double)
    monkeypatch.setattr("os.umask", lambda _mask: 0)
    assert app.main([], {"WARM_IP_TARGET": "5"}) == 0
    assert lines == [("warm_pool", {"policy": policy_sentence(read_settings({"WARM_IP_TARGET": "5"}))})]


def test_the_check_says_start_exactly_when_the_settings_can_be_read():
    assert read_settings({"WARM_IP_TARGET": "5"}) == Settings(**check({"WARM_IP_TARGET": "5"}).reading.values)


@pytest.mark.slow
def test_the_check_needs_neither_the_agents_libraries_nor_the_command_lines():
    looking = (
        "import sys; sys.argv = ['vpccni', 'agent', '--check-config'];"
        "from vpccni.__main__ import main; main();"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'asyncio', 'aiohttp', 'structlog', 'typer', 'rich', 'pyroute2', 'sqlalchemy'}))"
    )
    ran = subprocess.run([sys.executable, "-c", looking], capture_output=True, text=True, env={}, timeout=60)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "[]"), ran.stderr

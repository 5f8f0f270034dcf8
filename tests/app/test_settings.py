"""Each setting of the operator as an option, an environment variable and a key of the file, in one precedence."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flotilla.cli import app
from flotilla.config import OperatorConfig
from flotilla.errors import InvalidSpec
from flotilla.settings import SETTINGS, Setting, load

BY_KEY = {setting.key: setting for setting in SETTINGS}
VALUES: dict[str, tuple[str, str]] = {
    "kubeconfig": ("a:b", "c"),
    "context": ("dev", "prod"),
    "namespaces": ("a", "b,c d"),
    "workers": ("3", "4"),
    "resync_interval_s": ("30", "40.5"),
    "scaling_interval_s": ("3", "4"),
    "status_interval_s": ("0", "2"),
    "request_timeout_s": ("5", "6"),
    "listen_host": ("127.0.0.1", "::1"),
    "listen_port": ("0", "9000"),
    "console": ("Enabled", "Disabled"),
    "log_level": ("DEBUG", "ERROR"),
    "log_format": ("text", "json"),
    "leader_election.enabled": ("false", "true"),
    "leader_election.namespace": ("a", "b"),
    "leader_election.name": ("a", "b"),
    "leader_election.duration_s": ("90", "100"),
    "leader_election.renew_deadline_s": ("40", "50"),
    "leader_election.retry_s": ("3", "4"),
    "compare_with": ("anthropic/claude-sonnet-5-5", "none"),
    "engines": ("/a", "/b"),
    "accelerators": ("/a", "/b"),
    "prometheus_url": ("https://a", "https://b"),
    "prometheus_ca_file": ("/a", "/b"),
    "prometheus_bearer_token_file": ("/a", "/b"),
    "scaling_source": ("Pods", "Prometheus"),
    "wake_query": ("a", "b"),
    "ledger_interval_s": ("30", "40"),
    "price_catalog": ("/a", "/b"),
    "price_stale_days": ("30", "40"),
    "pod_address_map": ("10.0.0.0/8=127.0.0.0/8", "10.0.0.0/8=127.1.0.0/16"),
    "gateway_image": ("a", "b"),
    "gateway_replicas": ("3", "4"),
    "gateway_redis_secret": ("a", "b"),
    "gateway_tls_secret": ("a", "b"),
    "gateway_env": ('{"A": "b=c, d"}', '{"A": "e"}'),
    "allow_private_hosted_addresses": ("true", "false"),
}
"""Two values of each setting, as an environment variable has them."""
FREE_TEXT = {
    "kubeconfig", "listen_host", "engines", "accelerators", "prometheus_ca_file", "prometheus_bearer_token_file",
    "wake_query", "price_catalog", "pod_address_map", "gateway_image", "gateway_redis_secret",
    "gateway_tls_secret", "context",
}  # fmt: skip
"""Settings that accept every text."""
NEEDED = {"prometheus_url": "https://prometheus"}
"""Several settings need a Prometheus."""


def as_option(setting: Setting, text: str) -> Any:
    if setting.form == "flag":
        return text == "true"
    if setting.form == "list":
        return text.replace(",", " ").split()
    if setting.form == "mapping":
        return [f"{name}={value}" for name, value in json.loads(text).items()]
    return text


def as_file(setting: Setting, text: str) -> Any:
    if setting.form == "mapping":
        return json.loads(text)
    if setting.form == "hosted model":
        return None if text == "none" else dict(zip(("provider", "model"), text.split("/"), strict=True))
    if setting.form in ("flag", "list"):
        return as_option(setting, text)
    return yaml.safe_load(text) if text.replace(".", "").isdigit() and "." in text else text


class Given:
    """Values by the way in which they are given."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "settings.yaml"
        self.options: dict[str, Any] = {}
        self.environ: dict[str, str] = {}
        self.content: dict[str, Any] = dict(NEEDED)

    def put(self, way: str, setting: Setting, text: str) -> None:
        if way == "option":
            self.options[setting.name] = as_option(setting, text)
        elif way == "variable":
            self.environ[setting.variables[0]] = text
        else:
            here = self.content
            for group in setting.path[:-1]:
                here = here.setdefault(group, {})
            here[setting.path[-1]] = as_file(setting, text)

    def load(self) -> OperatorConfig:
        self.file.write_text(yaml.safe_dump(self.content))
        return load(self.options, environ=self.environ, file=self.file)


def value_of(config: OperatorConfig, setting: Setting) -> Any:
    found: Any = config
    for part in setting.path:
        found = getattr(found, part)
    return found


def test_every_leaf_of_the_model_is_a_setting() -> None:
    assert set(VALUES) == set(BY_KEY)
    assert {path[0] for path in (setting.path for setting in SETTINGS)} == set(OperatorConfig.model_fields)
    names = [name for setting in SETTINGS for name in (*setting.options, *setting.variables)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("key", BY_KEY)
def test_a_setting_is_the_same_by_each_way_and_each_way_wins_over_those_after_it(tmp_path: Path, key: str) -> None:
    setting, ways = BY_KEY[key], ("option", "variable", "file")
    alone: list[list[Any]] = []
    for text in VALUES[key]:
        alone.append([])
        for way in ways:
            given = Given(tmp_path)
            given.put(way, setting, text)
            alone[-1].append(value_of(given.load(), setting))
    for found in alone:
        assert found == [found[0]] * 3
    assert alone[0] != alone[1]
    for stronger, weaker in (("option", "variable"), ("option", "file"), ("variable", "file")):
        given = Given(tmp_path)
        given.put(stronger, setting, VALUES[key][1])
        given.put(weaker, setting, VALUES[key][0])
        assert value_of(given.load(), setting) == alone[1][0]


@pytest.mark.parametrize("key", BY_KEY)
def test_a_wrong_value_is_refused_by_the_name_under_which_it_was_given(tmp_path: Path, key: str) -> None:
    setting = BY_KEY[key]
    for way, label in (("option", setting.options[0]), ("variable", setting.variables[0]), ("file", key)):
        given = Given(tmp_path)
        if way == "file":
            here = given.content
            for group in setting.path[:-1]:
                here = here.setdefault(group, {})
            here[setting.path[-1]] = [[]]
            label = f"{given.file}: {key}"
        elif key in FREE_TEXT or (way == "option" and setting.form == "flag"):
            continue
        else:
            given.environ |= {setting.variables[0]: "?"} if way == "variable" else {}
            given.options |= {setting.name: ["?"] if setting.form in ("list", "mapping") else "?"}
            given.options = given.options if way == "option" else {}
        with pytest.raises(InvalidSpec) as refused:
            given.load()
        (line,) = str(refused.value).splitlines()
        assert line.startswith(label), line
        assert "must" in line, line
        assert "Input" not in line, line
        assert "pydantic" not in line, line


@pytest.mark.parametrize("key", BY_KEY)
def test_the_command_has_an_option_for_each_setting_and_its_help_names_the_variable(key: str) -> None:
    setting = BY_KEY[key]
    text = " ".join(CliRunner().invoke(app, ["operator", "--help"], env={"COLUMNS": "80"}).stdout.split())
    for name in (*setting.options, *setting.variables):
        assert name in text


def test_options_reach_the_operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[OperatorConfig] = []

    def main(config: OperatorConfig) -> int:
        started.append(config)
        return 4

    monkeypatch.setattr("flotilla.app.main", main)
    file = tmp_path / "settings.yaml"
    file.write_text("workers: 3\nlog_level: DEBUG\nleader_election: {name: mine}\n")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.touch()
    arguments = ["operator", "-n", "a", "--namespace", "b", "--no-leader-election", "--gateway-env", "A=b=c"]
    arguments += ["--compare-with", "none", "--allow-private-hosted-addresses", "--leader-election-retry-s", "1.5"]
    environ = {"FLOTILLA_CONFIG": str(file), "FLOTILLA_LOG_LEVEL": "ERROR", "FLOTILLA_WORKERS": ""}
    environ["KUBECONFIG"] = f"missing:{kubeconfig}"
    assert CliRunner().invoke(app, arguments, env=environ).exit_code == 4
    (config,) = started
    election = config.leader_election
    assert (config.namespaces, config.workers, config.log_level) == (("a", "b"), 3, "ERROR")
    assert (election.name, election.enabled, election.retry_s) == ("mine", False, 1.5)
    assert (config.gateway_env, config.compare_with, config.kubeconfig) == (
        {"A": "b=c"},
        None,
        Path(environ["KUBECONFIG"]),
    )
    assert config.allow_private_hosted_addresses


@pytest.mark.parametrize(
    ("options", "environ", "content", "message"),
    [
        ({}, {}, "worker: 3", "FILE: worker: there is no such setting. Did you mean workers?"),
        ({}, {}, "leader_election: {nam: x}", "FILE: leader_election.nam: there is no such setting. Did you mean name"),
        ({}, {}, "leader_election: 3", "FILE: leader_election: it must be a mapping, not 3."),
        ({}, {}, "compare_with: {provider: x}", "FILE: compare_with.model: it is required."),
        ({}, {}, "namespaces: [ok, Nope]", "FILE: namespaces.1: it must match"),
        ({}, {}, "- 1", "FILE: a mapping of settings is expected, not list."),
        ({}, {}, "a: b: c", "FILE is not YAML"),
        ({"workers": "many"}, {}, "", "--workers: it must be a whole number, not 'many'."),
        ({}, {"FLOTILLA_WORKERS": "65"}, "", "FLOTILLA_WORKERS: it must be at most 64, not '65'."),
        ({}, {"FLOTILLA_LOG_LEVEL": "x"}, "", "FLOTILLA_LOG_LEVEL: it must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ({}, {"FLOTILLA_GATEWAY_ENV": "A=b"}, "", 'FLOTILLA_GATEWAY_ENV: it must be a JSON object such as {"NAME"'),
        ({"gateway_env": ["A"]}, {}, "", "--gateway-env: it must be NAME=VALUE, not 'A'."),
        ({"compare_with": "gpt"}, {}, "", "--compare-with: it must be PROVIDER/MODEL, such as openai/gpt-5-mini, or"),
        ({"scaling_source": "Prometheus"}, {}, "", "--scaling-source: scaling_source Prometheus needs prometheus_url"),
        (
            {},
            {"FLOTILLA_LEADER_ELECTION_DURATION_S": "5"},
            "",
            "FLOTILLA_LEADER_ELECTION_DURATION_S: duration_s (5) must exceed renew_deadline_s (45)",
        ),
    ],
)
def test_messages(tmp_path: Path, options: dict[str, Any], environ: dict[str, str], content: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(InvalidSpec) as refused:
        load(options, environ=environ, file=file)
    assert str(refused.value).startswith(message.replace("FILE", str(file)))


def test_all_wrong_values_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("gateway_replicas: 0")
    with pytest.raises(InvalidSpec) as refused:
        load({"workers": "0"}, environ={"FLOTILLA_LISTEN_PORT": "x"}, file=file)
    assert [line.partition(": it")[0] for line in str(refused.value).splitlines()] == [
        "--workers",
        "FLOTILLA_LISTEN_PORT",
        f"{file}: gateway_replicas",
    ]


def test_a_file_that_does_not_exist_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["operator", "--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "none.yaml cannot be read" in result.stderr


def test_kubeconfig_of_our_own_variable_wins_over_the_common_one() -> None:
    environ = {"KUBECONFIG": "a", "FLOTILLA_KUBECONFIG": "b"}
    assert load({}, environ=environ, file=None).kubeconfig == Path("b")
    assert load({}, environ={"KUBECONFIG": "a"}, file=None).kubeconfig == Path("a")

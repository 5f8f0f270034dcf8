"""The way to a cluster: one search for the kubeconfig, one merge of its files, the same options for all commands."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flotilla.cli import app
from flotilla.cli.kubeconfig import Cluster
from flotilla.errors import InvalidSpec
from flotilla.kube import kubeconfig
from flotilla.kube.client import ApiConnection

REACHING = {
    "status": ["status"],
    "describe": ["describe", "m"],
    "logs": ["logs", "m"],
    "doctor": ["doctor"],
    "top": ["top", "--once"],
    "cost": ["cost"],
    "report": ["report"],
}
"""Commands that reach a cluster, by name."""


def config(server: str = "http://127.0.0.1:9", **more: Any) -> dict[str, Any]:
    """One with the contexts dev and other."""
    contexts = [
        {"name": "dev", "context": {"cluster": "c", "user": "u", "namespace": "models"}},
        {"name": "other", "context": {"cluster": "c", "user": "u"}},
    ]
    clusters = [{"name": "c", "cluster": {"server": server}}]
    users = [{"name": "u", "user": {"token": "secret"}}]
    return {"current-context": "dev", "contexts": contexts, "clusters": clusters, "users": users, **more}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Kubeconfigs by name."""
    contents: dict[str, Any] = {
        "empty": None,
        "braces": {},
        "valid": config(),
        "later": config("http://127.0.0.1:10", **{"current-context": "other"}),
        "contextless": config(**{"current-context": ""}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text("" if content is None else yaml.safe_dump(content))
    return {name: tmp_path / name for name in (*contents, "missing")}


def joined(files: dict[str, Path], *names: str) -> str:
    return ":".join(str(files[name]) for name in names)


def test_the_kubeconfig_is_found_as_kubectl_finds_it(tmp_path: Path, files: dict[str, Path]) -> None:
    home = tmp_path / ".kube" / "config"
    home.parent.mkdir()
    home.write_text(yaml.safe_dump(config()))
    environ = {"HOME": str(tmp_path), "KUBECONFIG": joined(files, "empty", "valid")}
    assert kubeconfig.find(files["later"], environ) == files["later"]
    assert str(kubeconfig.find(None, environ)) == environ["KUBECONFIG"]
    assert kubeconfig.find(None, {"HOME": str(tmp_path)}) == home
    in_pod = {"HOME": "/nowhere", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert kubeconfig.find(None, in_pod) is None
    assert kubeconfig.find(None, {**in_pod, "HOME": str(tmp_path)}) == home
    with pytest.raises(InvalidSpec, match=r"--kubeconfig or KUBECONFIG"):
        kubeconfig.find(None, {"HOME": "/nowhere"})
    with pytest.raises(InvalidSpec, match="missing does not exist"):
        kubeconfig.find(files["missing"], environ)
    with pytest.raises(InvalidSpec, match="--context"):
        Cluster.find(None, "dev", in_pod)


@pytest.mark.parametrize(
    "names",
    [("valid",), ("empty", "valid"), ("braces", "valid"), ("missing", "valid"), ("valid", "empty"), ("valid", "later")],
)
async def test_the_first_file_that_says_something_wins(files: dict[str, Path], names: tuple[str, ...]) -> None:
    cluster = Cluster.find(None, None, {"KUBECONFIG": joined(files, *names)})
    assert cluster.namespace() == "models"
    assert cluster.files is not None
    assert (await ApiConnection.load(cluster.files)).host == "http://127.0.0.1:9"


async def test_a_later_file_adds_what_the_first_does_not_have(files: dict[str, Path]) -> None:
    extra = config("http://127.0.0.1:11")
    extra["contexts"] = [{"name": "third", "context": {"cluster": "d", "user": "u", "namespace": "x"}}]
    extra["clusters"] = [{"name": "d", "cluster": {"server": "http://127.0.0.1:11"}}]
    files["extra"] = files["valid"].with_name("extra")
    files["extra"].write_text(yaml.safe_dump(extra))
    cluster = Cluster.find(None, "third", {"KUBECONFIG": joined(files, "valid", "extra")})
    assert cluster.namespace() == "x"
    assert cluster.files is not None
    connection = await ApiConnection.load(cluster.files, "third")
    assert (connection.host, await connection.authorization()) == ("http://127.0.0.1:11", "Bearer secret")


def test_a_context_is_chosen_by_name(files: dict[str, Path]) -> None:
    assert Cluster.find(files["valid"], "other").namespace() == "default"
    with pytest.raises(InvalidSpec, match=r"has no context 'prod'\. Choose one of dev, other"):
        Cluster.find(files["valid"], "prod").namespace()
    with pytest.raises(InvalidSpec, match=r"no current context\. Choose one with --context: dev, other"):
        Cluster.find(files["contextless"]).namespace()
    with pytest.raises(InvalidSpec, match="has no contexts"):
        Cluster.find(files["empty"]).namespace()


def test_paths_are_relative_to_their_own_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        content = config()
        content["clusters"] = [{"name": folder, "cluster": {"server": "https://x", "certificate-authority": "ca.crt"}}]
        content["users"] = [{"name": folder, "user": {"client-key": "/abs/key", "tokenFile": "token"}}]
        (tmp_path / folder / "config").write_text(yaml.safe_dump(content))
    found = kubeconfig.merged(Path(f"{tmp_path}/a/config:{tmp_path}/b/config"))
    assert [entry["cluster"]["certificate-authority"] for entry in found["clusters"]] == [
        f"{tmp_path}/a/ca.crt",
        f"{tmp_path}/b/ca.crt",
    ]
    assert found["users"][1]["user"] == {"client-key": "/abs/key", "tokenFile": f"{tmp_path}/b/token"}


@pytest.mark.parametrize(
    "text", ["[]", "a: b: c", "contexts: 3", "contexts: [3]", "users: [{name: u, user: 3}]", "\x00"]
)
def test_a_file_that_is_not_a_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(InvalidSpec, match="config is not a kubeconfig"):
        kubeconfig.merged(file)


async def test_values_of_a_wrong_type_are_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(config(users=[{"name": "u", "user": {"exec": 3}}], clusters=[])))
    with pytest.raises(InvalidSpec, match="Cannot read the kubeconfig"):
        await ApiConnection.load(file)


@pytest.mark.parametrize("name", REACHING)
def test_every_command_merges_the_files_of_kubeconfig(files: dict[str, Path], name: str) -> None:
    """The apiserver of the second file is down, which is the proof that the command has found it."""
    environ = {"KUBECONFIG": joined(files, "empty", "valid"), "FLOTILLA_PROMETHEUS_URL": ""}
    result = CliRunner().invoke(app, REACHING[name], env=environ)
    assert result.exit_code == 3, result.output
    assert "127.0.0.1:9" in result.stderr


@pytest.mark.parametrize("name", REACHING)
def test_every_command_has_the_same_options_to_a_cluster(files: dict[str, Path], name: str) -> None:
    environ = {"KUBECONFIG": str(files["missing"]), "FLOTILLA_PROMETHEUS_URL": ""}
    result = CliRunner().invoke(app, [*REACHING[name], "--kubeconfig", str(files["valid"])], env=environ)
    assert (result.exit_code, "127.0.0.1:9" in result.stderr) == (3, True), result.output
    result = CliRunner().invoke(
        app, [*REACHING[name], "--kubeconfig", str(files["valid"]), "--context", "prod"], env=environ
    )
    assert (result.exit_code, "no context 'prod'" in result.stderr) == (2, True), result.output
    result = CliRunner().invoke(app, REACHING[name], env=environ)
    assert (result.exit_code, "missing does not exist" in result.stderr) == (2, True), result.output


@pytest.mark.parametrize(
    ("command", "process"), [("operator", "flotilla.app.main"), ("gateway", "flotilla.gateway.app.main")]
)
def test_the_processes_find_the_cluster_as_the_other_commands_do(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], tmp_path: Path, command: str, process: str
) -> None:
    started: list[Any] = []

    def main(options: Any, **_: object) -> int:
        started.append(options)
        return 0

    def run(*arguments: str, **environ: str) -> tuple[Path | None, str | None]:
        everything = {"KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOME": "/nowhere", **environ}
        result = CliRunner().invoke(app, [command, *arguments], env=everything)
        assert result.exit_code == 0, result.stderr
        return started[-1].kubeconfig, started[-1].context

    monkeypatch.setattr(process, main)
    home = tmp_path / ".kube" / "config"
    home.parent.mkdir()
    home.write_text(yaml.safe_dump(config()))
    assert run() == (None, None)
    assert run(HOME=str(tmp_path)) == (home, None)
    assert run("--context", "other", KUBECONFIG=joined(files, "missing", "valid")) == (
        Path(joined(files, "missing", "valid")),
        "other",
    )
    assert run("--kubeconfig", str(files["later"]), KUBECONFIG=joined(files, "valid")) == (files["later"], None)
    refused = CliRunner().invoke(app, [command, "--kubeconfig", str(files["missing"])])
    assert (refused.exit_code, "missing does not exist" in refused.stderr) == (2, True)

"""Commands that other distributions add to `flotilla`."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flotilla.cli import app, plugins


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with the commands `flotilla hello say` and `flotilla status say`."""
    (tmp_path / "hello_plugin.py").write_text(
        "import typer\n"
        "app = typer.Typer()\n"
        "app.callback()(lambda: None)\n"
        "@app.command()\n"
        "def say(name: str) -> None:\n"
        "    typer.echo(f'hello {name}')\n"
    )
    folder = tmp_path / "hello-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: hello\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        f"[{plugins.GROUP}]\nhello = hello_plugin:app\nstatus = hello_plugin:app\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_an_installed_distribution_adds_its_command() -> None:
    done = call("hello", "say", "world")
    assert (done.exit_code, done.stdout) == (0, "hello world\n")
    assert "Usage: flotilla hello say" in call("hello", "say", "--help").stdout


@pytest.mark.usefixtures("installed")
def test_a_command_of_the_cli_itself_has_precedence() -> None:
    assert "Show the fleet" in call("status", "--help").stdout


def test_an_unknown_command_is_refused_with_a_suggestion() -> None:
    done = call("devclustr")
    assert done.exit_code == 2
    assert "Did you mean 'devcluster'" in done.stderr


def test_devcluster_is_a_plugin_with_its_own_commands() -> None:
    assert "kubeconfig" in call("devcluster", "--help").stdout


def test_without_its_distribution_devcluster_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find", lambda name: None)
    done = call("devcluster", "up", "--detach")
    assert done.exit_code == 1
    assert "pip install flotilla-devcluster" in done.stderr
    assert "devcluster" in call("--help").stdout


def test_the_help_does_not_read_the_installed_distributions() -> None:
    """That would cost a third of its time."""
    code = (
        "import sys; sys.argv = ['flotilla', '--help']\n"
        "from flotilla.cli import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'importlib.metadata', 'flotilla_devcluster'} & sys.modules.keys()\n"
        "print('unread')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("unread\n"), done.stderr

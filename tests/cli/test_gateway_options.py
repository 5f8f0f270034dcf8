"""The options of `flotilla gateway`, as the pods that the operator makes give them."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flotilla.cli.gateway import app
from flotilla.cli.kubeconfig import Cluster
from flotilla.gateway import app as serving
from flotilla.gateway.app import GatewayOptions


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, GatewayOptions | None]:
    """Exit code, output, and the settings that the gateway is run with."""
    found: list[Any] = []

    def main(settings: GatewayOptions, **_: Any) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr(serving, "main", main)
    monkeypatch.setattr(Cluster, "find", lambda *_: Cluster(None, None))
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output, found[0] if found else None


def test_every_option_reaches_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output, settings = options(
        monkeypatch,
        *("--listen", ":8001", "--admin-listen", "[::1]:9", "--tls", "/tls", "--cors-origins", "https://a, https://b"),
        *("--capture-claim", "one=/data/one", "--capture-claim", "two=/data/two"),
    )
    assert code == 0, output
    assert settings is not None
    assert (settings.host, settings.port, settings.admin_host, settings.admin_port) == ("", 8001, "::1", 9)
    assert (settings.tls, settings.cors_origins) == (Path("/tls"), ("https://a", "https://b"))
    assert settings.capture_claims == {"one": Path("/data/one"), "two": Path("/data/two")}


@pytest.mark.parametrize(("option", "value"), [("--capture-claim", "one"), ("--listen", "8000"), ("--listen", ":x")])
def test_a_wrong_value_is_refused_with_its_form(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    code, output, settings = options(monkeypatch, option, value)
    assert (code, settings) == (serving.EXIT_CONFIG, None)
    assert f"{value!r} is not" in output + "".join(capfd.readouterr())

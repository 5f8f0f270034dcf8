"""Kubeconfigs that Flotilla writes and reads, and which cluster a test run uses."""

import base64
from pathlib import Path

import pytest
import yaml

from flotilla.errors import InvalidSpec, NotReady
from flotilla_devcluster import kubeconfig
from flotilla_devcluster.kubeconfig import Access

CERTIFICATE = Access("https://127.0.0.1:6443", authority=b"CA", certificate=b"CERT", key=b"KEY")
TOKEN = Access("https://10.0.0.1:443/prefix", authority=b"CA", token="t0k3n")
INSECURE = Access("https://10.0.0.1", token="t0k3n", insecure=True)


@pytest.mark.parametrize("access", [CERTIFICATE, TOKEN, INSECURE])
def test_written_kubeconfig_reads_back_the_same(access: Access, tmp_path: Path) -> None:
    path = kubeconfig.write(tmp_path / "config", access, name="dev")
    assert kubeconfig.load(path) == access


def test_kubeconfig_is_for_its_owner_only(tmp_path: Path) -> None:
    path = kubeconfig.write(tmp_path / "config", CERTIFICATE, name="dev")
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_are_found_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(b"CA")
    (tmp_path / "token").write_text("t0k3n\n")
    document = yaml.safe_load(kubeconfig.render(TOKEN, name="dev"))
    document["clusters"][0]["cluster"] = {
        "server": "https://10.0.0.1:443/prefix/",
        "certificate-authority": "ca.crt",
    }
    document["users"][0]["user"] = {"tokenFile": "token"}
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    assert kubeconfig.load(tmp_path / "config") == TOKEN


def test_login_through_a_program_is_refused(tmp_path: Path) -> None:
    document = yaml.safe_load(kubeconfig.render(TOKEN, name="dev"))
    document["users"][0]["user"] = {"exec": {"command": "aws"}}
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidSpec, match="logs in through a program"):
        kubeconfig.load(tmp_path / "config")


def test_kubeconfig_without_a_current_context_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("apiVersion: v1\nkind: Config\n")
    with pytest.raises(InvalidSpec, match="set its current-context"):
        kubeconfig.load(tmp_path / "config")


def test_certificates_are_inside_the_file(tmp_path: Path) -> None:
    document = yaml.safe_load(kubeconfig.render(CERTIFICATE, name="dev"))
    assert document["users"][0]["user"]["client-key-data"] == base64.b64encode(b"KEY").decode()


@pytest.mark.parametrize("value", ["", "0", "false", "No"])
def test_own_cluster_unless_an_existing_one_is_asked_for(value: str) -> None:
    assert kubeconfig.existing({"USE_EXISTING_CLUSTER": value, "KUBECONFIG": "/nonexistent"}) is None


def test_existing_cluster_is_the_first_of_kubeconfig(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.touch()
    environ = {"USE_EXISTING_CLUSTER": "TRUE", "KUBECONFIG": f"{first}:/elsewhere"}
    assert kubeconfig.existing(environ) == first


def test_existing_cluster_without_a_kubeconfig_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="Set KUBECONFIG"):
        kubeconfig.existing({"USE_EXISTING_CLUSTER": "true", "HOME": str(tmp_path)})


def test_unclear_wish_for_an_existing_cluster_is_an_error() -> None:
    with pytest.raises(InvalidSpec, match="'maybe'"):
        kubeconfig.existing({"USE_EXISTING_CLUSTER": "maybe"})

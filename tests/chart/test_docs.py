"""Links and values of the guides to installation."""

import re
from pathlib import Path

import pytest
import yaml
from hack import manifests
from tests.support.helm import Helm

ROOT = manifests.ROOT
GUIDES = (
    ROOT / "docs/guides/install.md",
    ROOT / "docs/guides/gitops.md",
    ROOT / "docs/guides/migration.md",
    ROOT / "docs/reference/cli.md",
    ROOT / "charts/flotilla/README.md",
)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.parent.name + "/" + path.name)
def test_links_of_the_guides_lead_somewhere(guide: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", guide.read_text()):
        if not target.startswith("http"):
            assert (guide.parent / target).exists(), target


def test_the_values_of_the_guide_are_taken(helm: Helm) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", GUIDES[0].read_text(), re.DOTALL)
    assert "nvidia-l4-half" in helm.text(yaml.safe_load(example))

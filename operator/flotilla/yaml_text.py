"""YAML by libyaml where PyYAML has it: a sixth of the time, which each start of the operator and of a verb pays."""

from typing import Any, Final

import yaml

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str) -> Any:
    """The one document of `text`; raises yaml.YAMLError for text that is not YAML."""
    return yaml.load(text, _LOADER)  # noqa: S506 - safe

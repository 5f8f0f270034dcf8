"""The catalogue of models whose architecture Flotilla knows; the facts are in models.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flotilla import yaml_text
from flotilla.domain.architecture import Architecture, from_config


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One checkpoint. `method` is how it was quantized before it was published; empty for 16-bit weights."""

    id: str
    architecture: Architecture
    method: str


class ModelCatalogue:
    """Looked up by hub id, OWNER/NAME, whatever its case."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self._rows = rows
        self._read: dict[str, Architecture] = {}
        self._found: dict[str, tuple[str, str, str]] = {}
        for name, row in rows.items():
            own = row.get("checkpoint", "")
            for other, method in ((name, own), *((same, own) for same in row.get("same", ()))):
                self._found[other.lower()] = (name, other, method)
            for other, method in row.get("quantized", {}).items():
                self._found[other.lower()] = (name, other, method)

    def find(self, hub_id: str) -> KnownModel | None:
        """The model, None when the catalogue does not have it."""
        hit = self._found.get(hub_id.lower())
        if hit is None:
            return None
        row, name, method = hit
        if row not in self._read:
            facts = self._rows[row]
            self._read[row] = from_config(facts["config"], parameters=facts["parameters"])
        return KnownModel(name, self._read[row], method)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """The facts by the id of each row."""
        return self._rows


@cache
def load_models() -> ModelCatalogue:
    """The packaged catalogue; read once."""
    return ModelCatalogue(yaml_text.load(files(__package__).joinpath("models.yaml").read_text()))

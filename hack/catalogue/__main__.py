"""Keep the catalogue of models: `python -m hack.catalogue check`, `add FOLDER`, `hub ID...`, `defaults`.

`add` reads every config.json below a folder, named OWNER/NAME/config.json or OWNER--NAME/config.json. The declared
number of parameters comes from the headers of the safetensors files next to it, or from --parameters. `hub` fetches
both from the hub, where there is a network. Each new checkpoint is checked by the rules before anything is written.
`defaults` writes data/config_defaults.json from the installed transformers.
"""

import argparse
import json
import struct
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from hack.catalogue import rows

from flotilla.catalog import parameters, recipes
from flotilla.catalog.model_config import flat
from flotilla.errors import InvalidSpec

DATA = Path(__file__).parents[2] / "operator/flotilla/catalog/data"
MODELS, DEFAULTS = DATA / "models.json", DATA / "config_defaults.json"
HUB = "https://huggingface.co"


def load() -> rows.Catalogue:
    """The packaged catalogue."""
    catalogue: rows.Catalogue = json.loads(MODELS.read_text())
    return catalogue


def folder(root: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Hub id, config.json and declared parameters (0: unknown) of each checkpoint below a folder."""
    for path in sorted(root.rglob("config.json")):
        name = path.parent.name.replace("--", "/") if "--" in path.parent.name else "/".join(path.parts[-3:-1])
        yield name, json.loads(path.read_text()), sum(map(stored_parameters, sorted(path.parent.glob("*.safetensors"))))


def stored_parameters(file: Path) -> int:
    """Elements of every tensor of a safetensors file, by its header."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(size))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def hub(name: str, fetch: Callable[[str], Any]) -> tuple[str, dict[str, Any], int]:
    """The same of a checkpoint on the hub; `fetch` returns the JSON of a URL."""
    about = fetch(f"{HUB}/api/models/{name}")
    declared = int((about.get("safetensors") or {}).get("total") or 0)
    return name, fetch(f"{HUB}/{name}/resolve/main/config.json"), declared


def merge(
    catalogue: rows.Catalogue, name: str, config: Mapping[str, Any], declared: int, *, source: str, task: str
) -> str:
    """Put one checkpoint in. Raises ValueError with what is wrong, and then the catalogue must not be written."""
    text = flat(config)
    try:
        recipe = recipes.recipe(config)
    except recipes.NotUnderstood as error:
        raise ValueError(f"{name}: {error}") from error
    quantization = ""
    if recipe is not None:
        quantization, facts = recipe
        catalogue["quantizations"].setdefault(quantization, facts)
        # Packed weights are stored as fewer, wider numbers: the shapes tell how many parameters they are.
        declared = 0
    if not declared and recipe is None:
        raise ValueError(f"{name}: how many parameters it declares is not known; give --parameters")
    try:
        declared = declared or parameters.count(text).total
        row = rows.add(catalogue, name, text, declared=declared, source=source, quantization=quantization, task=task)
    except InvalidSpec as error:
        raise ValueError(f"{name}: {error.field}: {error}") from error
    return row


def _fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def _defaults() -> str:
    import transformers  # type: ignore[import-not-found]

    named = {}
    for kind, configuration in transformers.CONFIG_MAPPING.items():
        base = kind.removesuffix("_text")
        if base not in parameters.FAMILIES and base not in parameters.ENCODERS:
            continue
        values = json.loads(configuration().to_json_string(use_diff=False))
        inner = values.get("text_config") or {}
        merged = {**inner, **values} if inner.get("model_type") not in (None, kind) else {**values, **inner}
        kept = {key: merged[key] for key in rows.DEFAULTED if merged.get(key) or (key in rows.ON and key in merged)}
        if isinstance(kept.get("intermediate_size"), list):
            kept["intermediate_size"] = kept["intermediate_size"][0]
        if "head_dim" in values and "hidden_size" in values:
            # Some classes compute the width from the other values; that is no default.
            wider = configuration(
                hidden_size=2 * values["hidden_size"], num_attention_heads=values["num_attention_heads"]
            )
            if json.loads(wider.to_json_string(use_diff=False))["head_dim"] == values["head_dim"]:
                kept["head_dim"] = values["head_dim"]
        named[kind] = kept
    about = {
        "source": f"transformers {transformers.__version__} (PyPI), defaults of the configuration classes",
        "date": datetime.now(UTC).date().isoformat(),
        "defaults": named,
    }
    return json.dumps(about, separators=(",", ":")) + "\n"


def main(arguments: list[str]) -> int:
    """Exit 1 where a rule is broken; nothing is written then."""
    parser = argparse.ArgumentParser(prog="python -m hack.catalogue", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("defaults")
    for command, what in (("add", "folder"), ("hub", "ids")):
        added = commands.add_parser(command)
        added.add_argument(what, nargs="+")
        added.add_argument("--source", required=True, help="short name of the source, as the rows will cite it")
        added.add_argument("--what", default="", help="what the source is; needed for a new one")
        added.add_argument("--parameters", type=int, default=0, help="declared by the publisher, where no file says it")
        added.add_argument("--task", default="", choices=["", "embed"])
    asked = parser.parse_args(arguments)
    if asked.command == "defaults":
        DEFAULTS.write_text(_defaults())
        return 0
    catalogue = load()
    problems: list[str] = []
    if asked.command != "check":
        if asked.what:
            today = datetime.now(UTC).date().isoformat()
            catalogue["sources"][asked.source] = {"what": asked.what, "date": today}
        found = (
            [entry for root in asked.folder for entry in folder(Path(root))]
            if asked.command == "add"
            else [hub(name, _fetch) for name in asked.ids]
        )
        for name, config, declared in found:
            try:
                row = merge(catalogue, name, config, declared or asked.parameters, source=asked.source, task=asked.task)
                sys.stdout.write(f"{name}: row {row}\n")
            except ValueError as error:
                problems.append(str(error))
    problems += rows.check(catalogue)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not problems and asked.command != "check":
        MODELS.write_text(rows.dump(catalogue))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command line and environment of llama-server and what they configure, or the real error.

The table of flags is common/arg.cpp of ggml-org/llama.cpp@0c1e57098 (0.5.0), which the source distribution of
llama-cpp-python 0.3.36 carries; its names are those of the generated table in tools/server/README.md there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from flotilla.simulation.engine import Limits
from flotilla_devcluster.engine.arguments import parse_llama
from flotilla_devcluster.engine.settings import EngineConfig, Refused, SimSettings

FLAGS: Final = "llamacpp-0.5.0.flags"
BUILD: Final = "b0-0c1e57098"
"""In the form of the real one, whose number is not in the source."""
IMAGE_ENV: Final = {"LLAMA_ARG_HOST": "0.0.0.0"}
"""Set by the server's images; the program's own default is loopback."""
_AUTO_SLOTS: Final = 4
_CONTEXT_STEP: Final = 256
"""A slot's context is rounded up to a multiple."""
_SMALLEST_FIT: Final = 4096
"""--fit makes the context no smaller than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamacppConfig(EngineConfig):
    alias: str
    aliases: tuple[str, ...]
    prefix: str
    api_keys: tuple[str, ...]
    slots: int
    slot_context: int
    predict: int
    ping_interval_s: int
    metrics: bool
    shows_slots: bool
    jinja: bool
    web_ui: bool
    loras: tuple[str, ...]


def parse(argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Values by an option's first long name without dashes (`ctx-size`); variables come second.

    Raises Refused with the text that the real parser prints.
    """
    return parse_llama(("llama-server", "/app/llama-server"), FLAGS, argv, env)


def configure(argv: Sequence[str], env: Mapping[str, str]) -> LlamacppConfig:
    """Raises Refused where the real parser refuses, and where only the real server can do what is asked."""
    values = parse(argv, {**IMAGE_ENV, **env})
    settings = SimSettings.from_env(env)
    model = _model(values)
    aliases = tuple(sorted(filter(None, (name.strip() for name in values.get("alias", "").split(",")))))
    slots, unified = _slots(values)
    context = _context(values, settings, slots=slots)
    share = context if unified else -(-(context // slots) // _CONTEXT_STEP) * _CONTEXT_STEP
    total = context if unified else share * slots
    per_slot = values.get("kv-unified-per-slot") or share
    return LlamacppConfig(
        model=model,
        alias=aliases[0] if aliases else model,
        aliases=aliases or (model,),
        host=values.get("host", "127.0.0.1").split(",")[0].strip(),
        port=values.get("port", 8080),
        prefix=values.get("api-prefix", ""),
        api_keys=tuple(filter(None, values.get("api-key", "").split(","))),
        slots=slots,
        # a slot is never longer than what the model was trained for
        slot_context=min(share, per_slot, settings.context_length),
        predict=values.get("predict", -1),
        limits=Limits(
            max_running=slots,
            kv_blocks=total,
            block_size=1,
            max_batched_tokens=max(values.get("batch-size", 2048), slots + 1),
        ),
        speed=settings.speed,
        ping_interval_s=values.get("sse-ping-interval", 30),
        metrics=values.get("metrics", False),
        shows_slots=values.get("slots", True),
        jinja=values.get("jinja", True),
        web_ui=values.get("ui", True),
        loras=tuple(path for given in values.get("lora", ()) for path in given.split(",") if path),
        settings=settings,
        load_failure=_load_failure(total, settings),
    )


def _model(values: Mapping[str, Any]) -> str:
    """The name that the model goes by unless it has an alias."""
    url = values.get("model-url")
    name = values.get("hf-repo") or values.get("docker-repo") or values.get("model")
    name = name or (PurePosixPath(url).name if url else None)
    if name is None:
        raise Refused(1, "The simulated llama-server is no router: name a model with --model or --hf-repo.")
    return str(name)


def _slots(values: Mapping[str, Any]) -> tuple[int, bool]:
    """How many, and whether they share one KV cache; without a number they do."""
    given = values.get("parallel", -1)
    if given < 0:
        return _AUTO_SLOTS, True
    return given, values.get("kv-unified", False)


def _context(values: Mapping[str, Any], settings: SimSettings, *, slots: int) -> int:
    """Tokens of all slots together; what the command line leaves open --fit makes small enough for the memory."""
    per_slot = values.get("kv-unified-per-slot", 0)
    if values.get("ctx-size", 0) > 0:
        return int(values["ctx-size"])
    if per_slot > 0 and "ctx-size" not in values:
        return int(per_slot) * slots
    if values.get("fit", "on") == "on" and "ctx-size" not in values:
        smallest = min(_SMALLEST_FIT, settings.context_length)
        return max(min(settings.context_length, settings.kv_tokens), smallest)
    return settings.context_length


def _load_failure(context: int, settings: SimSettings) -> str | None:
    if context <= settings.kv_tokens:
        return None
    return (
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache of "
        f"{context} tokens, there is room for {settings.kv_tokens}\n"
        "srv  llama_server: exiting due to model loading error"
    )

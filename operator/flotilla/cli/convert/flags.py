"""Engine arguments and variables of other operators' manifests: what is a field here, what stays, what must go."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flotilla.api.model_deployment import KvCacheType, QuantizationMethod
from flotilla.catalog.engines import Profile
from flotilla.cli.convert.draft import Draft
from flotilla.errors import InvalidSpec

_METHODS = frozenset(str(method) for method in QuantizationMethod)
_CACHES = frozenset(str(kind) for kind in KvCacheType)
_SPELLINGS = {"--model-name": "--served-model-name", "--model-id": "--model", "-tp": "--tensor-parallel-size"}
_RENAMED = {"--max-num-batched-token": "--max-num-batched-tokens"}
_GONE = frozenset(
    {
        "--disable-log-requests",
        "--max-seq-len-to-capture",
        "--num-scheduler-steps",
        "--swap-space",
        "--use-v2-block-manager",
    }
)
"""Of vLLM: removed before 0.33, which would not start with them."""
_SET_HERE = {
    "--model-dir": "spec.model.source says where the weights are",
    "--backend": "the engine is chosen by spec.engine.name",
    "--gpu-memory-utilization": "the memory fit sets it",
}


def split(arguments: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Flag in its usual spelling, its value, and the words that were given; a value without a flag has an empty one."""
    index = 0
    while index < len(arguments):
        word = str(arguments[index])
        index += 1
        if not word.startswith("-"):
            yield "", word, [word]
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        flag = _RENAMED.get(_SPELLINGS.get(flag, flag), _SPELLINGS.get(flag, flag))
        if equals:
            yield flag, value, [f"{flag}={value}"]
        elif index < len(arguments) and not str(arguments[index]).startswith("-"):
            yield flag, str(arguments[index]), [flag, str(arguments[index])]
            index += 1
        else:
            yield flag, None, [flag]


def put_arguments(draft: Draft, arguments: Sequence[str], profile: Profile, field_: str) -> None:
    """Move what the spec has a field for, keep what the engine may be given, name the rest."""
    kept: list[str] = []
    for flag, value, words in split(arguments):
        if _is_field(draft, flag, value):
            continue
        if reason := _SET_HERE.get(flag):
            draft.lose(f"{field_}: {flag}", f"{reason}.")
        elif profile.name == "vllm" and flag in _GONE:
            draft.lose(f"{field_}: {flag}", "vLLM has no such flag any more.")
        elif not flag:
            draft.lose(f"{field_}: {value}", "a word that is no flag; spec.model.source names the model.")
        else:
            try:
                profile.check_args(words)
            except InvalidSpec as error:
                draft.lose(f"{field_}: {flag}", str(error).partition(": remove it")[0] + ".")
            else:
                kept += words
    if kept:
        draft.put("engine.args", [*(draft.get("engine.args") or ()), *kept])


def _is_field(draft: Draft, flag: str, value: str | None) -> bool:
    if value is None:
        return False
    if flag == "--max-model-len" and value.isdigit():
        draft.put("model.contextLength", int(value))
    elif flag == "--served-model-name":
        draft.put("model.servedName", value)
    elif flag == "--model" and "/" in value and not value.startswith("/"):
        draft.put("model.source", draft.get("model.source") or f"hf://{value}")
    elif flag == "--revision":
        draft.put("model.revision", value)
    elif flag == "--tensor-parallel-size" and value.isdigit():
        draft.put("accelerator.count", int(value))
    elif flag == "--quantization" and value in _METHODS:
        draft.put("quantization.method", value)
    elif flag == "--kv-cache-dtype" and value in _CACHES:
        draft.put("quantization.kvCache", value)
    else:
        return False
    return True


def put_environment(draft: Draft, env: Sequence[Mapping[str, Any]], profile: Profile, field_: str) -> None:
    """Variables in the shape of a pod's; a token of the hub becomes the credentials."""
    kept = []
    for variable in env:
        name, source = str(variable.get("name", "")), variable.get("valueFrom") or {}
        secret = source.get("secretKeyRef")
        if name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN") and secret:
            put_token(draft, secret)
            continue
        if source and not secret:
            draft.lose(f"{field_}: {name}", "only plain values and keys of Secrets are taken.")
            continue
        try:
            profile.check_env([name])
        except InvalidSpec as error:
            draft.lose(f"{field_}: {name}", str(error).partition(": remove it")[0] + ".")
            continue
        plain: dict[str, Any] = {"value": str(variable.get("value", ""))}
        if secret:
            plain = {"valueFrom": {"secretKeyRef": {"name": secret["name"], "key": secret["key"]}}}
        kept.append({"name": name, **plain})
    if kept:
        draft.put("engine.env", kept)


def put_token(draft: Draft, secret: Mapping[str, Any]) -> None:
    """Access to the Hugging Face hub."""
    draft.put("model.credentialsSecret", {"name": secret["name"], "key": secret.get("key", "token")})

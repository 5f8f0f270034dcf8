"""Users' arguments and variables by the rules of each engine's profile, beside the list of the engine's own parser."""

from collections.abc import Sequence
from typing import Any

import pytest

from flotilla.api import crd
from flotilla.catalog.engines import Profile, load_profiles
from flotilla.errors import InvalidSpec
from flotilla_devcluster.engine.arguments import Flag, load_flags

PROFILES = load_profiles()
TABLES = {
    "vllm": "vllm-0.33.flags",
    "sglang": "sglang-0.5.23.flags",
    "llamacpp": "llamacpp-0.5.0.flags",
    "tgi": "tgi-3.3.7.flags",
}
HIDDEN = {"--custom-sigquit-handler"}
"""Flags that a parser takes and does not list."""


def spellings(flags: Sequence[Flag]) -> set[str]:
    return {name for flag in flags for name in (*flag.names, *flag.negatives)}


def claimed(profile: Profile) -> set[str]:
    """The flags that users may not give."""
    return {flag for group in (*profile.owned_flags, *profile.refused_flags) for flag in group}


def accepts(profile: Profile, *arguments: str) -> bool:
    try:
        profile.check_args(arguments)
    except InvalidSpec:
        return False
    return True


@pytest.mark.parametrize("engine", TABLES)
def test_every_flag_of_the_real_parser_is_accepted_unless_it_is_claimed(engine: str) -> None:
    profile, real = PROFILES[engine], spellings(load_flags(TABLES[engine]))
    negated = {f"--no-{flag[2:]}" for flag in claimed(profile)} | {"--webui", "--sharded"}
    wrongly = {flag for flag in real - claimed(profile) - negated if not accepts(profile, flag)}
    assert wrongly == set()
    assert claimed(profile) - real <= HIDDEN, "the profile claims flags that the engine has"
    assert not set(profile.removed_flags) & real, "a removed flag is not in the parser"
    assert profile.exact_flags <= real


@pytest.mark.parametrize("engine", TABLES)
def test_every_way_to_write_a_claimed_flag_is_refused(engine: str) -> None:
    profile, real = PROFILES[engine], spellings(load_flags(TABLES[engine]))
    for flag in sorted(claimed(profile)):
        forms = [flag, f"{flag}=x"]
        if flag.startswith("--"):
            forms.append("--" + flag[2:].replace("-", "_"))
        if profile.parser == "argparse" and flag.startswith("--"):
            beginnings = [flag[:end] for end in range(4, len(flag))]
            forms += [one for one in beginnings if [name for name in real if name.startswith(one)] == [flag]]
        for form in forms:
            assert not accepts(profile, form), form


@pytest.mark.parametrize(
    ("engine", "arguments", "says"),
    [
        ("vllm", ["--reasoning-parser", "qwen3"], ""),
        ("vllm", ["--reasoning-parser-plug=/models/x.py"], "means --reasoning-parser-plugin"),
        ("vllm", ["--no-trust-remote-code"], ""),
        ("vllm", ["--structured-outputs-config.reasoning_parser_plugin=/models/x.py"], "'reasoning_parser_plugin' in"),
        ("vllm", ["--structured-outputs-config.reasoning-parser-plugin", "/models/x.py"], "'reasoning-parser-plugin'"),
        ("vllm", ["--structured-outputs-config", '{"a": [{"reasoning_parser_plugin": "x"}]}'], "refused"),
        ("vllm", ['--kv-transfer-config={"kv_connector_module_path": "x.y"}'], "refused"),
        ("vllm", ["--structured-outputs-config.backend=xgrammar", "-O3", "-cc.mode=3"], ""),
        ("vllm", ["-t", "2"], "means --tensor-parallel-size"),
        ("vllm", ["-qawq"], "means --quantization"),
        ("vllm", ["--worker-cls", "x.Y"], "foreign code"),
        ("vllm", ["--seed", "-1"], ""),
        ("vllm", ["--tool-call-parser hermes"], "--tool-call-parser=VALUE"),
        ("vllm", ["--chat-template={{ a b }}"], ""),
        ("vllm", ["--task", "embed"], "Use --runner=pooling"),
        ("vllm", ["--max-model-len=4096"], "set spec.model.contextLength instead"),
        ("vllm", ["--load-format=dummy"], "is set by the operator: remove it."),
        ("llamacpp", ["--no-host"], ""),
        ("llamacpp", ["--cache-type-k", "q8_0"], ""),
        ("llamacpp", ["--mcp-servers-config=x"], "refused"),
        ("tgi", ["--max-batch-total-tokens", "1"], ""),
        ("sglang", ["--forward-hooks={}"], "refused"),
    ],
)
def test_arguments_are_accepted_or_refused_with_the_remedy(engine: str, arguments: list[str], says: str) -> None:
    if not says:
        PROFILES[engine].check_args(arguments)
        return
    with pytest.raises(InvalidSpec) as refused:
        PROFILES[engine].check_args(arguments)
    assert says in str(refused.value)
    assert refused.value.field == f"spec.engine.args[{len(arguments) - 1 if arguments[-1].startswith('{') else 0}]"


@pytest.mark.parametrize("engine", TABLES)
@pytest.mark.parametrize(
    "name",
    ["LD_AUDIT", "LD_PRELOAD", "PYTHONPATH", "PYTHONBREAKPOINT", "NVIDIA_VISIBLE_DEVICES", "GLIBC_TUNABLES", "PATH"],
)
def test_variables_that_run_code_or_show_other_gpus_are_refused(engine: str, name: str) -> None:
    with pytest.raises(InvalidSpec, match=name):
        PROFILES[engine].check_env(["LOG_LEVEL", name])


def test_the_engines_own_key_is_refused_because_chats_would_be_answered_401() -> None:
    with pytest.raises(InvalidSpec, match="VLLM_API_KEY"):
        PROFILES["vllm"].check_env(["VLLM_API_KEY"])


def test_fields_name_owned_flags_and_fields_of_the_spec() -> None:
    (definition,) = (one for one in crd.DEFINITIONS if one.kind == "ModelDeployment")
    schema: Any = crd.crd(definition)
    root = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for profile in PROFILES.values():
        assert set(profile.fields) <= {group[0] for group in profile.owned_flags}
        for field in profile.fields.values():
            part = root
            for name in field.replace("[*]", ".items").split("."):
                part = part["items"] if name == "items" else part["properties"][name]

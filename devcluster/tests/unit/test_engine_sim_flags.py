"""Every option of the engines' tables: the tables hold what the real parsers have, and each is read as its kind says.

One test for each engine and kind reads all rows of it, so that a row fails with its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flotilla_devcluster.engine import llamacpp_config, sglang_config, tgi_config, vllm_config
from flotilla_devcluster.engine.arguments import Flag, load_flags
from flotilla_devcluster.engine.settings import Refused

GOLDEN = Path(__file__).parents[1] / "golden"
TABLES = {
    "vllm": load_flags(vllm_config.FLAGS),
    "sglang": load_flags(sglang_config.FLAGS),
    "tgi": load_flags(tgi_config.FLAGS),
    "llamacpp": load_flags(llamacpp_config.FLAGS),
}
SGLANG = ("sglang", "serve", "--model-path", "m")
PARSERS: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "vllm": lambda argv: vllm_config.parse(argv if argv[0] == "--model" else ["m", *argv]),
    "sglang": lambda argv: sglang_config.parse([*SGLANG, *argv]),
    "tgi": lambda argv: tgi_config.parse(argv, {}),
    "llamacpp": lambda argv: llamacpp_config.parse(argv, {}),
}
GOOD: dict[str, tuple[list[str], Any]] = {
    "str": (["x"], "x"),
    "true_false": (["false"], False),
    "int": (["7"], 7),
    "uint": (["7"], 7),
    "port": (["7"], 7),
    "uints": (["1,2"], [1, 2]),
    "float": (["0.5"], 0.5),
    "json": (['{"a": 1}'], {"a": 1}),
    "json_list": (["[1]"], [1]),
    "str_or_json": (['{"a": 1}'], {"a": 1}),
    "snake": (["a-B"], "a_b"),
    "human_int": (["1k"], 1000),
    "human_int_or_auto": (["auto"], -1),
    "opt_int": (["None"], None),
    "opt_float": (["0.5"], 0.5),
    "opt_json": (['{"a": 1}'], {"a": 1}),
    "opt_human_int": (["1K"], 1024),
    "nullable_str": (["None"], None),
    "graph_config": (["{}"], {}),
    "graph_backend": (["full"], "full"),
    "layers": (["all"], "all"),
    "pair": (["1", "2"], ["1", "2"]),
    "cache_type": (["f16"], "f16"),
    "switch": (["on"], "on"),
}
"""A value of each kind, and what it is read as."""
BAD: dict[str, str] = {
    "true_false": "yes",
    "int": "x",
    "uint": "-1",
    "port": "70000",
    "uints": "1,x",
    "float": "x",
    "json": "{x",
    "json_list": "[x",
    "str_or_json": "{x}",
    "human_int": "1Q",
    "human_int_or_auto": "1Q",
    "opt_int": "x",
    "opt_float": "x",
    "opt_json": "{x",
    "opt_human_int": "1Q",
    "graph_config": "[]",
    "graph_backend": "tc_piecewise",
    "layers": "most",
    "cache_type": "fp8",
    "switch": "maybe",
}
"""A value that the kind does not take; the other kinds take everything."""
UNREAD = {"--config"}
"""Files with more options: vLLM and SGLang refuse them here."""
KINDS = sorted({(engine, flag.kind) for engine, flags in TABLES.items() for flag in flags})


def rows(engine: str, kind: str) -> list[Flag]:
    return [flag for flag in TABLES[engine] if flag.kind == kind and flag.name not in UNREAD]


def value_of(flag: Flag) -> tuple[list[str], Any]:
    """Arguments after the option's name, and what they are read as."""
    if not flag.takes_value:
        return [], True
    if flag.choices:
        arguments = [flag.choices[0]]
        read: Any = int(flag.choices[0]) if flag.kind == "int" else flag.choices[0]
    else:
        arguments, read = GOOD[flag.kind]
    if flag.append or flag.nargs in ("+", "*"):
        read = [read]
    return arguments, read


def refusal(engine: str, *argv: str) -> Refused:
    with pytest.raises(Refused) as caught:
        PARSERS[engine](argv)
    return caught.value


READERS = {
    "Option<bool>": ("true_false",),
    "String": ("str",),
    "Vec<String>": ("str",),
    "Vec<usize>": ("uints",),
    "f32": ("float",),
    "u16": ("port",),
    "u32": ("uint",),
    "u64": ("uint",),
    "usize": ("uint",),
    **dict.fromkeys(("Dtype", "KVCacheDtype", "Quantization", "RopeScaling", "UsageStatsLevel"), ("str",)),
    "<lambda>": ("snake", "str"),
    "human_readable_int": ("human_int",),
    "human_readable_int_or_auto": ("human_int_or_auto",),
    "json_list_type": ("json_list",),
    "loads": ("json",),
    "optional_type": ("str", "opt_int", "opt_float", "opt_json", "opt_human_int"),
    "parse_cuda_graph_backend_arg": ("graph_backend",),
    "parse_cuda_graph_config_arg": ("graph_config",),
    "parse_dataclass": ("json", "str_or_json"),
    "parse_reasoning_parser": ("str",),
    "parse_type": ("json",),
    "union_dict_and_str": ("str_or_json",),
}
"""From a function or type of the real parsers to the kinds that stand for it; other names are the same here."""


@pytest.mark.parametrize(
    ("engine", "dump"),
    [("vllm", "vllm-0.33-parser.txt"), ("sglang", "sglang-0.5.23-parser.txt"), ("tgi", "tgi-3.3.7-parser.txt")],
)
def test_a_table_is_the_list_of_the_real_parser(engine: str, dump: str) -> None:
    table = {flag.name: flag for flag in TABLES[engine]}
    lines = [line.split() for line in (GOLDEN / dump).read_text().splitlines() if not line.startswith("#")]
    assert table.keys() == {name for name, *_ in lines}
    for name, reader, choices, others, *default in lines:
        flag = table[name]
        long_names = [other for other in (*flag.aliases, *flag.negatives) if other.startswith("--")]
        assert flag.kind in READERS.get(reader, (reader,)), name
        assert sorted(flag.choices) == sorted(choices.split("|") if choices != "-" else []), name
        assert sorted(long_names) == sorted(others.split(",") if others != "-" else []), name
        assert default in ([], [flag.default or "-"]), name


def test_llama_server_refuses_the_words_that_the_real_one_refuses() -> None:
    lines = (GOLDEN / "llamacpp-choices.txt").read_text().splitlines()
    real = {name: choices.split("|") for name, choices in (line.split() for line in lines if not line.startswith("#"))}
    by_name = {name: flag for flag in TABLES["llamacpp"] for name in flag.names}
    assert {name: sorted(by_name[name].choices) for name in real} == real
    assert sum(bool(flag.choices) for flag in TABLES["llamacpp"]) == len(real)


def test_the_table_of_llama_server_has_as_many_options_of_each_kind_as_the_real_parser() -> None:
    """Counted when the table was made, in llama.cpp's common/arg.cpp."""
    found = [name for flag in TABLES["llamacpp"] for name in (*flag.names, *flag.negatives)]
    assert len(found) == len(set(found)) == 412
    assert Counter(flag.kind for flag in TABLES["llamacpp"]) == {
        "bool": 27,
        "cache_type": 4,
        "exit": 5,
        "flag": 30,
        "float": 29,
        "int": 63,
        "layers": 2,
        "pair": 1,
        "removed": 5,
        "str": 85,
        "switch": 4,
    }


@pytest.mark.parametrize(("engine", "kind"), KINDS)
def test_each_option_of_a_kind_is_read_by_each_of_its_names(engine: str, kind: str) -> None:
    for flag in rows(engine, kind):
        if kind in ("exit", "removed"):
            continue
        arguments, read = value_of(flag)
        for name in flag.names:
            assert PARSERS[engine]([name, *arguments]).get(flag.key, "absent") == read, name
        for name in flag.negatives:
            assert PARSERS[engine]([name]).get(flag.key, "absent") is False, name


@pytest.mark.parametrize(("engine", "kind"), KINDS)
def test_each_option_of_a_kind_refuses_what_the_kind_does_not_take(engine: str, kind: str) -> None:
    for flag in rows(engine, kind):
        code = 1 if engine == "llamacpp" else 2
        if kind == "exit":
            assert refusal(engine, flag.name).exit_code == 0, flag.name
        elif kind == "removed":
            assert f"the argument has been removed. {flag.remark}" in refusal(engine, flag.name, "1").text, flag.name
        elif kind == "name":
            continue
        elif not flag.takes_value:
            assert refusal(engine, f"{flag.name}=1").exit_code == code, flag.name
        else:
            if flag.nargs not in ("?", "*"):
                assert refusal(engine, flag.name).exit_code == code, f"{flag.name} without a value"
            if flag.choices or kind in BAD:
                wrong = "no-such-choice" if flag.choices and kind not in BAD else BAD[kind]
                assert refusal(engine, flag.name, wrong).exit_code == code, f"{flag.name} {wrong}"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_files_of_options_are_refused(engine: str) -> None:
    assert "does not read --config" in refusal(engine, "--config", "f.yaml").text


def test_an_option_of_tgi_is_a_variable_too_and_has_its_default() -> None:
    for flag in TABLES["tgi"]:
        if flag.key == "env":
            continue
        arguments, read = value_of(flag)
        variable = {flag.key.upper().replace("-", "_"): (arguments or ["true"])[0]}
        by_variable, by_default = tgi_config.parse([], variable)[flag.key], tgi_config.parse([], {})[flag.key]
        assert by_variable == read, flag.name
        assert (by_default is None) == (flag.default is None), flag.name


def test_an_option_of_llamacpp_with_a_variable_is_read_from_it() -> None:
    for flag in TABLES["llamacpp"]:
        if flag.variable is None or flag.kind in ("exit", "removed", "pair"):
            continue
        text = "1" if not flag.takes_value else value_of(flag)[0][0]
        wanted = value_of(flag)[1]
        assert llamacpp_config.parse([], {flag.variable: text}) == {flag.key: wanted}, flag.name

"""Command lines: what the real parsers take, and with which messages they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from flotilla_devcluster.engine import tgi_config, vllm_config
from flotilla_devcluster.engine.settings import Refused, SimSettings
from flotilla_devcluster.engine.tgi_config import configure as configure_tgi
from flotilla_devcluster.engine.vllm_config import configure as configure_vllm


def vllm_refusal(*argv: str) -> Refused:
    with pytest.raises(Refused) as caught:
        vllm_config.parse(argv)
    return caught.value


def tgi_refusal(*argv: str, **env: str) -> Refused:
    with pytest.raises(Refused) as caught:
        tgi_config.parse(argv, env)
    return caught.value


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["m/x"], {"model": "m/x"}),
        (["vllm", "serve", "m/x", "--port", "8001"], {"model": "m/x", "port": 8001}),
        (["serve", "m/x"], {"model": "m/x"}),
        (["--port=8001", "--model", "m/x"], {"model": "m/x", "port": 8001}),
        (["--model=m/x", "--seed", "3"], {"model": "m/x", "seed": 3}),
        (["m", "--max_model_len", "8k"], {"model": "m", "max-model-len": 8000}),
        (["m", "--max-model-len=1K"], {"model": "m", "max-model-len": 1024}),
        (["m", "--max-model-len", "auto"], {"model": "m", "max-model-len": -1}),
        (["m", "--max-model-len", "-1"], {"model": "m", "max-model-len": -1}),
        (["m", "--served-model-name", "a", "b"], {"model": "m", "served-model-name": ["a", "b"]}),
        (["m", "--no-enable-lora"], None),
        (
            ["m", "--disable-lora", "-tp", "2"],
            {"model": "m", "enable-lora": False, "tensor-parallel-size": 2},
        ),
        (["m", "--max-num-se", "4"], {"model": "m", "max-num-seqs": 4}),
        (["m", "--moe-backend", "deep-gemm"], {"model": "m", "moe-backend": "deep_gemm"}),
        (
            ["m", "--compilation-config.mode", "3", "--compilation-config.a.b=x"],
            {"model": "m", "compilation-config": {"mode": 3, "a": {"b": "x"}}},
        ),
        (["m", "--max-num-queued-reqs", "None"], {"model": "m", "max-num-queued-reqs": None}),
        (["m", "-q", "bitsandbytes"], {"model": "m", "quantization": "bitsandbytes"}),
    ],
)
def test_vllm_takes_what_the_real_parser_takes(argv: list[str], expected: dict[str, Any] | None) -> None:
    if expected is None:
        assert "unrecognized arguments: --no-enable-lora" in vllm_refusal(*argv).text
    else:
        assert vllm_config.parse(argv) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["m", "--swap-space", "4"], "vllm: error: unrecognized arguments: --swap-space 4"),
        (
            ["m", "--dtype", "fp16"],
            "vllm serve: error: argument --dtype: invalid choice: 'fp16' (choose from",
        ),
        (["m", "--port", "x"], "vllm serve: error: argument --port: invalid int value: 'x'"),
        (["m", "--port"], "vllm serve: error: argument --port: expected one argument"),
        (["m", "--enforce-eager=1"], "argument --enforce-eager: ignored explicit argument '1'"),
        (["m", "--max-lora-rank", "7"], "argument --max-lora-rank: invalid choice: 7"),
        (["m", "--max-model-len", "8.5K"], "Decimals are not allowed with binary suffixes like K"),
        (["m", "--max-num-queued-reqs", "q"], "Value q cannot be converted to <class 'int'>."),
        (["m", "--hf-overrides", "{x}"], "argument --hf-overrides: Value {x} cannot be converted to"),
        (["m", "--enable"], "ambiguous option: --enable could match"),
        (["m", "n"], "vllm: error: unrecognized arguments: n"),
    ],
)
def test_vllm_refuses_with_argparse_s_messages_and_exit_code_2(argv: list[str], message: str) -> None:
    refused = vllm_refusal(*argv)
    assert refused.exit_code == 2
    assert refused.text.startswith("usage: vllm")
    assert message in refused.text


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        (
            ["--quantization", "bitsandbytes"],
            {},
            "Unknown quantization method: bitsandbytes. Must be one of ['awq'",
        ),
        (["--quantization", "gguf"], {}, "Unknown quantization method: gguf."),
        (["-q", "fp_quant"], {}, "To bypass, set `--allow-deprecated-quantization`"),
        (["--kv-cache-dtype", "fp9"], {}, "Input should be 'auto', 'float16',"),
        (["--load-format", "gguf"], {}, "ValueError: Load format `gguf` is not supported"),
        (["--enable-auto-tool-choice"], {}, "--enable-auto-tool-choice requires --tool-call-parser"),
        (
            ["--max-num-seqs", "64", "--max-num-batched-tokens", "32"],
            {},
            "max_num_batched_tokens (32) must be",
        ),
        (["--max-model-len", "300000"], {}, "max seq len (300000), (36.62 GiB KV cache is needed"),
        ([], {"VLLM_PORT": "tcp://10.96.0.1:8000"}, "VLLM_PORT 'tcp://10.96.0.1:8000' appears to be a URI."),
        ([], {"VLLM_PORT": "abc"}, "VLLM_PORT 'abc' must be a valid integer"),
    ],
)
def test_vllm_fails_at_load_where_only_its_parser_was_content(
    argv: list[str], env: dict[str, str], message: str
) -> None:
    config = configure_vllm(["m", *argv], env)
    assert config.load_failure is not None
    assert message in config.load_failure


@pytest.mark.parametrize(
    "argv",
    [
        ["--quantization", "fp8", "--kv-cache-dtype", "fp8", "--load-format", "safetensors"],
        ["-q", "fp_quant", "--allow-deprecated-quantization"],
        ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
        ["--max-model-len", "262144"],
    ],
)
def test_vllm_loads_what_the_real_one_loads(argv: list[str]) -> None:
    assert configure_vllm(["m", *argv], {"VLLM_PORT": "8000"}).load_failure is None


def test_vllm_takes_limits_and_names_from_its_arguments() -> None:
    config = configure_vllm(
        [
            *("m/x", "--served-model-name", "a", "b", "--max-num-seqs", "8", "--max-model-len", "2048"),
            *("--num-gpu-blocks-override", "200", "--max-num-queued-reqs", "20", "--shutdown-timeout", "30"),
            *("--api-key", "k"),
        ],
        {"VLLM_API_KEY": "other"},
    )
    assert config.served_names == ("a", "b")
    assert (config.limits.max_running, config.limits.kv_blocks, config.limits.max_unfinished) == (8, 200, 20)
    assert (config.context_tokens, config.shutdown_timeout_s, config.api_keys) == (2048, 30, ("k",))
    assert configure_vllm(["m"], {"VLLM_API_KEY": "other"}).api_keys == ("other",)


@pytest.mark.parametrize(
    ("argv", "env", "key", "value"),
    [
        (["text-generation-launcher", "--model-id", "m/x"], {}, "model-id", "m/x"),
        (["--model-id=m/x"], {"MODEL_ID": "other"}, "model-id", "m/x"),
        ([], {"MODEL_ID": "m/x"}, "model-id", "m/x"),
        (["-p", "8080"], {}, "port", 8080),
        ([], {"QUANTIZE": "eetq"}, "quantize", "eetq"),
        (["--trust-remote-code"], {}, "trust-remote-code", True),
        ([], {"TRUST_REMOTE_CODE": "false"}, "trust-remote-code", False),
        (["--sharded", "true"], {}, "sharded", True),
        (["--cuda-graphs", "1,2,4"], {}, "cuda-graphs", [1, 2, 4]),
        ([], {}, "max-concurrent-requests", 128),
        ([], {}, "graceful-termination-timeout", 90),
        ([], {"ENV": "whatever"}, "env", None),
    ],
)
def test_tgi_reads_its_arguments_before_its_environment(
    argv: list[str], env: dict[str, str], key: str, value: Any
) -> None:
    assert tgi_config.parse(argv, env)[key] == value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--max-model-len", "1"],
            "error: unexpected argument '--max-model-len' found\n\nUsage: text-generation",
        ),
        (["--max_input_tokens", "1"], "error: unexpected argument '--max_input_tokens' found"),
        (["m/x"], "error: unexpected argument 'm/x' found"),
        (
            ["--dtype", "fp16"],
            "error: invalid value 'fp16' for '--dtype <DTYPE>'\n  [possible values: float16, bfl",
        ),
        (["--port", "x"], "error: invalid value 'x' for '--port <PORT>': invalid digit found in string"),
        (["--port", "70000"], "'--port <PORT>': 70000 is not in 0..=65535"),
        (["--waiting-served-ratio", "x"], "invalid float literal"),
        (["--port"], "error: a value is required for '--port <PORT>' but none was supplied"),
        (["--quantize"], "none was supplied\n  [possible values: awq,"),
        (["--port", "1", "--port", "2"], "error: the argument '--port <PORT>' cannot be used multiple times"),
        (["--json-output=1"], "error: unexpected value '1' for '--json-output' found; no more were expected"),
        (["--sharded", "yes"], "[possible values: true, false]"),
    ],
)
def test_tgi_refuses_with_clap_s_messages_and_exit_code_2(argv: list[str], message: str) -> None:
    refused = tgi_refusal(*argv)
    assert refused.exit_code == 2
    assert message in refused.text
    assert refused.text.endswith("For more information, try '--help'.")


def test_tgi_refuses_a_bad_variable_as_it_does_a_bad_argument() -> None:
    assert "invalid value 'fp9' for '--quantize <QUANTIZE>'" in tgi_refusal(QUANTIZE="fp9").text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dtype", "float16", "--quantize", "fp8"], "Only 1 can be set between `dtype` and `quantize`"),
        (["--max-input-tokens", "10", "--max-total-tokens", "10"], "`max_input_tokens`(10) must be <"),
        (["--max-input-tokens", "10", "--max-input-length", "9"], "Both `max_input_tokens` (10) and"),
        (
            ["--max-total-tokens", "99", "--max-batch-total-tokens", "98"],
            "must be <= `max_batch_total_tokens`",
        ),
        (["--validation-workers", "0"], "`validation_workers` must be > 0"),
        (["--max-total-tokens", "300000"], "Not enough memory to handle 300000 total tokens."),
    ],
)
def test_tgi_fails_at_load_where_only_its_parser_was_content(argv: list[str], message: str) -> None:
    config = configure_tgi(argv, {})
    assert config.load_failure is not None
    assert message in config.load_failure


def test_tgi_listens_on_the_port_of_its_image_unless_told_otherwise() -> None:
    assert configure_tgi([], {}).port == 80
    assert configure_tgi([], {"PORT": "8080"}).port == 8080
    assert configure_tgi(["--port", "8081"], {"PORT": "8080"}).port == 8081


def test_settings_come_from_the_environment() -> None:
    settings = SimSettings.from_env({"FLOTILLA_SIM_LOAD_SECONDS": "0.5", "FLOTILLA_SIM_KV_TOKENS": "4096"})
    assert (settings.load_seconds, settings.kv_tokens, settings.context_length) == (0.5, 4096, 8192)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LOAD_SECONDS", "soon", "FLOTILLA_SIM_LOAD_SECONDS='soon' is not a number"),
        ("KV_TOKENS", "1.5", "FLOTILLA_SIM_KV_TOKENS='1.5' is not a whole number"),
        ("LOAD_SECONDS", "-1", "must not be negative"),
        ("TOKENS_PER_SECOND", "0", "FLOTILLA_SIM_TOKENS_PER_SECOND must be more than 0"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        SimSettings.from_env({f"FLOTILLA_SIM_{name}": value})

"""Traces in and out, the shipped shapes, and the command."""

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from flotilla.cli import app
from flotilla.errors import InvalidSpec
from flotilla.simulation.trace import NAMES, SHAPES, TraceRequest, about, make, parse_csv

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "manifests" / "samples" / "qwen2-5-7b.yaml"
TRACE = "second,requests,prompt_tokens,output_tokens\n" + "".join(
    f"{second},{4 if second < 120 else 0},200,100\n" for second in range(180)
)


def test_a_row_per_request_is_read_in_the_order_of_arrival() -> None:
    trace = parse_csv("at_s,prompt_tokens,output_tokens\n7.5,10,20\n5,1,0\n", "x.csv")
    assert trace.requests == (TraceRequest(0.0, 1, 1), TraceRequest(2.5, 10, 20))
    assert trace.duration_s == 3.0


def test_requests_of_a_second_are_spread_over_it() -> None:
    trace = parse_csv("second,requests,prompt_tokens,output_tokens\n0,2,100.4,50\n1,0,0,0\n2,1,7,8\n", "x.csv")
    assert trace.requests == (TraceRequest(0.0, 100, 50), TraceRequest(0.5, 100, 50), TraceRequest(2.0, 7, 8))


def test_azures_own_files_are_read() -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.68059,9,1\n"
    )
    assert parse_csv(text, "conv.csv").requests == (TraceRequest(0.0, 374, 44), TraceRequest(1.0, 9, 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "first line must name the columns at_s,prompt_tokens,output_tokens or "),
        ("a,b\n1,2\n", "first line must name the columns"),
        ("at_s,prompt_tokens,output_tokens\n", "no request in it"),
        ("at_s,prompt_tokens,output_tokens\n1,2,3\nx,2,3\n", "line 3: at_s is 'x'; a number of 0 or more is wanted"),
        ("at_s,prompt_tokens,output_tokens\n1,-2,3\n", "line 2: prompt_tokens is '-2'"),
        ("at_s,prompt_tokens,output_tokens\n1,nan,3\n", "prompt_tokens is 'nan'"),
        ("at_s,prompt_tokens,output_tokens\ninf,1,3\n", "at_s is 'inf'"),
        ("at_s,prompt_tokens,output_tokens\n1,2\n", "output_tokens is None"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "TIMESTAMP is 'yesterday'; a time like"),
        ("second,requests,prompt_tokens,output_tokens\n0,1e9,1,1\n", "requests is '1e9'; a number from 0 to 1e"),
    ],
)
def test_a_trace_that_is_not_to_be_read_says_where_and_what_is_wanted(text: str, reason: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(reason)):
        parse_csv(text, "x.csv")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_trace_is_the_same_each_time_and_another_with_another_seed(name: str) -> None:
    trace = make(name)
    assert trace == make(name)
    assert trace != make(name, seed=1)
    assert all(0 <= r.at_s < trace.duration_s and r.prompt_tokens > 0 and r.output_tokens > 0 for r in trace.requests)
    assert list(trace.requests) == sorted(trace.requests)
    assert about(name)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shapes_highest_rate_is_what_it_says(name: str) -> None:
    shape = SHAPES[name]
    rates = [shape.per_s(float(second)) for second in range(int(shape.duration_s))]
    assert 0.8 * shape.most_per_s <= max(rates) <= shape.most_per_s
    assert min(rates) >= 0
    expected = sum(rates)
    assert abs(len(make(name).requests) - expected) < 5 * expected**0.5


def test_the_azure_traces_have_the_published_counts_and_medians() -> None:
    # 19,366 and 8,819 rows; medians 1020/129 and about 1500/13 (Splitwise, section 3).
    for name, rows, prompt, output in (("azure-conversation", 19366, 1020, 129), ("azure-code", 8819, 1469, 13)):
        requests = make(name).requests
        assert len(requests) == rows
        assert sorted(r.prompt_tokens for r in requests)[rows // 2] == pytest.approx(prompt, rel=0.05)
        assert sorted(r.output_tokens for r in requests)[rows // 2] == pytest.approx(output, rel=0.05)


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["simulate", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_answers_with_a_table_json_csv_and_a_page(tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text(TRACE)
    files = ["--csv", str(tmp_path / "out.csv"), "--plot", str(tmp_path / "out.html")]
    arguments = ["scaling", "--trace", str(tmp_path / "load.csv"), "--spec", str(SPEC), *files]

    code, table, _ = invoke(*arguments)
    assert code == 0
    for word in ("480 served", "Waiting p50, p99", "GPU-hours", "$"):
        assert word in table

    code, out, _ = invoke(*arguments, "--json")
    answer = json.loads(out)
    assert (code, answer["arrived"], answer["served"], answer["deployment"]) == (0, 480, 480, "qwen2-5-7b")
    assert float(answer["usd"]) == pytest.approx(float(answer["gpu_hours"]) * 0.8048, abs=0.01)

    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["served"] == "480"
    assert float(rows[1]["at_s"]) - float(rows[0]["at_s"]) == 5.0

    page = (tmp_path / "out.html").read_text()
    assert "480: 480 served" in page
    assert not re.search(r"https?:|<script|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert ElementTree.fromstring(svg).find("path") is not None


def test_a_dearer_gpu_and_a_slower_start_show_in_the_answer(tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text(TRACE)
    base = ["scaling", "--trace", str(tmp_path / "load.csv"), "--spec", str(SPEC), "--json"]
    slow = json.loads(invoke(*base, "--startup-seconds", "300", "--decode-tokens-per-second", "200")[1])
    quick = json.loads(invoke(*base, "--startup-seconds", "5")[1])
    assert slow["end_p50_s"] > quick["end_p50_s"]
    many = json.loads(invoke(*base, "--rate", "2", "--initial-replicas", "4", "--interval", "1")[1])
    assert many["arrived"] == 960
    tight = json.loads(invoke(*base, "--max-sequences", "1", "--kv-tokens", "1000", "--patience", "5")[1])
    assert tight["dropped"] > 0
    faster = json.loads(invoke(*base, "--prefill-tokens-per-second", "50000", "--step-seconds", "0.005")[1])
    assert faster["first_token_p50_s"] < quick["first_token_p50_s"]


@pytest.mark.parametrize(
    ("trace", "spec", "reason"),
    [
        ("nope", str(SPEC), "--trace: No trace is called 'nope'. There are diurnal,"),
        ("nope.csv", str(SPEC), "nope.csv"),
        (
            "burst",
            str(ROOT / "manifests/samples/support-routing.yaml"),
            "exactly one ModelDeployment, not 0",
        ),
    ],
)
def test_a_wrong_question_is_refused_with_the_option(trace: str, spec: str, reason: str) -> None:
    code, _, error = invoke("scaling", "--trace", trace, "--spec", spec)
    assert code == 2
    assert reason in error


def test_a_wrong_spec_is_refused_with_field_and_value(tmp_path: Path) -> None:
    for old, new, reason in (
        ("maxReplicas: 4", "maxReplicas: many", "spec.scaling.maxReplicas"),
        ("class: nvidia-l4", "class: l99", "l99"),
        ("kind: ModelDeployment", "kind: [", "--spec"),
    ):
        path = tmp_path / "md.yaml"
        path.write_text(SPEC.read_text().replace(old, new))
        code, _, error = invoke("scaling", "--trace", "burst", "--spec", str(path))
        assert code == 2
        assert reason in error


def test_a_model_of_which_nothing_is_known_needs_the_options(tmp_path: Path) -> None:
    path = tmp_path / "md.yaml"
    path.write_text(SPEC.read_text().replace("hf://Qwen/Qwen2.5-7B-Instruct", "hf://acme/unknown"))
    (tmp_path / "load.csv").write_text(TRACE)
    arguments = ["scaling", "--trace", str(tmp_path / "load.csv"), "--spec", str(path)]
    code, _, error = invoke(*arguments)
    assert code == 2
    options = ("--decode-tokens-per-second", "--prefill-tokens-per-second", "--step-seconds", "--kv-tokens")
    assert [option for option in options if option not in error] == []
    speed = ("--decode-tokens-per-second", "1000", "--prefill-tokens-per-second", "4000", "--step-seconds", "0.02")
    assert "--kv-tokens" in invoke(*arguments, *speed)[2]
    assert invoke(*arguments, *speed, "--kv-tokens", "100000")[0] == 0


def test_a_deployment_is_as_fast_as_its_model_is_on_its_gpu(tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text(TRACE)

    def whole_answer_s(model: str, accelerator: str) -> float:
        path = tmp_path / "md.yaml"
        spec = SPEC.read_text().replace("hf://Qwen/Qwen2.5-7B-Instruct", f"hf://Qwen/{model}")
        path.write_text(spec.replace("class: nvidia-l4", f"class: {accelerator}"))
        code, out, _ = invoke("scaling", "--trace", str(tmp_path / "load.csv"), "--spec", str(path), "--json")
        assert code == 0
        return float(json.loads(out)["end_p50_s"])

    middle_on_l4 = whole_answer_s("Qwen2.5-7B-Instruct", "nvidia-l4")
    assert whole_answer_s("Qwen2.5-7B-Instruct", "nvidia-h100-80gb") < middle_on_l4 / 3
    assert whole_answer_s("Qwen2.5-0.5B-Instruct", "nvidia-l4") < middle_on_l4 / 3


def test_the_traces_are_listed() -> None:
    code, out, _ = invoke("traces")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(NAMES)

"""`flotilla route`: what the gateway would do with a request, and why, without a cluster."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flotilla.cli import exits
from flotilla.cli.calibrate import calibrate
from flotilla.cli.endings import end
from flotilla.errors import InvalidSpec

if TYPE_CHECKING:
    from types import ModuleType

app = typer.Typer(no_args_is_help=True, help="What a RoutingPolicy does with a request, and why.")
app.command()(calibrate)


@app.command()
def explain(
    policy: Annotated[Path, typer.Option("--policy", "-p", help="A RoutingPolicy; ModelDeployments may stand beside.")],
    request: Annotated[Path, typer.Option("--request", "-r", help="The request's body as JSON; - reads stdin.")],
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="name=value; repeatable.")] = None,
    operation: Annotated[str, typer.Option(help="chat/completions, completions or embeddings.")] = "chat/completions",
    client: Annotated[str | None, typer.Option(help="One of spec.clients, whose key the request shows.")] = None,
    task: Annotated[str | None, typer.Option(help="What the classifier would answer.")] = None,
    seed: Annotated[str, typer.Option(help="Request id, which chooses in a split without a session.")] = "",
    unavailable: Annotated[list[str] | None, typer.Option(help="A target that is failing; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print where a request goes and why. Exit code 0: it is served; 1: it is refused; 2: a wrong question."""
    cases = _cases()
    try:
        loaded = cases.load_policy(policy)
        text = typer.get_text_stream("stdin").read() if str(request) == "-" else request.read_text()
        case = {
            "body": cases.mapping(json.loads(text), str(request)),
            "headers": dict(_header(pair) for pair in header or ()),
            "operation": operation,
            "client": client,
            "task": task,
            "unavailable": unavailable or [],
        }
        answer: dict[str, Any] = cases.answer_of(loaded.policy, case, seed=seed)
    except (InvalidSpec, OSError, ValueError) as error:
        end(error, exits.WRONG_QUESTION)
    answer["findings"] = list(loaded.findings)
    typer.echo(json.dumps(answer, indent=2) if as_json else cases.readable(answer))
    raise typer.Exit(exits.NO if "refused" in answer else exits.OK)


@app.command("test")
def run_table(
    table: Annotated[Path, typer.Argument(help="YAML: policy (a file beside it) and cases.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a table of requests and what is expected of each. Exit code 1: some are decided otherwise, with a diff."""
    cases = _cases()
    try:
        loaded, results = cases.run(table)
    except (InvalidSpec, OSError, ValueError) as error:
        end(error, exits.WRONG_QUESTION)
    if as_json:
        typer.echo(json.dumps({"findings": list(loaded.findings), "cases": results}, indent=2))
    else:
        typer.echo("\n".join(cases.report(results, loaded.unsound)))
    failed = any(result["differences"] for result in results)
    raise typer.Exit(exits.NO if failed or loaded.unsound else exits.OK)


def _cases() -> "ModuleType":
    """What the verbs need is imported when they run: `flotilla --help` stays quick."""
    return import_module("flotilla.cli.route_cases")


def _header(pair: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not separator or not name:
        raise InvalidSpec(f"{pair!r} is not name=value.", field="--header")
    return name, value

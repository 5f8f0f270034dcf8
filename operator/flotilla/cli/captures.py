"""`flotilla captures`: look at, export and delete the examples that gateways captured."""

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flotilla.cli.common import EXIT_USAGE, command_app, exit_on_error, fail
from flotilla.errors import InvalidSpec
from flotilla.finetuning.capture import Selection, as_preference, read_lines, user_hash, without_metadata
from flotilla.finetuning.capture_store import (
    ExampleStore,
    day_of,
    delete_examples,
    encode_preview,
    examples,
    open_store,
)

_HELP = """Look at, export and delete captured examples.

They are in a folder (a mounted claim) or a bucket. For a claim, run the command where it is mounted:
kubectl exec deploy/flotilla-gateway -- flotilla captures list --from /var/lib/flotilla-captures/CLAIM"""

From = Annotated[str, typer.Option("--from", help="Folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")]
Rules = Annotated[list[str] | None, typer.Option("--rule", help="Only of this rule; may be repeated.")]
Escalated = Annotated[bool, typer.Option("--escalated", help="Only pairs of a rejected and an accepted answer.")]
Ids = Annotated[list[str] | None, typer.Option("--request-id", help="The request's ID; may be repeated.")]
Users = Annotated[list[str] | None, typer.Option("--user", help="The user as the client named it; may be repeated.")]

app = command_app(help=_HELP, no_args_is_help=True)


def _selection(
    rules: list[str] | None, escalated: bool, ids: list[str] | None = None, users: list[str] | None = None
) -> Selection:
    return Selection(
        request_ids=frozenset(ids or ()),
        users=frozenset(user_hash(user) for user in users or ()),
        rules=frozenset(rules or ()),
        escalated_only=escalated,
    )


def _open(location: str) -> ExampleStore:
    if "://" not in location and not Path(location).is_dir():
        fail(
            InvalidSpec(f"There is no folder {location}. Name a folder, or a bucket as s3://BUCKET.", field="--from"),
            EXIT_USAGE,
        )
    with exit_on_error():
        return open_store(location)


@app.command("list")
def list_command(source: From) -> None:
    """Count the examples by policy, rule and day."""
    store = _open(source)
    counts: dict[tuple[str, str, str], list[int]] = {}
    for path in store.paths():
        day = day_of(path)
        if day is None:
            continue
        policy, rule = path.split("/")[-4:-2]
        row = counts.setdefault((policy, rule, day.isoformat()), [0, 0, 0])
        data = store.read(path)
        documents = list(read_lines(data))
        row[0] += len(documents)
        row[1] += sum("rejected" in document for document in documents)
        row[2] += len(data)
    if not counts:
        typer.echo("There are no captured examples.")
        return
    typer.echo(f"{'POLICY':<20} {'RULE':<20} {'DAY':<10} {'EXAMPLES':>8} {'ESCALATED':>9} {'KB':>7}")
    for (policy, rule, day_text), (total, pairs, size) in sorted(counts.items()):
        typer.echo(f"{policy:<20} {rule:<20} {day_text:<10} {total:>8} {pairs:>9} {size / 1000:>7.1f}")


@app.command()
def sample(
    source: From,
    rule: Rules = None,
    escalated: Escalated = False,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="How many.")] = 10,
) -> None:
    """Print the last questions and answers, one a line."""
    documents = list(examples(_open(source), _selection(rule, escalated)))[-most:]
    for document in documents:
        about = document.get("flotilla") or {}
        text = " ".join(encode_preview(document).split())
        typer.echo(f"{about.get('id', ''):<24} {about.get('rule', ''):<12} {text}")
    if not documents:
        typer.echo("There are no such examples.")


@app.command()
def export(
    source: From,
    rule: Rules = None,
    escalated: Escalated = False,
    most: Annotated[int | None, typer.Option("--most", min=1, help="How many at most, oldest first.")] = None,
    form: Annotated[
        Literal["chat", "preference", "full"],
        typer.Option("--format", help="chat: TRL and OpenAI. preference: TRL's DPO. full: with Flotilla's fields."),
    ] = "chat",
) -> None:
    """Write examples to standard output as JSONL."""
    render: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
        "chat": without_metadata,
        "preference": as_preference,
        "full": dict,
    }
    documents = examples(_open(source), _selection(rule, escalated or form == "preference"))
    for document in islice(documents, most):
        shown = render[form](document)
        if shown is not None:
            sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")


@app.command()
def delete(
    source: From,
    request_id: Ids = None,
    user: Users = None,
    rule: Rules = None,
    everything: Annotated[bool, typer.Option("--all", help="All examples.")] = False,
) -> None:
    """Delete examples for good, by request, by user, by rule, or all of them."""
    if not (request_id or user or rule or everything):
        fail(
            InvalidSpec("Name what to delete with --request-id, --user, --rule or --all.", field="--request-id"),
            EXIT_USAGE,
        )
    store = _open(source)
    selection = _selection(rule, False, request_id, user)
    deleted = delete_examples(store, selection)
    typer.echo(f"{deleted} example{'' if deleted == 1 else 's'} deleted.")
    if request_id and deleted == 0:
        raise typer.Exit(1)

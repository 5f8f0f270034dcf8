"""What the commands share: exit codes, options, errors, text for a terminal, lengths of time."""

import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from flotilla.errors import FlotillaError, InvalidSpec, NotReady

EXIT_OK: Final = 0
EXIT_NO: Final = 1
"""The command has worked, and the answer is no: refused, not ready, a failed check."""
EXIT_USAGE: Final = 2
"""Usage error: an unknown option, a value that is not valid, a file that cannot be read."""
EXIT_UNREACHABLE: Final = 3
"""The cluster, the operator or Prometheus does not answer, or denies access. docs/reference/cli.md lists the codes."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="Kubeconfig file. Default: the files of KUBECONFIG, else ~/.kube/config."),
]
Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current context.")
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace. Default: that of the context.")]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Resources of every namespace.")]
OperatorNamespace = Annotated[str, typer.Option("--operator-namespace", help="Namespace of the operator.")]


def command_app(**options: Any) -> typer.Typer:
    """The `app` of a command's module."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **options)


def fail(error: Exception, code: int) -> NoReturn:
    """End the command with the error on standard error, and with its field where the message does not name it."""
    text, field = str(error), getattr(error, "field", "")
    for line in (text if field in text else f"{field}: {text}").splitlines():
        typer.echo(plain(line), err=True)
    raise typer.Exit(code) from error


@contextmanager
def exit_on_error(*, not_ready: int = EXIT_NO) -> Iterator[None]:
    """End the command with the exit code of an error that the block raises."""
    try:
        yield
    except NotReady as error:
        fail(error, not_ready)
    except InvalidSpec as error:
        fail(error, EXIT_UNREACHABLE if error.field == "kubeconfig" else EXIT_USAGE)
    except FlotillaError as error:
        fail(error, EXIT_UNREACHABLE)


def watch(console: Any, view: Callable[[], Any], interval_s: float) -> NoReturn:
    """Show a view again and again until Ctrl-C, then end the command."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            live.update(view(), refresh=True)
            time.sleep(interval_s)
    raise typer.Exit(EXIT_OK)


def plain(text: str) -> str:
    """The text with control, format and bidirectional characters written out, as in `\\x1b`.

    Names come from a cluster or a Prometheus, and a terminal would execute the control characters in them.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"):
        return character.encode("unicode_escape", errors="backslashreplace").decode()
    return character


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_S = 366 * 86_400
_SHORTEST_S = 60


def duration_s(text: str, *, field: str, shortest: str = "1m") -> int:
    """Seconds of `90m`, `24h`, `7d` or `4w`, from `shortest` to a year; raises InvalidSpec."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip())
    if match is None:
        raise InvalidSpec(f"{field} {text!r} is not a length of time, such as 90m, 24h, 7d or 4w.", field=field)
    found = int(match[1]) * _UNITS_S[match[2]]
    shortest_s = int(shortest[:-1]) * _UNITS_S[shortest[-1]]
    if not shortest_s <= found <= _LONGEST_S:
        raise InvalidSpec(f"{field} {text!r} is not between {shortest} and 366d.", field=field)
    return found


def utc_days(start: float, end: float) -> Iterator[tuple[float, float]]:
    """A period in seconds since the epoch, cut at midnight UTC; a part of less than a minute is left out."""
    at = start
    while at < end:
        midnight = datetime.fromtimestamp(at, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        until = min((midnight + timedelta(days=1)).timestamp(), end)
        if until - at >= _SHORTEST_S:
            yield at, until
        at = until

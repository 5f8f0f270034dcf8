"""How a verb ends when it cannot do what was asked: a line on standard error, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from flotilla.cli import exits
from flotilla.cli.terminal import plain
from flotilla.errors import FlotillaError, InvalidSpec, NotReady


def end(error: Exception, code: int) -> NoReturn:
    """Say what is wrong, with the field where the words do not name it."""
    text, field = str(error), getattr(error, "field", "")
    for line in (text if field in text else f"{field}: {text}").splitlines():
        typer.echo(plain(line), err=True)
    raise typer.Exit(code) from error


@contextmanager
def told(*, not_ready: int = exits.NO) -> Iterator[None]:
    """Errors of a question, and of the way to whom it is put, become exit codes."""
    try:
        yield
    except NotReady as error:
        end(error, not_ready)
    except InvalidSpec as error:
        end(error, exits.UNREACHABLE if error.field == "kubeconfig" else exits.WRONG_QUESTION)
    except FlotillaError as error:
        end(error, exits.UNREACHABLE)

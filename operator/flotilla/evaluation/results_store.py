"""The results of cases in a file, a line each, so that a run that was killed continues where it was."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from flotilla.errors import InvalidSpec

_MAX_TEXT = 4000


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Of one case and one target. Fields that are unknown are None."""

    target: str
    case: str
    permille: int | None
    """The score; None for a weird input, which has none, and where the judge did not decide."""
    malformed: bool
    first_token_ms: float | None
    total_ms: float | None
    prompt_tokens: int | None
    cached_tokens: int
    generated_tokens: int | None
    usd: str | None
    """Dollars that the request cost, by the usage that a hosted API reported."""
    charged_usd: str
    """Dollars that count against the limit: the most that the request can cost where no usage was reported, and the
    judge's requests."""
    said: str
    answer: str
    error: str


class ResultsStore:
    """Appends to a file, or keeps results in memory only. `close` it."""

    def __init__(self, path: Path | None, digest: str) -> None:
        """Reads what a run with the same `digest` left; the results of another run are replaced.

        Raises InvalidSpec where the file cannot be written.
        """
        self._results: dict[tuple[str, str], CaseResult] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for result in _read(path, digest) if path.exists() else ():
                self._results[result.target, result.case] = result
            # Written anew, because the last line may be cut off.
            fresh = path.with_name(f"{path.name}.new")
            with fresh.open("w") as file:
                file.write(json.dumps({"digest": digest}) + "\n")
                file.writelines(_line(result) for result in self._results.values())
            fresh.replace(path)
            self._file = path.open("a")
        except OSError as error:
            raise InvalidSpec(f"Results cannot be written to {path}: {error.strerror}.", field="results") from error

    @property
    def results(self) -> list[CaseResult]:
        """All so far."""
        return list(self._results.values())

    def has(self, target: str, case: str) -> bool:
        """Whether the case needs not be asked again."""
        return (target, case) in self._results

    def add(self, result: CaseResult) -> None:
        """Keep a result; a kill right after this loses nothing."""
        self._results[result.target, result.case] = result
        if self._file is not None:
            self._file.write(_line(result))
            self._file.flush()

    def close(self) -> None:
        """Write everything to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _line(result: CaseResult) -> str:
    values: dict[str, Any] = asdict(result)
    return json.dumps({**values, "answer": result.answer[:_MAX_TEXT]}) + "\n"


def _read(path: Path, digest: str) -> Iterator[CaseResult]:
    """The whole lines of a file, if it is of this run."""
    with path.open(errors="replace") as file:
        if _object(file.readline()) != {"digest": digest}:
            return
        for line in file:
            values = _object(line)
            if values is not None:
                try:
                    yield CaseResult(**values)
                except TypeError:
                    continue


def _object(line: str) -> Mapping[str, Any] | None:
    """None for a line that was cut off."""
    try:
        read = json.loads(line)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None

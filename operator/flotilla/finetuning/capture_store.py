"""Files of captured examples, in a folder or a bucket: POLICY/RULE/DATE/WRITER.jsonl.

`FolderStore` appends to one file a day and writer under a lock of the file, so that a deletion never loses what is
being written.

`BucketStore` writes an object for each call, since objects cannot be appended to; it needs obstore, from the
extra `buckets`."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import orjson

from flotilla.errors import InvalidSpec
from flotilla.finetuning.capture import Selection, read_lines


class ExampleStore(Protocol):
    """Where captured examples are."""

    def append(self, path: str, data: bytes) -> None:
        """Write whole lines; all or nothing. Raises OSError."""

    def paths(self) -> list[str]:
        """All files, sorted."""

    def read(self, path: str) -> bytes:
        """The content of a file; empty if it is gone."""

    def rewrite(self, path: str, keep: "LineFilter") -> int:
        """Leave only the lines that `keep` is true of; returns how many were removed."""

    def delete(self, path: str) -> None:
        """Remove a file."""


class LineFilter(Protocol):
    """Says which decoded lines stay."""

    def __call__(self, document: dict[str, Any], /) -> bool: ...


def example_path(policy: str, rule: str, day: date, writer: str) -> str:
    """Path of the file that `writer` fills on `day`."""
    return f"{policy}/{rule}/{day.isoformat()}/{writer}.jsonl"


def day_of(path: str) -> date | None:
    """The day in a path; None for a file that is not ours."""
    parts = path.split("/")
    try:
        return date.fromisoformat(parts[-2]) if len(parts) >= 4 else None
    except ValueError:
        return None


def _filtered(data: bytes, keep: LineFilter) -> tuple[bytes, int]:
    """The lines that stay, and how many go. Lines that cannot be read stay as they are."""
    kept, removed = [], 0
    for line in data.splitlines(keepends=True):
        documents = list(read_lines(line))
        if documents and not keep(documents[0]):
            removed += 1
        else:
            kept.append(line)
    return b"".join(kept), removed


class FolderStore:
    """A folder of this machine, such as a mounted claim."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def append(self, path: str, data: bytes) -> None:
        """See ExampleStore. What a failed write left is cut off again."""
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(file, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            before = os.fstat(descriptor).st_size
            if before and os.pread(descriptor, 1, before - 1) != b"\n":
                # A writer was killed within a line; the rest must not be glued to it.
                before = os.pread(descriptor, before, 0).rfind(b"\n") + 1
                os.ftruncate(descriptor, before)
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise

    def paths(self) -> list[str]:
        """See ExampleStore."""
        return sorted(str(PurePosixPath(file.relative_to(self._root))) for file in self._root.glob("*/*/*/*.jsonl"))

    def read(self, path: str) -> bytes:
        """See ExampleStore."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return b""

    def rewrite(self, path: str, keep: LineFilter) -> int:
        """See ExampleStore."""
        try:
            with self._locked(self._root / path, os.O_RDWR) as descriptor:
                data, removed = _filtered(os.pread(descriptor, os.fstat(descriptor).st_size, 0), keep)
                if removed:
                    os.pwrite(descriptor, data, 0)
                    os.ftruncate(descriptor, len(data))
                    os.fsync(descriptor)
                return removed
        except FileNotFoundError:
            return 0

    def delete(self, path: str) -> None:
        """See ExampleStore. Folders that are empty then are removed too."""
        file = self._root / path
        file.unlink(missing_ok=True)
        for folder in list(file.parents)[:3]:
            with contextlib.suppress(OSError):
                folder.rmdir()

    @contextlib.contextmanager
    def _locked(self, file: Path, flags: int) -> Iterator[int]:
        descriptor = os.open(file, flags, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


class BucketStore:
    """A bucket of S3 or Google Cloud Storage, through obstore. Credentials are those of the environment."""

    def __init__(self, url: str, store: Any = None) -> None:
        """`store` is an obstore store for tests; without it, that of `url` is opened."""
        try:
            import obstore
        except ImportError as error:
            raise InvalidSpec(
                f"{url} needs obstore. Install flotilla-operator[buckets], or use an image that has it.",
                field="spec.capture.to.bucket",
            ) from error
        self._api = obstore
        self._store = store if store is not None else obstore.store.from_url(url)

    def append(self, path: str, data: bytes) -> None:
        """See ExampleStore. Each call makes an object of its own, named by the time in nanoseconds."""
        self._api.put(self._store, f"{path.removesuffix('.jsonl')}-{time.time_ns()}.jsonl", data)

    def paths(self) -> list[str]:
        """See ExampleStore."""
        return sorted(
            one["path"] for page in self._api.list(self._store) for one in page if one["path"].endswith(".jsonl")
        )

    def read(self, path: str) -> bytes:
        """See ExampleStore."""
        try:
            return bytes(self._api.get(self._store, path).bytes())
        except FileNotFoundError:
            return b""

    def rewrite(self, path: str, keep: LineFilter) -> int:
        """See ExampleStore."""
        data, removed = _filtered(self.read(path), keep)
        if removed and data:
            self._api.put(self._store, path, data)
        elif removed:
            self.delete(path)
        return removed

    def delete(self, path: str) -> None:
        """See ExampleStore."""
        with contextlib.suppress(FileNotFoundError):
            self._api.delete(self._store, path)


def open_store(location: str) -> ExampleStore:
    """The store at a folder, or at an s3:// or gs:// address."""
    return BucketStore(location) if location.startswith(("s3://", "gs://")) else FolderStore(Path(location))


def examples(store: ExampleStore, selection: Selection) -> Iterator[dict[str, Any]]:
    """The selected lines, oldest day first."""
    for path in sorted(store.paths(), key=lambda path: (str(day_of(path)), path)):
        for document in read_lines(store.read(path)):
            if selection.matches(document):
                yield document


def delete_examples(store: ExampleStore, selection: Selection) -> int:
    """Delete the selected lines for good; returns how many there were."""
    return sum(store.rewrite(path, lambda document: not selection.matches(document)) for path in store.paths())


def expire(store: ExampleStore, policy: str, retention_days: int, now_s: float) -> int:
    """Delete the files of a policy's days that are past retention; returns how many files."""
    oldest = datetime.fromtimestamp(now_s, UTC).date() - timedelta(days=retention_days)
    gone = [
        path
        for path in store.paths()
        if path.startswith(f"{policy}/") and (day := day_of(path)) is not None and day < oldest
    ]
    for path in gone:
        store.delete(path)
    return len(gone)


@dataclass(slots=True)
class DayQuota:
    """Bytes that one writer has written today for each policy."""

    most: dict[str, int] = field(default_factory=dict)
    _day: date | None = None
    _written: dict[str, int] = field(default_factory=dict)

    def take(self, policy: str, size: int, day: date) -> bool:
        """Whether `size` more bytes fit; they are counted if so."""
        if day != self._day:
            self._day, self._written = day, {}
        total = self._written.get(policy, 0) + size
        if total > self.most.get(policy, 0):
            return False
        self._written[policy] = total
        return True


def encode_preview(document: dict[str, Any]) -> str:
    """A line for people: the last question, the answer, and the rejected answer if there is one."""
    messages = document["messages"]
    asked = next((str(one.get("content")) for one in reversed(messages[:-1]) if one.get("role") == "user"), "")
    text = f"{asked} -> {messages[-1].get('content') or orjson.dumps(messages[-1].get('tool_calls')).decode()}"
    rejected = document.get("rejected")
    return f"{text}   (rejected: {rejected.get('content')})" if rejected else text

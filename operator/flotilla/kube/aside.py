"""What the apiserver tells the watch layer goes past kopf: it gets names, and the objects wait here for them.

kopf decodes each object with the json module, and holds on to it in a task of its own. It needs the object's identity
only, because no handler of ours looks at more; the objects are decoded once, faster, and what the store has already
from the answer to our own write is not announced to anybody.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import orjson

from flotilla.kube.kinds import Kind

Object = dict[str, Any]
Known = Callable[[Kind, Object], bool]
"""Whether an object of exactly this version is in the store. Asked from the watch layer's thread."""
_EVENTS = frozenset({"ADDED", "MODIFIED", "DELETED"})
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")


class Aside:
    """Confined to the watch layer's thread."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._objects: dict[tuple[str, str], Object] = {}

    def clear(self) -> None:
        """A life of the watch layer ended: what it did not ask for is not asked for any more."""
        self._objects.clear()

    def take(self, named: Object) -> Object:
        """The object that was named; the name itself where it was asked for before."""
        return self._objects.pop(_key(named), named)

    def line(self, kind: Kind, line: bytes) -> bytes:
        """A line of a watch, with the object's identity for the object; empty where it says nothing new."""
        event: dict[str, Any] = orjson.loads(line)
        if event.get("type") not in _EVENTS:
            return line
        obj: Object = event["object"]
        if event["type"] != "DELETED" and self._known(kind, obj):
            return b""
        return orjson.dumps({"type": event["type"], "object": self._named(obj)})

    def page(self, content: bytes) -> Any:
        """A page of a LIST, likewise; anything else as it is."""
        answer = orjson.loads(content)
        if isinstance(answer, dict) and isinstance(answer.get("items"), list):
            answer["items"] = [self._named(obj) for obj in answer["items"]]
        return answer

    def _named(self, obj: Object) -> Object:
        meta = {name: obj["metadata"][name] for name in _IDENTITY if name in obj["metadata"]}
        named = {name: obj[name] for name in ("apiVersion", "kind") if name in obj} | {"metadata": meta}
        self._objects[_key(obj)] = obj
        return named


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]


class _Lines:
    """A stream of lines that are changed on their way. Everything but reading is the stream's own."""

    def __init__(self, stream: aiohttp.StreamReader, change: Callable[[bytes], bytes]) -> None:
        self._stream = stream
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Whole lines, as many as came together."""
        rest: list[bytes] = []
        async for data in self._stream.iter_chunked(size):
            *lines, end = data.split(b"\n")
            if lines:
                lines[0] = b"".join((*rest, lines[0]))
                rest.clear()
            if end:
                rest.append(end)
            changed = [self._change(line) for line in lines if line.strip()]
            if told := b"".join(line + b"\n" for line in changed if line):
                yield told
        if rest:
            yield self._change(b"".join(rest))


def response_class(aside: Aside, kinds: Mapping[str, Kind], heard: Callable[[], None]) -> type[aiohttp.ClientResponse]:
    """For the watch layer's session: answers of `kinds`, by their paths, go by way of `aside`; `heard` of each line."""

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            kind = kinds.get(self.url.path)
            if kind is not None and self.status < 400 and "watch" in self.url.query:

                def change(line: bytes) -> bytes:
                    heard()
                    return aside.line(kind, line)

                self.content = _Lines(self.content, change)  # type: ignore[assignment]
            return self

        async def json(self, **options: Any) -> Any:
            if self.status >= 400 or self.url.path not in kinds:
                return await super().json(**options)
            return aside.page(await self.read())

    return Response

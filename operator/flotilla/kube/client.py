"""The client of the apiserver: dictionaries in and out, a timeout on every call, errors of Flotilla's own tree.

The only module that imports `kubernetes`. It uses the official client's configuration, credentials, TLS and HTTP
transport (`kubernetes.aio`), and not its typed API: those models refuse partial objects, which server-side apply is
made of, and cost three times the CPU.

`KubeClient` has one method per verb. `failure` turns an HTTP answer into an error; `watch` and `pages` are the two
halves of a list-and-watch, which `kube.informer` puts together.
"""

import asyncio
import copy
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlencode
from urllib.request import getproxies_environment

import aiohttp
import orjson

from flotilla.errors import Conflict, Ending, FlotillaError, Forbidden, InvalidSpec, NotReady, Transient
from flotilla.kube import kubeconfig as files
from flotilla.kube.kinds import POD, Kind

if "kubernetes" not in sys.modules and (_spec := find_spec("kubernetes")) is not None:
    # `import kubernetes` also loads the synchronous client (requests, oauthlib, websocket), a tenth of the operator's
    # memory that nothing here uses. Registering the package without running its __init__ loads `kubernetes.aio` only.
    # A process that has imported the whole package before keeps it.
    sys.modules["kubernetes"] = module_from_spec(_spec)

from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config_from_dict

Object = dict[str, Any]
WatchEvent = tuple[str, Object]
"""Type (ADDED, MODIFIED, DELETED or BOOKMARK) and object of one line of a watch."""
OnCall = Callable[[str, str, int, float], None]
"""Called after each call with verb, resource, HTTP code (0 when there was no answer) and seconds."""

TOKEN_AGE_S = 60.0
"""Tokens of a kubeconfig are read again when they are older; those of a ServiceAccount the official client renews."""
WATCH_S = 20
"""A watch is closed by the apiserver after this time, and opened again where it ended.

Idle watches carry a bookmark about once a minute only, and one two seconds before their end. So with a short watch the
stream is never silent for longer than this, and `SILENCE_S` of silence means that the connection is dead. The price is
three requests per minute and watch."""
SILENCE_S = 25.0
"""A watch on which nothing arrives for so long is given up."""
JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
PATCHES: Final = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}

_RELOAD_PAUSE_S = 1.0
"""The least time between two reads of the credentials after HTTP 401."""
_READ_BUFFER_BYTES = 2**21
_CHUNK_BYTES = 2**18
"""A watch is decoded in pieces of at most this size, between which the event loop serves others."""
_LINE_BYTES = 2**25
"""The longest line of a watch; etcd takes objects of 1.5 MB."""
_MESSAGE_CHARACTERS = 2000
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
"""ValueError: an answer that is not JSON."""
_REJECTED = frozenset({400, 405, 413, 415, 422})
_UNAUTHORIZED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class ObjectList:
    """The objects of a LIST, or of one page of it, and the version of the snapshot that they are from."""

    items: list[Object]
    resource_version: str


class FieldConflict(Conflict):
    """HTTP 409 of a server-side apply: another manager owns a field. Any other 409 is a race that was lost."""


class NotFound(NotReady):
    """HTTP 404: no such object, no such namespace, or a CRD that is not installed."""


class Expired(Transient):
    """HTTP 410, or an ERROR event of a watch: the version is too old to continue from. List again."""


class ApiConnection:
    """Address, TLS and credentials of one apiserver. Each request asks `authorization` for the token of the moment."""

    def __init__(self, configuration: Configuration, kubeconfig: Path | None, context: str | None) -> None:
        # None of the official client's own limits: callers limit their calls, and watches come on top.
        configuration.connection_pool_maxsize = 0
        # trust_env without a proxy in the environment would only make aiohttp read ~/.netrc in a thread for each
        # request (a sixth of the operator's CPU), and fail where that file names the apiserver's host.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies_environment())}
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._context = context
        self._read_at = time.monotonic()
        self._refused = False
        self._transport = RESTClientObject(configuration)
        self.host: str = configuration.host.rstrip("/")

    @classmethod
    async def load(cls, kubeconfig: Path | None, context: str | None = None) -> "ApiConnection":
        """None means the pod's ServiceAccount; `context` None the current one. Sends nothing.

        Raises InvalidSpec when the kubeconfig cannot be read.
        """
        return cls(await _configuration(kubeconfig, context), kubeconfig, context)

    async def close(self) -> None:
        """Close the connections that `request` opened."""
        await self._transport.close()

    def session(self, *, user_agent: str, traces: Sequence[aiohttp.TraceConfig] = ()) -> aiohttp.ClientSession:
        """A session to the same apiserver for a library with a transport of its own (kopf), in the running loop."""
        tls: ssl.SSLContext = self._transport.ssl_context
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            headers={"User-Agent": user_agent},
            proxy=self._configuration.proxy,
            trust_env=bool(getproxies_environment()),
            trace_configs=list(traces),
            read_bufsize=_READ_BUFFER_BYTES,
        )

    async def request(
        self, method: str, url: str, *, headers: dict[str, str], body: object | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Send one request through the official client's transport."""
        answer = await self._transport.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response

    async def authorization(self) -> str | None:
        """The value of the Authorization header, if any. Raises Transient when credentials cannot be read just now."""
        mine, age_s = self._configuration, time.monotonic() - self._read_at
        old = self._kubeconfig is not None and bool(mine.api_key) and age_s > TOKEN_AGE_S
        try:
            if old or (self._refused and age_s > _RELOAD_PAUSE_S):
                await self._reload()
            token: str | None = await mine.get_api_key_with_prefix("BearerToken", alias="authorization")
        except (ConfigException, InvalidSpec, OSError) as error:
            raise Transient(f"The credentials cannot be read again: {error}") from error
        return token

    def refused(self) -> None:
        """HTTP 401: the next request reads the credentials again, which may have been rotated a moment ago."""
        self._refused = True

    async def _reload(self) -> None:
        self._read_at, self._refused = time.monotonic(), False
        fresh = await _configuration(self._kubeconfig, self._context)
        self._configuration.api_key = fresh.api_key
        self._configuration.refresh_api_key_hook = fresh.refresh_api_key_hook


async def _configuration(kubeconfig: Path | None, context: str | None) -> Configuration:
    configuration = Configuration()
    try:
        if kubeconfig is None:
            load_incluster_config(client_configuration=configuration)
        else:
            content = files.merged(kubeconfig)
            name = files.context_of(content, context)["name"]
            await load_kube_config_from_dict(content, context=name, client_configuration=configuration)
    # The official loader raises the builtin errors for values of a wrong type.
    except (ConfigException, OSError, TypeError, ValueError) as error:
        where = "the pod's ServiceAccount" if kubeconfig is None else f"the kubeconfig {kubeconfig}"
        raise InvalidSpec(f"Cannot read {where}: {error}", field="kubeconfig") from error
    return configuration


class KubeClient:
    """Make one with `connect`, end it with `close`. Confined to one event loop."""

    def __init__(
        self, connection: ApiConnection, *, user_agent: str, timeout_s: float, pool: int, on_call: OnCall | None
    ) -> None:
        self._connection = connection
        self._user_agent = user_agent
        self._timeout_s = timeout_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._pool = pool
        self._slots = asyncio.Semaphore(pool)
        self._on_call = on_call
        self._check_write: Callable[[], None] | None = None

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        user_agent: str,
        timeout_s: float = 10.0,
        pool: int = 32,
        on_call: OnCall | None = None,
    ) -> "KubeClient":
        """`kubeconfig` are one or several files, joined by colons; None means the pod's ServiceAccount.

        `pool` bounds the calls at one time, watches aside; the timeout of a call starts when it is sent.
        Raises InvalidSpec when the kubeconfig cannot be read. Nothing is sent yet.
        """
        connection = await ApiConnection.load(kubeconfig, context)
        return cls(connection, user_agent=user_agent, timeout_s=timeout_s, pool=pool, on_call=on_call)

    def guarded(self, check_write: Callable[[], None]) -> "KubeClient":
        """The same client, which calls `check_write` right before each write; the write is not made if it raises.

        It has a pool of its own, so that its calls do not hold up those of the original.
        """
        guarded = copy.copy(self)
        guarded._slots = asyncio.Semaphore(self._pool)
        guarded._check_write = check_write
        return guarded

    async def close(self) -> None:
        """Close the connections, also those of guarded copies."""
        await self._connection.close()

    async def pages(
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        page_size: int = 25,
    ) -> AsyncIterator[ObjectList]:
        """A LIST page by page, so that a large one need not be in memory at once; items carry no kind.

        `resource_version` is that of the snapshot which all pages show. Raises Expired when reading takes longer than
        the apiserver keeps that snapshot, about five minutes.
        """
        query = {"limit": str(page_size), "labelSelector": label_selector, "fieldSelector": field_selector}
        while True:
            page = await self._call("list", "GET", kind, kind.path(namespace), query=query)
            yield ObjectList(page.get("items") or [], page["metadata"]["resourceVersion"])
            query["continue"] = page["metadata"].get("continue") or None
            if query["continue"] is None:
                return

    async def list(self, kind: Kind, *, namespace: str | None = None, field_selector: str | None = None) -> ObjectList:
        """All objects."""
        items: list[Object] = []
        version = ""
        async for page in self.pages(kind, namespace=namespace, field_selector=field_selector):
            items += page.items
            version = page.resource_version
        return ObjectList(items, version)

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object | None:
        """The object, or None when it does not exist."""
        try:
            return await self._call("get", "GET", kind, kind.path(namespace, name))
        except NotFound:
            return None

    async def pod_text(self, namespace: str, name: str, port: int, path: str) -> str:
        """What a pod answers on a port of its own, through the apiserver; needs `get` on pods/proxy."""
        proxied = f"{POD.path(namespace, f'{name}:{port}', 'proxy')}{path}"
        return (await self._read("proxy", "GET", POD, proxied)).decode(errors="replace")

    async def pod_log(
        self,
        namespace: str,
        name: str,
        *,
        container: str,
        follow: bool = False,
        previous: bool = False,
        since_s: int | None = None,
        tail_lines: int | None = None,
    ) -> AsyncIterator[str]:
        """Lines of a container's log; with `follow` until it ends. Needs `get` on pods/log.

        `previous`: of the container before its last restart. Raises InvalidSpec where there is no such log.
        """
        query = {
            "container": container,
            "follow": "true" if follow else None,
            "previous": "true" if previous else None,
            "sinceSeconds": None if since_s is None else str(since_s),
            "tailLines": None if tail_lines is None else str(tail_lines),
        }
        # The next line of a log that is followed may come at any time; of one that is read, at once.
        silence_s = None if follow else self._timeout_s
        path = POD.path(namespace, name, "log")
        async with self._stream("log", POD, path, query=query, silence_s=silence_s) as content:
            async for line in content:
                yield line.decode(errors="replace").rstrip("\r\n")

    async def create(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        """POST; raises Conflict when the name is taken."""
        return await self._call("create", "POST", kind, kind.path(obj["metadata"].get("namespace")), body=obj)

    async def update(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        """PUT; raises Conflict when `metadata.resourceVersion` is no longer the newest."""
        return await self._call("update", "PUT", kind, kind.path_of(obj), body=obj)

    async def apply(
        self,
        kind: Kind,
        obj: Mapping[str, Any],
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> Object:
        """Server-side apply; without `force` a field of another manager raises FieldConflict, which names both."""
        path = kind.path_of(obj, subresource)
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self._call("patch", "PATCH", kind, path, query=query, body=obj, content_type=APPLY)

    async def apply_status(self, kind: Kind, obj: Mapping[str, Any], *, manager: str) -> Object:
        """Server-side apply to the status subresource."""
        return await self.apply(kind, obj, manager=manager, subresource="status")

    async def patch(
        self,
        kind: Kind,
        name: str,
        body: object,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        patch_type: Literal["merge", "strategic", "json"] = "merge",
    ) -> Object:
        """PATCH of any other type; raises NotReady when there is no such object."""
        path = kind.path(namespace, name, subresource)
        return await self._call("patch", "PATCH", kind, path, body=body, content_type=PATCHES[patch_type])

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        grace_period_s: int | None = None,
        propagation: str = "Background",
    ) -> bool:
        """False when it was gone already; with `uid`, Conflict when another object of that name has taken its place."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        try:
            await self._call("delete", "DELETE", kind, kind.path(namespace, name), body=options)
        except NotFound:
            return False
        return True

    async def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        lasts_s: int = WATCH_S,
        silence_s: float = SILENCE_S,
    ) -> AsyncIterator[Sequence[WatchEvent]]:
        """Yield the events after `resource_version`, bookmarks too, as many at once as arrived together.

        Ends when the apiserver closes the stream, which it does after `lasts_s`: call again with the last version seen.
        Raises Expired when that version is too old, and Transient when the stream breaks off or is silent for
        `silence_s`.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(lasts_s),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        path = kind.path(namespace)
        call = f"watch {path}"
        async with self._stream("watch", kind, path, query=query, silence_s=silence_s) as content:
            pieces: list[bytes] = []
            size = 0
            async for chunk in content.iter_chunked(_CHUNK_BYTES):
                *lines, rest = chunk.split(b"\n")
                if lines:
                    lines[0] = b"".join((*pieces, lines[0]))
                    pieces, size = [], 0
                    yield [watch_event(call, line) for line in lines if line]
                if rest:
                    pieces.append(rest)
                    size += len(rest)
                    if size > _LINE_BYTES:
                        raise Transient(f"{call}: the apiserver sent an event of more than {_LINE_BYTES} bytes.")
                # Data that waits already is read without giving way to others.
                await asyncio.sleep(0)

    @asynccontextmanager
    async def _stream(
        self, verb: str, kind: Kind, path: str, *, query: Mapping[str, str | None], silence_s: float | None
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of an answer that lasts, for as long as the server likes; outside of the pool."""
        started, code = time.monotonic(), 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=silence_s)
        try:
            async with await self._send("GET", path, query=query, timeout=timeout) as answer:
                code = answer.status
                if code >= 400:
                    raise self._failure(f"{verb} {path}", answer, await answer.read())
                yield answer.content
        except _NO_ANSWER as error:
            raise no_answer(f"{verb} {path}", error) from error
        finally:
            self._observe(verb, kind, code, started)

    async def _call(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: object | None = None,
        content_type: str = JSON,
    ) -> Object:
        content = await self._read(verb, method, kind, path, query=query, body=body, content_type=content_type)
        try:
            result: Object = orjson.loads(content)
        except ValueError as error:
            raise no_answer(f"{verb} {path}", error) from error
        return result

    async def _read(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: object | None = None,
        content_type: str = JSON,
    ) -> bytes:
        async with self._slots:
            started, code = time.monotonic(), 0
            try:
                async with await self._send(
                    method, path, query=query, body=body, content_type=content_type, timeout=self._timeout
                ) as answer:
                    content = await answer.read()
                    code = answer.status
                    if code >= 400:
                        raise self._failure(f"{verb} {path}", answer, content)
                    return content
            except _NO_ANSWER as error:
                code = 0
                raise no_answer(f"{verb} {path}", error) from error
            finally:
                self._observe(verb, kind, code, started)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None,
        timeout: aiohttp.ClientTimeout,
        body: object | None = None,
        content_type: str = JSON,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": self._user_agent}
        if token := await self._connection.authorization():
            headers["Authorization"] = token
        if method != "GET" and self._check_write is not None:
            self._check_write()
        target = url(self._connection.host, path, query)
        return await self._connection.request(method, target, headers=headers, body=body, timeout=timeout)

    def _failure(self, call: str, answer: aiohttp.ClientResponse, content: bytes) -> FlotillaError:
        if answer.status == 401:
            self._connection.refused()
        return failure(call, answer.status, answer.headers, content)

    def _observe(self, verb: str, kind: Kind, code: int, started: float) -> None:
        if self._on_call is not None:
            self._on_call(verb, kind.plural, code, time.monotonic() - started)


def url(host: str, path: str, query: Mapping[str, str | None] | None) -> str:
    """The whole address; parameters that are None are left out."""
    pairs = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{host}{path}?{urlencode(pairs)}" if pairs else f"{host}{path}"


def failure(call: str, code: int, headers: Mapping[str, str], body: bytes) -> FlotillaError:
    """The error for an answer of HTTP `code` >= 400; `call` says what was tried ("patch /api/v1/...")."""
    status = _status(body)
    text = str(status.get("message") or body.decode(errors="replace")).strip()[:_MESSAGE_CHARACTERS]
    message = f"{call}: {text or 'no explanation'} (HTTP {code})"
    if code == 404:
        return NotFound(message)
    if code in _UNAUTHORIZED:
        return Ending(message) if _has_cause(status, "NamespaceTerminating") else Forbidden(message)
    if code == 409:
        return FieldConflict(message) if _has_cause(status, "FieldManagerConflict") else Conflict(message)
    if code == 410:
        return Expired(message)
    if code in _REJECTED:
        return InvalidSpec(message, reason="Rejected")
    return Transient(message, retry_after_s=_retry_after_s(headers, status))


def watch_event(call: str, line: bytes) -> WatchEvent:
    """Type and object of one line of a watch; an ERROR raises Expired."""
    event = orjson.loads(line)
    if event["type"] == "ERROR":
        raise Expired(f"{call}: the apiserver ended it: {event['object'].get('message') or 'no explanation'}")
    return event["type"], event["object"]


def no_answer(call: str, error: BaseException) -> Transient:
    """The error for an answer that never came, or that broke off."""
    return Transient(f"{call}: the apiserver gave no answer ({str(error) or type(error).__name__}).")


def _status(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _has_cause(status: Mapping[str, Any], reason: str) -> bool:
    causes = (status.get("details") or {}).get("causes") or ()
    return any(cause.get("reason") == reason for cause in causes)


def _retry_after_s(headers: Mapping[str, str], status: Mapping[str, Any]) -> float | None:
    wish = headers.get("Retry-After") or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return max(0.0, float(wish)) if wish else None
    except ValueError:
        # The other form of the header is a date; no Kubernetes component sends it.
        return None

"""The one way to the apiserver: dictionaries in and out, a timeout on every call, errors of our own tree.

Built on `kubernetes.aio`'s configuration, TLS and token refresh and not on its typed API: those models refuse partial
objects, which server-side apply is made of, and cost three times the CPU.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.request import getproxies_environment

import aiohttp
import orjson

from flotilla.errors import InvalidSpec, Transient
from flotilla.kube.kinds import POD, Kind
from flotilla.kube.official import (
    ConfigException,
    Configuration,
    RESTClientObject,
    load_incluster_config,
    load_kube_config,
)
from flotilla.kube.protocol import APPLY, JSON, PATCHES, NotFound, ObjectList, failure, silence, url, watch_event

Object = dict[str, Any]
OnCall = Callable[[str, str, int, float], None]
"""Told of each call: verb, resource, HTTP code (0 when there was no answer), seconds."""

TOKEN_AGE_S = 60.0
_READ_BUFFER = 2**21
"""A watch event may take twice as much."""
_SILENT = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
"""ValueError: an answer that is not JSON, or a watch event beyond the read buffer of 4 MiB."""


class Connection:
    """Where the apiserver is, and who we are there: the client and the watch layer log in by it."""

    def __init__(self, configuration: Configuration, kubeconfig: Path | None) -> None:
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._read_at = time.monotonic()
        self.host: str = configuration.host.rstrip("/")
        self.server_name: str | None = configuration.tls_server_name
        """What the apiserver's certificate names, where that is not the host."""
        self._tls: ssl.SSLContext = RESTClientObject(configuration).ssl_context

    @classmethod
    async def load(cls, kubeconfig: Path | None) -> "Connection":
        """None means the pod's ServiceAccount. Raises InvalidSpec when it cannot be read. Sends nothing."""
        return cls(await _configuration(kubeconfig), kubeconfig)

    def session(
        self,
        *,
        user_agent: str,
        traces: Sequence[aiohttp.TraceConfig] = (),
        response_class: type[aiohttp.ClientResponse] = aiohttp.ClientResponse,
    ) -> aiohttp.ClientSession:
        """For the running loop. The connections are as many as there are calls: callers count theirs themselves."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
            headers={"User-Agent": user_agent},
            proxy=self._configuration.proxy,
            # Where the environment names no proxy, trusting it only means that aiohttp reads ~/.netrc in a thread for
            # each request (a sixth of the operator's CPU), and fails where that names the apiserver's host.
            trust_env=bool(getproxies_environment()),
            trace_configs=list(traces),
            response_class=response_class,
            read_bufsize=_READ_BUFFER,
        )

    async def authorization(self) -> str | None:
        """The value of the Authorization header, if any. Tokens rotate, so they are read again every minute.

        Raises Transient when they cannot be read just now.
        """
        mine = self._configuration
        try:
            if self._kubeconfig is not None and mine.api_key and time.monotonic() - self._read_at > TOKEN_AGE_S:
                self._read_at = time.monotonic()
                mine.api_key = (await _configuration(self._kubeconfig)).api_key
            token: str | None = await mine.get_api_key_with_prefix("BearerToken", alias="authorization")
        except (ConfigException, InvalidSpec, OSError) as error:
            raise Transient(f"The credentials cannot be read again: {error}") from error
        return token


async def _configuration(kubeconfig: Path | None) -> Configuration:
    configuration = Configuration()
    try:
        if kubeconfig is None:
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    except (ConfigException, OSError) as error:
        where = "the pod's ServiceAccount" if kubeconfig is None else f"the kubeconfig {kubeconfig}"
        raise InvalidSpec(f"Cannot read {where}: {error}", field="kubeconfig") from error
    return configuration


class KubeClient:
    """Make one with `connect`, end it with `close`."""

    def __init__(
        self, connection: Connection, *, user_agent: str, timeout_s: float, pool: int, on_call: OnCall | None
    ) -> None:
        self._connection = connection
        self._session = connection.session(user_agent=user_agent)
        self._timeout_s = timeout_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._slots = asyncio.Semaphore(pool)
        self._on_call = on_call

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: Path | None = None,
        user_agent: str,
        timeout_s: float = 10.0,
        pool: int = 32,
        on_call: OnCall | None = None,
    ) -> "KubeClient":
        """`kubeconfig` None means the pod's ServiceAccount.

        `pool` bounds the calls at one time, watches aside; the timeout of a call starts when it is sent.
        Raises InvalidSpec when the kubeconfig cannot be read. Nothing is sent yet.
        """
        connection = await Connection.load(kubeconfig)
        return cls(connection, user_agent=user_agent, timeout_s=timeout_s, pool=pool, on_call=on_call)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

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

        `resource_version` is that of the snapshot which all pages show.
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
        """The object, None when there is none."""
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
        # Nobody knows when a line will come; of a log as it is now the next piece comes at once.
        idle_s = None if follow else self._timeout_s
        path = POD.path(namespace, name, "log")
        async with self._stream("log", POD, path, query=query, idle_timeout_s=idle_s) as lines:
            async for line in lines:
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
        """False when it was gone already; with `uid`, Conflict when a namesake has taken its place."""
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
        idle_timeout_s: float = 90.0,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Yield (type, object), bookmarks too, from `resource_version` on.

        Ends with Transient when the server closes the stream, answers 410, or is silent for `idle_timeout_s`
        (bookmarks come each minute): list again then.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        path = kind.path(namespace)
        async with self._stream("watch", kind, path, query=query, idle_timeout_s=idle_timeout_s) as lines:
            async for line in lines:
                yield watch_event(f"watch {path}", line)
        raise Transient(f"watch {path}: the apiserver closed it.")

    @asynccontextmanager
    async def _stream(
        self, verb: str, kind: Kind, path: str, *, query: Mapping[str, str | None], idle_timeout_s: float | None
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """What comes line by line, for as long as the server likes; outside of the pool."""
        started, code = time.monotonic(), 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=idle_timeout_s)
        try:
            async with await self._send("GET", path, query=query, timeout=timeout) as answer:
                code = answer.status
                if code >= 400:
                    raise failure(f"{verb} {path}", code, answer.headers, await answer.read())
                yield answer.content
        except _SILENT as error:
            raise silence(f"{verb} {path}", error) from error
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
            raise silence(f"{verb} {path}", error) from error
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
                        raise failure(f"{verb} {path}", code, answer.headers, content)
                    return content
            except _SILENT as error:
                code = 0
                raise silence(f"{verb} {path}", error) from error
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
        headers = {"Accept": JSON, "Content-Type": content_type}
        if token := await self._connection.authorization():
            headers["Authorization"] = token
        return await self._session.request(
            method,
            url(self._connection.host, path, query),
            headers=headers,
            data=None if body is None else orjson.dumps(body),
            timeout=timeout,
            server_hostname=self._connection.server_name,
        )

    def _observe(self, verb: str, kind: Kind, code: int, started: float) -> None:
        if self._on_call is not None:
            self._on_call(verb, kind.plural, code, time.monotonic() - started)

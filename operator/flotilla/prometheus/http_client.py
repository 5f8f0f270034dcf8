"""The blocking half of the Prometheus client, around prometheus-api-client 0.7.

That library has no limit on time or size, retries for many seconds, follows redirects, reads ~/.netrc, and drops the
type and the warnings of an answer. Each is set right here, in the session that it is given. The library brings
dateparser, a quarter of a second and some MiB: this module is imported with the first query, in a worker thread.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from flotilla.errors import Forbidden, Incomplete, InvalidSpec, Transient

_LIMIT_BYTES = 32 * 2**20
_LONGEST_IN_URL = 4000
_TOKEN_LIMIT_BYTES = 64 * 2**10
_AGAIN = frozenset({502, 503, 504})
"""A proxy or a Prometheus that starts: worth another try at once."""
_QUOTED = 300

Answer = tuple[str, Any]
"""resultType and result of an answer."""


class PrometheusConnection:
    """One HTTP session, for one thread. Each call ends by `deadline`, a time.monotonic()."""

    def __init__(self, url: str, *, ca_file: Path | None, token_file: Path | None) -> None:
        self._session = _Session(token_file)
        self._session.verify = str(ca_file) if ca_file else True
        self._api = PrometheusConnect(url=url, session=self._session, retry=Retry(total=0, redirect=0), method="GET")

    def close(self) -> None:
        """Close the sockets."""
        self._api.close()

    def query(self, promql: str, deadline: float) -> Answer:
        """An instant query now."""
        return self._try(lambda: self._api.custom_query(promql), deadline)

    def query_range(self, promql: str, start: float, end: float, step_s: float, deadline: float) -> Answer:
        """From `start` to `end` in Unix seconds, of which the library takes whole ones."""
        first, last = datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)
        return self._try(lambda: self._api.custom_query_range(promql, first, last, f"{step_s:g}"), deadline)

    def _try(self, call: Callable[[], object], deadline: float) -> Answer:
        self._session.deadline = deadline
        for last in (False, True):
            self._session.envelope = None
            try:
                call()
            except (OSError, HTTPError, _Busy) as error:
                # Every RequestException is an OSError, and so is a prometheus_ca_file that does not exist.
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise Transient(
                        f"The certificate of Prometheus is not trusted; name its authority in prometheus_ca_file: "
                        f"{_short(str(error))}"
                    ) from error
                if last or time.monotonic() >= deadline:
                    raise Transient(f"Prometheus does not answer: {_short(str(error))}") from error
                continue
            except PrometheusApiClientException as error:
                # The session has raised for everything but 200.
                raise Transient(f"Prometheus answers with something else: {_short(str(error))}") from error
            return _content(self._session.envelope)
        raise AssertionError("the last try returns or raises")


class _Busy(Exception):
    """The server says that another try may work."""


class _Session(requests.Session):
    """What the library sends its requests through."""

    def __init__(self, token_file: Path | None) -> None:
        super().__init__()
        # ~/.netrc and proxies of the environment would add credentials or lead elsewhere.
        self.trust_env = False
        self.deadline = 0.0
        self.envelope: Any = None
        self._token_file = token_file

    def request(self, method: str, url: str | bytes, *_: Any, **options: Any) -> requests.Response:
        """Send within the deadline, read within the limits, and keep the whole answer in `envelope`."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise requests.exceptions.Timeout("no time left")
        parameters = options["params"]
        long = len(parameters["query"]) > _LONGEST_IN_URL
        with super().request(
            "POST" if long else method,
            url,
            params=None if long else parameters,
            data=parameters if long else None,
            headers={"Accept-Encoding": "identity"} | self._authorization(),
            verify=options["verify"],
            timeout=left_s,
            allow_redirects=False,
            stream=True,
        ) as response:
            response._content = self._read(response)
            self.envelope = _envelope(response)
        return response

    def _authorization(self) -> dict[str, str]:
        """Read each time: mounted tokens are renewed."""
        if self._token_file is None:
            return {}
        try:
            with self._token_file.open("rb") as file:
                token = file.read(_TOKEN_LIMIT_BYTES).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise Transient(f"prometheus_bearer_token_file {self._token_file} is not readable: {error}") from error
        if not token or not token.isprintable() or " " in token:
            raise Transient(f"prometheus_bearer_token_file {self._token_file} does not hold one token.")
        return {"Authorization": f"Bearer {token}"}

    def _read(self, response: requests.Response) -> bytes:
        body = bytearray()
        # read1 returns with whatever came: a server that drips would hold the thread without end in a whole read.
        while chunk := response.raw.read1(65536):
            body += chunk
            if len(body) > _LIMIT_BYTES:
                raise Transient(f"Prometheus answers with more than {_LIMIT_BYTES} bytes; ask for fewer series.")
            if time.monotonic() >= self.deadline:
                raise requests.exceptions.Timeout("the answer takes too long")
        return bytes(body)


def _envelope(response: requests.Response) -> Any:
    """The JSON document; raises what the status or the document says."""
    try:
        document = orjson.loads(response.content)
    except ValueError:
        document = None
    said = document.get("error") if isinstance(document, dict) else None
    error = _refusal(response.status_code, _short(str(said or response.reason)))
    if error is not None:
        raise error
    data = document.get("data") if isinstance(document, dict) and document.get("status") == "success" else None
    if not isinstance(data, dict) or not isinstance(data.get("resultType"), str) or "result" not in data:
        raise Transient("prometheus_url answers, but not as Prometheus does. Check that the address is the server's.")
    return document


def _refusal(status: int, said: str) -> Exception | None:
    if status == 200:
        return None
    if status in (400, 422):
        # 422: too many samples, or an execution error; both heal only with another query.
        return InvalidSpec(f"Prometheus refuses the query: {said}", field="query")
    if status in (401, 403):
        return Forbidden(f"Prometheus answers {status} {said}. Set prometheus_bearer_token_file to a token it accepts.")
    if 300 <= status < 400:
        return Transient(
            f"Prometheus answers with a redirect ({status}), which is not followed; name the final address."
        )
    if status == 404:
        return Transient("prometheus_url answers 404. Check the path: /api/v1/query is added to it.")
    return _Busy(f"HTTP {status} {said}") if status in _AGAIN else Transient(f"Prometheus answers {status} {said}.")


def _content(envelope: Any) -> Answer:
    # `infos` are remarks about the query; `warnings` say that a part of the data may be missing.
    if warnings := envelope.get("warnings"):
        raise Incomplete(f"Prometheus answers with a part of the data: {_short('; '.join(map(str, warnings)))}")
    return envelope["data"]["resultType"], envelope["data"]["result"]


def _short(text: str) -> str:
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."

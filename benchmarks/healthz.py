"""Measures how long an operator takes to answer /healthz, with repeated requests from a separate process.

`HealthProbe` starts this file as that process; it imports little, so it starts quickly. An operator that shares
two cores with an apiserver also waits for a core: compare the result with another operator on the same machine.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_TIMEOUT_S = 120


@dataclass(frozen=True)
class Answers:
    """The results of the probe; times in milliseconds."""

    count: int
    longest_ms: float
    median_ms: float


class HealthProbe:
    """Sends requests from its start until `stop`, with a pause of `interval_s` after each answer.

    An answer costs the operator about 0.2 ms of CPU; take this into account if CPU is measured at the same time.
    """

    def __init__(self, url: str, *, interval_s: float) -> None:
        command = [sys.executable, "-I", __file__, url, str(interval_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop(self) -> Answers:
        """Raises CalledProcessError when /healthz failed or took more than two minutes."""
        output, _ = self._process.communicate(timeout=2 * _TIMEOUT_S)
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._process.args)
        return Answers(**json.loads(output))


def main(url: str, interval_s: float) -> None:
    """Probe until standard input ends."""
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
    seen = list[float]()
    while not seen or not ended.is_set():
        started = time.perf_counter()
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.client.OK:
            sys.exit(f"{url} answered {answer.status}")
        seen.append(1000 * (time.perf_counter() - started))
        ended.wait(interval_s)
    seen.sort()
    sys.stdout.write(json.dumps({"count": len(seen), "longest_ms": seen[-1], "median_ms": seen[len(seen) // 2]}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

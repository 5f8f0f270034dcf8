"""Child processes with a log file and an orderly end, which die with their parent; and waiting for conditions."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from flotilla.errors import NotReady, Transient

_LAUNCHER = Path(__file__).with_name("launcher.py")
# PR_SET_PDEATHSIG fires when the *thread* that forked ends (prctl(2)), so every child is forked by one thread
# that lives as long as this process. Otherwise a child of a worker thread would die with that thread.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="flotilla-spawn")


class Process:
    """A running program; `start` is the only way to make one."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.log = log
        self._popen = popen

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> "Process":
        """Start `argv` in a session of its own, both output streams appended to `log`.

        The session keeps a terminal's Ctrl-C away from the child: the parent ends its children in an order of
        its own. Raises NotReady when the program does not exist.
        """
        program = shutil.which(argv[0])
        if program is None:
            raise NotReady(f"The program {argv[0]} of {name} does not exist or is not executable.")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), program, *argv[1:]]
        with log.open("ab") as output:
            popen = _SPAWNER.submit(
                subprocess.Popen[bytes],
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
            ).result()
        return cls(name, argv, log, popen)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._popen.poll()

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def check(self) -> None:
        """Raise NotReady, with the end of the log, when the process has ended by itself."""
        code = self.exit_code
        if code is not None:
            raise NotReady(f"{self.name} ended with exit status {code}. The end of {self.log}:\n{self.log_tail()}")

    def wait(self, timeout_s: float) -> bool:
        """True when the process has ended within `timeout_s` seconds."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its sockets stay open, and nothing answers once this has returned."""
        self._popen.send_signal(signal.SIGSTOP)
        # kill(2) returns before the threads on other cores have stopped, and one of them could still answer.
        os.waitid(os.P_PID, self._popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask for the end (SIGTERM) without waiting; a paused process is resumed, else it could not obey."""
        self._popen.terminate()
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process and all of its session at once (SIGKILL)."""
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._popen.wait()

    def stop(self, *, grace_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after `grace_s` seconds."""
        self.terminate()
        if not self.wait(grace_s):
            self.kill()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        return tail(self.log, lines)


def tail(log: Path, lines: int) -> str:
    """The last lines of a log; empty where the file does not exist."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


T = TypeVar("T")

_LONGEST_PAUSE_S = 0.25


def until(probe: Callable[[], T | None], *, what: str, timeout_s: float, interval_s: float = 0.05) -> T:
    """The first truthy value of `probe`; a Transient that it raises counts as "not yet".

    It is asked every `interval_s` seconds at first, then after a tenth of what was waited so far, four times a
    second at last: the answers cost a small cluster more than the wait does. `what` completes the sentence "Gave up
    waiting for ...". Raises NotReady after `timeout_s` seconds.
    """
    start = time.monotonic()
    deadline = start + timeout_s
    while True:
        reason = ""
        try:
            value = probe()
        except Transient as error:
            value, reason = None, f" The last answer: {error}"
        if value:
            return value
        now = time.monotonic()
        if now >= deadline:
            raise NotReady(f"Gave up waiting for {what} after {timeout_s:g} s.{reason}")
        time.sleep(max(interval_s, min((now - start) / 10, _LONGEST_PAUSE_S)))

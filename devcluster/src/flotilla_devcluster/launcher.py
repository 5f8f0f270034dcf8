"""Runs one program that the kernel kills when its parent dies.

Executed as a script (`python -I -S launcher.py PARENT_PID PROGRAM ARGS...`), so it imports nothing of
Flotilla. A program of its own rather than `preexec_fn`: Python code between fork and exec may deadlock in a
process with threads, and Python 3.12 warns about it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h; survives execve (prctl(2))."""


def die_with(parent_pid: int, program: str) -> None:
    """Ask for SIGKILL at the parent's death; SystemExit when it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        # The parent died before prctl took effect, so its death will send no signal any more.
        sys.exit(f"The parent process {parent_pid} has ended, so {program} is not started.")


def main() -> None:
    """Ask for SIGKILL at the parent's death, then become the program."""
    parent_pid, argv = int(sys.argv[1]), sys.argv[2:]
    die_with(parent_pid, argv[0])
    # Python ignores these two, and an ignored signal stays ignored across execve.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    main()

"""`python -m flotilla_devcluster.engine <engine> <bind-ip> -- <argv>`; see the package."""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any, Final

from flotilla_devcluster.engine.settings import Refused

ENGINES: Final = {"vllm": "vllm", "tgi": "tgi", "sglang": "sglang", "llamacpp": "llamacpp"}
"""Engine name to module NAME: `NAME_config.configure(argv, env)` and `NAME.make(config)`."""
_LISTEN_EARLY: Final = ("llamacpp",)
"""Engines that answer health checks while they load."""
_USAGE: Final = f"usage: python -m flotilla_devcluster.engine {{{'|'.join(ENGINES)}}} BIND_IP -- [ARGUMENT...]"


def main(arguments: list[str]) -> int:
    """The exit code of the simulated process."""
    started_s = time.monotonic()
    if len(arguments) < 3 or arguments[0] not in ENGINES or arguments[2] != "--":
        print(_USAGE, file=sys.stderr)
        return 2
    name, address, _, *argv = arguments
    try:
        config = _module(f"{ENGINES[name]}_config").configure(argv, os.environ)
        # The HTTP stack is imported after the parser has accepted the arguments: a refusal costs a tenth of a start.
        import asyncio

        from flotilla_devcluster.engine.serving import bind, serve

        engine = _module(ENGINES[name])
        listener = bind(config, address)
        make = engine.make
        early = name in _LISTEN_EARLY
        return asyncio.run(
            serve(config, lambda: make(config), listener=listener, started_s=started_s, listens_early=early)
        )
    except Refused as refused:
        print(refused.text, file=sys.stderr)
        return refused.exit_code


def _module(name: str) -> Any:
    return importlib.import_module(f"flotilla_devcluster.engine.{name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

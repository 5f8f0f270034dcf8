"""Which image is run as which local program."""

import re
import sys
from collections.abc import Mapping, Sequence

_ENGINES = (
    ("vllm", re.compile(r"(^|/)vllm-openai(-[a-z]+)?(:|@|$)")),
    ("tgi", re.compile(r"(^|/)text-generation-inference(:|@|$)")),
    # has no entrypoint: the container's command names the program, and the simulated engine insists on it
    ("sglang", re.compile(r"(^|/)sglang(:|@|$)")),
    # the tags full and light are other programs
    ("llamacpp", re.compile(r"(^|/)llama\.cpp(:(?!full|light)|@|$)")),
)
_OWN = re.compile(r"(^|/)flotilla(:|@|$)")


def real_program(image: str, arguments: Sequence[str], programs: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The command that stands for the image: one of `programs`, whose keys are beginnings of names, or our own gateway.

    Operators of a chart are played by a timer: their settings name a port and no address, which two cannot share.
    """
    given = next((list(command) for start, command in programs.items() if image.startswith(start)), None)
    gateway = _OWN.search(image) and list(arguments[:1]) == ["gateway"]
    return given or ([sys.executable, "-m", "flotilla"] if gateway else None)


def program(image: str, address: str, arguments: list[str]) -> list[str] | None:
    """The local command for a container, None when the image is not known and is played by a timer.

    `arguments` are the container's, as its image's entrypoint would get them.
    """
    for engine, pattern in _ENGINES:
        if pattern.search(image):
            return [sys.executable, "-m", "flotilla.devcluster.engine", engine, address, "--", *arguments]
    return None

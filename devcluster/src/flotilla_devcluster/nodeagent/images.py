"""Which image is run as which local program."""

import re
import sys
from collections.abc import Mapping, Sequence

from flotilla_devcluster.addresses import POD_ADDRESS_MAP

_ENGINES = (
    ("vllm", re.compile(r"(^|/)vllm-openai(-[a-z]+)?(:|@|$)")),
    ("tgi", re.compile(r"(^|/)text-generation-inference(:|@|$)")),
    # has no entrypoint: the container's command names the program, and the simulated engine insists on it
    ("sglang", re.compile(r"(^|/)sglang(:|@|$)")),
    # the tags full and light are other programs
    ("llamacpp", re.compile(r"(^|/)llama\.cpp(:(?!full|light)|@|$)")),
)
_OWN = re.compile(r"(^|/)flotilla(:|@|$)")


def real_program(image: str, arguments: list[str], programs: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The command that stands for the image: one of `programs`, whose keys are beginnings of names, or our own."""
    given = next((list(command) for start, command in programs.items() if image.startswith(start)), None)
    own = _OWN.search(image) and arguments[:1] in (["gateway"], ["operator"])
    return given or ([sys.executable, "-m", "flotilla"] if own else None)


def network(address: str) -> dict[str, str]:
    """What tells our own programs of the pod network: all pods share the machine's, so each has its address there."""
    return {"FLOTILLA_LISTEN_HOST": address, "FLOTILLA_POD_ADDRESS_MAP": POD_ADDRESS_MAP}


def engine(image: str, address: str, arguments: list[str]) -> list[str] | None:
    """What `python -m flotilla_devcluster.engine` is asked for a container, None when the image is no engine's.

    `arguments` are the container's, as its image's entrypoint would get them.
    """
    for name, pattern in _ENGINES:
        if pattern.search(image):
            return [name, address, "--", *arguments]
    return None

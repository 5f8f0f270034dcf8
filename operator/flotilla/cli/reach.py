"""From the command line to the apiserver, as kubectl finds it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from flotilla import __version__
from flotilla.errors import InvalidSpec, NotReady
from flotilla.kube.client import KubeClient, NotFound

Answer = TypeVar("Answer")
_HOME = Path("~/.kube/config")


def kubeconfig(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The one that is given, of KUBECONFIG, or ~/.kube/config; None inside of a pod.

    Raises InvalidSpec with the remedy where there is none of them.
    """
    named = given or next((Path(part) for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part), None)
    path = named or Path(environ.get("HOME", "~")).expanduser() / _HOME.relative_to("~")
    if path.is_file():
        return path
    if named is None and "KUBERNETES_SERVICE_HOST" in environ:
        return None
    raise InvalidSpec(
        f"{path} does not exist. Name a kubeconfig, or export KUBECONFIG; `flotilla devcluster up` makes a cluster.",
        field="--kubeconfig",
    )


def namespace_of(path: Path | None) -> str:
    """The namespace of the kubeconfig's current context."""
    if path is None:
        return "default"
    try:
        content: Any = yaml.safe_load(path.read_text()) or {}
        contexts = {entry["name"]: entry["context"] for entry in content.get("contexts") or ()}
        return str((contexts.get(content.get("current-context")) or {}).get("namespace") or "default")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSpec(f"{path} is no kubeconfig: {error}", field="--kubeconfig") from error


def ask(path: Path | None, question: Callable[[KubeClient], Awaitable[Answer]], *, timeout_s: float = 10.0) -> Answer:
    """Connect, ask, disconnect. Raises the errors of `KubeClient`; a kind that is unknown is told with its remedy."""

    async def run() -> Answer:
        client = await KubeClient.connect(
            kubeconfig=path, user_agent=f"flotilla-cli/{__version__}", timeout_s=timeout_s
        )
        try:
            return await question(client)
        except NotFound as error:
            raise NotReady(
                f"{error}. If the CRDs are missing: flotilla crds | kubectl apply --server-side -f -"
            ) from error
        finally:
            await client.close()

    return asyncio.run(run())

"""The cluster that a command reaches, found as kubectl finds it: --kubeconfig, --context, --namespace."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flotilla import __version__
from flotilla.errors import InvalidSpec, NotReady
from flotilla.kube import kubeconfig

if TYPE_CHECKING:
    from flotilla.kube.client import KubeClient

Answer = TypeVar("Answer")
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the apiserver is. Nothing is read before the first question."""

    files: Path | None
    """Kubeconfig files, joined by colons; None means the pod's ServiceAccount."""
    context: str | None = None
    """None means the current context."""

    @classmethod
    def find(cls, given: Path | None, context: str | None = None, environ: Mapping[str, str] = os.environ) -> "Cluster":
        """By the options of a command and the environment. Raises InvalidSpec where no kubeconfig exists."""
        files = kubeconfig.find(given, environ)
        if files is None and context is not None:
            raise InvalidSpec(
                "There is no kubeconfig, only the pod's ServiceAccount, which has no contexts. Leave --context out.",
                field="--context",
            )
        return cls(files, context)

    def namespace(self) -> str:
        """The namespace of the context, or that of the pod. Raises InvalidSpec where there is no such context."""
        if self.files is None:
            return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.is_file() else "default"
        return str(kubeconfig.context_of(kubeconfig.merged(self.files), self.context).get("namespace") or "default")

    async def connect(self) -> "KubeClient":
        """A client that the caller closes. Raises InvalidSpec for a faulty kubeconfig; nothing is sent yet."""
        # Importing the client takes longer than all the rest of a command's --help.
        from flotilla.kube.client import KubeClient

        return await KubeClient.connect(
            kubeconfig=self.files,
            context=self.context,
            user_agent=f"flotilla-cli/{__version__}",
            timeout_s=_TIMEOUT_S,
        )

    def ask(self, question: Callable[["KubeClient"], Awaitable[Answer]]) -> Answer:
        """Connect, ask, disconnect. Raises the errors of KubeClient, and NotReady where the CRDs are missing."""
        from flotilla.kube.client import NotFound

        async def run() -> Answer:
            client = await self.connect()
            try:
                return await question(client)
            except NotFound as error:
                raise NotReady(
                    f"{error}. If the CRDs are missing: flotilla crds | kubectl apply --server-side -f -"
                ) from error
            finally:
                await client.close()

        return asyncio.run(run())

"""Options that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kubeconfig = Annotated[Path | None, typer.Option(help="Default: KUBECONFIG, else ~/.kube/config.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the context's.")]
OperatorKubeconfig = Annotated[
    Path | None, typer.Option(envvar="KUBECONFIG", help="Without an address: the cluster to ask. ~/.kube/config.")
]
OperatorNamespace = Annotated[str, typer.Option(help="Where the operator runs, for a look through the apiserver.")]


def own_kubeconfig() -> Path | None:
    """As kubectl; None where there is no such file, which means the pod's ServiceAccount."""
    path = Path.home() / ".kube" / "config"
    return path if path.is_file() else None

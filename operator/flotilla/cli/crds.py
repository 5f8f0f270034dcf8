"""`flotilla crds`: the CustomResourceDefinitions of this release."""

import typer

from flotilla.api import crd
from flotilla.cli.common import command_app

app = command_app()


@app.command()
def crds() -> None:
    """Print the CustomResourceDefinitions, for `flotilla crds | kubectl apply --server-side -f -`."""
    typer.echo(crd.dump(), nl=False)

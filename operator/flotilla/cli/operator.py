"""`flotilla operator`: the process that reconciles. Its options are the settings, derived from OperatorConfig."""

import os
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from flotilla import settings
from flotilla.cli.common import command_app, fail
from flotilla.cli.kubeconfig import Cluster
from flotilla.errors import InvalidSpec
from flotilla.settings import Setting

app = command_app()
EXIT_CONFIG = 2


def _run(config: Path | None, **options: Any) -> None:
    """Run the operator until SIGTERM.

    Options win over environment variables, and these over the settings file.
    Exit code 0: stopped by SIGTERM; 2: a wrong setting; 3: missing permissions;
    4: the Lease was lost.
    """
    try:
        loaded = settings.load(options, environ=os.environ, file=config)
        cluster = Cluster.find(loaded.kubeconfig, loaded.context)
    except InvalidSpec as error:
        fail(error, EXIT_CONFIG)
    from flotilla import app as operator

    raise typer.Exit(operator.main(loaded.model_copy(update={"kubeconfig": cluster.files})))


def _option(setting: Setting) -> Parameter:
    names, types = list(setting.options), {"flag": bool, "list": list[str], "mapping": list[str]}
    if setting.form == "flag":
        names = [f"{names[0]}/--no-{names[0].removeprefix('--')}"]
    facts = [f"env: {', '.join(setting.variables)}", *(f"default: {text}" for text in [setting.default_text] if text)]
    option = typer.Option(
        *names,
        help=f"{setting.description} [{'; '.join(facts)}]",
        metavar=None if setting.form == "flag" else setting.syntax,
    )
    annotation = Annotated[types.get(setting.form, str) | None, option]  # type: ignore[valid-type]
    return Parameter(setting.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_CONFIG = Annotated[
    Path | None,
    typer.Option("--config", help=f"YAML file with any of the settings. [env: {settings.CONFIG_VARIABLE}]"),
]
_run.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIG),
        *(_option(setting) for setting in settings.SETTINGS),
    ]
)
app.command("operator")(_run)

"""`python -m flotilla_devcluster` is `flotilla devcluster`."""

from flotilla_devcluster.cli import app

app(prog_name="flotilla devcluster")

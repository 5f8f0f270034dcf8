"""Run by the engine's own Python: read command lines as JSON, print what vLLM's own parser says to each."""

import contextlib
import io
import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
refusals = {}
for name, argv in json.load(sys.stdin).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(argv)
    except SystemExit:
        refusals[name] = said.getvalue().strip().splitlines()[-1]
json.dump(refusals, sys.stdout)

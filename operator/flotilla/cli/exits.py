"""Exit codes of the verbs; docs/reference/cli.md lists them."""

from typing import Final

OK: Final = 0
NO: Final = 1
"""The question was understood, and the answer is no: refused, not ready, a check failed."""
WRONG_QUESTION: Final = 2
UNREACHABLE: Final = 3
"""The cluster cannot be asked: no kubeconfig, no answer, no permission."""

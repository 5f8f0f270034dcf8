"""A look into PromQL, as far as tests need one."""

import re

_WORDS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool"})
_WORDS_WITH_LABELS = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"


def metric_names(expr: str) -> set[str]:
    """The metrics that a query reads. Parsing it is Prometheus' task; this takes all else away."""
    expr = re.sub(r'"(?:[^"\\]|\\.)*"', "", expr)
    expr = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", expr)
    expr = re.sub(_WORDS_WITH_LABELS, " ", expr)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", expr)
    return {name for name in names if name not in _WORDS and name != "Inf"}

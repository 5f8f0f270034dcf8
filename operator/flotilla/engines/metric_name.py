"""A metric of an engine as profiles name it: `name`, or the part of it with some values of one label.

`vllm:request_success_total{finished_reason=~"abort|error"}`, and `!~` for all but them: PromQL that both can read, the
scraper and Prometheus.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

_FORM = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([a-zA-Z_]\w*)(=~|!~)"(\w+(?:\|\w+)*)"\})?')


@dataclass(frozen=True, slots=True)
class MetricName:
    """Which samples are meant."""

    family: str
    label: str = ""
    """Empty: all samples of the family."""
    values: frozenset[str] = frozenset()
    without: bool = False
    """All values but these."""

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether a sample of the family is meant."""
        return not self.label or (labels.get(self.label, "") in self.values) is not self.without


@cache
def metric_name(text: str) -> MetricName:
    """Raises ValueError for another form."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} is neither a metric nor metric{{label=~"value|value"}}, or !~ for all but them')
    family, label, operator, values = found.groups()
    return MetricName(family, label or "", frozenset(values.split("|") if values else ()), operator == "!~")

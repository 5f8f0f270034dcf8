"""Recording and alerting rules as values, and the two files that are made of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from flotilla.constants import LABEL_PART_OF, MANAGER

Severity = Literal["critical", "warning", "info"]
RUNBOOKS = "docs/runbooks"
"""Of this repository; it has no public address yet."""


@dataclass(frozen=True, slots=True)
class Recording:
    """`level:metric:operations`."""

    name: str
    expr: str

    def rule(self) -> dict[str, Any]:
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True, slots=True)
class Alert:
    """`after` is Prometheus' `for`; the summary is the same for every series, the description names them."""

    name: str
    expr: str
    after: str
    severity: Severity
    summary: str
    description: str

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.after,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
            },
        }


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated one after the other; without an interval, at Prometheus' own."""

    name: str
    rules: tuple[Recording | Alert, ...]
    interval: str | None = None

    def group(self) -> dict[str, Any]:
        interval = {"interval": self.interval} if self.interval else {}
        return {"name": self.name, **interval, "rules": [rule.rule() for rule in self.rules]}


def plain(groups: Iterable[RuleGroup]) -> dict[str, Any]:
    """A rule file as Prometheus itself reads it."""
    return {"groups": [group.group() for group in groups]}


def prometheus_rule(groups: Iterable[RuleGroup]) -> dict[str, Any]:
    """The same for the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": MANAGER, "labels": {LABEL_PART_OF: MANAGER}},
        "spec": plain(groups),
    }

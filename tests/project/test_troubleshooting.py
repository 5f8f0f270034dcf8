"""docs/operations/troubleshooting.md knows every reason that the code can write."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flotilla.api.preference import RouteReason
from flotilla.cost import gpu_prices
from flotilla.kube.observed import STUCK_REASONS
from flotilla.planning import memory_fit
from flotilla.routing.check import Problem
from flotilla.scaling import autoscaler as scaling

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "operator/flotilla"
PAGE = ROOT / "docs/operations/troubleshooting.md"
POSITIONS = {"Verdict": 2, "no": 0, "_verdict": 1, "EvaluationFinding": 1}
"""Calls that make a condition, and which of their arguments is the reason."""
NAME = re.compile(r"[A-Z][A-Za-z]+")


def texts(node: ast.AST) -> Iterator[str]:
    """The CamelCase constants that an expression can have as its value: those of both branches of a choice."""
    if isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
        yield node.value


def of_source(source: str) -> set[str]:
    """Reasons that one module writes as constants."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            position = POSITIONS.get(called)
            if position is not None and len(node.args) > position:
                found |= {*texts(node.args[position])}
            found |= {text for word in node.keywords if word.arg == "reason" for text in texts(word.value)}
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "reason" for t in node.targets):
            found |= {*texts(node.value)}
    return found


def reasons() -> set[str]:
    """Of every module that makes conditions, and of the tables that they take reasons from."""
    folders = ("api", "catalog", "planning", "routing", "scaling", "cost", "controller", "kube", "render", "evaluation")
    modules = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    named = {value for name, value in vars(scaling).items() if name.isupper() and isinstance(value, str)}
    tables = {
        *(named - {scaling.PODS, scaling.PROMETHEUS}),
        *STUCK_REASONS,
        *map(str, Problem),
        *map(str, RouteReason),
        memory_fit.FITS, memory_fit.TIGHT, memory_fit.DOES_NOT_FIT, gpu_prices.REASON, "InvalidSpec",
    }  # fmt: skip
    return tables.union(*(of_source(path.read_text()) for path in modules))


def test_every_reason_has_a_row() -> None:
    told = set(re.findall(r"`([A-Za-z]+)`", PAGE.read_text()))
    assert reasons() - told == set()


def test_no_row_is_about_a_reason_that_nothing_writes() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE.read_text(), re.MULTILINE)
    told = {reason for row in rows for reason in re.findall(r"`([A-Za-z]+)`", row)}
    assert told - reasons() == set()
    assert len(told) > 70


def test_a_reason_is_found_however_it_is_written() -> None:
    source = (
        'Verdict("T", "False", "One" if x else "Two", m)\nraise E(m, reason="Three")\nreason = "Four" if y else z\n'
    )
    assert of_source(source) == {"One", "Two", "Three", "Four"}

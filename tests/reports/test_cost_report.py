"""`flotilla report`: the page, its charts and its advice."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.test_cost import TOTALS
from tests.support.browser import browser
from tests.support.fleet_history import history
from tests.support.prometheus import Page, running_prometheus, serving
from tests.support.report import FLEET, report
from typer.testing import CliRunner

from flotilla.cli import app
from flotilla.cost.spending import Spent
from flotilla.reports import cost_report
from flotilla.reports.cost_report import page
from flotilla.reports.findings import break_evens, findings

D = Decimal
DAY = D(24)


class Outline(HTMLParser):
    """Tags that are open, names of elements, and text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    assert found.open == []
    return found


def test_the_page_asks_nobody_for_anything_and_holds_no_script() -> None:
    html = page(report())
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import|<script|style=\"", html)
    policy = next(a["content"] for t, a in outline(html).seen if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_what_stands_on_the_page() -> None:
    text = " ".join(outline(page(report())).text.split())
    for part in (
        "11 November 2026, 09:00 to 25 November 2026, 09:00 UTC",
        "$3,024.30",
        "$6,571 a month at this pace",
        "76 %",
        "1 of 5 models have no price",
        "Against openai/gpt-5-mini-$1,638.20",
        "served: 112k a day",
    ):
        assert part in text, part


def test_charts_have_names_and_tables_their_headings() -> None:
    seen = outline(page(report())).seen
    charts = [attributes for tag, attributes in seen if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 6
    assert all(chart["aria-label"] for chart in charts)
    assert all(attributes["scope"] in ("col", "row") for tag, attributes in seen if tag == "th")
    levels = [int(tag[1]) for tag, _ in seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_names_of_others_are_text() -> None:
    evil = "</style><script>alert(1)</script>&\"'"
    one = replace(FLEET[0], name=evil, model=evil, hosted_usd={evil: D(9)})
    html = page(replace(report(), deployments=(one,), source=evil))
    assert "<script" not in html
    assert evil in outline(html).text


def test_without_a_history_the_page_says_what_is_missing() -> None:
    html = page(replace(report(), start=None, steps=()))
    text = " ".join(outline(html).text.split())
    assert "Without a Prometheus there is no history" in text
    assert "Spend over time" not in text
    assert "a month at this pace" not in text


def test_an_empty_fleet_has_a_page() -> None:
    text = outline(page(replace(report(), deployments=(), steps=()))).text
    assert "Nothing stands out." in text
    assert "Nothing to compare" in text


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_marks_stand_out_from_the_paper(scheme: int) -> None:
    css = (files("flotilla.reports") / "page.css").read_text()
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]))

    for ground in ("paper", "panel"):
        for text in ("ink", "soft"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name in ("own", "h0", "h1", "h2", "h3", "h4"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for mark in ("serving", "idle", "startup", "draining", "gain", "loss"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


SHOWN = """
[...document.querySelectorAll("body *")].flatMap(element => {
  const own = [...element.childNodes].filter(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!own.length || !element.getClientRects().length) return [];
  let ground = element;
  while (ground && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  const style = getComputedStyle(element);
  const ink = element instanceof SVGElement ? style.fill : style.color;
  return [[own[0].data.trim(), ink, getComputedStyle(ground).backgroundColor]];
})
"""
"""Each text that is visible, with its colour and that of what it stands on."""


def hexadecimal(colour: str) -> str:
    """Of rgb(r, g, b) as browsers write it; nothing is translucent."""
    red, green, blue = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()  # type: ignore[union-attr]
    return f"#{int(red):02x}{int(green):02x}{int(blue):02x}"


async def test_a_browser_shows_every_text_legibly_in_light_and_dark_and_without_a_complaint(tmp_path: Path) -> None:
    html = page(report())
    whole, tampered = tmp_path / "report.html", tmp_path / "tampered.html"
    whole.write_text(html)
    tampered.write_text(html.replace("<main>", '<main><p style="color: red"><img src="http://127.0.0.1:1/x.png"></p>'))
    papers = {}
    async with browser() as tab:
        for dark in (False, True):
            await tab.open(whole.as_uri(), dark=dark)
            shown = await tab.js(SHOWN)
            assert len(shown) > 200
            faint = [
                (text, ink, ground)
                for text, ink, ground in shown
                if contrast(hexadecimal(ink), hexadecimal(ground)) < 4.5
            ]
            assert faint == []
            papers[dark] = luminance(hexadecimal(shown[0][2]))
            assert await tab.js("document.documentElement.scrollWidth <= innerWidth")
        assert papers[True] < 0.1 < 0.9 < papers[False]
        assert tab.errors == []
        await tab.open(tampered.as_uri())
        assert any("Content Security Policy" in error for error in tab.errors), "complaints are not heard"


@given(st.floats(0, 1e12))
def test_an_axis_begins_at_zero_and_reaches_its_top(top: float) -> None:
    found = cost_report.ticks(top)
    assert found[0] == 0
    assert found[-1] >= top * (1 - 1e-9)
    assert 2 <= len(found) <= 7


def test_bars_are_as_long_as_their_sums() -> None:
    text = cost_report.shares(
        [("a", {"idle": 3.0, "serving": 1.0}), ("b", {"idle": 2.0})], ("serving", "idle"), title="t"
    )
    widths = {kind: [float(w) for w in re.findall(rf'class="{kind}"[^>]*width="([\d.]+)"', text)] for kind in
              ("idle", "serving")}  # fmt: skip
    assert widths["serving"][0] * 3 == pytest.approx(widths["idle"][0], abs=0.3)
    assert widths["idle"][0] * 2 == pytest.approx(widths["idle"][1] * 3, abs=0.5)


def test_a_loss_is_left_of_the_line_and_a_gain_right() -> None:
    text = cost_report.diverging([("worse", -2.0), ("better", 1.0)], title="t")
    zero = float(re.findall(r'class="axis" x1="([\d.]+)"', text)[0])
    ((left, width),) = re.findall(r'class="loss" x="([\d.]+)"[^>]*width="([\d.]+)"', text)
    (right,) = re.findall(r'class="gain" x="([\d.]+)"', text)
    assert float(left) + float(width) == pytest.approx(zero, abs=0.2)
    assert float(right) == zero


def found_for(**changes: object) -> dict[str, str]:
    values: dict[str, object] = {
        "namespace": "n", "name": "m", "usd_by_state": {"serving": D(20)}, "requests": D(1000), "gpu_hours": D(24),
        **changes,
    }  # fmt: skip
    return {finding.title: finding.text for finding in findings([Spent(**values)], DAY)}  # type: ignore[arg-type]


def test_advice_names_figures_and_the_field_to_change() -> None:
    idle = found_for(usd_by_state={"serving": D(4), "idle": D(16)}, min_replicas=1)
    assert "16.00 of 20.00 USD (80%)" in idle["mostly idle"]
    assert "spec.scaling.minReplicas: 0" in idle["mostly idle"]
    assert (
        "spec.scaling.minReplicas, which is 3"
        in found_for(usd_by_state={"serving": D(4), "idle": D(16)}, min_replicas=3)["mostly idle"]
    )
    assert (
        "scaleDownDelaySeconds"
        in found_for(usd_by_state={"serving": D(10), "startup": D(10)})["starts too often, or for too long"]
    )
    assert "(4)" in found_for(saturation=D("0.9"), max_replicas=4)["close to its capacity"]
    assert "5%" in found_for(saturation=D("0.05"))["a large accelerator for little work"]
    assert "608.33" in found_for(budget_usd_per_month=D(600))["over its budget"]
    assert "2.00 of 20.00" in found_for(estimated_usd=D(2))["estimated in part"]
    assert found_for(requests=D(0)).keys() == {"no requests"}
    assert found_for(usd_by_state={}).keys() == {"no price"}
    assert found_for() == {}


def test_advice_on_hosted_models_says_when_self_hosting_loses_and_why() -> None:
    lost = found_for(hosted_usd={"a/b": D(5), "c/d": D(50)})["a hosted model costs less"]
    assert "a/b would have cost 5.00 instead of 20.00 USD" in lost
    assert "from 4,000 requests a day on; it served 1,000" in lost
    assert "Even without idle time" in lost
    idle = found_for(hosted_usd={"a/b": D(5)}, usd_by_state={"serving": D(4), "idle": D(16)})
    assert "Without its idle time it would be the cheaper one" in idle["a hosted model costs less"]
    full = found_for(hosted_usd={"a/b": D(5)}, saturation=D("0.5"))["a hosted model costs less"]
    assert "cannot serve as many requests" in full
    assert "would have cost 50.00" in found_for(hosted_usd={"a/b": D(50)})["cheaper than hosted"]


def test_a_break_even_is_where_both_cost_the_same() -> None:
    (even,) = break_evens(
        Spent("n", "m", usd_by_state={"serving": D(40)}, requests=D(1000), hosted_usd={"a/b": D(10)}), D(48)
    )
    assert (even.own_usd_per_day, even.tasks_per_day, even.at) == (D(20), D(500), D(2000))
    assert break_evens(Spent("n", "m", usd_by_state={"serving": D(40)}, hosted_usd={"a/b": D(10)}), DAY) == ()


@pytest.fixture
def operator() -> Iterator[Page]:
    with serving(TOTALS) as served:
        yield served


def test_the_command_writes_a_page_from_prometheus(tmp_path: Path) -> None:
    now = datetime.now(UTC).timestamp()
    file = tmp_path / "report.html"
    with running_prometheus(tmp_path, history=history(now - 86_400, now - 1)) as prometheus:
        done = CliRunner().invoke(app, ["report", "--prometheus", prometheus.url, "--since", "12h", str(file)])
    assert done.exit_code == 0, done.output
    text = " ".join(outline(file.read_text()).text.split())
    assert re.search(r"Spent\$2[34]\.\d\d", text)
    assert "lab/idle: no requests" in text
    assert file.read_text().count('class="serving" x=') >= 11 + 1, "a column for each hour, and a bar"


def test_the_command_writes_totals_and_explains_its_errors(tmp_path: Path, operator: Page) -> None:
    file = tmp_path / "report.html"
    url = f"http://{operator.address}"
    assert CliRunner().invoke(app, ["report", "--metrics", url, str(file)]).exit_code == 0
    assert "$4.00" in file.read_text()
    assert "<html" in CliRunner().invoke(app, ["report", "--metrics", url, "-"]).stdout
    missing = CliRunner().invoke(app, ["report", "--metrics", url, str(tmp_path / "none" / "x.html")])
    assert (missing.exit_code, "No such file" in missing.stderr) == (2, True)
    assert CliRunner().invoke(app, ["report", "--metrics", url, "--since", "7d"]).exit_code == 2
    assert operator.text is not None
    operator.text = "\n".join(operator.text.splitlines()[:4]) + "\n"
    assert CliRunner().invoke(app, ["report", "--metrics", url, str(file)]).exit_code == 1
    operator.text = None
    assert CliRunner().invoke(app, ["report", "--metrics", url, str(file)]).exit_code == 3

"""The tables of the README and of docs/measured.md are those of the committed results, to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orthrus.bench import report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "measured"
HEADLINES = sorted(RESULTS.glob("*.json"))
OTHERS = sorted(RESULTS.glob("*/*.json"))
BLOCK = re.compile(r"<!-- measured -->\n(.*?)<!-- /measured -->", re.DOTALL)


@pytest.mark.parametrize(
    ("page", "tables"),
    [("README.md", report.headlines(HEADLINES)), ("docs/measured.md", report.markdown([*HEADLINES, *OTHERS]))],
)
def test_pages_show_the_committed_results(page, tables):
    (block,) = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert block.strip() == tables.strip()


def test_the_readme_is_short():
    """A stranger decides within a minute: under 150 lines, and at most ten figures in its table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    (block,) = BLOCK.findall(text)
    rows = [line for line in block.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(report.HEADLINES) <= 10
    assert not any("|  |" in row for row in rows), "a figure is missing"

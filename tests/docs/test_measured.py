"""The tables of the README are those of the committed results, to the letter."""

from __future__ import annotations

import re
from pathlib import Path

from orthrus.bench import report

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- measured -->\n(.*?)<!-- /measured -->", re.DOTALL)


def test_the_readme_shows_the_committed_results():
    (block,) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert block.strip() == report.markdown(sorted((ROOT / "docs" / "measured").glob("*.json"))).strip()

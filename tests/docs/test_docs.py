"""Every Python block and every `orthrus` command of the README and the docs runs."""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from orthrus import api, cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language):
    for page in PAGES:
        for number, (found, body) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            if found == language:
                yield pytest.param(body, id=f"{page.name}-{number}")


def commands():
    for parameter in blocks("bash"):
        for line in parameter.values[0].replace("\\\n", " ").splitlines():
            if line.startswith("orthrus "):
                yield pytest.param(line, id=f"{parameter.id}: {line[:50]}")


@functools.cache
def _load_once(name="smollm2-demo", dtype=None, device="cpu", adapter=None, allow_other_backbone=False):
    assert adapter is None
    assert not allow_other_backbone
    return _load(name, dtype=dtype or "bfloat16", device=device)


_load = api.load


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "load", _load_once)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"What is {n} plus {n}?"}) for n in range(3)))


@pytest.mark.parametrize("code", list(blocks("python")))
def test_python_block(code):
    exec(compile(code, "<docs>", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("line", list(commands()))
def test_command(line, monkeypatch, capsys):
    line = line.split("   #")[0]
    echoed = re.match(r"(.*?)\s*\|\s*(.*)", line)
    assert not echoed, "docs commands are run without a shell"
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, capsys.readouterr().err
    assert capsys.readouterr().out


def test_the_docs_have_blocks_to_run():
    assert len(list(blocks("python"))) >= 3
    assert len(list(commands())) >= 5

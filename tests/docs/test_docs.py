"""Every Python block and every `orthrus` command of the README and the docs runs."""

from __future__ import annotations

import functools
import json
import re
import shlex
import signal
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
def _load_once(name="smollm2-demo", dtype=None, device="cpu", adapter=None, allow_other_backbone=False, quantize=None):
    assert not allow_other_backbone
    return _load(name, dtype=dtype or "bfloat16", device=device, adapter=adapter, quantize=quantize)


_load = api.load

TOY = {
    "distill": "--count 10 --max-new-tokens 40 --max-prompt-tokens 120 --batch-size 10",
    "train": "--steps 2 --validate-every 2 --held-out 2 --roots 12 --sequences 1 --sequence-length 512",
}
"""What long commands are given to end soon; everything else about them is as the page has it."""


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "load", _load_once)
    monkeypatch.chdir(tmp_path)
    Path("topics.txt").write_text("Count to\nName\n")
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"What is {n} plus {n}?"}) for n in range(3)))


@pytest.mark.parametrize("code", list(blocks("python")))
def test_python_block(code):
    exec(compile(code, "<docs>", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("line", [p for p in commands() if not p.id.startswith("train.md")])
def test_command(line, monkeypatch, capsys):
    assert run(line, monkeypatch, capsys)


def test_the_commands_of_the_training_page_in_their_order(monkeypatch, capsys):
    """From a bare backbone to generated text: each command finds what those before it left."""
    lines = [p.values[0] for p in commands() if p.id.startswith("train.md")]
    assert len(lines) >= 8
    for line in lines:
        assert run(line, monkeypatch, capsys), line


def run(line, monkeypatch, capsys):
    line = line.split("   #")[0]
    assert "|" not in line.replace("<|", "").replace("|>", ""), "docs commands are run without a shell"
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [*words, *shlex.split(TOY.get(words[1], ""))])
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, capsys.readouterr().err
    for name, handler in handlers.items():
        signal.signal(name, handler)
    return capsys.readouterr().out


def test_the_docs_have_blocks_to_run():
    assert len(list(blocks("python"))) >= 3
    assert len(list(commands())) >= 5

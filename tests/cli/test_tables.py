"""What is printed is whole: tables in a terminal of 80 columns and in a pipe, notes, and streamed text."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from rich.console import Console

from orthrus import cli
from orthrus.bench.measure import Acceptance
from orthrus.bench.speed import Speed
from orthrus.cli import _shared, demo, generate
from orthrus.cli._chat.wrapping import Unwrapped, WordWrap, lines_for
from orthrus.cli._footer import Clock
from orthrus.cli.bench import acceptance, speed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("tables") / "model", template=tiny.CHAT))


def test_all_tables_are_printed_by_the_console_for_tables():
    """A console of rich's takes a pipe to be 80 columns wide."""
    folder = Path(cli.__file__).parent
    made = re.compile(r"\bConsole\((?!width)")
    makers = {path.name for path in folder.rglob("*.py") if made.search(path.read_text())}
    assert makers - {"chat.py"} == {"_shared.py"}


def test_tables_of_verify_are_whole_in_a_pipe(run, monkeypatch, model, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "hello"}))
    options = ["--model", model, "--task", file, "--max-new-tokens", 4, "--temperature", 0, "--dtype", "float32"]
    code, out, _ = run("verify", *options, "--cycle", "one-pass:4+16")
    assert code == 0
    header = next(line for line in out.splitlines() if "tokens compared" in line)
    assert "logit gap there" in header
    assert "one-pass:4+16" in out
    monkeypatch.setenv("COLUMNS", "80")
    assert "one-pass:4+16" in run("verify", *options, "--cycle", "one-pass:4+16")[1]


@pytest.mark.parametrize("loops", [0, 1])
def test_acceptance_is_whole_in_80_columns(monkeypatch, capsys, loops):
    monkeypatch.setenv("COLUMNS", "80")
    drafts = ["chain", "tree of 16, no head or lookup"]
    spread = (12.34, (11.11, 13.33))
    part, tpf = "spec_bench, math_reasoning", (3.25, (3.11, 3.44))
    rest = (12.5, [0.5] * 16)
    rows = [Acceptance(part, 80, 20480, *spread, *tpf, *rest, name, loops, spread) for name in drafts]
    acceptance._print(rows, "bundled adapter")
    out = capsys.readouterr().out
    assert "…" not in out and all(len(line) <= 80 for line in out.splitlines())
    assert all(
        text in out for text in (*drafts, "12.34 (11.11-13.33)", "3.25 (3.11-3.44)", "math_reasoning: 80 prompts")
    )
    assert out.count("0.50") == 32
    assert ("answers that loop" in out, "1 of 80" in out) == (bool(loops), bool(loops))


def test_the_settings_of_bench_speed_are_whole_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    figures = (20, 2560, 3.0, 4.0, 100, 2.5, 12.0, 123.4, (111.0, 133.0), 1.5, (1.25, 1.75), 130.0, 20, 0.5, (0.1, 0.2))
    speed._print_speed([Speed("humaneval", "one-pass:4+16", *figures, 612_000_000)], "bundled adapter")
    assert capsys.readouterr().out.count("humaneval: one-pass:4+16") == 2


def test_a_note_is_one_line_in_a_pipe_and_breaks_no_word_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    _shared.print_warning("other programs were busy " * 5)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(_shared, "stderr", Console(stderr=True, force_terminal=True, color_system=None, width=40))
    _shared.print_warning(generate.NO_TEMPLATE)
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(map(str.strip, lines)) == generate.NO_TEMPLATE and max(map(len, lines)) <= 40


def test_only_a_terminal_breaks_streamed_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(lines_for(Console(file=io.StringIO())), Unwrapped)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert isinstance(lines_for(Console(file=terminal, width=20)), WordWrap)


class Scripted:
    """A model that streams these texts."""

    def stream(self, *_, **__):
        for text in ("alpha beta", " gamma del", "ta epsilon"):
            yield SimpleNamespace(text=text, pieces=[SimpleNamespace(text=text, drafted=False)], result="done")


def test_words_that_are_streamed_to_a_terminal_are_not_broken(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    generate._print_stream(Scripted(), "hi", {}, Clock())
    assert capsys.readouterr().out.rstrip("\n") == "alpha beta gamma \ndelta epsilon"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    demo._stream(
        Console(file=terminal, width=20, color_system=None), SimpleNamespace(stream=Scripted().stream), "hi", "ar", 9
    )
    assert terminal.getvalue().rstrip("\n") == "alpha beta gamma \ndelta epsilon"

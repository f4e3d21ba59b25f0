"""The help of every verb, nested ones too, is whole at any width of the terminal."""

from __future__ import annotations

import re

import pytest
import typer

from orthrus import cli
from orthrus.cli import _help

WIDTHS = (60, 80, 120)


def verbs(group, path=()):
    """(path, command) of a group and of all commands below it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from verbs(command, (*path, name))


ALL = list(verbs(typer.main.get_command(cli.build(cli.commands()))))


def words(text):
    """Text without borders and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("path", "command"), ALL, ids=lambda value: " ".join(value) if type(value) is tuple else "")
def test_help_cuts_off_no_option_and_no_word(run, monkeypatch, path, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(*path, "--help")
    assert (code, err) == (0, "")
    assert all(len(line) <= width for line in out.splitlines())
    assert "…" not in out and "bool>" not in out and "list[" not in out and "<Path>" not in out
    shown = words(out)
    for param in (param for param in command.params if not getattr(param, "hidden", False)):
        assert all(name in shown for name in (*param.opts, *param.secondary_opts))
        assert words(param.help or "") in shown
    assert words(command.help.split("\n\n")[-1]) in shown


def test_help_spells_quantised_as_the_project_does():
    texts = [text for _, command in ALL for text in (command.help, *(getattr(p, "help", "") for p in command.params))]
    assert [text for text in texts if re.search("quantiz", (text or "").lower().replace("--quantize", ""))] == []


def test_generate_sorts_its_options_into_panels(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    titles = re.findall(r"╭─ (\w+) ─", run("generate", "--help")[1])
    assert titles == ["Arguments", "Input", "Sampling", "Stopping", "Drafting", "Constraints", "Loading", "Output"]


@pytest.mark.parametrize("verb", ["distill", "train", "batch"])
def test_help_is_not_among_the_options_of_loading(run, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    panel = run(verb, "--help")[1].split("╭─ Options ─")[1].split("╰")[0]
    assert "-h, --help" in panel


@pytest.mark.parametrize("path", [path for path, _ in ALL if path], ids=" ".join)
def test_options_that_verbs_share_are_in_one_panel_everywhere(path):
    panels = {param.name: getattr(param, "rich_help_panel", None) for param in dict(ALL)[path].params}
    loading = {name: panels[name] for name in ("adapter", "quantize", "cache", "ctx_size") if name in panels}
    assert set(loading.values()) <= {_help.LOADING}
    assert panels.get("as_json", _help.OUTPUT) == _help.OUTPUT

"""`orthrus complete`: what belongs at a place in a file, and errors before a model is loaded."""

from __future__ import annotations

import json

import pytest
import tiny

import orthrus
from orthrus.cli.complete import LineLimit

LINES = ["def add(a, b):", "    return ", "", "print(add(1, 2))", ""]
TEXT = "\n".join(LINES)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("complete") / "model", special=tiny.FIM))


@pytest.fixture(scope="module")
def model(path):
    return orthrus.load(path)


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "add.py"
    made.write_text(TEXT)
    return made


def complete(run, path, file, *options):
    code, out, err = run("complete", file, "--model", path, "--cycle", "two-pass", *options)
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    ("where", "before", "after"),
    [
        (["--line", 2], "\n".join(LINES[:2]), "\n" + "\n".join(LINES[2:])),
        (["-l", 2, "--column", 5], LINES[0] + "\n    ", "return \n" + "\n".join(LINES[2:])),
        (["--line", 5], TEXT, ""),
        (["--line", 1, "--column", 1], "", TEXT),
    ],
)
def test_it_prints_what_the_model_fills_in(run, path, model, file, where, before, after):
    truth = model.generate(before, suffix=after, max_new_tokens=9)
    assert complete(run, path, file, *where, "-n", 9) == truth.text + "\n"
    printed = json.loads(complete(run, path, file, *where, "-n", 9, "--json"))
    assert (printed["text"], printed["tokens"], printed["line"]) == (truth.text, truth.tokens, where[1])
    assert printed["prompt_tokens"] == len((before + after).encode()) + 3
    assert file.read_text() == TEXT


def test_sampling_options_are_those_of_the_model(run, path, model, file):
    sampled = {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "seed": 3, "max_new_tokens": 12}
    given = ["--temperature", 1.2, "--top-k", 40, "--top-p", 0.9, "--seed", 3, "--max-tokens", 12]
    truth = model.generate("\n".join(LINES[:2]), suffix="\n" + "\n".join(LINES[2:]), **sampled)
    assert json.loads(complete(run, path, file, "--line", 2, "--json", *given))["tokens"] == truth.tokens


def test_lines_are_counted_from_the_first_one_with_text():
    for text, lines, kept in (
        ("a\nb\nc", 1, "a"), ("\n\n  a\nb\nc", 2, "\n\n  a\nb"), ("a\nb", 5, "a\nb"), ("a\n\nb\n", 2, "a\n"),
        ("a\nb", None, "a\nb"),
    ):  # fmt: skip
        whole, letters = LineLimit(lines), LineLimit(lines)
        assert whole.take(text) == kept
        assert "".join(letters.take(letter) for letter in text if not letters.reached) == kept


def test_lines_end_a_completion_early(run, path, model, file):
    def text_of(seed):
        options = {"suffix": "\n" + "\n".join(LINES[2:]), "temperature": 1.5, "max_new_tokens": 120, "seed": seed}
        return model.generate("\n".join(LINES[:2]), **options).text

    seed = next(seed for seed in range(20) if "\n" in text_of(seed).strip())
    sampled = ["--line", 2, "--temperature", 1.5, "--seed", seed, "-n", 120]
    whole = json.loads(complete(run, path, file, *sampled, "--json"))
    cut = json.loads(complete(run, path, file, *sampled, "--json", "--lines", 1))
    blank = len(whole["text"]) - len(whole["text"].lstrip())
    assert cut["text"] == whole["text"][: whole["text"].index("\n", blank)]
    assert cut["finish_reason"] == "stop" and cut["tokens"] == whole["tokens"][: len(cut["tokens"])]
    assert len(cut["tokens"]) < len(whole["tokens"])


def test_a_long_file_is_cut_at_lines(run, path, model, tmp_path):
    file = tmp_path / "long.py"
    lines = [f"value_{n} = {n}" for n in range(500)]
    file.write_text("\n".join(lines))
    printed = json.loads(complete(run, path, file, "--line", 250, "-n", 4, "--json", "--context-tokens", 400))
    assert 300 <= printed["prompt_tokens"] <= 403
    assert 15 <= printed["prefix_lines"] <= 25 and 2 <= printed["suffix_lines"] <= 6
    again = complete(run, path, file, "--line", 250, "-n", 4, "--context-tokens", 400)
    assert again == printed["text"] + "\n"


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (None, ["--line", 1], "No such file or directory"),
        (b"", ["--line", 1], "add.py is empty: there is nothing to complete"),
        (b"a\0b", ["--line", 1], "holds zero bytes, so it is no text file"),
        (b"\xff\xfe\xfd", ["--line", 1], "not UTF-8 (byte 0 is 0xff)"),
        (b"a\nb\n", ["--line", 4], "--line 4: {file} has the lines 1 to 3"),
        (b"a\nb\n", ["--line", 0], "--line 0: {file} has the lines 1 to 3"),
        (b"ab\r\n", ["--line", 1, "--column", 4], "--column 4: line 1 of {file} has the columns 1 to 3"),
        (b"a", ["--line", 1, "-n", 0], "greater than or equal to 1"),
        (b"a", [], "Missing option '--line'"),
    ],
)
def test_what_cannot_be_completed_is_refused_before_a_model_is_loaded(run, tmp_path, content, options, problem):
    file = tmp_path / "add.py"
    if content is not None:
        file.write_bytes(content)
    code, _, err = run("complete", file, *options, "--model", "no such model")
    assert code and problem.format(file=file) in err, err


def test_a_model_that_cannot_fill_in_the_middle_says_so(run, file, tmp_path):
    plain = tiny.save_checkpoint(tmp_path / "plain")
    code, _, err = run("complete", file, "--line", 2, "--model", plain)
    assert code == 2 and "has no tokens for that in its vocabulary" in err

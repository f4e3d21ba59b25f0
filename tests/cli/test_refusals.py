"""What cannot work is refused with its cause and its remedy, and what is changed on the user's behalf is told."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import tiny
import tiny_gguf

from orthrus.checkpoint import known_models
from orthrus.cli import _shared


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("refused") / "model", template=tiny.CHAT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "mps"], "device 'mps' cannot be used here: give cpu, which is the default, or cuda"),
        (["--tools", "nofile"], "--tools: nofile cannot be read: No such file or directory"),
        (["-n", "99999"], "--max-new-tokens 99999 is beyond the context of 2048 tokens"),
        (["-c", "64", "-n", "65"], "--max-new-tokens 65 is beyond the context of 64 tokens"),
        (["--threads", "64"], "--threads 64 is more than the 2 processors that this process may use"),
    ],
    ids=" ".join,
)
def test_impossible_options(run, monkeypatch, model, options, message):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    code, out, err = run("generate", "hi", "--model", model, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "aten::" not in err


def test_a_file_of_tools_that_is_not_json_is_told_apart_from_one_that_is_missing(run, model, tmp_path):
    file = tmp_path / "tools.json"
    file.write_text("[")
    assert f"--tools: {file} is not JSON" in run("generate", "hi", "--model", model, "--tools", file)[2]


def test_the_default_length_is_no_error_where_the_context_is_smaller(run, model):
    assert run("generate", "hi", "--model", model, "-c", 32, "--json")[0] == 0


@pytest.fixture
def foreign(tmp_path, model):
    """Make a directory of another kind: its path."""

    def make(kind):
        directory = tmp_path / kind
        directory.mkdir()
        if kind == "lora":
            config = {"peft_type": "LORA", "base_model_name_or_path": "a/base", "r": 8}
            (directory / "adapter_config.json").write_text(json.dumps(config))
        elif kind == "view":
            shutil.copy(known_models.BUNDLED / known_models.DEMO / "adapter_config.json", directory)
        elif kind == "gguf":
            tiny_gguf.save(directory / "some.gguf")
        else:
            shutil.copytree(model, directory, dirs_exist_ok=True)
            config = json.loads((directory / "config.json").read_text())
            extra = {"mlx": {"quantization": {"group_size": 64, "bits": 4}}}
            config |= extra.get(kind, {"quantization_config": {"quant_method": kind}})
            (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lora", "is a PEFT adapter (LORA for a/base), neither a checkpoint nor a diffusion view. Merge it"),
        ("view", "is a diffusion view without its backbone: load the backbone ('smollm2-demo')"),
        ("gguf", "has no config.json, but GGUF files: name one of them, some.gguf"),
        ("mlx", "is quantised to 4 bits for Apple's MLX, which is not read: load the checkpoint that it was made from"),
        ("gptq", "quantised by 'gptq', which is not read: load the checkpoint that they were made from"),
    ],
)
def test_directories_of_other_kinds_are_named(run, foreign, kind, message):
    code, out, err = run("generate", "hi", "--model", foreign(kind))
    assert (code, out) == (2, "")
    assert message in err


def test_a_text_is_no_file_of_prompts(run, model, tmp_path):
    (tmp_path / "prompt.txt").write_text("Name three rivers.\n")
    code, _, err = run("generate", "--model", model, "--file", tmp_path / "prompt.txt")
    assert (code, "prompt.txt: --file takes JSONL" in err, "orthrus generate < FILE" in err) == (2, True, True)


def test_a_lora_is_no_diffusion_view(run, foreign, model):
    code, _, err = run("generate", "hi", "--model", model, "--adapter", foreign("lora"))
    assert (code, "is a PEFT adapter (LORA for a/base)" in err) == (2, True)


def test_a_prompt_without_a_chat_template_is_raw_text_and_that_is_told(run, model, tmp_path):
    bare = tiny.save_checkpoint(tmp_path / "bare", template=None)
    note = "note: this tokenizer has no chat template, so the prompt is continued as it is"
    assert note in run("generate", "hi", "--model", bare, "-n", 3)[2]
    assert note not in run("generate", "hi", "--model", bare, "-n", 3, "--raw")[2]
    assert note not in run("generate", "hi", "--model", model, "-n", 3)[2]


def test_progress_writes_one_line_into_a_pipe(capsys):
    assert list(_shared.progress(range(3), "verifying", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == "verifying ...\n"

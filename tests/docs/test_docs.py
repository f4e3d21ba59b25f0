"""Every Python block and every `orthrus` command of the README and the docs runs."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny

import orthrus
from orthrus import api, cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [path for folder in ("src", "tests", "docs") for path in (ROOT / folder).rglob("*.*")]
CODE = re.compile(r"[\w/]*\w\.(?:py|c|h)\b")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language):
    for page in PAGES:
        for number, (found, body) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            if found == language:
                yield pytest.param(body, id=f"{page.name}-{number}")


def commands():
    """Every `orthrus` command, with the lines of its block before it that write the files it reads."""
    for parameter in blocks("bash"):
        writes = []
        for line in parameter.values[0].replace("\\\n", " ").splitlines():
            if line.startswith(("echo ", "printf ")):
                writes.append(line)
            if line.startswith("orthrus "):
                yield pytest.param(line, writes[:], id=f"{parameter.id}: {line[:50]}")


@functools.cache
def _load_once(name="smollm2-demo", dtype=None, allow_other_backbone=False, **options):
    """The demo model in place of a known model whose weights the tests have not."""
    assert not allow_other_backbone
    return _load("smollm2-demo" if name == "qwen2.5-coder-0.5b" else name, dtype=dtype or "bfloat16", **options)


_load = api.load

TOY = {
    "distill": "--count 10 --max-new-tokens 40 --max-prompt-tokens 120 --batch-size 10",
    "serve": "--port 0",
    "train": "--steps 2 --validate-every 2 --held-out 1 --roots 8 --sequences 1 --sequence-length 256"
    " --head-learning-rate 1e-4",
    "verify": "--max-new-tokens 8 --limit 1",
    "bench compare": "--max-new-tokens 8 --limit 1",
    "bench train-step": "--roots 4",
}
"""What long commands are given to end soon, by their verb; everything else about them is as the page has it."""


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "load", _load_once)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", list(blocks("python")))
def test_python_block(code):
    exec(compile(code, "<docs>", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize(("line", "writes"), [p for p in commands() if not p.id.startswith("train.md")])
def test_command(line, writes, monkeypatch, capsys):
    """A reader needs nothing but what the page itself writes."""
    for write in writes:
        subprocess.run(["sh", "-c", write], check=True)
    assert run(line, monkeypatch, capsys)


def test_the_commands_of_the_training_page_in_their_order(monkeypatch, capsys, tmp_path, request):
    """From a bare backbone to generated text: each command finds what those before it left. Without `--full` the
    backbone is a tiny one, whose vocabulary also has the mask token of the page."""
    lines = [p.values for p in commands() if p.id.startswith("train.md")]
    assert len(lines) >= 8
    backbone = "" if request.config.getoption("--full") else f" --model {_tiny_backbone(tmp_path / 'tiny')}"
    for line, writes in lines:
        for write in writes:
            subprocess.run(["sh", "-c", write], check=True)
        assert run(_on_tiny(line, backbone) if backbone else line, monkeypatch, capsys), line


def _on_tiny(line, backbone):
    """A command of the page on a tiny backbone, which asks no questions and has no view of its own."""
    line = line.split("   #")[0].replace("--adapter none", "--adapter run/best")
    if "--output data" in line:
        line += " --data prompts.jsonl"
    needs_none = any(option in line for option in ("--model", "--estimate", "bench overlap"))
    return line if needs_none else line + backbone


def _tiny_backbone(path):
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(10)))
    tiny.save_checkpoint(path, view=False, template=tiny.CHAT)
    for file in path.glob("*token*.json"):
        file.write_text(file.read_text().replace("<unused300>", "<repo_name>"))
    return path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_spells_quantised_as_the_project_does(page):
    """Names in code and in the source tree are spelled as the field spells them."""
    prose = re.sub(r"^```.*?^```|^    .*?$|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    prose = re.sub(r"\w+\.py|quantization <-", "", prose)
    assert re.findall(r"\w*quantiz\w*", prose, re.I) == []


def test_the_mask_token_of_the_training_page_is_one_of_the_demo():
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    (token,) = set(re.findall(r'--mask-token "([^"]+)"', page))
    model = _load_once()
    assert model.encode(token) == [model.checkpoint.decoder.mask_token_id]


def run(line, monkeypatch, capsys):
    line = line.split("   #")[0]
    assert "|" not in line.replace("<|", "").replace("|>", ""), "docs commands are run without a shell"
    words = shlex.split(line)
    shorter = TOY.get(words[1], "") or TOY.get(" ".join(words[1:3]), "")
    monkeypatch.setattr(sys, "argv", [*words, *shlex.split(shorter)])
    if words[1] == "serve":
        threading.Thread(target=stop_once_served, args=(signal.getsignal(signal.SIGTERM),), daemon=True).start()
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, capsys.readouterr().err
    for name, handler in handlers.items():
        signal.signal(name, handler)
    return capsys.readouterr().out


def stop_once_served(before):
    """End a server, which handles the signal once it runs."""
    while signal.getsignal(signal.SIGTERM) is before:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_prompt_is_one_where_drafting_pays():
    """Of the README, in Python and on the command line, and of the package's docstring."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prompt = re.search(r'orthrus generate "([^"]+)"', readme)[1]
    assert re.search(r'model\.generate\("([^"]+)"', readme)[1] == prompt
    assert prompt in orthrus.__doc__
    result = _load_once().generate(prompt, max_new_tokens=64, cycle="two-pass")
    assert result.finish_reason == "stop"
    assert result.statistics.tpf > 1.5


def test_the_example_of_processes_works(tmp_path):
    """On a tiny model: every process that `spawn` starts loads it again."""
    (code,) = [p.values[0] for p in blocks("python") if "get_context" in p.values[0]]
    path = tiny.save_checkpoint(tmp_path / "model")
    assert '"smollm2-demo"' in code
    (tmp_path / "example.py").write_text(code.replace('"smollm2-demo"', repr(str(path))))
    found = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    model = _load(path)
    prompts = re.findall(r'answer, \["(.+)", "(.+)"\]', code)[0]
    assert found.stdout == f"{[model.generate(prompt, max_new_tokens=16).text for prompt in prompts]}\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page):
    """Relative links, and words that look like a file of this repository."""
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith(("http:", "https:"))]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:src|tests|docs)/[^`\s]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in CODE.findall(text) if not known(name)] == []


def test_files_that_docstrings_name_exist():
    missing = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                named = CODE.findall(ast.get_docstring(node) or "")
                missing += [f"{path.name}: {name}" for name in named if not known(name)]
    assert missing == []


def test_the_source_tree_of_the_page_for_contributors_has_every_module_and_package():
    page = (ROOT / "docs/contributing.md").read_text(encoding="utf-8")
    tree = page.partition("src/orthrus/\n")[2].partition("```")[0]
    listed = set(re.findall(r"\w+\.py|\w+/", tree))
    source = ROOT / "src/orthrus"
    files = {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert sorted((files | packages) - listed) == []


def known(name):
    """Whether there is a file whose path ends so."""
    return any(str(path).endswith(f"/{name}") for path in FILES)


def test_the_docs_have_blocks_to_run():
    assert len(list(blocks("python"))) >= 3
    assert len(list(commands())) >= 5

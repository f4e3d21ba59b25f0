"""The house measures, held: which room may import which, how long files and functions may grow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "orthrus"
FILES = sorted(ROOT.rglob("*.py"))
COMPUTING = {"config", "file_cache", "quantization", "masks", "cache", "batch", "model", "backends", "runner"}
MAY_IMPORT = {
    "config": set(),
    "file_cache": set(),
    "quantization": set(),
    "masks": set(),
    "cache": {"config"},
    "batch": {"cache"},
    "model": COMPUTING,
    "backends": COMPUTING,
    "runner": COMPUTING,
    "checkpoint": COMPUTING,
    "decoding": COMPUTING,
    "prompt_files": set(),
    "training": COMPUTING | {"checkpoint", "prompt_files"},
    "options": {"config", "decoding"},
    "tokenization": {"options"},
    "api": COMPUTING | {"checkpoint", "decoding", "options", "tokenization"},
    "bench": COMPUTING | {"api", "checkpoint", "decoding", "prompt_files", "training"},
    "cli": COMPUTING
    | {"api", "bench", "checkpoint", "decoding", "options", "prompt_files", "tokenization", "training"},
    "__init__": {"config", "api"},
    "__main__": {"cli"},
}
LIBRARIES_KEPT_OUT = {"decoding": {"transformers"}, "config": {"torch", "transformers"}, "cache": {"transformers"}}
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 300, 60, 8
DEVICE_CODE = ("device.py",)


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "orthrus":
                yield from (f"orthrus.{alias.name}" for alias in node.names)


def functions_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("orthrus.")}
    assert rooms - {room} <= MAY_IMPORT[room] | ({"__init__"} if room in ("bench", "cli") else set())
    libraries = {name.split(".")[0] for name in imports_of(path)}
    assert not libraries & LIBRARIES_KEPT_OUT.get(room, set())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    assert path.read_text().count("\n") <= MOST_FILE_LINES
    for function in functions_of(path):
        assert function.end_lineno - function.lineno + 1 <= MOST_FUNCTION_LINES, function.name
        parameters = [a.arg for a in (*function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
        assert len(parameters) <= MOST_PARAMETERS or room_of(path) == "cli" or path.name in DEVICE_CODE, function.name


def test_every_module_says_what_it_is():
    assert [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_no_pickle_and_no_remote_code():
    for path in FILES:
        text = path.read_text()
        assert "torch.load" not in text, path
        assert not {"pickle", "joblib", "dill"} & {name.split(".")[0] for name in imports_of(path)}, path


def remote_code_of(tree):
    """Lines that could let code of a checkpoint run: the setting with any value but False, or a loader without it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            found.add(node.lineno)
        if isinstance(node, ast.Call):
            setting = [keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"]
            loads = ast.unparse(node.func).endswith(("AutoTokenizer.from_pretrained", "AutoConfig.from_pretrained"))
            if not all(isinstance(value, ast.Constant) and value.value is False for value in setting or [None] * loads):
                found.add(node.lineno)
    return sorted(found)


def test_code_that_comes_with_a_checkpoint_is_refused_explicitly():
    for path in FILES:
        assert remote_code_of(ast.parse(path.read_text())) == [], path


@pytest.mark.parametrize(
    "text",
    [
        "AutoTokenizer.from_pretrained(x)", "AutoTokenizer.from_pretrained(x, trust_remote_code=True)",
        "AutoConfig.from_pretrained(x, trust_remote_code=y)", "load(x, trust_remote_code=None)",
        "load(**{'trust_remote_code': True})",
    ],
)  # fmt: skip
def test_the_check_of_remote_code_finds_it(text):
    assert remote_code_of(ast.parse(text)) == [1]
    assert remote_code_of(ast.parse("AutoConfig.from_pretrained(x, trust_remote_code=False)")) == []

"""The source tree: import order between and inside packages, no circles, and the limits of files and functions."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "orthrus"
FILES = sorted(ROOT.rglob("*.py"))
C_FILES = sorted((ROOT / "backends" / "native" / "c").iterdir())
RECORDS = {
    "config",
    "decoder_config",
    "file_cache",
    "heap",
    "machine_load",
    "tensor_cache",
    "prompt_files",
    "bit_fields",
    "k_quants",
    "quantization",
    "masks",
    "gumbel",
    "ngrams",
    "drafters",
    "cache",
    "batch",
}
"""Single files below all packages."""
MAY_IMPORT = {
    "config": set(),
    "decoder_config": set(),
    "file_cache": set(),
    "heap": set(),
    "machine_load": set(),
    "tensor_cache": {"file_cache"},
    "prompt_files": set(),
    "tool_calls": set(),
    "reasoning": set(),
    "bit_fields": set(),
    "k_quants": {"bit_fields"},
    "quantization": {"bit_fields", "k_quants"},
    "masks": set(),
    "gumbel": set(),
    "drafters": set(),
    "ngrams": {"drafters"},
    "prefix_index": {"config"},
    "cache": {"config", "decoder_config", "prefix_index"},
    "batch": {"cache"},
    "model": {"batch", "config", "decoder_config", "quantization"},
    "backends": {
        "batch",
        "config",
        "decoder_config",
        "drafters",
        "gumbel",
        "heap",
        "k_quants",
        "model",
        "ngrams",
        "quantization",
        "torch_threads",
    },
    "runner": {
        "backends",
        "batch",
        "bit_fields",
        "cache",
        "config",
        "decoder_config",
        "drafters",
        "file_cache",
        "heap",
        "k_quants",
        "masks",
        "model",
        "ngrams",
        "quantization",
        "tensor_cache",
        "torch_threads",
    },
    "checkpoint": {"config", "decoder_config", "file_cache", "heap", "model", "quantization"},
    "decoding": {
        "cache",
        "config",
        "drafters",
        "file_cache",
        "gumbel",
        "machine_load",
        "ngrams",
        "runner",
        "torch_threads",
    },
    "training": {
        "backends",
        "checkpoint",
        "config",
        "decoder_config",
        "drafters",
        "file_cache",
        "model",
        "prompt_files",
    },
    "constraints": {"config"},
    "options": {"config", "constraints", "decoding"},
    "fill_in_middle": {"checkpoint"},
    "tokenization": {"checkpoint", "prompt_files", "fill_in_middle", "options"},
    "load_options": {"options"},
    "progress": {"decoding"},
    "token_texts": set(),
    "results": {"decoding", "progress", "token_texts", "tool_calls"},
    "requests": {"config", "decoding", "options", "tokenization"},
    "loaded_model": {
        "checkpoint",
        "config",
        "decoding",
        "fill_in_middle",
        "model",
        "options",
        "requests",
        "runner",
        "token_texts",
        "tokenization",
    },
    "api": {
        "checkpoint",
        "config",
        "decoding",
        "load_options",
        "loaded_model",
        "options",
        "progress",
        "requests",
        "results",
        "runner",
        "tokenization",
    },
    "serving": {
        "__init__",
        "api",
        "config",
        "decoding",
        "options",
        "reasoning",
        "token_texts",
        "tokenization",
        "tool_calls",
    },
    "bench": RECORDS | {"api", "backends", "checkpoint", "decoding", "model", "runner", "torch_threads", "training"},
    "cli": RECORDS
    | {
        "api",
        "backends",
        "bench",
        "checkpoint",
        "decoding",
        "model",
        "options",
        "serving",
        "tokenization",
        "torch_threads",
        "training",
    },
    "torch_threads": set(),
    "__init__": {"api", "config", "decoding", "results", "torch_threads"},
    "__main__": {"cli"},
}
"""What each room may import. What is not listed goes the wrong way."""
LAYERS = {
    "model": [
        "rope", "linear", "ops", "norms", "mlp", "layers", "stored", "embedding", "draft_head", "decoder", "families",
        "tensor_names",
    ],
    "drafters": ["tree", "growth"],
    "backends": ["draft_tree", "interface", "linears", "torch", "invariance", "native", "triton", "select"],
    "runner": [
        "float_state", "executor", "trees", "tails", "layout", "eager", "native", "cuda_graphs", "runner", "memory",
        "packed", "prepare", "draft_tree",
    ],
    "decoding": [
        "argmax", "noise", "processors", "custom_processors",
        "filters", "json_digits", "constraint_compiler", "constraints",
        "sampling", "draft_tree", "text",
        "verdict", "logprobs", "plan", "statistics", "sequence", "rules", "reference", "propose", "cycles", "cycle",
        "planning", "drafting", "batch_size", "engine", "async_engine",
    ],
    "serving": [
        "settings", "logs", "metrics", "constraint_process", "compilations", "tickets", "service", "other_names",
        "errors", "bodies", "connections", "limits", "http", "protocol", "logprobs", "drafts", "prompts",
        "ollama", "infill", "answers",
        "response_items", "exchange", "routes", "app",
    ],
}  # fmt: skip
"""The order inside the rooms that hold the method: a file imports only what stands before it."""
LIBRARIES_KEPT_OUT = {
    "config": {"torch", "transformers"},
    "decoder_config": {"torch", "transformers"},
    "cache": {"transformers"},
    "model": {"transformers"},
    "backends": {"transformers"},
    "runner": {"transformers"},
    "decoding": {"transformers"},
    "serving": {"torch", "transformers"},
}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_MODEL_LINES, MAX_FAMILY_LINES = 300, 60, 8, 1000, 60
DEVICE_CODE = ("device.py",)


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def imports_of(path):
    """Every import, wherever it stands: in functions, and under TYPE_CHECKING."""
    return list(_imports_of(path))


def _imports_of(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if name in MODULES]
            yield from known
            if len(known) < len(node.names):
                yield node.module


def modules_imported_by(path):
    return {name for name in imports_of(path) if name in MODULES} - {module_of(path)}


def functions_of(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_one_way(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("orthrus.")}
    allowed = MAY_IMPORT[room] | ({"__init__"} if room in ("bench", "cli") else set())
    assert rooms - {room} <= allowed
    libraries = {name.split(".")[0] for name in imports_of(path)}
    if path.parent.name != "families":  # a family reads the Hugging Face config of its models
        assert not libraries & LIBRARIES_KEPT_OUT.get(room, set())


@pytest.mark.parametrize("room", list(LAYERS))
def test_files_of_a_room_import_only_what_stands_before_them(room):
    order, wrong = LAYERS[room], []
    places = {path.relative_to(ROOT / room).parts[0].removesuffix(".py") for path in FILES if room_of(path) == room}
    assert places - {"__init__"} == set(order)
    for path in FILES:
        if room_of(path) != room or path == ROOT / room / "__init__.py":
            continue
        own = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        for name in modules_imported_by(path):
            if name.startswith(f"orthrus.{room}."):
                other = name.split(".")[2]
                if order.index(other) > order.index(own):
                    wrong.append(f"{own} imports {other}")
    assert wrong == []


def circles(graph):
    """Groups of nodes that reach each other (Tarjan)."""
    index, low, stack, groups = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return [group for group in groups if len(group) > 1]


def test_the_search_for_circles_finds_them():
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert circles({"a": ["b"], "b": []}) == []


def test_no_files_import_each_other():
    assert circles({module_of(path): sorted(modules_imported_by(path)) for path in FILES}) == []


def test_no_headers_include_each_other():
    names = {path.name for path in C_FILES}
    includes = {path.name: set(re.findall(r'#include "([^"]+)"', path.read_text())) for path in C_FILES}
    assert all(used <= names for used in includes.values())
    assert circles({name: sorted(used) for name, used in includes.items()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    assert path.read_text().count("\n") <= MAX_FILE_LINES
    for function in functions_of(path):
        assert function.end_lineno - function.lineno + 1 <= MAX_FUNCTION_LINES, function.name
        parameters = [a.arg for a in (*function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
        assert len(parameters) <= MAX_PARAMETERS or room_of(path) == "cli" or path.name in DEVICE_CODE, function.name


def c_functions(text):
    """Name and length of every function: from a line that begins in column 0 and opens a body to the brace that ends
    it."""
    start, name = None, ""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if start is None and line.endswith("{") and re.match(r"[A-Za-z_].*|[ ]+.*\) \{$", line):
            first = number
            while first > 0 and lines[first].startswith(" "):
                first -= 1
            head = " ".join(lines[first : number + 1])
            called = re.search(r"(\w+)\(", head)
            if called and not head.startswith(("typedef", "struct", "enum", "union", "#")):
                start, name = first, called.group(1)
        elif start is not None and line == "}":
            yield name, number - start + 1
            start = None


@pytest.mark.parametrize("path", C_FILES, ids=lambda p: p.name)
def test_c_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    lengths = dict(c_functions(text))
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_functions_in_c_are_found():
    text = "static int one(int a,\n               int b) {\n    return a;\n}\nint two(void) { return 2; }\n"
    assert list(c_functions(text)) == [("one", 4)]
    total = sum(1 for path in C_FILES for _ in c_functions(path.read_text()))
    assert total > 40


def test_the_model_is_weights_and_mathematics():
    """Without the files of the families, one each, of which there may be any number."""
    files = [path for path in FILES if room_of(path) == "model"]
    families = [path for path in files if path.parent.name == "families" and path.name != "__init__.py"]
    assert sum(path.read_text().count("\n") for path in set(files) - set(families)) < MAX_MODEL_LINES
    assert all(path.read_text().count("\n") < MAX_FAMILY_LINES for path in families)


def test_every_module_says_what_it_is():
    assert [path for path in FILES if not ast.get_docstring(tree_of(path))] == []


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
        assert remote_code_of(tree_of(path)) == [], path


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

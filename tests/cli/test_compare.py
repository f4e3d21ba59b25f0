"""`orthrus bench compare` beside scripted peers, a fake Ollama and a fake binding of llama.cpp; `bench speed` without a
view."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
import tiny_gguf

from orthrus.bench import compare, comparison_table
from orthrus.bench.peers import processes, workers
from orthrus.bench.peers.workers import llama_cpp, ollama
from orthrus.training.shards import packed

SCRIPTED = """
VARIANTS, REQUIREMENTS = {"scripted": {}, "scripted, with a name as long as those of llama.cpp": {},
                          "scripted, failing": {"fails": True}}, []


def version():
    return "1.2.3"


def load(weights, options, threads, device):
    def generate(tokens, count, stops):
        if options.get("fails") and count == 1:
            raise RuntimeError("it broke")
        return [7] * count

    return generate
"""
"""A peer that gives one token all over; one variant fails at its first prompt."""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """The scripted peer is the only one."""
    folder = tmp_path / "workers"
    folder.mkdir()
    shutil.copy(Path(workers.__path__[0]) / "_worker.py", folder)
    (folder / "scripted.py").write_text(SCRIPTED)
    monkeypatch.setattr(workers, "__path__", [str(folder)])
    monkeypatch.setattr(compare, "weights_for", lambda *_: {})
    monkeypatch.delitem(sys.modules, f"{workers.__name__}.scripted", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """Answers take 20 ms per token, those of peers 10, however busy this machine is."""
    decode, ask = compare.decode_alone, processes.Worker.generate
    monkeypatch.setattr(compare, "decode_alone", lambda *given: (tokens := decode(*given)[0], 0.02 * len(tokens)))
    monkeypatch.setattr(
        processes.Worker, "generate", lambda *own, **given: (ask(*own, **given)[0], 0.01 * given["count"])
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint with a view, one without, and a GGUF file, which has none either."""
    root = tmp_path_factory.mktemp("compared")
    return {
        "view": tiny.save_checkpoint(root / "view"),
        "bare": tiny.save_checkpoint(root / "bare", view=False),
        "gguf": tiny_gguf.save(root / "bare.gguf"),
    }


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"say {n}"}) for n in range(2)))
    return file


def asked(model, task, *more):
    shared = ["--model", model, "--task", task, "--dtype", "float32", "--max-new-tokens", 4]
    return ["bench", "compare", *shared, *more]


def tables(out):
    """The Markdown tables of an output: lists of rows of cells, head first, without the rule below it."""
    found, rows = [], []
    for line in [*out.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            assert all(set(cell) <= {"-", ":"} for cell in rows[1]) and len({len(row) for row in rows}) == 1
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("kind", ["view", "bare"])
def test_the_table_can_be_read_and_pasted(run, monkeypatch, scripted, clock, models, task, width, kind):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(models[kind].parent)
    code, out, err = run(*asked(kind, task, "--prompt-tokens", "10,200"))
    assert code == 0, err
    assert [line for line in out.splitlines() if len(line) > width] == []
    speeds, times = tables(out)
    systems = ["orthrus ar", *(["orthrus auto"] if kind == "view" else []), "scripted",
               "scripted, with a name as long as those of llama.cpp"]  # fmt: skip
    letters = ["A", "B", "C", "D"][: len(systems)]
    names = letters if [row[1] for row in speeds[1:]] == letters else systems
    assert (names is systems) == (width == 200)
    assert [row[:2] for row in speeds[1:]] == [["task", name] for name in names]
    assert names is systems or all(f"- {letter}: {name}" in out for letter, name in zip(names, systems, strict=True))
    assert speeds[0][3] == f"x {names[0]}" and speeds[1][3] == f"1.00 ({'1.00-1.00' if width == 200 else '1.0-1.0'})"
    assert [row[2] for row in speeds[1:]] == ["50.0 (50-50)"] * (len(systems) - 2) + ["100.0 (100-100)"] * 2
    assert speeds[-1][3].startswith("2.00 ") and speeds[-1][4] == "10"
    assert [row[5] for row in speeds[1:]] == ["2/2"] * (len(systems) - 2) + ["0/2"] * 2
    assert times[0] == ["prompt tokens", "10", "200"] and len(times) == 1 + len(systems)
    assert times[-1][1:] == ["10 (10-10)"] * 2
    conditions = " ".join(out.split())
    assert all(part in conditions for part in ("scripted 1.2.3", "Orthrus ", "torch ", " of ", "float32"))
    assert f" {kind} (diffusion view: " in conditions
    assert "absent: scripted, failing: RuntimeError: it broke" in out


def test_tables_of_the_longest_names_fit_80_columns():
    """Those of Spec-Bench, and of the variants of llama.cpp."""
    figures = ((912.3, (897.0, 931.0)), (12.34, (11.87, 13.04)))
    rows = [
        compare.System("math_reasoning", name, 80, *figures[0], *figures[1], 0.144, 80, *figures[1])
        for name in ("orthrus ar", *llama_cpp.VARIANTS)
    ]
    called = comparison_table.called(rows, 80)
    lines = comparison_table.speed_table(rows, called)
    assert max(map(len, lines)) <= 80 and lines[-1] == "- I: llama.cpp Q8_0, prompt lookup"
    assert all(any(line.endswith(f": {row.name}") for line in lines) for row in rows)


def test_the_record_holds_ratios_times_and_versions(run, scripted, models, task):
    code, out, err = run(*asked(models["view"], task, "--prompt-tokens", "10", "--peer", "scripted", "--json"))
    assert code == 0, err
    record = json.loads(out)
    sides = {side["name"]: side for side in record["sides"]}
    assert sides["orthrus ar"]["over_first"] == 1.0 and sides["orthrus auto"]["ours_over"] == 1.0
    assert {time["name"]: time["runs"] for time in record["first_tokens"]} == dict.fromkeys(sides, 3)
    assert record["provenance"]["peers"] == {"scripted": "1.2.3"}
    assert "first_tokens" not in json.loads(run(*asked(models["view"], task, "--peer", "scripted", "--json"))[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt-tokens", "10,x"], "--prompt-tokens 10,x: give numbers of tokens, such as 50,500,4000"),
        (["--prompt-tokens", "2048"], "--prompt-tokens 2048: the context of this model has 2048 tokens"),
        (["--draft-model", "none.gguf"], "--draft-model none.gguf: no such file"),
    ],
)
def test_impossible_comparisons_are_refused_before_they_begin(run, scripted, models, task, more, message):
    code, out, err = run(*asked(models["view"], task, *more))
    assert (code, out, message in err) == (2, "", True)


def test_distilled_records_are_compared_from_a_directory_and_a_packed_file(run, scripted, models, tmp_path):
    data = tmp_path / "data"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "say 1"}\n{"prompt": "say 2"}\n')
    code, _, err = run("distill", "--model", models["view"], "--data", tmp_path / "prompts.jsonl", "--output", data,
                       "--count", 2, "--max-new-tokens", 4, "--dtype", "float32")  # fmt: skip
    assert code == 0, err
    (tmp_path / "data.jsonl.xz").write_bytes(packed(data))
    shared = ["--peer", "scripted", "--json"]
    sides = [
        json.loads(run(*asked(models["view"], path, *shared))[1])["sides"]
        for path in (data, tmp_path / "data.jsonl.xz")
    ]
    assert [[(side["part"], side["prompts"]) for side in each] for each in sides] == [[("data", 2)] * 3] * 2


def test_speed_is_measured_without_a_view(run, models, task):
    shared = ["bench", "speed", "--model", models["bare"], "--task", task, "--max-new-tokens", 4, "--dtype", "float32"]
    code, out, err = run(*shared, "--json")
    assert code == 0, err
    (speed,) = json.loads(out)["speed"]
    assert (speed["setting"], speed["identical"], speed["expected"]) == ("ar", 2, 0.0)
    assert "no diffusion view" in err
    assert run(*shared)[0] == 0
    code, _, err = run(*shared, "--setting", "auto")
    assert (code, "needs a diffusion view" in err) == (2, True)


class Store(BaseHTTPRequestHandler):
    """A server that answers as Ollama does; `server.seen` has what was asked, `server.blobs` and `models` what it
    holds."""

    def log_message(self, *_):
        pass

    def _answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self._answer({}, 200 if self.path.rpartition("/")[2] in self.server.blobs else 404)

    def do_GET(self):
        models = [{"name": f"{name}:latest"} for name in self.server.models]
        self._answer({"version": "9.9"} if self.path == "/api/version" else {"models": models})

    def do_DELETE(self):
        self.server.models.remove(self._body()["model"])
        self._answer({})

    def do_POST(self):
        if self.path.startswith("/api/blobs/"):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.blobs[self.path.rpartition("/")[2]] = data
            self._answer({}, 201)
            return
        body = self._body()
        self.server.seen.append((self.path, body))
        if self.path == "/api/create":
            self.server.models.append(body["model"])
            self._answer({"status": "success"})
        else:
            count = body["options"]["num_predict"]
            self._answer({"response": "ab" * count, "eval_count": count, "done_reason": "length"})

    def _body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))


@pytest.fixture
def store(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.blobs, server.models, server.seen = {}, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


def test_ollama_decodes_the_same_file_and_keeps_nothing_of_it(run, models, task, store):
    code, out, err = run(*asked(models["gguf"], task, "--peer", "ollama", "--json"))
    assert code == 0, err
    record = json.loads(out)
    (side,) = [side for side in record["sides"] if side["name"] == "ollama, the file as it is"]
    assert (side["absent"], side["prompts"], side["identical"]) == (None, 2, 0)
    assert record["provenance"]["peers"] == {"ollama": "9.9"}
    data = models["gguf"].read_bytes()
    assert store.blobs == {f"sha256:{hashlib.sha256(data).hexdigest()}": data}
    assert store.models == []
    generated = [body for path, body in store.seen if path == "/api/generate"]
    assert all(body["raw"] and body["options"]["temperature"] == 0.0 for body in generated)
    prompts = [body["prompt"] for body in generated]
    assert prompts[::2] == ["\n"] * 5 and prompts[3::2] == ["say 0"] * 2 + ["say 1"] * 2
    assert [body["options"]["num_predict"] for body in generated][1::2] == [4, 4, 1, 4, 1]


def test_tokens_that_ollama_counts_and_the_tokenizer_does_not_are_unknown(models, task, store):
    import orthrus

    class Told:
        def generate(self, text, count):
            return {"text": "abcd", "count": self.count, "ended": self.ended}, 1.0

    with orthrus.load(models["gguf"], dtype="float32") as model:
        request = model.request("ab", {"max_new_tokens": 4})
        decode = compare._decoder(model, "ollama, the file as it is", Told(), sorted(model.limits.end_token_ids))
        known = model.encode("abcd", special_tokens=False)
        size, ended = len(known), [*known, tiny.END]
        cases = [
            (size, False, known),
            (size, True, ended),
            (size + 1, True, ended),
            (size + 1, False, [-1] * (size + 1)),
        ]
        for Told.count, Told.ended, expected in cases:
            assert decode(request) == (expected, 1.0)


def test_where_no_ollama_is_the_reason_is_told(run, models, task, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    code, out, err = run(*asked(models["gguf"], task, "--peer", "ollama"))
    assert code == 0, err
    assert "no Ollama server answers at http://127.0.0.1:1: start it (`ollama serve`), or name it by OLLAMA_HOST" in out
    assert "--install" not in out


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (None, "http://127.0.0.1:11434"), ("0.0.0.0", "http://127.0.0.1:11434"), ("box:80", "http://box:80"),
        ("https://box/", "https://box:11434"), (":99", "http://127.0.0.1:99"),
    ],
)  # fmt: skip
def test_the_address_of_ollama_is_read_as_ollama_reads_it(monkeypatch, host, address):
    monkeypatch.delenv("OLLAMA_HOST", raising=False) if host is None else monkeypatch.setenv("OLLAMA_HOST", host)
    assert ollama.address() == address


class Llama:
    """A model of the binding that counts on from the newest token, modulo its vocabulary."""

    def __init__(self, path, draft_model=None, **settings):
        self.size, self.draft_model, self.settings = (5 if path == "other" else 10), draft_model, settings

    def n_vocab(self):
        return self.size

    def reset(self):
        pass

    def generate(self, tokens, **_):
        while True:
            tokens = [*tokens, (tokens[-1] + 1) % self.size]
            yield tokens[-1]


@pytest.fixture
def binding(monkeypatch):
    """A fake binding of llama.cpp: the models that were made."""
    made = []
    package, speculative = ModuleType("llama_cpp"), ModuleType("llama_cpp.llama_speculative")
    package.Llama = lambda *args, **options: made.append(Llama(*args, **options)) or made[-1]
    speculative.LlamaDraftModel = object
    speculative.LlamaPromptLookupDecoding = lambda **options: options
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", speculative)
    return made


def loaded(variant, **weights):
    options = {**llama_cpp.VARIANTS[f"{llama_cpp.PLAIN}{variant}"], "context": 64}
    return llama_cpp.load({"gguf": "model", **weights}, options, 2, "cpu")


def test_a_draft_model_drafts_greedily_within_the_context(binding):
    generate = loaded(", draft model, 4 tokens", draft="small")
    draft, model = binding
    assert model.draft_model.model is draft and model.settings["logits_all"]
    assert generate([1, 2], 5, [6]) == [3, 4, 5, 6]
    assert model.draft_model(np.array([1, 2])).tolist() == [3, 4, 5, 6]
    assert model.draft_model(np.array([1] * 62)).tolist() == [2, 3]
    assert model.draft_model(np.array([1] * 64)).tolist() == []
    with pytest.raises(ValueError, match="the draft model has 5 tokens, the model 10"):
        loaded(", draft model", draft="other")


def test_lookup_of_llama_cpp_has_the_settings_of_its_variant(binding):
    for variant in ("", ", prompt lookup", ", prompt lookup of 2 tokens", ", prompt lookup by 4-grams"):
        loaded(variant)
    assert [model.draft_model for model in binding] == [
        None, {"num_pred_tokens": 8}, {"num_pred_tokens": 2}, {"num_pred_tokens": 8, "max_ngram_size": 4},
    ]  # fmt: skip


def test_variants_with_a_draft_model_need_its_file(run, models, task, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "cache_directory", lambda: tmp_path)
    name = f"{llama_cpp.PLAIN}, draft model"
    code, out, err = run(*asked(models["gguf"], task, "--peer", name))
    assert (code, out, f"{name}: needs --draft-model FILE.gguf" in err) == (2, "", True)
    more = ["--peer", llama_cpp.PLAIN + ",", "--json"]
    absent = [side["name"] for side in json.loads(run(*asked(models["gguf"], task, *more))[1])["sides"][1:]]
    assert name not in absent and f"{llama_cpp.PLAIN}, prompt lookup" in absent
    more += ["--draft-model", models["gguf"]]
    sides = json.loads(run(*asked(models["gguf"], task, *more))[1])["sides"][1:]
    assert name in [side["name"] for side in sides]
    assert all("not installed: `orthrus bench compare --install --peer" in side["absent"] for side in sides)

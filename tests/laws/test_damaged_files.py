"""Law 8: a damaged or hostile file raises one ValueError that names file and field, before memory is allocated."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from orthrus.checkpoint import export, hub, low_rank, validation
from orthrus.prompt_files import parse_object

NAN, INFINITY = float("nan"), float("inf")


def load(directory, **options):
    return hub.load(str(directory), dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("home") / "model")


@pytest.fixture(scope="module")
def adapter_home(home, tmp_path_factory):
    made = load(home)
    directory = tmp_path_factory.mktemp("adapter")
    export.export_adapter(made, directory / "plain", {})
    export.export_adapter(made, directory / "int8", {}, int8=True)
    low_rank.set_rank(made.decoder, 8)
    export.export_adapter(made, directory / "low rank", {}, int8=True)
    return directory


@pytest.fixture
def copy(home, tmp_path):
    return linked(home, tmp_path / "model")


def linked(source, target):
    """A directory of symlinks, in which single files can be replaced."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    return target


def replace(directory, name, data):
    (directory / name).unlink(missing_ok=True)
    (directory / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def changed(directory, name, **fields):
    """Change fields of a JSON file; the value `...` removes a field."""
    content = json.loads((directory / name).read_text()) | fields
    replace(directory, name, json.dumps({k: v for k, v in content.items() if v is not ...}))
    return directory


def reweighted(directory, name, change):
    """Change the tensors of a file."""
    tensors = load_file(directory / name)
    change(tensors)
    (directory / name).unlink()
    save_file(tensors, directory / name)
    return directory


CONFIG_VALUES = [
    *[("vocab_size", value) for value in (0, -1, 10**12, 320.0, "320", True, None, [], ...)],
    *[("hidden_size", value) for value in (0, -64, 2**20, 2**63, "64", {}, ...)],
    *[("intermediate_size", value) for value in (0, 10**9, 96.5, ...)],
    *[("num_hidden_layers", value) for value in (0, -3, 10**9, "x" * 1000, True, ...)],
    *[("num_attention_heads", value) for value in (0, -4, 10**9, [4], ...)],
    *[("num_key_value_heads", value) for value in (0, -2, 3, 10**9, "2", False)],
    *[("head_dim", value) for value in (0, -16, 15, 10**9, "16")],
    *[("max_position_embeddings", value) for value in (0, -5, 10**12, "2048", 2048.0, ...)],
    *[("rms_norm_eps", value) for value in (0, -1e-6, 10.0, "1e-6", [], True, NAN, INFINITY)],
    *[("tie_word_embeddings", value) for value in (0, 1, "no", [])],
    *[("attention_bias", value) for value in (1, "yes")],
    *[("layer_types", value) for value in (3, "full_attention", [1, 2, 3], {"a": 1})],
    *[("architectures", value) for value in ("OrthrusLM", 3, [3])],
    *[("model_type", value) for value in (3, None, [], ...)],
    *[("hidden_act", value) for value in (3, [])],
    *[("block_size", value) for value in (0, -8, 10**9, 8.0, "8", True, [8])],
    *[("mask_token_id", value) for value in (-1, 320, 10**9, 300.0, "300", True, ...)],
    *[("trained_rows", value) for value in (0, 9, -1, 7.0, "7", 10**9)],
    *[("inverse_temperatures", value) for value in ([1.0], [0] * 7, [*[1.0] * 6, NAN], "1" * 7)],
    *[("eos_token_id", value) for value in (-1, 320, 2**63, True, "end", 319.0, [319, 320], [[319]], {"a": 1}, NAN)],
    *[("num_labels", value) for value in (10**9, -1, "2")],
    *[("rope_parameters", value) for value in (3, "default", [])],
    *[("rope_scaling", value) for value in (3, "linear", [1])],
    ("per_layer_config", {"0": {"hidden_size": 32}}),
]


@pytest.mark.parametrize(("field", "value"), CONFIG_VALUES, ids=lambda value: repr(value)[:16])
def test_an_impossible_config_value_is_refused_by_field(copy, field, value):
    with pytest.raises(ValueError, match=rf"config\.json: .*\b{field}\b") as refusal:
        load(changed(copy, "config.json", **{field: value}))
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", 0), ("rope_theta", -1.0), ("rope_theta", 1e300), ("rope_theta", "x"), ("rope_theta", NAN),
        ("factor", 0), ("factor", -2.0), ("factor", "2"), ("factor", INFINITY), ("factor", ...), ("rope_type", 3),
        ("partial_rotary_factor", 7.0), ("partial_rotary_factor", "half"),
    ],
)  # fmt: skip
def test_an_impossible_rotary_value_is_refused_by_field(copy, field, value):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0} | {field: value}
    with pytest.raises(ValueError, match=rf"config\.json: .*\b{field}\b"):
        load(changed(copy, "config.json", rope_parameters={k: v for k, v in rope.items() if v is not ...}))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 0.0, "beta_slow": 0.0},
        {"rope_type": "yarn", "rope_theta": 1.0, "factor": 4.0},
        {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {"full_attention": {"rope_type": "default"}},
    ],
)  # fmt: skip
def test_errors_of_the_rotary_initialisers_become_value_errors(copy, rope):
    with pytest.raises(ValueError, match=r"config\.json: .*rope_parameters"):
        load(changed(copy, "config.json", rope_parameters=rope))


def test_old_rotary_fields_are_checked_too(copy):
    for fields in ({"rope_theta": 0}, {"rope_scaling": {"type": "linear", "factor": -1.0}}):
        with pytest.raises(ValueError, match=r"config\.json: .*(rope_theta|factor)"):
            load(changed(copy, "config.json", rope_parameters=..., **fields))


DAMAGED_JSON = {
    "empty": b"", "not UTF-8": b'{"model_type": "\xff"}', "cut": b'{"model_type": "qwen3"', "a list": b"[]",
    "a number": b"3", "null": b"null", "nested": b"[" * 100_000, "objects": b'{"a":' * 100_000,
    "balanced": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "digits": b'{"vocab_size": ' + b"1" * 5000 + b"}",
    "zeros": b"\0" * 64, "UTF-16": '{"a": 1}'.encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "adapter_config.json"])
@pytest.mark.parametrize("damage", DAMAGED_JSON)
def test_a_damaged_json_file_is_refused_by_name(copy, adapter_home, tmp_path, name, damage):
    options = {}
    directory = copy
    if name == "adapter_config.json":
        directory = linked(adapter_home / "plain", tmp_path / "adapter")
        options["adapter"] = directory
    replace(directory, name, DAMAGED_JSON[damage])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as refusal:
        load(copy, **options)
    assert len(str(refusal.value)) < 400


def test_a_directory_in_place_of_a_file_is_refused_by_name(copy):
    for name in ("generation_config.json", "config.json", "model.safetensors"):
        content = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).unlink(missing_ok=True)
        (copy / name).mkdir()
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load(copy)
        (copy / name).rmdir()
        if content is not None:
            (copy / name).write_bytes(content)


def test_a_huge_json_file_is_not_read(copy):
    (copy / "config.json").unlink()
    with (copy / "config.json").open("wb") as file:
        file.truncate(validation.MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match=r"config\.json: .*bytes"):
        load(copy)


@pytest.mark.parametrize("value", [-1, 320, 2**70, True, "end", 3.0, [1, None], [[1]], {}])
def test_an_end_token_outside_the_vocabulary_is_refused_by_file(copy, value):
    replace(copy, "generation_config.json", json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id"):
        load(copy)


def test_end_tokens_of_all_files_are_used(copy):
    replace(copy, "generation_config.json", json.dumps({"eos_token_id": [5, 7], "temperature": 0.0, "top_k": "x"}))
    assert load(changed(copy, "config.json", eos_token_id=9)).end_token_ids == {5, 7, 9, 319}
    replace(copy, "generation_config.json", json.dumps({"eos_token_id": None}))
    assert load(changed(copy, "config.json", eos_token_id=None)).end_token_ids == {319}


def test_wrong_shapes_are_refused_before_memory_is_allocated(copy):
    """An embedding of 16 Mi tokens by 64 Ki values needs two terabytes in bfloat16."""
    for huge in ({"vocab_size": 2**24, "hidden_size": 2**16}, {"intermediate_size": 2**20, "hidden_size": 2**16}):
        with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight has shape \[320, 64\], the config asks for"):
            load(changed(copy, "config.json", **huge))
        with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight has shape \[320, 64\], the config asks for"):
            hub.describe(str(copy))
    with pytest.raises(ValueError, match=r"tensor model\.layers\.3\.\S+ is missing"):
        sizes = {"hidden_size": 64, "vocab_size": 320, "intermediate_size": 96, "num_hidden_layers": 9}
        load(changed(copy, "config.json", layer_types=None, **sizes))


def sharded(copy, entries):
    """Two shards and an index; a dict of `entries` updates its `weight_map`, any other value replaces it."""
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, copy / file)
    weight_map = {n: file for file, part in parts.items() for n in part}
    content = {"weight_map": weight_map | entries if isinstance(entries, dict) else entries}
    replace(copy, "model.safetensors.index.json", json.dumps(content))
    (copy / "model.safetensors").unlink()
    return copy


@pytest.mark.parametrize(
    "shard",
    [
        "../model/a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a.safetensors/",
        "./a.safetensors", "..\\a.safetensors", "a\0b", "x" * 1000, "\ud800", 3, None, True, [],
        ["a.safetensors"], {"a": 1}, 1e308,
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_an_index_may_only_name_plain_files_beside_it(copy, shard):
    (copy / "sub").mkdir()
    sharded(copy, {"model.norm.weight": shard})
    (copy / "sub" / "a.safetensors").symlink_to(copy / "a.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: .*model\.norm\.weight") as refusal:
        load(copy)
    assert len(str(refusal.value)) < 400


def test_an_index_may_name_links(copy, tmp_path):
    sharded(copy, {})
    (copy / "a.safetensors").rename(tmp_path / "blob")
    (copy / "a.safetensors").symlink_to(tmp_path / "blob")
    assert load(copy).decoder.config.layers == 3


@pytest.mark.parametrize("weight_map", [None, 3, "a.safetensors", ["a.safetensors"], [["a", "b"]]])
def test_an_index_without_a_map_is_refused(copy, weight_map):
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: weight_map"):
        load(sharded(copy, weight_map))


def test_a_damaged_index_is_refused(copy):
    sharded(copy, {})
    for damage in DAMAGED_JSON.values():
        replace(copy, "model.safetensors.index.json", damage)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            load(copy)


def test_a_tensor_in_two_shards_is_refused(copy):
    sharded(copy, {})
    tensors = load_file(copy / "a.safetensors")
    tensors["model.norm.weight"] = torch.ones(64)
    save_file(tensors, copy / "a.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight' is in a\.safetensors.*b\.safetensors"):
        load(copy)


UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm_diff.weight"


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_tensors_of_other_types_than_weights_are_refused_by_name(copy, dtype):
    with pytest.raises(ValueError, match=rf"{UP} is of type"):
        load(reweighted(copy, "model.safetensors", lambda t: t.update({UP: torch.zeros(96, 64).to(dtype)})))


@pytest.mark.parametrize("name", [UP, NORM, "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_weights_are_refused_by_name(copy, name, value, dtype):
    reweighted(copy, "model.safetensors", lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(ValueError, match=rf"model: tensor {name} holds .*(NaN|infin)"):
        hub.load(str(copy), dtype=dtype)


def test_weights_outside_the_range_of_the_dtype_are_refused_by_name(copy):
    reweighted(copy, "model.safetensors", lambda tensors: tensors[UP].view(-1)[7:8].fill_(3.4e38))
    assert load(copy).decoder.dtype == torch.float32
    with pytest.raises(ValueError, match=rf"{UP} .*range of bfloat16"):
        hub.load(str(copy), dtype=torch.bfloat16)
    reweighted(copy, "model.safetensors", lambda t: t.update({UP: torch.full((96, 64), -1e300, dtype=torch.float64)}))
    with pytest.raises(ValueError, match=rf"{UP} .*range of float32"):
        load(copy)


ADAPTER_VALUES = [
    *[("format", value) for value in (2, 0, "1", True, None, [], ...)],
    *[("backbone", value) for value in (None, [], "x", {}, {"id": 3}, ...)],
    *[("backbone.id", value) for value in (None, 3, [], ...)],
    *[("backbone.revision", value) for value in (3, [], {})],
    *[("backbone.sha256", value) for value in (None, 3, [], ...)],
    *[("backbone.tokenizer_sha256", value) for value in (None, True, ...)],
    *[("shapes", value) for value in (None, [], "x", {}, ...)],
    *[("shapes.vocab_size", value) for value in (None, "320", 320.0, -1, 10**12, ...)],
    ("shapes.new", 3),
    *[("shapes.family", value) for value in (3, None, ...)],
    *[("shapes.layers", value) for value in (True, 0, 10**9, [])],
    *[("block_size", value) for value in (0, 10**9, 8.0, "8", True, None, ...)],
    *[("mask_token_id", value) for value in (-1, 320, 2**63, "300", None, ...)],
    *[("trained_rows", value) for value in (0, 9, 7.0, None, ...)],
    *[("inverse_temperatures", value) for value in (3, [], [1.0] * 8, [True] * 7, {})],
    *[("provenance", value) for value in (None, [], "x", 3, ...)],
]


@pytest.mark.parametrize(("field", "value"), ADAPTER_VALUES, ids=lambda value: repr(value)[:16])
def test_an_impossible_adapter_value_is_refused_by_field(home, adapter_home, tmp_path, field, value):
    directory = linked(adapter_home / "plain", tmp_path / "adapter")
    outer, _, inner = field.partition(".")
    if inner:
        content = json.loads((directory / "adapter_config.json").read_text())[outer] | {inner: value}
        value = {k: v for k, v in content.items() if v is not ...}
    changed(directory, "adapter_config.json", **{outer: value})
    with pytest.raises(ValueError, match=rf"adapter_config\.json: .*\b{inner or outer}\b"):
        load(home, adapter=directory)


Q, K_NORM = "model.layers.0.self_attn.q_proj_diff.weight", "model.layers.2.self_attn.k_norm_diff.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), rf"{Q} is missing"),
        (lambda t: t.pop(Q + ".scale"), rf"{Q}\.scale is missing"),
        (lambda t: t.update({Q + ".scale": torch.ones(3)}), rf"{Q}\.scale has shape \[3\]"),
        (lambda t: t.update({Q + ".scale": torch.ones(64, 1)}), rf"{Q}\.scale has shape \[64, 1\]"),
        (lambda t: t.update({Q + ".scale": torch.ones(64, dtype=torch.int64)}), rf"{Q}\.scale is of type"),
        (lambda t: t.update({Q: torch.ones(64, dtype=torch.int8)}), rf"{Q} has shape \[64\]"),
        (lambda t: t.update({K_NORM: torch.ones(16, dtype=torch.int16)}), rf"{K_NORM} is of type"),
        (lambda t: t.update({Q: torch.ones(64, 64)}), rf"{Q}\.scale"),
        (lambda t: t.update({"model.norm.weight.scale": torch.ones(64)}), r"model\.norm\.weight\.scale"),
        (lambda t: t[Q + ".scale"].view(-1)[3:4].fill_(NAN), rf"{Q}\.scale holds .*NaN"),
        (lambda t: t[Q + ".scale"].view(-1)[3:4].fill_(INFINITY), rf"{Q}\.scale holds .*infin"),
        (lambda t: t[K_NORM].view(-1)[3:4].fill_(NAN), rf"{K_NORM} holds .*NaN"),
        (lambda t: t.update({K_NORM: torch.ones(17)}), rf"{K_NORM} has shape \[17\]"),
    ],
)
def test_damaged_adapter_weights_are_refused_by_name(home, adapter_home, tmp_path, change, message):
    directory = linked(adapter_home / "int8", tmp_path / "adapter")
    reweighted(directory, "adapter.safetensors", change)
    with pytest.raises(ValueError, match=r"adapter\.safetensors: .*" + message):
        load(home, adapter=directory)


QKV_UP, O_DOWN = "model.layers.0.self_attn.qkv_proj_diff.up", "model.layers.2.self_attn.o_proj_diff.down"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QKV_UP), rf"{QKV_UP} is missing"),
        (lambda t: t.pop(O_DOWN + ".scale"), rf"{O_DOWN}\.scale is missing"),
        (
            lambda t: t.update({QKV_UP: torch.ones(128, 4)}),
            rf"{QKV_UP} has shape \[128, 4\], the config asks for \[128, 8\]",
        ),
        (
            lambda t: t.update({O_DOWN: torch.ones(9, 64)}),
            rf"{O_DOWN} has shape \[9, 64\], the config asks for \[8, 64\]",
        ),
        (
            lambda t: t.update({QKV_UP + ".scale": torch.ones(128)}),
            rf"{QKV_UP}\.scale has .*one scale per column of",
        ),
        (lambda t: t.update({O_DOWN + ".scale": torch.ones(64)}), rf"{O_DOWN}\.scale has .*one scale per row of"),
        (lambda t: t[QKV_UP + ".scale"].view(-1)[3:4].fill_(NAN), rf"{QKV_UP}\.scale holds .*NaN"),
        (lambda t: (t.pop(QKV_UP + ".scale"), t.update({QKV_UP: torch.full((128, 8), NAN)})), rf"{QKV_UP} holds .*NaN"),
        (lambda t: t.update({O_DOWN: torch.ones(8, 64, dtype=torch.int64)}), rf"{O_DOWN} is of type I64"),
        (lambda t: t.update({Q: torch.ones(64, 64)}), rf"unexpected tensors .*{Q}"),
    ],
)
def test_damaged_factors_are_refused_by_name(home, adapter_home, tmp_path, change, message):
    directory = linked(adapter_home / "low rank", tmp_path / "adapter")
    reweighted(directory, "adapter.safetensors", change)
    for lazily in (False, True):
        with pytest.raises(ValueError, match=r"adapter\.safetensors: .*" + message):
            read_all(load(home, adapter=directory, lazily=lazily))


def read_all(checkpoint):
    if checkpoint.unread:
        checkpoint.unread.read()


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        *[(value, r"adapter_config\.json: rank") for value in (0, -8, 8.0, "8", True, 2**17)],
        (9, r"has shape \[128, 8\], the config asks for \[128, 9\]"),
        (65, r"adapter_config\.json: rank .*64"),
        (..., r"q_proj_diff\.weight is missing"),
    ],
)
def test_a_rank_that_is_not_that_of_the_factors_is_refused(home, adapter_home, tmp_path, rank, message):
    directory = linked(adapter_home / "low rank", tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        load(home, adapter=changed(directory, "adapter_config.json", rank=rank))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": {"type": "BPE", "vocab": 3}}', b"\0" * 9],
)
def test_a_damaged_tokenizer_is_refused_by_directory(copy, name, damage):
    if name == "tokenizer_config.json" and damage.startswith(b"{"):
        damage = b'{"tokenizer_class": 3, "eos_token": [1, 2]}'
    replace(copy, name, damage)
    with pytest.raises(ValueError, match=r"model.*tokenizer"):
        load(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_max_length": "many"}, {"model_max_length": [1]}, {"chat_template": 3},
        {"chat_template": {"default": 3}}, {"eos_token": 3}, {"eos_token": {"content": 3}},
        {"added_tokens_decoder": {str(2**62): {"content": "x"}}},
        {"added_tokens_decoder": {"a": {"content": "x"}}}, {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"3": 3}}, {"extra_special_tokens": 3}, {"tokenizer_class": []}, {"auto_map": 3},
    ],
    ids=repr,
)  # fmt: skip
def test_tokenizer_settings_of_a_wrong_type_are_refused_by_directory(copy, fields):
    if "chat_template" in fields:
        (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"model.*tokenizer"):
        load(changed(copy, "tokenizer_config.json", **fields))


@pytest.mark.parametrize("index", [2**24, 2**32 - 2, 2**63])
@pytest.mark.parametrize("where", ["tokenizer.json", "added", "vocab.json", "added_tokens.json"])
def test_an_id_for_which_a_tokenizer_would_take_all_memory_is_refused_by_token(copy, monkeypatch, where, index):
    """The `tokenizers` library ends the process where it cannot allocate, so no such file may reach it."""
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    content, file = json.loads((copy / "tokenizer.json").read_text()), where
    if where == "added":
        content["added_tokens"][3]["id"], file = index, "tokenizer.json"
    elif where == "tokenizer.json":
        content["model"]["vocab"]["g"] = index
    else:
        content = {"g": index}
    replace(copy, file, json.dumps(content))
    with pytest.raises(ValueError, match=rf"{file}: the id of token .* is {index}; expected an id below 16777216"):
        load(copy)


def test_code_that_comes_with_a_tokenizer_never_runs(copy, monkeypatch):
    """The user is not prompted for permission either."""
    replace(copy, "evil.py", f"open({str(copy / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    changed(copy, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    for fields in ({}, {"tokenizer_class": "Evil"}):
        changed(copy, "tokenizer_config.json", **fields)
        changed(copy, "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
        try:
            load(copy)
        except ValueError as error:
            assert "tokenizer" in str(error)
    assert not (copy / "ran").exists()


def test_half_of_a_surrogate_pair_is_refused_by_line():
    """JSON escapes can express it, but UTF-8 and therefore tokenizers cannot."""
    assert parse_object(r'{"prompt": "\ud83d\ude00"}', "here")["prompt"] == "\U0001f600"
    for text in (
        r'{"prompt": "\ud83d"}',
        r'{"messages": [{"role": "user", "content": "a \udc00 b"}]}',
        r'{"\ud800": 1}',
    ):
        with pytest.raises(ValueError, match=r"here, line 3: .*surrogate"):
            parse_object(text, "here, line 3")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"prompt": ' + "1" * 5000 + "}"])
def test_too_deeply_nested_records_are_refused_by_line(text):
    with pytest.raises(ValueError, match="here, line 3: not valid JSON"):
        parse_object(text, "here, line 3")

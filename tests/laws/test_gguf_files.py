"""GGUF files: valid files load, and an invalid header raises one ValueError that names file and field, quickly."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
from tiny_gguf import field, header, string

from orthrus.checkpoint import hub, sources
from orthrus.checkpoint.gguf import COMMON_TYPES, GgufFile, checked_header
from orthrus.checkpoint.gguf_architectures import hf_name

U8, U32, I32, F32, BOOL, TEXT, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
Q = gguf.GGMLQuantizationType


def load(path, **options):
    return hub.load(str(path), **({"dtype": torch.float32} | options))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    types = {"token_embd.weight": Q.Q8_0, "blk.0.attn_v.weight": Q.Q4_1, "blk.1.ffn_up.weight": Q.Q4_0}
    return tiny_gguf.save(tmp_path_factory.mktemp("gguf") / "good.gguf", types=types)


def test_common_types_are_those_of_gguf():
    assert {n: (Q(n).name, *gguf.GGML_QUANT_SIZES[Q(n)]) for n in COMMON_TYPES} == COMMON_TYPES


def test_a_file_is_read_as_by_the_gguf_library(good):
    """Bytes, types and shapes equal those of the `gguf` library; the order of rows in q and k of Llama is undone."""
    ours, theirs = GgufFile(good, checked_header(good)), gguf.GGUFReader(good)
    assert len(ours.names) == len(theirs.tensors) == 20
    for tensor in theirs.tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        index, part = tensor.name.split(".")[1:3] if tensor.name.startswith("blk.") else ("", "")
        name = next(n for n in ours.names if n == hf_name(tensor.name))
        assert (index == "") or f"layers.{index}." in name
        assert ours.shape(name) == tuple(values.shape)
        if part in ("attn_q", "attn_k"):
            heads = 4 if part == "attn_q" else 2
            values = values.view(heads, 8, 2, 64).transpose(1, 2).reshape(values.shape)
        assert torch.equal(ours.tensor(name), values)
    made = load(good)
    assert (made.decoder.config.layers, made.decoder.config.kv_heads, made.end_token_ids) == (2, 2, {319})
    assert hub.describe(str(good)).backbone == made.backbone
    assert made.decoder.decoder_layers[1].mlp.gate_up.group_quantized.type == "plain/Q4_0"
    assert made.decoder.head.group_quantized.type == "Q8_0"


def resident(path):
    """Bytes of the mappings of a file that are in memory."""
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    sizes = [re.search(r"^Rss: *(\d+) kB", part, re.MULTILINE)[1] for part in maps if str(path) in part]
    return 1024 * sum(map(int, sizes))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not say what is in memory")
def test_hashing_a_file_keeps_no_more_of_it_in_memory_than_a_tensor(tmp_path):
    path = tiny_gguf.save(tmp_path / "large.gguf", tiny_gguf.tensors(hidden=512, inner=1024))
    files = GgufFile(path, checked_header(path))
    largest = max(4 * torch.Size(files.shape(name)).numel() for name in files.names)
    assert len(files.digest(tied_head=True)) == 64
    assert resident(path) <= largest + 2**17 < path.stat().st_size / 4


INVALID_HEADERS = {
    "empty": (b"", "empty"),
    "other": (b"\0" * 100, "GGUF"),
    "cut": (b"GGUF\3\0\0", "ends"),
    "version 1": (header(version=1), "version"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 1), "version"),
    "fields": (header(fields=2**60), "fields"),
    "tensors": (header(field("a", U32, b"\0" * 4), tensors=2**60), "tensors"),
    "name": (header(struct.pack("<Q", 2**60), b"x" * 100), "name"),
    "name not UTF-8": (header(field(b"\xff\xfe", U32, b"\0" * 4)), "UTF-8"),
    "type": (header(field("llama.context_length", 13, b"\0" * 9)), r"llama\.context_length"),
    "text": (header(field("general.name", TEXT, struct.pack("<Q", 2**62) + b"x")), r"general\.name"),
    "text not UTF-8": (header(field("general.architecture", TEXT, string(b"\xff"))), r"general\.architecture"),
    "twice": (header(*[field("a.b", U32, b"\0" * 4)] * 2, fields=2), r"a\.b"),
    **{
        f"array of {kind}": (header(field("a.list", ARRAY, struct.pack("<IQ", kind, 2**60) + b"x" * 50)), r"a\.list")
        for kind in (U8, U32, BOOL, TEXT, ARRAY, U64, 13, 2**31)
    },
    "array of empty texts": (header(field("a.list", ARRAY, struct.pack("<IQ", TEXT, 2**40) + b"\0" * 800)), r"a\.list"),
    "text in array": (header(field("a.list", ARRAY, struct.pack("<IQQ", TEXT, 1, 2**50) + b"x" * 50)), r"a\.list"),
    "no architecture": (header(field("a", U32, b"\0" * 4)), r"general\.architecture"),
    "architecture": (header(field("general.architecture", U32, b"\0" * 4)), r"general\.architecture"),
    "mamba": (header(field("general.architecture", TEXT, string("mamba"))), r"family 'mamba' is not supported.*llama"),
}  # fmt: skip


READ = """
import resource, sys
from pathlib import Path
from orthrus.checkpoint import sources
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    for read in (sources.read_config, lambda source: source.files()):
        try:
            read(sources.resolve(str(path), None))
        except ValueError as error:
            print(path.name, str(error).replace(chr(10), " "))
status = Path("/proc/self/status")  # not ru_maxrss, which starts at the memory of the parent
print(*[line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] or [0])
"""


def test_an_invalid_header_is_refused_by_field(tmp_path):
    """In a subprocess with limited CPU time: on some headers a naive reader loops until it runs out of memory."""
    for number, (data, _) in enumerate(INVALID_HEADERS.values()):
        (tmp_path / f"{number:02}.gguf").write_bytes(data)
    command = [sys.executable, "-c", READ, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert ended.returncode == 0, ended.stderr[-2000:]
    *lines, memory = ended.stdout.splitlines()
    assert len(lines) == 2 * len(INVALID_HEADERS)
    for number, (name, (_, message)) in enumerate(INVALID_HEADERS.items()):
        for line in lines[2 * number : 2 * number + 2]:
            assert line.startswith(f"{number:02}.gguf"), (name, line)
            with pytest.raises(ValueError, match=message):
                raise ValueError(line.split(" ", 1)[1])
    assert int(memory) < 1_500_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[({key.replace(".", "__"): value}, rf"llama\.{key}") for key, values in {
            "attention.head_count": (0, -4, 2**31, 4.0, "4", [4, 4], None),
            "attention.head_count_kv": (0, -2, 3, 2.0, [2, 2], None),
            "block_count": (0, -1, 10**9, 2.0, "two", [2], None),
            "embedding_length": (0, -64, 2**30, 64.5, None),
            "feed_forward_length": (0, 10**9, [96, 96], None),
            "context_length": (0, -5, 2**31, "long", None),
            "vocab_size": (0, -1, 2**31, "320"),
            "rope.dimension_count": (0, 15, 2**31, "16"),
            "rope.freq_base": (0.0, -1.0, float("nan"), float("inf"), 1e30, "base"),
            "attention.layer_norm_rms_epsilon": (0.0, -1e-5, float("nan"), 2.0, None),
        }.items() for value in values],
    ],
    ids=repr,
)  # fmt: skip
def test_impossible_metadata_is_refused_by_field(tmp_path, fields, message):
    path = tiny_gguf.save(tmp_path / "model.gguf", **fields)
    with pytest.raises(ValueError, match=rf"model\.gguf: .*{message}"):
        load(path)


def test_fields_of_another_architecture_are_checked_too(tmp_path):
    """transformers reads `qwen3.block_count` of a llama file as well."""
    path = tiny_gguf.save(tmp_path / "model.gguf")
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data, 16)[0]
    more = field("qwen3.block_count", U32, struct.pack("<I", 10**9))
    padded = more + field("pad", TEXT, string(b"x" * (-(len(more) + 23) % 32)))
    path.write_bytes(data[:16] + struct.pack("<Q", count + 2) + padded + data[24:])
    with pytest.raises(ValueError, match=r"model\.gguf: qwen3\.block_count"):
        load(path)


def tensor_info(data, name):
    """The offset of the header entry of a tensor: number of dimensions, dimensions, type, offset."""
    return data.index(string(name)) + 8 + len(name)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<I", 0), (0, "<I", 5), (0, "<I", 2**31), (4, "<Q", 0), (4, "<Q", 2**40), (4, "<Q", 2**63), (4, "<Q", 65),
        (12, "<Q", 2**62), (20, "<I", 99), (20, "<I", 24), (20, "<I", 2**31), (24, "<Q", 2**40), (24, "<Q", 2**63),
        (24, "<Q", 1), (24, "<Q", 33),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_the_file_is_refused_by_name(tmp_path, offset, form, value):
    path = tiny_gguf.save(tmp_path / "model.gguf")
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, tensor_info(data, "blk.1.attn_v.weight") + offset, value)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.gguf: .*(blk\.1\.attn_v|layers\.1\.self_attn\.v_proj)"):
        load(path)


@pytest.mark.parametrize("name", ["noweight", "blk.0", "blk.", ".", "", "blk.0.attn_q", "blk.0.new.weight", "a.b.c.d"])
def test_unknown_tensor_names_are_refused_by_name(tmp_path, name):
    path = tiny_gguf.save(tmp_path / "model.gguf", tiny_gguf.tensors() | {name: np.ones(32, np.float32)})
    with pytest.raises(ValueError, match=r"model\.gguf: ") as refusal:
        load(path)
    assert name in str(refusal.value)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    weights = tiny_gguf.tensors() | {"model.norm.weight": np.ones(64, np.float32)}
    with pytest.raises(ValueError, match=r"model\.gguf: .*model\.norm\.weight"):
        load(tiny_gguf.save(tmp_path / "model.gguf", weights))


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**31])
def test_an_impossible_alignment_is_refused(good, tmp_path, alignment):
    data = good.read_bytes()
    count = struct.unpack_from("<Q", data, 16)[0]
    more = field("general.alignment", U32, struct.pack("<I", alignment))
    path = tmp_path / "model.gguf"
    path.write_bytes(data[:16] + struct.pack("<Q", count + 1) + more + data[24:])
    with pytest.raises(ValueError, match=r"model\.gguf: .*general\.alignment"):
        load(path)


@pytest.mark.parametrize("token", [320, 2**31, 2**32 - 1])
def test_an_end_token_outside_the_vocabulary_is_refused(good, tmp_path, token):
    data = bytearray(good.read_bytes())
    struct.pack_into("<I", data, data.index(b"eos_token_id") + len(b"eos_token_id") + 4, token)
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.gguf: tokenizer\.ggml\.eos_token_id"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", [None, Q.F16, Q.Q8_0, Q.Q4_1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(tmp_path, kind, value):
    """For quantised types the scale of a group is not finite."""
    weights, types = tiny_gguf.tensors(), {"blk.1.ffn_up.weight": kind} if kind else None
    path = tiny_gguf.save(tmp_path / "model.gguf", weights, types)
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    data = bytearray(path.read_bytes())
    struct.pack_into("<f" if kind is None else "<e", data, int(tensor.data_offset), value)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.gguf: tensor model\.layers\.1\.mlp\.up_proj\.weight holds"):
        load(path)


def test_a_type_that_cannot_hold_weights_is_refused_by_name(tmp_path):
    weights = tiny_gguf.tensors() | {"blk.0.attn_k.weight": np.ones((32, 64), np.int32)}
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj\.weight .*I32"):
        load(tiny_gguf.save(tmp_path / "model.gguf", weights))


def test_a_truncated_file_is_refused(good, tmp_path):
    data = good.read_bytes()
    for size in (20, 30, 500, 5000, len(data) - 1000):
        (tmp_path / "model.gguf").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"model\.gguf"):
            load(tmp_path / "model.gguf")


def test_a_damaged_cached_config_is_converted_again(good):
    """Config and tokenizer of a GGUF file are cached; a full disk or a killed process may truncate them."""
    before = load(good)
    cached = sources.config_directory(sources.resolve(str(good), None))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        for damage in (
            lambda file: os.truncate(file, 40),
            lambda file: file.unlink(),
            lambda file: file.write_text("{}"),
        ):
            damage(cached / name)
            again = load(good)
            assert (again.backbone, again.hf_config) == (before.backbone, before.hf_config)


def test_wrong_shapes_are_refused_before_memory_is_allocated(tmp_path):
    path = tiny_gguf.save(tmp_path / "model.gguf", vocab_size=2**24, embedding_length=2**16)
    with pytest.raises(ValueError, match=r"model\.gguf: tensor model\.embed_tokens\.weight has shape \[320, 64\]"):
        load(path, dtype=torch.bfloat16)


def test_a_file_is_read_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the directory should be")
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    source = sources.resolve("smollm2-demo", None)
    config = sources.read_config(source)
    assert sources.read_tokenizer(source, config).chat_template
    assert not sources.config_directory(source).is_relative_to(tmp_path)

"""`orthrus info --json`: one field per fact, of the type that the docs name, in every record of a kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import pytest
import tiny
import tiny_gguf

import orthrus
from orthrus.checkpoint import hub, known_models

DOCS = Path(__file__).parents[2] / "docs" / "quickstart.md"
TYPES = {"text": str, "number": int, "list": list, "object": dict}


def documented(kind):
    """The fields of a record of a kind by the table of the docs: name to type, and whether it may be null."""
    section = DOCS.read_text().split("### `orthrus info --json`")[1].split("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| (\w+)( or null)? \|", section, re.M)
    return {name: (TYPES[type_], bool(null)) for name, kinds, type_, null in rows if kind in kinds}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Directories: a checkpoint with a view, one without, an adapter."""
    root = tmp_path_factory.mktemp("info")
    return {
        "view": tiny.save_checkpoint(root / "model"),
        "bare": tiny.save_checkpoint(root / "bare", view=False),
        "adapter": known_models.BUNDLED / known_models.DEMO,
    }


@pytest.mark.parametrize("name", ["view", "bare", "adapter"])
def test_every_field_is_documented_and_has_its_type(run, records, name):
    record = json.loads(run("info", records[name], "--json")[1])
    fields = documented(record["kind"])
    assert set(record) == set(fields)
    for field, (type_, may_be_null) in fields.items():
        assert type(record[field]) is type_ or (may_be_null and record[field] is None), field
    assert (record["block_size"] is None) == (name == "bare")


def test_the_numbers_are_those_of_the_checkpoint(run, records):
    record = json.loads(run("info", records["view"], "--json")[1])
    loaded = hub.load(str(records["view"]))
    config, diffusion = loaded.decoder.config, loaded.decoder.diffusion
    assert (record["layers"], record["hidden_size"]) == (config.layers, config.hidden_size)
    assert (record["query_heads"], record["kv_heads"], record["head_dim"]) == (4, 2, config.head_dim)
    assert record["mask_token_id"] == diffusion.mask_token_id
    parameters = sum(parameter.numel() for parameter in loaded.decoder.parameters())
    assert record["backbone_parameters"] + record["diffusion_parameters"] == parameters
    assert record["default_sampling"] == {"temperature": 0.0}


def test_the_arithmetic_by_default_is_the_one_that_loading_takes(run, records, tmp_path):
    weights = tiny_gguf.tensors()
    types = {name: gguf.GGMLQuantizationType.Q8_0 for name, values in weights.items() if values.ndim == 2}
    file = tiny_gguf.save(tmp_path / "model.gguf", weights, types)
    for model, arithmetic, other in ((records["view"], "bfloat16", "int8"), (file, "int8", "none")):
        assert json.loads(run("info", model, "--json")[1])["default_arithmetic"] == arithmetic
        rows = run("info", model)[1]
        assert "arithmetic by default" in rows and f"--quantize {other}" in rows
        with orthrus.load(model, cache=False) as loaded:
            assert all(("int8" in kernel) == (arithmetic == "int8") for kernel in loaded.runner.linear_kernels)

"""Law 8 for experts that a file holds in one tensor: each is read as what transformers makes of it."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from orthrus.checkpoint import hub

EXPERTS = "model.layers.{}.mlp.experts."


def saved(directory, change):
    """A tiny gpt-oss in MXFP4 as it is published; `change` may damage its tensors, which are returned."""
    AutoModelForCausalLM.from_config(tiny.hf_config("gpt_oss")).save_pretrained(directory)
    path, generator = directory / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = experts, outputs, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 124, shape, generator=generator, dtype=torch.uint8)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    return tensors


def test_experts_in_four_bits_have_the_values_that_transformers_gives_them(tmp_path):
    tensors = saved(tmp_path, lambda tensors: None)
    decoder = hub.load_decoder(str(tmp_path), torch.bfloat16)
    for index, layer in enumerate(decoder.decoder_layers):
        stored = {name.removeprefix(EXPERTS.format(index)): tensor for name, tensor in tensors.items()}
        for linear in ("gate_up", "down"):
            name = f"{linear}_proj"
            expanded = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
            for number, expert in enumerate(layer.mlp.experts):
                whole, biases = expanded[number].T, stored[f"{name}_bias"][number].to(torch.bfloat16)
                if linear == "gate_up":  # gates and ups alternate in files
                    whole, biases = (torch.cat((t[::2], t[1::2])) for t in (whole, biases))
                assert torch.equal(expert.get_submodule(linear).weight, whole)
                assert torch.equal(expert.get_submodule(linear).bias, biases)


def wrong_scales(tensors):
    name = EXPERTS.format(1) + "down_proj_scales"
    tensors[name] = tensors[name][:, :-1].contiguous()


def no_scales(tensors):
    del tensors[EXPERTS.format(0) + "gate_up_proj_scales"]


def twice(tensors):
    tensors[EXPERTS.format(0) + "3.down_proj.bias"] = torch.zeros(64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_scales, "layers.1.*down_proj_blocks is U8 .* and their scales"),
        (no_scales, "gate_up_proj_scales is missing"),
        (twice, "3.down_proj.bias is there alone and in a tensor of all experts"),
    ],
)
def test_damaged_experts_are_refused(tmp_path, change, message):
    saved(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        hub.load_decoder(str(tmp_path), torch.bfloat16)

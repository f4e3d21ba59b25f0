"""Law 8: save, load, export and published names round-trip; adapters are refused on other backbones."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import huggingface_hub.errors
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import export, hub
from orthrus.checkpoint.tokenizer import digest_of_vocabulary
from orthrus.model import families


def load(directory, **options):
    return hub.load(str(directory), dtype=torch.float32, **options)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture(scope="module", params=families.names())
def published_dir(request, tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("published") / "model", request.param)


def test_published_layout_round_trips(published_dir, tmp_path):
    first = load(published_dir)
    assert first.decoder.diffusion.block_size == 8
    export.export_published(first, tmp_path / "again")
    second = load(tmp_path / "again")
    assert same_weights(first.decoder, second.decoder)
    assert first.backbone.sha256 == second.backbone.sha256
    assert first.backbone.tokenizer_sha256 == second.backbone.tokenizer_sha256
    assert set(load_file(published_dir / "model.safetensors")) == set(
        load_file(tmp_path / "again" / "model.safetensors")
    )


def test_an_adapter_round_trips_onto_its_bare_backbone(published_dir, tmp_path):
    whole = load(published_dir)
    family = whole.decoder.config.family
    bare = tiny.save_checkpoint(tmp_path / "bare", family, view=False)
    assert load(bare).decoder.diffusion is None
    export.export_adapter(whole, tmp_path / "adapter", {"made by": "a test"})
    joined = load(bare, adapter=tmp_path / "adapter")
    assert same_weights(whole.decoder, joined.decoder)
    assert joined.warnings == ()
    assert adapters.read_config(tmp_path / "adapter").provenance == {"made by": "a test"}
    assert not any("_diff" not in name for name in adapters.weights(tmp_path / "adapter").names)


def test_the_mean_of_adapters_changes_view_and_head_alone(published_dir):
    one, two, before = load(published_dir), load(published_dir), load(published_dir)
    for own in (one, two, before):
        own.decoder.set_draft_head(16)
        for parameter in own.decoder.draft_head.parameters():
            parameter.data.fill_(0.5)
    for name, parameter in two.decoder.named_parameters():
        parameter.data += 1.0 if ".diffusion." in name or name.startswith("draft_head.") else 8.0
    export.average(one, [two])
    for name, parameter in one.decoder.named_parameters():
        drafts = ".diffusion." in name or name.startswith("draft_head.")
        expected = before.decoder.get_parameter(name) + (0.5 if drafts else 0.0)
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)
    two.decoder.set_draft_head(32)
    with pytest.raises(ValueError, match="not of the form of those of"):
        export.average(one, [two])
    view = before.decoder.diffusion
    before.decoder.set_view(replace(view, mask_token_id=view.mask_token_id - 1))
    with pytest.raises(ValueError, match="mask token"):
        export.average(one, [before])


def test_a_published_checkpoint_keeps_its_end_tokens_and_sampling_options(tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model")
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tiny.END, 7], "temperature": 0.6, "top_k": 20})
    )
    export.export_published(load(path), tmp_path / "again")
    before, after = load(path), load(tmp_path / "again")
    assert after.end_token_ids == before.end_token_ids == {7, tiny.END}
    assert after.sampling == before.sampling == {"temperature": 0.6, "top_k": 20}


def test_a_head_that_the_config_does_not_know_is_refused(tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model", view=False, tie_word_embeddings=True)
    weights = load_file(path / "model.safetensors")
    for change, refused in ((0.0, False), (1.0, True)):
        save_file(
            weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + change}, path / "model.safetensors"
        )
        if refused:
            with pytest.raises(ValueError, match='set "tie_word_embeddings" to false'):
                load(path)
        else:
            load(path)


def test_tokens_that_fill_up_a_vocabulary_are_no_part_of_it():
    tokens = {"a": 0, "b": 1, "[PAD7]": 2}
    assert digest_of_vocabulary(tokens | {"[PAD3]": 3, "[PAD4]": 4}) == digest_of_vocabulary(tokens)
    assert digest_of_vocabulary(tokens | {"[PAD9]": 3}) != digest_of_vocabulary(tokens)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "accept its licence on the hub"), ("RevisionNotFoundError", "no revision 'abc'"),
        ("HfHubHTTPError", "Check the name and the network"), (None, r"\(broken\). Check the name and the network"),
    ],
)  # fmt: skip
def test_a_download_that_fails_names_the_remedy(monkeypatch, error, message):
    def snapshot_download(*_, **__):
        if error is None:
            raise RuntimeError("broken")  # as errors of HTTP libraries are
        response = httpx.Response(404, request=httpx.Request("GET", "http://nowhere"))
        raise getattr(huggingface_hub.errors, error)("broken", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=message):
        hub.load("someone/a-model", revision="abc")


def test_orthrus_is_read_as_qwen3_by_architecture_or_by_tensors(tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    for change in ({"model_type": "orthrus"}, {"architectures": ["Qwen3ForCausalLM"]}):
        (path / "config.json").write_text(json.dumps(config | change))
        checkpoint = load(path)
        assert checkpoint.decoder.config.family == "qwen3"
        assert checkpoint.decoder.diffusion.mask_token_id == tiny.MASK


def test_shards_are_read(tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model")
    whole = load(path)
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, path / file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.safetensors").unlink()
    again = load(path)
    assert same_weights(whole.decoder, again.decoder)
    assert whole.backbone.sha256 == again.backbone.sha256
    (path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors.*missing"):
        load(path)


def test_an_adapter_is_refused_where_it_does_not_belong(tmp_path):
    export.export_adapter(load(tiny.save_checkpoint(tmp_path / "home")), tmp_path / "adapter", {})

    other_weights = tiny.save_checkpoint(tmp_path / "other_weights", seed=1, view=False)
    with pytest.raises(ValueError, match="allow-other-backbone") as refusal:
        load(other_weights, adapter=tmp_path / "adapter")
    forced = load(other_weights, adapter=tmp_path / "adapter", allow_other_backbone=True)
    assert forced.backbone.sha256 in str(refusal.value)
    assert "acceptance may be lower" in forced.warnings[0]

    other_shapes = tiny.save_checkpoint(tmp_path / "other_shapes", view=False, num_hidden_layers=2)
    with pytest.raises(ValueError, match="layers 3 != 2"):
        load(other_shapes, adapter=tmp_path / "adapter", allow_other_backbone=True)

    other_tokenizer = tiny.save_checkpoint(tmp_path / "other_tokenizer", view=False)
    content = (other_tokenizer / "tokenizer.json").read_text()
    (other_tokenizer / "tokenizer.json").write_text(content.replace("<unused256>", "<foreign>"))
    with pytest.raises(ValueError, match="another tokenizer"):
        load(other_tokenizer, adapter=tmp_path / "adapter", allow_other_backbone=True)

    with pytest.raises(ValueError, match="no adapter here"):
        load(tmp_path / "home", adapter=tmp_path / "nowhere")


def damaged(directory, change):
    """A checkpoint whose weights were modified by `change(tensors)`."""
    path = tiny.save_checkpoint(directory)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def test_damaged_weights_are_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        load(damaged(tmp_path / "missing", lambda tensors: tensors.pop(name)))
    with pytest.raises(ValueError, match=rf"{name} has shape \[3, 64\], the config asks for \[96, 64\]"):
        load(damaged(tmp_path / "shape", lambda tensors: tensors.update({name: torch.zeros(3, 64)})))
    extra = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ValueError, match=rf"1 unexpected tensors for a qwen3 with this config: {extra}"):
        load(damaged(tmp_path / "extra", lambda tensors: tensors.update({extra: torch.zeros(64)})))
    path = tiny.save_checkpoint(tmp_path / "cut")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read as safetensors"):
        load(path)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="only safetensors are read"):
        load(path)
    (path / "model.safetensors").write_bytes(whole)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load(path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(ValueError, match=r"model\.gguf"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "gpt2"}, "family 'gpt2' is not supported.*llama, ministral"),
        ({"model_type": "falcon"}, "family 'falcon' is not supported"),
        ({"model_type": "llama", "use_sliding_window": True, "sliding_window": 64}, "sliding-window"),
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 3}, "layer_types .* in a mistral"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "RoPE type 'dynamic'"),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 8,
                    "long_factor": [1.0] * 8, "original_max_position_embeddings": 64,
                }
            },
            "RoPE type 'longrope'",
        ),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by 'gptq'"),
        ({"mask_token_id": 320}, "mask_token_id 320 is outside the vocabulary"),
        ({"block_size": 1}, "block_size must be at least 2"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_unsupported_configs_are_refused_by_name(tmp_path, overrides, message):
    path = tiny.save_checkpoint(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"layer_types": None} | overrides))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_unknown_checkpoint_names_are_refused(tmp_path):
    for name in ("no-such-model", "./nowhere", "a/b/c", str(tmp_path / "missing.gguf")):
        with pytest.raises(ValueError, match="no such directory or file"):
            hub.load(name)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="expected a checkpoint directory"):
        hub.load(str(tmp_path / "weights.bin"))
    with pytest.raises(ValueError, match="cannot be fetched from the hub"):
        hub.load("nobody/nothing-here")


def test_a_hub_id_is_fetched_and_then_read_like_a_directory(tmp_path, monkeypatch):
    path, request = tiny.save_checkpoint(tmp_path / "snapshot"), {}

    def snapshot_download(name, **options):
        request.update(name=name, **options)
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = hub.load("someone/a-model", dtype=torch.float32, revision="abc")
    assert (request["name"], request["revision"]) == ("someone/a-model", "abc")
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in request["allow_patterns"])
    assert checkpoint.backbone.id == "someone/a-model"
    assert checkpoint.backbone.revision == "snapshot"


SAVE_UNDER_A_LIMIT = """
import resource, sys, torch
from orthrus.checkpoint import export, hub
checkpoint = hub.load(sys.argv[1], dtype=torch.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export.export_adapter(checkpoint, __import__("pathlib").Path(sys.argv[2]), {"second": True})
except OSError as error:
    print("refused:", error)
"""


def test_a_full_disk_leaves_the_old_adapter_intact(tmp_path):
    home = tiny.save_checkpoint(tmp_path / "home")
    export.export_adapter(load(home), tmp_path / "adapter", {"first": True})
    before = {f.name: f.read_bytes() for f in (tmp_path / "adapter").iterdir()}
    command = [sys.executable, "-c", SAVE_UNDER_A_LIMIT, str(home), str(tmp_path / "adapter")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("refused:"), ended.stderr
    assert {f.name: f.read_bytes() for f in (tmp_path / "adapter").iterdir()} == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


@pytest.mark.parametrize("model_type", ["cohere2", "nemotron", "stablelm", "starcoder2"])
def test_families_with_layer_norms_ignore_the_epsilon_of_another_norm(model_type):
    assert families.decoder_config(tiny.hf_config(model_type, rms_norm_eps=0.05)).norm_eps < 0.01


def test_the_refusal_of_another_family_names_the_page_that_says_how_to_add_one():
    with pytest.raises(ValueError, match=r"'falcon' is not supported; .* arcee, .*backbones\.md") as error:
        families.load("falcon")
    page = str(error.value).rpartition(" says how")[0].split()[-1]
    assert "one file" in (Path(__file__).parents[2] / page).read_text()

"""The laws on a CUDA device: the same cycles against the same oracle."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from tree_checks import check_blocks, check_rows, random_parents

from orthrus.backends import interface, select
from orthrus.config import DecodingConfig, DiffusionConfig, SamplingParams
from orthrus.decoding import cycles
from orthrus.decoding.engine import generate
from orthrus.model import families
from orthrus.model.decoder import Decoder
from orthrus.runner.cuda_graphs import CUDAGraphs
from orthrus.runner.runner import Runner
from orthrus.training import objectives
from orthrus.training.blocks import Blocks
from orthrus.training.parameters import trainable
from orthrus.training.step import step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.mark.parametrize("kernels", ["Triton", "torch"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_every_cycle_equals_the_oracle(family, dtype, kernels, tmp_path):
    device = torch.device("cuda")
    fast = select.fastest(tiny.DTYPES[dtype], device, tmp_path) if kernels == "Triton" else None
    config = families.decoder_config(tiny.hf_config(family))
    made = Decoder(config, DiffusionConfig(8, tiny.MASK, 7), tiny.DTYPES[dtype], torch.device("cpu"))
    runner = Runner.prepare(tiny.on_device(tiny.randomise(made), device), fast)
    assert runner.exact
    ragged = kernels == "Triton" and not {*interface.ATTENTION_FEATURES}.intersection(config.features)
    assert (runner.kernels.name, runner.attention.ragged) == (kernels, ragged)
    assert isinstance(runner.executors[0], CUDAGraphs) == (ragged and config.experts is None)
    asked = [tiny.request(5 + 90 * n, 30, n, SamplingParams(temperature=0.8 * (n % 2), seed=n)) for n in range(4)]
    truths = [tiny.oracle(runner, request).tokens for request in asked]
    for name in cycles.names():
        steps = generate(
            runner, asked, DecodingConfig(cycle=name, batch_size=2), tiny.LIMITS, costs=tiny.COSTS["passes"]
        )
        found = {s.sequence.index: s.sequence.tokens for s in steps if s.sequence.finish_reason}
        assert [found[n] for n in range(len(asked))] == truths


@pytest.mark.parametrize("kernels", ["Triton", "torch"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_rows_of_trees_equal_plain_decoding_of_their_paths(family, dtype, kernels, tmp_path):
    device, rng = torch.device("cuda"), random.Random(family)
    fast = select.fastest(tiny.DTYPES[dtype], device, tmp_path) if kernels == "Triton" else None
    runner = Runner.prepare(tiny.on_device(tiny.decoder(family, dtype), device), fast)
    for seed in range(4):
        shapes = [random_parents(rng, rng.randint(2, 24)) for _ in range(3)] + [list(range(-1, 4))]
        check_rows(runner, [11, 250, 29, 40], shapes, seed)
        check_blocks(runner, [11, 250, 29, 40], shapes, seed=seed)


@pytest.mark.parametrize("family", families.names())
def test_a_training_step_is_that_of_the_cpu(family):
    tokens = torch.tensor(tiny.request(40).prompt)
    blocks = Blocks(tokens, (0, 17), torch.tensor([3, 9, 26]), torch.tensor([17, 12, 40]), 8, 8)
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        decoder = tiny.on_device(tiny.decoder(family), torch.device(device))
        parameters = trainable(decoder)
        outcome = step(decoder, blocks, objectives.load("kl"))
        outcome.loss.backward()
        losses.append(outcome.loss.detach().cpu())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in parameters.values()]))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)

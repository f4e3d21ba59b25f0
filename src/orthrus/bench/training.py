"""Speed of a training step against its reference implementation and against its matrix products alone."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.model.layers import View
from orthrus.model.mlp import MLP
from orthrus.model.rope import rotate
from orthrus.training import objectives
from orthrus.training.anchors import choose
from orthrus.training.blocks import Blocks
from orthrus.training.config import TrainConfig
from orthrus.training.parameters import trainable
from orthrus.training.step import step
from orthrus.training.vocabulary import Head

DOCUMENTS = 4


def measure(decoder: Decoder, config: TrainConfig, n: int) -> dict[str, Any]:
    """Supervised rows per second of the step, its reference and its GEMMs alone, n runs interleaved; and a profile.

    Raises ValueError for a model that the reference cannot run.
    """
    if decoder.config.features:
        raise ValueError(f"the reference of this benchmark does not know {', '.join(decoder.config.features)}")
    parameters = list(trainable(decoder).values())
    blocks, objective = random_blocks(decoder, config), objectives.load(config.objective)
    rows = int(blocks.trained_SM.sum())
    head = Head.of(decoder, transposed=decoder.device.type == "cpu")

    def learn(loss: Tensor) -> None:
        loss.backward()
        for parameter in parameters:
            parameter.grad = None

    sides: dict[str, Callable[[], None]] = {
        "step": lambda: learn(step(decoder, blocks, objective, head=head).loss),
        "plain twin": lambda: learn(plain_loss(decoder, blocks)),
        "products alone": products(decoder, blocks),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(n + 2):
        for name, run in sides.items():
            start = perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(perf_counter() - start)
    against = {}
    for name in ("plain twin", "products alone"):
        ratios = np.array(seconds[name]) / np.array(seconds["step"])
        against[name] = [float(np.median(ratios)), *(float(q) for q in np.quantile(ratios, (0.25, 0.75)))]
    return {
        "rows": rows,
        "n": n,
        "rows_per_second": {name: rows / float(np.median(times)) for name, times in seconds.items()},
        "seconds": {name: float(np.median(times)) for name, times in seconds.items()},
        "time_over_step": against,
        "profile": profile(sides["step"]),
    }


def random_blocks(decoder: Decoder, config: TrainConfig) -> Blocks:
    """A packed text of four random documents; the assistant turn is the last three quarters of each."""
    generator = torch.Generator().manual_seed(config.seed)
    size = config.sequence_length // DOCUMENTS
    tokens = torch.randint(decoder.config.vocab_size, (size * DOCUMENTS,), generator=generator)
    spans = [(start + size // 4, start + size) for start in range(0, size * DOCUMENTS, size)]
    roots, ends = choose(spans, config.roots, generator)
    starts = tuple(range(0, size * DOCUMENTS, size))
    return Blocks(tokens, starts, roots, ends, config.block_size, config.trained_rows)


def plain_loss(decoder: Decoder, blocks: Blocks) -> Tensor:
    """Reference implementation of the forward KL: autograd, one dense mask, the logits of all rows at once.

    It runs models without any of `DecoderConfig.features`, as those are that the benchmark measures.
    """
    assert decoder.diffusion is not None and not decoder.config.features
    K, text, eps = blocks.block_size, len(blocks.tokens_T), decoder.config.norm_eps
    owner_T = torch.searchsorted(torch.tensor(blocks.starts), torch.arange(text), right=True)
    owner_S, index = owner_T[blocks.roots_S], torch.arange(len(blocks.roots_S)).repeat_interleave(K)
    causal = torch.ones(text, text, dtype=torch.bool).tril() & (owner_T[:, None] == owner_T)
    before = (torch.arange(text) < blocks.roots_S[:, None]) & (owner_S[:, None] == owner_T)
    sees = torch.cat((before[index], index[:, None] == index), dim=1)
    with torch.no_grad():
        hidden, memory = _plain_pass(decoder, "ar", blocks.tokens_T, blocks.offsets_T, causal, None)
        teacher_TV = F.linear(F.rms_norm(hidden, hidden.shape[-1:], decoder.norm.weight, eps), decoder.head.weight)
    ids_SK = torch.full((len(blocks.roots_S), K), decoder.diffusion.mask_token_id)
    ids_SK[:, 0] = blocks.tokens_T[blocks.roots_S]
    positions = blocks.offsets_T[blocks.roots_S][:, None] + torch.arange(K)
    hidden, _ = _plain_pass(decoder, "diffusion", ids_SK.flatten(), positions.flatten(), sees, memory)
    normed = F.rms_norm(hidden, hidden.shape[-1:], decoder.norm.weight, eps).view(*ids_SK.shape, -1)
    student_NV = F.linear(normed[:, : blocks.trained_rows][blocks.trained_SM], decoder.head.weight)
    target_NV = teacher_TV[blocks.targets_SM[blocks.trained_SM] - 1]
    log_q, log_p = student_NV.float().log_softmax(-1), target_NV.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _plain_pass(
    decoder: Decoder,
    name: Any,
    ids: Tensor,
    positions: Tensor,
    sees: Tensor,
    memory: list[tuple[Tensor, Tensor]] | None,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    config, eps = decoder.config, decoder.config.norm_eps
    rope = decoder.ropes[0].rows(positions, int(positions.max()) + 1)
    hidden, kept = decoder.embedding(ids), []
    for number, layer in enumerate(decoder.decoder_layers):
        view: View = layer.view(name)
        assert layer.attention_norm is not None
        qkv = view.qkv(F.rms_norm(hidden, hidden.shape[-1:], layer.attention_norm.weight, eps))
        q, k, v = qkv.view(len(ids), -1, config.head_dim).split((config.heads, config.kv_heads, config.kv_heads), 1)
        if view.norms is not None:
            q, k = (F.rms_norm(t, t.shape[-1:], w.to(t.dtype), eps) for t, w in zip((q, k), view.norms, strict=True))
        q, k = rotate(q, *rope), rotate(k, *rope)
        kept.append((k, v))
        if memory is not None:
            k, v = torch.cat((memory[number][0], k)), torch.cat((memory[number][1], v))
        one, two, three = (t.transpose(0, 1)[None] for t in (q, k, v))
        attention = F.scaled_dot_product_attention(one, two, three, attn_mask=sees, enable_gqa=True)
        hidden = hidden + view.o(attention[0].transpose(0, 1).flatten(1))
        assert isinstance(layer.mlp, MLP) and layer.mlp_norm is not None
        gate, up = layer.mlp.gate_up(F.rms_norm(hidden, hidden.shape[-1:], layer.mlp_norm.weight, eps)).chunk(2, -1)
        hidden = hidden + layer.mlp.down(F.silu(gate) * up)
    return hidden, kept


def products(decoder: Decoder, blocks: Blocks) -> Callable[[], None]:
    """Run only the GEMMs with weights that a step needs, on random rows."""
    dtype = decoder.dtype
    supervised = int(blocks.trained_SM.sum())
    distinct = len(blocks.targets_SM[blocks.trained_SM].unique())
    jobs: list[tuple[Tensor, Tensor, Tensor | None, bool]] = []
    for name, linear in decoder.linears().items():
        weight = linear.weight.detach().to(dtype)
        view, shared = ".diffusion." in name, ".diffusion." not in name and ".ar." not in name
        if name == "head":
            jobs += [(torch.randn(distinct, weight.shape[1]).to(dtype), weight, None, False)]
            jobs += [_job(supervised, weight, learns=False)]
            continue
        if not view:
            jobs += [(torch.randn(len(blocks.tokens_T), weight.shape[1]).to(dtype), weight, None, False)]
        if view or shared:
            jobs += [_job(len(blocks.roots_S) * blocks.block_size, weight, learns=view)]

    def run() -> None:
        for x, weight, grad, learns in jobs:
            F.linear(x, weight)
            if grad is not None:
                grad @ weight
            if grad is not None and learns:
                grad.t() @ x

    return run


def _job(rows: int, weight: Tensor, *, learns: bool) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    x, grad = (torch.randn(rows, size).to(weight.dtype) for size in (weight.shape[1], weight.shape[0]))
    return x, weight, grad, learns


def profile(run: Callable[[], None]) -> dict[str, float]:
    """The share of a step's time by operation, for the ten largest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        run()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:10]
    return {name: time / total for name, time in largest}

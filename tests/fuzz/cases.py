"""Random decoding cases: a model, requests, and several decoding jobs. Seed and number determine a case."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from unittest import mock

import tiny
import torch

from orthrus.backends import select
from orthrus.backends.native import kernels as native
from orthrus.backends.torch import TorchKernels
from orthrus.config import MAX_TREE_NODES, DecodingConfig, DiffusionConfig, SamplingParams, StopConditions
from orthrus.decoding import cycles
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.sequence import Limits, Request
from orthrus.file_cache import cache_directory
from orthrus.model import families
from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import initialise
from orthrus.runner.runner import Runner

KERNELS = (
    "native", "native", "native int8", "native low precision",
    "torch", "torch int8", "torch in blocks", "torch unpacked",
)  # fmt: skip
"""As in `tiny.runner`; `in blocks` and `unpacked` emulate a torch without fast attention or packed GEMM."""
SHAPES = ((4, 2, 16), (2, 2, 32), (3, 1, 16), (6, 2, 64), (4, 1, 48), (5, 5, 8), (8, 2, 24))
"""Query heads, key/value heads, head size."""
THREADS = (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 7)


@dataclass(frozen=True)
class Setup:
    """A model. view_noise: scale of the noise on the diffusion view; poison: a value for some of its weights;
    head_units: the size of a random draft head, 0 for none."""

    family: str
    dtype: str
    kernels: str
    seed: int
    overrides: dict[str, object]
    diffusion: DiffusionConfig
    view_noise: float
    poison: float | None
    head_units: int = 0


@dataclass(frozen=True)
class Job:
    """One decoding run. order: of the requests; quality: share of right scripted drafts; shapes: seed of a random
    planner; cancel: the request to cancel, and after how many tokens."""

    config: DecodingConfig
    order: tuple[int, ...]
    threads: int
    costs: CostModel | None = None
    quality: float | None = None
    shapes: int | None = None
    cancel: tuple[int, int] | None = None

    def __str__(self):
        given = [f"order={self.order}", f"threads={self.threads}"]
        given += [
            f"{name}={value}" for name in ("quality", "shapes", "cancel") if (value := getattr(self, name)) is not None
        ]
        return f"{self.config} {' '.join(given)}"


@dataclass(frozen=True)
class Case:
    """A model, its requests, and the jobs that decode them; `together`: number of Python threads that run the jobs."""

    setup: Setup
    requests: tuple[Request, ...]
    limits: Limits
    jobs: tuple[Job, ...]
    together: int


def make(seed, number, *, kernels=KERNELS, dtypes=tuple(tiny.DTYPES), threads=THREADS, longest=1200, poison=True):
    """The case with this number; the other arguments restrict the choices."""
    rng = random.Random(f"{seed} {number}")
    setup = _setup(rng, rng.choice(kernels), rng.choice(dtypes), poison=poison)
    vocab, together = setup.overrides["vocab_size"], rng.choice([1, 1, 1, 2, 3, 4])
    if setup.kernels == "torch int8":
        longest = min(longest, 150)  # it sums in float64, which is slow
    requests = tuple(_request(rng, vocab, longest) for _ in range(rng.randint(1, 5)))
    longest_prompt = max(len(request.prompt) for request in requests)
    positions = rng.choice([2048, 2048, 2048, longest_prompt + rng.randint(1, 30)])
    limits = Limits(vocab, positions, frozenset([vocab - 1] if rng.random() < 0.8 else []))
    if together > 1:
        threads = (1, 2)  # per Python thread: with more, threads mostly wait for each other
    jobs = tuple(_job(rng, setup, requests, threads, serial=together == 1) for _ in range(rng.randint(4, 9)))
    setup, jobs = _with_trees(random.Random(f"{seed} {number} trees"), setup, jobs)
    return Case(setup, requests, limits, jobs, together)


def on_threads(case, most):
    """The same case with at most so many threads per job, for a machine that runs other tests beside it."""
    return replace(case, jobs=tuple(replace(job, threads=min(job.threads, most)) for job in case.jobs))


def _setup(rng, kernels, dtype, *, poison):
    heads, kv_heads, size = rng.choice(SHAPES)
    vocab, block = rng.choice([64, 320, 333]), rng.choice([2, 3, 4, 8, 8, 16, 32])
    family = rng.choice(families.names())
    each = size if family == "qwen2" else rng.choice([8, 16, 16, 24])  # qwen2 has no separate head size
    overrides = {
        "vocab_size": vocab, "eos_token_id": vocab - 1, "hidden_size": heads * each,
        "intermediate_size": rng.choice([32, 64, 96, 56]), "num_hidden_layers": rng.randint(1, 3),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size,
        "tie_word_embeddings": rng.random() < 0.5,
    }  # fmt: skip
    if family == "llama":
        overrides |= {"attention_bias": rng.random() < 0.5, "mlp_bias": rng.random() < 0.5}
    trained_rows = rng.choice([block, block - 1, rng.randint(1, block)])
    diffusion, view_noise = (
        DiffusionConfig(block, rng.choice([vocab - 20, vocab - 2]), trained_rows),
        rng.choice([0, 0, 0.1, 1]),
    )
    poisoned = rng.choice([float("nan"), float("inf"), float("-inf")]) if poison and rng.random() < 0.15 else None
    return Setup(family, dtype, kernels, rng.randrange(10**6), overrides, diffusion, view_noise, poisoned)


def _with_trees(rng, setup, jobs):
    """The same with a draft head, or without one, and with trees of any size."""
    sizes = (None, 0, rng.randint(1, 8), rng.randint(1, MAX_TREE_NODES))
    jobs = [replace(job, config=replace(job.config, tree_nodes=rng.choice(sizes))) for job in jobs]
    return replace(setup, head_units=rng.choice([0, 16, 48])), tuple(jobs)


def build(setup):
    """The runner."""
    config = families.decoder_config(tiny.hf_config(setup.family, **setup.overrides))
    made = Decoder(config, setup.diffusion, tiny.DTYPES[setup.dtype], torch.device("cpu"))
    tiny.randomise(made, setup.seed)
    generator = torch.Generator().manual_seed(setup.seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".diffusion." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * setup.view_noise)
                if setup.poison is not None and torch.rand((), generator=generator) < 0.5:
                    parameter.view(-1)[:: max(1, parameter.numel() // 7)] = setup.poison
        if setup.head_units:
            head = initialise(made.set_draft_head(setup.head_units), generator)
            head.output.normal_(std=0.3, generator=generator)
            if setup.poison is not None:
                head.output[::3] = setup.poison
    kind = setup.kernels
    fast = native.load(made.dtype, cache_directory()) if kind.startswith("native") else None
    if kind == "torch in blocks":
        with mock.patch.object(select, "attend_flash", side_effect=RuntimeError("no such kernel in this emulation")):
            return Runner.prepare(made)
    if kind == "torch unpacked":
        return Runner.prepare(made, _Unpacked())
    return Runner.prepare(made, fast, int8=kind.endswith("int8"), low_precision=kind.endswith("low precision"))


class _Unpacked(TorchKernels):
    """Kernels that emulate a torch without packed weights."""

    def packed(self, plain):
        del plain
        return iter(())


def _request(rng, vocab, longest):
    length = min(longest, int(10 ** rng.uniform(0, 3.08)) if rng.random() < 0.25 else rng.randint(1, 60))
    prompt = [rng.randrange(vocab) for _ in range(length)]
    if rng.random() < 0.4:  # a repetitive text
        period = rng.randint(1, max(1, min(length, 40)))
        prompt = (prompt[:period] * (length // period + 1))[:length]
    stop = StopConditions(
        int(10 ** rng.uniform(0, 1.8 if length < 200 else 1.4)),
        frozenset(rng.sample(range(vocab), rng.choice([1, 5, 20])) if rng.random() < 0.25 else []),
        tuple(rng.choice(["7 a", "3", "b1", "55", "z", "9 "]) for _ in range(2)) if rng.random() < 0.25 else (),
    )
    return Request(tuple(prompt), _sampling(rng, vocab), stop)


def _sampling(rng, vocab):
    def sometimes(value, chance=0.25):
        return {name: make() for name, make in value.items() if rng.random() < chance}

    settings = {"seed": rng.choice([rng.randrange(100), rng.randrange(2**64)])}
    if rng.random() < 0.65:
        settings["temperature"] = rng.choice([1.0, rng.uniform(0.2, 1.5), 10 ** rng.uniform(-6, 2)])
    settings |= sometimes(
        {
            "top_k": lambda: rng.choice([1, 2, 5, rng.randint(1, vocab + 5)]),
            "top_p": lambda: rng.choice([rng.uniform(0.01, 1), 0.9, 1e-6]),
            "min_p": lambda: rng.choice([rng.uniform(0, 1), 0.05, 1.0]),
            "repetition_penalty": lambda: rng.choice([10 ** rng.uniform(-2, 2), 1.2]),
            "presence_penalty": lambda: rng.uniform(-2, 2),
            "frequency_penalty": lambda: rng.uniform(-2, 2),
            "logit_bias": lambda: tuple(
                (token, rng.choice([-100.0, 100.0, rng.uniform(-9, 9)])) for token in rng.sample(range(vocab), 3)
            ),
            "min_new_tokens": lambda: rng.randint(1, 40),
            "sample_index": lambda: rng.randrange(2**32),
        }
    )
    return SamplingParams(**settings)


def _job(rng, setup, requests, threads, *, serial):
    cycle = rng.choice([*cycles.names(), "auto"])
    # rounding makes diffusion rows of a batch differ from those of a sequence alone
    rounds = setup.dtype != "fp32" or setup.kernels.endswith(("int8", "low precision"))
    by_rejection = rng.random() < 0.5 and setup.poison is None and not rounds
    order = list(range(len(requests)))
    rng.shuffle(order)
    block = setup.diffusion.block_size
    config = DecodingConfig(
        cycle,
        "rejection" if by_rejection else "exact",
        rng.choice([None, rng.randint(2, block)]),
        rng.choice([None, rng.randint(1, 4)]) if cycle == "one-pass" else None,
        rng.randint(1, len(requests) + 1),
    )
    costs = None
    if cycle == "auto":
        costs = rng.choice([*tiny.COSTS.values(), *(tiny.random_costs(rng.randrange(10**6)) for _ in range(4))])
    job = Job(config, tuple(order), rng.choice(threads), costs)
    scripted = serial and not by_rejection
    if scripted and cycle != "ar" and rng.random() < 0.4:
        job = replace(job, quality=rng.choice([0.5, 0.9, 1.0]))
    if scripted and cycle == "auto" and rng.random() < 0.4:
        job = replace(job, shapes=rng.randrange(10**6))
    if rng.random() < 0.2:
        job = replace(job, cancel=(rng.choice(order), rng.randint(1, 8)))
    return job

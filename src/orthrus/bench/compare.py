"""Speed against peers with the same prompts, weights and threads: greedy, batch 1, systems interleaved per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orthrus.api import Model, Options
from orthrus.bench import exactness
from orthrus.bench.measure import decode_alone, turns
from orthrus.bench.peers import transformers
from orthrus.bench.peers.processes import CONTEXT, Worker, module_of, variants
from orthrus.bench.tasks import TaskPrompt
from orthrus.decoding.sequence import Request
from orthrus.file_cache import cache_directory

OURS = ("ar", "auto")
DRAFT_MODEL = "draft"
"""The option of a variant that needs a draft model."""
MARGIN = 64
"""Tokens of context beyond the longest sequence, for drafts past its end."""
Decode = Callable[[Request], tuple[list[int], float]]
"""Greedy tokens of a request and the seconds they took, prefill included."""
Turn = tuple[int, str]
"""The number of a prompt, and the system that decodes it."""
Run = tuple[list[int], float, float]
"""Generated tokens, seconds to generate them, and seconds to generate the first token alone."""
UNKNOWN = -1
"""A token that a peer counts and does not give."""


@dataclass(frozen=True)
class System:
    """The results of one system (ours with one cycle, or a peer) over all prompts of a part.

    speed: tokens per second, prefill included; ours_over: speed of `orthrus auto` (of `orthrus ar` without a view)
    divided by it; first_token: median seconds of prefill and one token; identical: prompts with the same tokens as our
    plain decoding; absent: why a peer could not run; over_first: its speed divided by that of `orthrus ar`.
    """

    part: str
    name: str
    prompts: int
    speed: float
    quartiles: tuple[float, float]
    ours_over: float
    ours_over_quartiles: tuple[float, float]
    first_token: float
    identical: int
    over_first: float = 0.0
    over_first_quartiles: tuple[float, float] = (0.0, 0.0)
    absent: str | None = None


@dataclass(frozen=True)
class Peers:
    """The peers to compare with. draft_model: the GGUF file of variants that need one; context: the most tokens of a
    sequence, prompt included."""

    variants: Sequence[str]
    draft_model: Path | None = None
    context: int = CONTEXT


@dataclass
class Systems:
    """Ours and the peers that answer, by name; why the others are absent; and the versions of the peers."""

    model: Model
    options: Options
    decoders: dict[str, Decode]
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def decode(self, name: str, request: Request) -> tuple[list[int], float] | None:
        """The answer of a system, and its seconds; None of a peer that fails, which is absent from then on."""
        if name in self.absent:
            return None
        try:
            return self.decoders[name](request)
        except (OSError, RuntimeError) as error:
            if name.startswith("orthrus "):
                raise
            self.absent[name] = str(error)
            return None

    @property
    def names(self) -> list[str]:
        """Those that have not failed, ours first."""
        return [name for name in self.decoders if name not in self.absent]


def weights_for(model: Model, variant: str, draft_model: Path | None = None) -> dict[str, str]:
    """Files with this model's backbone in the formats that a variant reads; written once and cached. Raises ValueError
    where the backbone is none that the peer can read, or where a draft model is missing."""
    options = module_of(variant).VARIANTS[variant]
    folder = cache_directory() / "peers" / "weights" / model.checkpoint.backbone.sha256[:16]
    if "file" in options:
        from orthrus.bench.peers import gguf  # needs the package gguf

        weights = gguf.files(model.checkpoint.backbone.id, folder, options["file"])
        if DRAFT_MODEL in options and draft_model is None:
            raise ValueError("it needs a draft model: --draft-model FILE.gguf")
        return weights | ({DRAFT_MODEL: str(draft_model)} if DRAFT_MODEL in options else {})
    directory = folder / "transformers"
    if not (directory / "config.json").exists():
        transformers.load(model).save_pretrained(directory)
    return {"directory": str(directory)}


def needs_draft_model(variant: str) -> bool:
    """Whether a variant needs a draft model."""
    return DRAFT_MODEL in module_of(variant).VARIANTS[variant]


def ours(model: Model) -> tuple[str, ...]:
    """The cycles that are compared with the peers, the fastest last: without a diffusion view there is one."""
    return OURS if model.decoder.diffusion else OURS[:1]


@contextmanager
def started(
    model: Model, options: Options, peers: Peers, request: Request, tell: Callable[[str], object] = lambda text: None
) -> Iterator[Systems]:
    """All systems, each of which has answered a first request. Processes of peers end with the block.

    tell: is told what takes long.
    """
    cycles = {f"orthrus {cycle}": model.decoding_config({**options, "cycle": cycle}) for cycle in ours(model)}
    systems = Systems(model, options, {name: partial(decode_alone, model, config) for name, config in cycles.items()})
    stops, threads, device = sorted(model.limits.end_token_ids), torch.get_num_threads(), str(model.decoder.device)
    with ExitStack() as stack:
        for variant in peers.variants:
            tell(f"starting {variant}")
            try:
                weights = weights_for(model, variant, peers.draft_model)
                worker = stack.enter_context(Worker(variant, weights, threads, device, peers.context + MARGIN))
                decode = _decoder(model, variant, worker, stops)
                decode(request)  # warm-up
            except (OSError, RuntimeError, ValueError) as error:
                systems.absent[variant] = str(error)
            else:
                systems.decoders[variant] = decode
                systems.versions[variants()[variant]] = worker.version
        tell("warming up")
        for cycle in cycles:
            systems.decoders[cycle](request)
        yield systems


def _decoder(model: Model, variant: str, worker: Worker, stops: list[int]) -> Decode:
    """The function that asks a worker, in tokens or in text."""
    if not getattr(module_of(variant), "TEXT", False):
        return lambda request: worker.generate(
            tokens=list(request.prompt), count=request.stop.max_new_tokens, stops=stops
        )

    end = [id for id in (model.tokenizer.eos_token_id, *stops) if id in stops][:1]

    def decode(request: Request) -> tuple[list[int], float]:
        text = model.tokenizer.decode(list(request.prompt), clean_up_tokenization_spaces=False)
        answer, seconds = worker.generate(text=text, count=request.stop.max_new_tokens)
        tokens = model.encode(answer["text"], special_tokens=False) + end * answer["ended"]
        counted = len(tokens) - answer["count"] in (0, int(answer["ended"]))  # with the end token or without it
        return (tokens if counted else [UNKNOWN] * answer["count"]), seconds

    return decode


def measure(
    systems: Systems, task: str, prompts: list[TaskPrompt], track: Callable[[Sequence[Turn]], Iterable[Turn]]
) -> list[System]:
    """Decode every prompt with every system. The order of the systems rotates from prompt to prompt of a part. A peer
    that fails is absent.

    track: gets the turns, and yields them again.
    """
    requests = exactness.requests(systems.model, [prompt.prompt for prompt in prompts], systems.options)
    runs = {name: list[Run]() for name in systems.names}
    firsts = turns([prompt.part for prompt in prompts], len(runs))
    names = [*runs]
    for number, name in track([(n, name) for n, first in enumerate(firsts) for name in names[first:] + names[:first]]):
        whole = systems.decode(name, requests[number])
        first_token = systems.decode(name, first_of(requests[number]))
        if whole is not None and first_token is not None:
            runs[name].append((*whole, first_token[1]))
    answered = {name: each for name, each in runs.items() if name not in systems.absent}
    parts = {prompt.part for prompt in prompts}
    groups = {part: [n for n, prompt in enumerate(prompts) if prompt.part == part] for part in sorted(parts)}
    if len(parts) > 1:
        groups[f"{task}, all"] = list(range(len(prompts)))
    measured = [
        _summary(part, name, {system: [own[n] for n in indices] for system, own in answered.items()},
                 ours(systems.model))
        for part, indices in groups.items() for name in answered
    ]  # fmt: skip
    none = (0.0, (0.0, 0.0))
    return measured + [
        System(f"{task}, all", name, 0, *none, *none, 0.0, 0, absent=why) for name, why in systems.absent.items()
    ]


def first_of(request: Request) -> Request:
    """A request for the first token of its answer."""
    return replace(request, stop=replace(request.stop, max_new_tokens=1))


def _summary(part: str, name: str, runs: dict[str, list[Run]], cycles: Sequence[str]) -> System:
    def speeds_of(system: str) -> np.ndarray[Any, Any]:
        return np.array([len(tokens) / seconds for tokens, seconds, _ in runs[system]])

    speeds, plain = speeds_of(name), runs[f"orthrus {cycles[0]}"]
    ratios = speeds_of(f"orthrus {cycles[-1]}") / speeds
    identical = sum(tokens == others for (tokens, *_), (others, *_) in zip(runs[name], plain, strict=True))
    over_first = speeds / speeds_of(f"orthrus {cycles[0]}")
    return System(
        part, name, len(plain), float(np.median(speeds)), quartiles(speeds), float(np.median(ratios)),
        quartiles(ratios), float(np.median([first for *_, first in runs[name]])), identical,
        float(np.median(over_first)), quartiles(over_first),
    )  # fmt: skip


def quartiles(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The first and third quartile."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)

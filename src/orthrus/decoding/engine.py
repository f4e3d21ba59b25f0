"""The decoding loop: admit, run a cycle, retire. Active sequences always occupy the first slots of the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orthrus.cache import KVCache
from orthrus.config import KEY_BLOCK, DecodingConfig
from orthrus.decoding import cycle, cycles, rules
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.measure import measure
from orthrus.decoding.planning.planner import Planner
from orthrus.decoding.propose import Block, drafts_from_blocks
from orthrus.decoding.rules import Check, Rule
from orthrus.decoding.sequence import Limits, Request, Sequence
from orthrus.decoding.text import Decode
from orthrus.runner.layout import chunks
from orthrus.runner.runner import Runner


@dataclass(frozen=True)
class Step:
    """The tokens that one sequence gained in a cycle or in its prefill, and how many of them are accepted drafts."""

    sequence: Sequence
    kept: Verdict


def generate(
    runner: Runner,
    requests: Iterable[Request],
    config: DecodingConfig,
    limits: Limits,
    decode: Decode | None = None,
    costs: CostModel | None = None,
) -> Iterator[Step]:
    """Decode requests, at most `config.batch_size` at a time; yields a step per sequence and cycle as they happen.

    A sequence's tokens do not depend on its neighbours. The cycle `auto` plans with the cost model `costs`, which is
    measured here if it is None. To stop early, close the iterator or call `finish("cancelled")` on a sequence. Raises
    ValueError before any work if a request or the configuration cannot be decoded.
    """
    chosen, rule = cycles.load(config.cycle), rules.load(config.rule)
    drafting = _drafting(runner, config, costs)
    waiting = deque(Sequence(index, request, limits, decode) for index, request in enumerate(requests))
    cache = runner.new_cache(min(config.batch_size, len(waiting)))
    active: list[Sequence] = []
    while waiting or active:
        while waiting and len(active) < config.batch_size:
            active.append(waiting.popleft())
            width = _first_width(drafting, active[-1]) if chosen.DRAFTS_AHEAD else 0
            yield prefill(runner, cache, active[-1], len(active) - 1, rule, width)
            _retire(cache, active)
        if active:
            kept = cycle.run(chosen, runner, cache, active, drafting, rule)
            yield from [Step(sequence, verdict) for sequence, verdict in zip(active, kept, strict=True)]
            _retire(cache, active)


def prefill(runner: Runner, cache: KVCache, sequence: Sequence, slot: int, rule: Rule, width: int = 0) -> Step:
    """Write the prompt to the cache in chunks as large as the row rule allows, and append the first token.

    With a `width`, the pass of the last chunk also drafts, from a block of that many rows rooted at the last prompt
    token.
    """
    sequence.begin()
    cache.commit(slot, 0)
    prompt = sequence.request.prompt
    ahead = min(sequence.request.stop.max_new_tokens, KEY_BLOCK)
    cache.reserve(len(prompt) + ahead)  # once: growing copies the cache and invalidates CUDA graphs
    *pieces, last = chunks(prompt, runner.max_rows)
    window = cache.window(slot, slot + 1)
    for piece in pieces:
        runner.ar([piece], window, logit_rows=[])
        cache.commit(slot, cache.lengths[slot] + len(piece))
    final = [len(last) - 1]
    (logits_RV,), (blocks_JWV,) = runner.ar_and_diffuse(
        [last], [final if width else []], width, window, logit_rows=final, eager_logits=True
    )
    cache.commit(slot, len(prompt))
    (verdict,) = rule.verify([Check(sequence.sampler, logits_RV, Draft(), sequence.length)])
    sequence.start(verdict.tokens[0])
    if width and sequence.finish_reason is None:
        root = len(prompt) - 1
        (sequence.ahead,) = drafts_from_blocks(
            runner, [sequence], [Block(blocks_JWV[0], root)], rule, eager_logits=True
        )
    return Step(sequence, verdict)


def _retire(cache: KVCache, active: list[Sequence]) -> None:
    """Remove finished sequences; the last active sequence moves into each freed slot."""
    for slot in reversed(range(len(active))):
        if active[slot].finish_reason is not None:
            last = len(active) - 1
            if slot != last:
                cache.move(last, slot)
                active[slot] = active[last]
            active.pop()


def _first_width(drafting: Drafting, sequence: Sequence) -> int:
    return drafting.planner.first_width(sequence.length) if drafting.planner else drafting.width


def _drafting(runner: Runner, config: DecodingConfig, costs: CostModel | None) -> Drafting:
    if runner.diffusion is None:
        if config.cycle != "ar":
            raise ValueError(
                f"cycle {config.cycle!r} needs a diffusion view; this checkpoint has none: use --cycle ar, or"
                " give it one (--adapter, or a published Orthrus checkpoint)"
            )
        return Drafting(1)
    block = runner.diffusion.block_size
    if config.width is not None and config.width > block:
        raise ValueError(f"width {config.width} is beyond the block size {block} of this checkpoint")
    width = config.width or block
    if config.cycle != "auto":
        return Drafting(width, config.candidates)
    alone = config.rule == "rejection"
    return Drafting(width, planner=Planner(runner.diffusion, width, costs or measure(runner), alone=alone))

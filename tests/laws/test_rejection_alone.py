"""Law 6 under `rejection`: a sequence's tokens do not depend on what was decoded before it or beside it.

This is harder than under `exact`: plans affect the tokens, so each plan must be that of the sequence alone. The test
uses fp32, where diffusion rows differ between batches by rounding only.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import tiny

from orthrus.config import DecodingConfig, DiffusionConfig, SamplingParams
from orthrus.decoding.engine import generate
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.planner import Planner
from orthrus.decoding.sequence import Sequence
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree

LENGTHS = (5, 300, 1, 600, 70, 520)
SEEDS = (1, 5, 7, 11, 17, 19, 23)
"""Seeds of cost tables with which drafting pays; with five of them, only in short or only in long contexts."""


def decode(requests, cycle, batch, costs, runner=None):
    config = DecodingConfig(cycle=cycle, batch_size=batch, rule="rejection")
    steps = generate(runner or tiny.runner(), requests, config, tiny.LIMITS, costs=costs)
    done = {step.sequence.index: step.sequence.tokens for step in steps if step.sequence.finish_reason}
    return [done[n] for n in range(len(requests))]


@pytest.mark.parametrize(("cycle", "seed"), [("one-pass", 0), ("two-pass", 0), *(("auto", seed) for seed in SEEDS)])
def test_tokens_equal_those_of_the_sequence_alone_for_any_costs(cycle, seed):
    costs, rng = tiny.random_costs(seed), random.Random(seed)
    requests = [
        tiny.request(length, rng.randint(4, 24), n, SamplingParams(temperature=rng.uniform(0.5, 1.1), seed=n))
        for n, length in enumerate(LENGTHS)
    ]
    alone = [decode([request], cycle, 1, costs)[0] for request in requests]
    for batch in (1, 3):
        order = list(range(len(requests)))
        rng.shuffle(order)
        tokens = decode([requests[n] for n in order], cycle, batch, costs)
        assert [tokens[order.index(n)] for n in range(len(requests))] == alone, (batch, order)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_low_precision_drafts_are_drawn_from_the_same_logits_beside_others(dtype):
    """Few block rows could take their logits from the exact head, in the call for the AR rows; many cannot."""
    runner = tiny.runner(dtype=dtype, kernels="native low precision")
    if runner.draft_weights.head is None:
        pytest.skip("these kernels have no low-precision head")
    requests = [tiny.request(9, 24, seed, SamplingParams(temperature=0.9, seed=seed)) for seed in range(6)]
    alone = [decode([request], "one-pass", 1, None, runner)[0] for request in requests]
    assert decode(requests, "one-pass", 6, None, runner) == alone


def test_the_first_block_depends_only_on_the_length_of_its_own_prompt():
    diffusion, contexts, varied = DiffusionConfig(8, tiny.MASK, 7), (5, 300, 1, 600, 70, 5), 0
    for seed in range(24):
        costs = tiny.random_costs(seed)
        alone = [Planner(diffusion, 8, costs, alone=True).first_width(context) for context in contexts]
        together = Planner(diffusion, 8, costs, alone=True)
        assert [together.first_width(context) for context in contexts] == alone, seed
        varied += len(set(alone)) > 1
    assert varied > 2, "the width depends on the length with none of these tables, so this test checks nothing"


def test_a_refresh_of_a_neighbour_does_not_change_the_plan_of_a_sequence():
    """Compares plan by plan, on a text for which most passes are plain without planning."""
    diffusion, costs, request = DiffusionConfig(8, tiny.MASK, 7), tiny.random_costs(11), tiny.request(1, 200)
    alone, together = (Planner(diffusion, 8, costs, alone=True) for _ in range(2))
    single, beside, neighbour = (Sequence(n, request, tiny.LIMITS) for n in (0, 0, 1))
    for sequence in (single, beside, neighbour):
        sequence.start(5)
    plans = []
    for token in range(60, 120):
        alone.begin_pass([single])
        together.begin_pass([beside, neighbour])
        (expected,) = alone.plan([single])
        planned = together.plan([beside, neighbour])
        assert planned == together.plan([beside, neighbour]), "a query changed the planner"
        refreshed = [replace(planned[0], refresh=False), replace(planned[1], refresh=True)]
        others = together.replan([beside, neighbour], refreshed, [DraftTree(), DraftTree()])
        plans.append((expected.offered, expected.roots, expected.kind))
        assert (others[0].offered, others[0].roots, others[0].kind) == plans[-1], len(plans)
        for planner, batch, own in ((alone, [single], [expected]), (together, [beside, neighbour], others)):
            verdicts = [s.append(Verdict([token]), PassPlan()) for s in batch]
            planner.learn(batch, own, verdicts)
    assert len(set(plans)) > 1, "all plans are equal, so this test checks nothing"

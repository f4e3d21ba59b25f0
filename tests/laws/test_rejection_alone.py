"""Law 6 under `rejection`: a sequence's tokens do not depend on what was decoded before it or beside it.

There that is harder than under `exact`: the planner's choices reach the tokens, so each must be that of a sequence
alone. In fp32, where a diffusion row is the same in every batch up to rounding.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import tiny

from orthrus.config import DecodingConfig, DiffusionConfig, SamplingParams
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.engine import generate
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.planner import Planner
from orthrus.decoding.sequence import Sequence

LENGTHS = (5, 300, 1, 600, 70, 520)
SEEDS = (1, 5, 7, 11, 17, 19, 23)
"""Cost tables by which drafting pays, with five of them only in short or only in long contexts."""


def decode(asked, cycle, batch, costs):
    config = DecodingConfig(cycle=cycle, batch_size=batch, rule="rejection")
    steps = generate(tiny.runner(), asked, config, tiny.LIMITS, costs=costs)
    done = {step.sequence.index: step.sequence.tokens for step in steps if step.sequence.finish_reason}
    return [done[n] for n in range(len(asked))]


@pytest.mark.parametrize(("cycle", "seed"), [("one-pass", 0), ("two-pass", 0), *(("auto", seed) for seed in SEEDS)])
def test_tokens_are_those_of_the_sequence_alone_whatever_passes_cost(cycle, seed):
    costs, rng = tiny.random_costs(seed), random.Random(seed)
    asked = [
        tiny.request(length, rng.randint(4, 24), n, SamplingParams(temperature=rng.uniform(0.5, 1.1), seed=n))
        for n, length in enumerate(LENGTHS)
    ]
    alone = [decode([request], cycle, 1, costs)[0] for request in asked]
    for batch in (1, 3):
        order = list(range(len(asked)))
        rng.shuffle(order)
        found = decode([asked[n] for n in order], cycle, batch, costs)
        assert [found[order.index(n)] for n in range(len(asked))] == alone, (batch, order)


def test_the_first_block_of_a_prompt_is_planned_by_its_own_length():
    diffusion, contexts, varied = DiffusionConfig(8, tiny.MASK, 7), (5, 300, 1, 600, 70, 5), 0
    for seed in range(24):
        costs = tiny.random_costs(seed)
        alone = [Planner(diffusion, 8, costs, alone=True).first_width(context) for context in contexts]
        together = Planner(diffusion, 8, costs, alone=True)
        assert [together.first_width(context) for context in contexts] == alone, seed
        varied += len(set(alone)) > 1
    assert varied > 2, "by none of these tables does the width depend on the length, so this test shows nothing"


def test_a_neighbour_that_drafts_anew_does_not_make_a_sequence_plan_again():
    """Plan by plan, over a text of which most passes are plain ones that are not weighed."""
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
        others = together.replan([beside, neighbour], refreshed, [Draft(), Draft()])
        plans.append((expected.offered, expected.blocks, expected.kind))
        assert (others[0].offered, others[0].blocks, others[0].kind) == plans[-1], len(plans)
        for planner, batch, own in ((alone, [single], [expected]), (together, [beside, neighbour], others)):
            verdicts = [s.append(Verdict([token], 0), PassPlan()) for s in batch]
            planner.learn(batch, own, verdicts)
    assert len(set(plans)) > 1, "all plans are alike, so this test shows nothing"

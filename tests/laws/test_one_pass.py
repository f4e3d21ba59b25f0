"""Laws 1, 4 and 5 for one-pass cycles: AR rows and draft blocks in one pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from orthrus.config import PAGE
from orthrus.model import families
from orthrus.runner.native import NativeForward

LENGTHS = (20, 0, 33)
CANDIDATES = [0, 2, 5]
"""Three sequences in a batch, six AR rows each, three blocks each."""
ROWS, WIDTH = 6, 4


def prepared(runner):
    """Tokens of the AR rows, and a cache in which the sequences have different lengths."""
    texts = [tiny.request(length + ROWS, seed=n).prompt for n, length in enumerate(LENGTHS)]
    cache = runner.new_tables(len(texts))
    for slot, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        if length:
            tiny.ar(runner, torch.tensor([text[:length]]), cache[slot : slot + 1], rows=[])
        cache[slot].commit(length)
    return texts, torch.tensor([text[-ROWS:] for text in texts]), cache


@pytest.mark.parametrize("kernels", ["native", "torch", "native int8"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_blocks_change_no_bit_of_the_ar_rows_of_their_pass(family, dtype, kernels):
    runner = tiny.runner(family, dtype, kernels=kernels)
    (_, rows, plain), (_, _, shared) = prepared(runner), prepared(runner)
    expected = tiny.ar(runner, rows, plain)
    logits, *_ = runner.ar_and_diffuse(rows.tolist(), [CANDIDATES] * 3, WIDTH, shared)
    assert torch.equal(torch.stack(logits), expected)
    assert [table.length for table in shared] == list(LENGTHS)
    for one, other in zip(plain, shared, strict=True):
        one.commit(one.length + ROWS)
        other.commit(other.length + ROWS)
        assert all(map(torch.equal, tiny.cached(one), tiny.cached(other)))


@pytest.mark.parametrize("kernels", ["native", "torch", "native int8"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize(("counts", "blocks"), [((6, 1, 3), (2, 0, 3)), ((1, 5, 2), (0, 0, 0)), ((1, 1, 1), (1, 1, 0))])
def test_a_sequence_in_a_ragged_pass_equals_the_sequence_alone(family, dtype, kernels, counts, blocks):
    runner = tiny.runner(family, dtype, kernels=kernels)
    texts, rows, cache = prepared(runner)
    ar_tokens = [own[:count] for own, count in zip(rows.tolist(), counts, strict=True)]
    logits, hidden, _ = runner.ar_and_diffuse(ar_tokens, [range(count) for count in blocks], WIDTH, cache)
    for slot, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        alone = runner.new_tables()
        if length:
            tiny.ar(runner, torch.tensor([text[:length]]), alone, rows=[])
        alone[0].commit(length)
        row = torch.tensor([ar_tokens[slot]])
        expected = tiny.ar(runner, row, alone)[0]
        assert torch.equal(logits[slot], expected)
        for table in (cache[slot], alone[0]):
            table.commit(length + counts[slot])
        assert all(map(torch.equal, tiny.cached(cache[slot]), tiny.cached(alone[0])))
        alone[0].commit(length)
        assert hidden[slot].shape[:2] == (blocks[slot], WIDTH)
        if blocks[slot]:
            _, (beside,), _ = runner.ar_and_diffuse([ar_tokens[slot]], [range(blocks[slot])], WIDTH, alone)
            tolerance = 2e-4 if dtype == "fp32" else 0.15
            torch.testing.assert_close(hidden[slot], beside, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_low_precision_drafts_change_no_bit_of_an_ar_row_and_stay_close(family, dtype):
    """The view is rounded to four bits; no other weight is rounded to fewer than eight. Short windows average the
    errors of fewer keys, and a rounded row may choose another expert."""
    forms = ("native", "native rounded", "native low precision")
    full, rounded, low = (tiny.runner(family, dtype, kernels=kernels) for kernels in forms)
    if low.draft_weights.head is None:
        pytest.skip("this processor has no low-precision form")
    results = []
    for runner in (full, rounded, low):
        _, rows, cache = prepared(runner)
        logits, *_ = runner.ar_and_diffuse(rows.tolist(), [range(3)] * 3, WIDTH, cache)
        drafts = runner.diffuse(rows[:, 0].tolist(), WIDTH, cache, rows=WIDTH)
        results.append((torch.stack(logits), drafts.float()))
    (logits, drafts), (_, with_rounded_view), (low_logits, low_drafts) = results
    assert torch.equal(logits, low_logits)
    assert 0 < (low_drafts - with_rounded_view).norm() / drafts.norm() < 0.08
    assert (low_drafts - drafts).norm() / drafts.norm() < (0.4 if low.config.features else 0.27)


@pytest.mark.parametrize("kernels", ["native", "native int8", "native low precision"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_the_native_executor_equals_the_eager_one_bit_for_bit(family, dtype, kernels):
    native = tiny.runner(family, dtype, kernels=kernels)
    if not isinstance(native.executors[0], NativeForward):
        pytest.skip("this processor has no native executor")
    results = []
    for runner in (native, native.eager()):
        _, rows, cache = prepared(runner)
        ar_tokens = [own[:count] for own, count in zip(rows.tolist(), (6, 1, 3), strict=True)]
        logits, blocks, _ = runner.ar_and_diffuse(ar_tokens, [range(3), (), range(2)], WIDTH, cache)
        drafts = runner.diffuse([5, None, 7], WIDTH, cache, rows=WIDTH)
        stop = PAGE * (1 + max(page for table in cache for page in table.pages))
        held = [stored[:, :, :stop].clone() for stored in (cache[0].cache.keys, cache[0].cache.values)]
        results.append([*logits, *blocks, drafts, *held])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_diffuse_skips_sequences_without_a_root():
    runner = tiny.runner("qwen3")
    _, rows, cache = prepared(runner)
    roots = rows[:, 0].tolist()
    whole = runner.diffuse(roots, WIDTH, cache, rows=WIDTH)
    some = runner.diffuse([roots[0], None, roots[2]], WIDTH, cache, rows=WIDTH)
    torch.testing.assert_close(some, whole[[0, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_a_block_equals_diffuse_at_its_root(family, dtype, width):
    runner = tiny.runner(family, dtype)
    texts, rows, cache = prepared(runner)
    _, blocks, _ = runner.ar_and_diffuse(rows.tolist(), [CANDIDATES] * 3, width, cache)
    for slot, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        for number, row in enumerate(CANDIDATES):
            fresh = runner.new_tables()
            if length + row:
                tiny.ar(runner, torch.tensor([text[: length + row]]), fresh, rows=[])
            fresh[0].commit(length + row)
            expected = runner.diffuse([text[length + row]], width, fresh, rows=width)
            logits = runner.logits(blocks[slot][number])[None]
            tolerance = 2e-4 if dtype == "fp32" else 0.15
            torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


def test_threads_can_share_a_runner():
    """The native call releases the GIL, so concurrent passes must not use the same workspace."""
    runner = tiny.runner("qwen3", "bf16")
    prompts = [torch.tensor([tiny.request(60, seed=n).prompt]) for n in range(4)]

    def run(prompt):
        return [tiny.ar(runner, prompt, runner.new_tables()) for _ in range(30)]

    expected = [run(prompt)[0] for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for truth, results in zip(expected, pool.map(run, prompts), strict=True):
            assert all(torch.equal(truth, one) for one in results)


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_eager_logits_equal_logits_computed_after_the_pass(dtype):
    runner = tiny.runner("qwen3", dtype)
    outcomes = []
    for eager in (False, True):
        _, rows, cache = prepared(runner)
        outcomes.append(
            runner.ar_and_diffuse(rows.tolist(), [CANDIDATES, (), CANDIDATES[:2]], WIDTH, cache, eager_logits=eager)
        )
    (late, hidden, _), (early, logits, states) = outcomes
    assert all(torch.equal(a, b) for a, b in zip(late, early, strict=True))
    assert [block.shape[0] for block in logits] == [3, 0, 2]
    assert all(torch.equal(a, b) for a, b in zip(hidden, states, strict=True))
    for late_block, early_block in zip(hidden, logits, strict=True):
        assert torch.equal(runner.logits(late_block.flatten(0, 1)), early_block.flatten(0, 1))

"""Law 1 for many threads: no answer depends on other threads, on thread counts, or on floating-point settings."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import tiny
import torch

from orthrus import torch_threads
from orthrus.backends.native import kernels as native
from orthrus.backends.torch import TorchKernels
from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoder_config import RopeConfig
from orthrus.decoding.engine import generate
from orthrus.decoding.sequence import Sequence
from orthrus.file_cache import cache_directory
from orthrus.model import families
from orthrus.model.rope import RopeTable
from orthrus.runner.runner import Runner

CYCLES = ("auto", "one-pass", "two-pass", "ar")


@pytest.fixture
def frequent_switches():
    """Make Python switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def fresh(kernels="native", dtype="fp32", family="qwen3"):
    """A runner that has run no pass yet, unlike those that all tests share."""
    return tiny.runner.__wrapped__(family, dtype, 8, kernels=kernels)


def answer(runner, request, cycle):
    steps = generate(runner, [request], DecodingConfig(cycle=cycle), tiny.LIMITS, costs=tiny.COSTS["rows"])
    (done,) = [step.sequence.tokens for step in steps if step.sequence.finish_reason]
    return done


def test_a_rope_table_grown_by_many_threads_equals_that_of_one_thread(frequent_switches):
    config = RopeConfig(tuple(1.0 / 10000 ** (n / 8) for n in range(8)))
    alone = RopeTable(config, torch.device("cpu")).tables(5000)
    for _ in range(20):
        table, together = RopeTable(config, torch.device("cpu")), Barrier(4)

        def grow(last, table=table, together=together):
            together.wait()
            return table.tables(last)

        with ThreadPoolExecutor(4) as pool:
            tables = list(pool.map(grow, (700, 1500, 2600, 5000)))
        for cos, sin in [*tables, table.tables(5000)]:
            assert len(cos) == len(sin)
            assert torch.equal(cos, alone[0][: len(cos)])
            assert torch.equal(sin, alone[1][: len(sin)])


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_threads_on_a_fresh_runner_equal_serial_decoding(frequent_switches, kernels):
    requests = [tiny.request(600 + 37 * n, 8, n, SamplingParams(temperature=0.8 * (n % 2), seed=n)) for n in range(4)]
    reference = fresh(kernels)
    truths = [tiny.oracle(reference, request).tokens for request in requests]
    for _ in range(2):
        runner, together = fresh(kernels), Barrier(4)

        def decode(n, runner=runner, together=together):
            together.wait()
            return answer(runner, requests[n], CYCLES[n])

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(decode, range(4))) == truths
        assert [answer(runner, request, "auto") for request in requests] == truths


@pytest.mark.parametrize("kernels", ["native", "torch", "native int8"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_the_number_of_threads_changes_no_bit(dtype, kernels):
    before = torch.get_num_threads()
    request, logits = tiny.request(530, 12), []
    try:
        torch.set_num_threads(2)
        runner = fresh(kernels, dtype)  # loaded with two threads, used with others
        for count, cycle in zip((1, 2, 3, 7), CYCLES, strict=True):
            torch.set_num_threads(count)
            truth = tiny.oracle(runner, request, logits=True)
            logits.append(truth.logits_NV)
            assert answer(runner, request, cycle) == truth.tokens, (count, cycle)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, logits[0]) for each in logits)


def test_torch_leaves_the_processors_to_the_kernels_between_their_passes(monkeypatch):
    runner, seen, append = fresh("native"), [], Sequence.append

    def spied(self, *args):
        seen.append((torch.get_num_threads(), torch_threads.kernel_threads()))
        return append(self, *args)

    monkeypatch.setattr(Sequence, "append", spied)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        answer(runner, tiny.request(530, 6), "two-pass")
        assert seen and set(seen) == {(1, 3)}
        assert (torch.get_num_threads(), torch_threads.kernel_threads()) == (3, 3)
        with pytest.raises(KeyboardInterrupt), torch_threads.on_one(), torch_threads.on_one():
            assert torch.get_num_threads() == 1
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch_threads.kernel_threads).result() == 3
            raise KeyboardInterrupt
        assert (torch.get_num_threads(), torch_threads.kernel_threads()) == (3, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_two_models_can_decode_concurrently(kernels):
    runners = [fresh(kernels), tiny.runner("llama", "bf16", kernels=kernels)]
    request = tiny.request(520, 20)
    truths = [tiny.oracle(runner, request).tokens for runner in runners]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: answer(runners[n % 2], request, CYCLES[n % 4]), range(8)))
    assert answers == truths * 4


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize("cycle", CYCLES)
def test_a_run_that_is_closed_early_leaves_no_state(family, cycle):
    runner, requests = tiny.runner(family), [tiny.request(20, 30, n) for n in range(3)]
    truths = [tiny.oracle(runner, request).tokens for request in requests]
    running = generate(
        runner, requests, DecodingConfig(cycle=cycle, batch_size=2), tiny.LIMITS, costs=tiny.COSTS["rows"]
    )
    for _ in range(5):
        next(running)
    running.close()
    assert [answer(runner, request, cycle) for request in requests] == truths


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_an_exception_inside_a_pass_leaves_no_state(monkeypatch, kernels):
    runner, request = tiny.runner(kernels=kernels), tiny.request(20, 30)
    truth = tiny.oracle(runner, request).tokens
    whole = type(runner)._run

    def fails_once(self, *arguments):
        whole(self, *arguments)
        monkeypatch.undo()
        raise MemoryError

    for cycle in CYCLES:
        running = generate(runner, [request], DecodingConfig(cycle=cycle), tiny.LIMITS, costs=tiny.COSTS["rows"])
        next(running)
        monkeypatch.setattr(type(runner), "_run", fails_once)
        with pytest.raises(MemoryError):
            list(running)
        assert answer(runner, request, cycle) == truth


def denormal_decoder(dtype):
    """A decoder whose activations are denormal in bfloat16 and float32: its embeddings are about 1e-39."""
    made = tiny.decoder("qwen2", dtype)
    with torch.no_grad():
        made.embedding.weight.mul_(1e-39)
        for layer in made.decoder_layers:
            layer.ar.qkv.bias.zero_()
            layer.mlp.down.weight.mul_(1e-39)
            layer.ar.o.weight.mul_(1e-39)
    return made


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_flush_to_zero_set_by_the_caller_changes_no_bit(dtype, kernels):
    before = torch.get_num_threads()
    fast = native.load(tiny.DTYPES[dtype], cache_directory()) if kernels == "native" else TorchKernels()
    if fast is None:
        pytest.skip("no C compiler here")
    tokens, results = torch.tensor([tiny.request(24).prompt]), []
    runner = Runner.prepare(denormal_decoder(dtype), fast)

    def logits(flush, early):
        """Runs in a new thread, whose pool of workers inherits the setting from before the pool was made."""
        torch.set_num_threads(2)
        torch.set_flush_denormal(flush and early)
        torch.ones(2**20).add_(1.0)
        torch.set_flush_denormal(flush)
        return tiny.ar(runner, tokens, runner.new_tables())

    settings = [(False, False), (True, False), (False, False)]
    if kernels == "native":
        settings.append((True, True))  # torch's own workers always keep the setting with which they were made
    try:
        for flush, early in settings:
            with ThreadPoolExecutor(1) as pool:
                results.append(pool.submit(logits, flush, early).result())
    finally:
        torch.set_num_threads(before)
    assert results[0].abs().min() < 1e-37, "no logit is denormal, so this test checks nothing"
    assert all(torch.equal(each, results[0]) for each in results)

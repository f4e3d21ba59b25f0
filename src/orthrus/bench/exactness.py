"""Compare every cycle with the oracle: tokens, first divergence, logit gap, and the bits of the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orthrus.api import Model, Options, Prompt
from orthrus.decoding.reference import OracleResult, autoregress
from orthrus.decoding.sequence import Request
from orthrus.runner.layout import chunks


@dataclass(frozen=True)
class Divergence:
    """The first token that differs from the oracle: its index, both tokens, and the oracle's logit gap between them."""

    prompt: int
    index: int
    expected: int | None
    found: int | None
    logit_gap: float | None


@dataclass
class Comparison:
    """One cycle (or peer) compared with the oracle over all prompts."""

    name: str
    prompts: int = 0
    tokens: int = 0
    divergences: list[Divergence] = field(default_factory=list)

    @property
    def identical(self) -> int:
        """Number of prompts with the same tokens as the oracle."""
        return self.prompts - len(self.divergences)

    def add(self, prompt: int, truth: list[int], tokens: list[int], logits_of: Callable[[], OracleResult]) -> None:
        """Add one prompt. `logits_of` is called only if the tokens differ."""
        self.prompts += 1
        self.tokens += len(truth)
        if tokens != truth:
            self.divergences.append(_divergence(prompt, logits_of(), tokens))


@dataclass
class Bits:
    """Number of verified rows, and of those whose logits are bit-identical to plain decoding."""

    rows: int = 0
    equal: int = 0


def oracle(model: Model, request: Request) -> OracleResult:
    """The oracle's answer to a request made by `requests`, with its logits."""
    seed = request.sampling.seed
    assert seed is not None
    return autoregress(model.runner, request, model.limits, seed, model.decode, keep_logits=True)


def requests(model: Model, prompts: list[Prompt], options: Options) -> list[Request]:
    """Requests with one seed each, counting up from that in `options`, so that oracle and cycles share the noise."""
    base = options.get("seed") or 0
    made = [model.request(prompt, options) for prompt in prompts]
    return [replace(r, sampling=replace(r.sampling, seed=base + n)) for n, r in enumerate(made)]


def compare_bits(model: Model, request: Request, truth: OracleResult, bits: Bits) -> None:
    """Run the oracle's tokens in blocks of the width of a verification, every other one with a wrong sibling for each
    token after the first, and compare the logits bit for bit."""
    assert truth.logits_NV is not None
    runner, tokens = model.runner, truth.tokens
    width, vocab = runner.diffusion.block_size if runner.diffusion else 8, runner.config.vocab_size
    (table,) = runner.new_tables(1, len(request.prompt) + len(tokens))
    for chunk in chunks(request.prompt, runner.max_rows):
        runner.ar([chunk], [table], logit_rows=[0])
        table.commit(table.length + len(chunk))
    for start in range(0, len(tokens) - 1, width):
        block = tokens[start : min(start + width, len(tokens) - 1)]
        step = 1 + (start // width) % 2  # rows from a token to the next: with 2, a wrong sibling stands between
        tokens_of_rows = [block[0], *(token for own in block[1:] for token in [(own + 1) % vocab, own][-step:])]
        parents = [-1, *((row - 1) // step * step for row in range(1, len(tokens_of_rows)))]
        path = range(0, len(tokens_of_rows), step)
        (rows,) = runner.ar([tokens_of_rows], [table], parents=[parents], logit_rows=path)
        table.commit_path(path)
        expected = truth.logits_NV[start + 1 : start + 1 + len(block)]
        bits.rows += len(block)
        bits.equal += int((rows == expected).all(dim=-1).sum())


def _divergence(prompt: int, truth: OracleResult, tokens: list[int]) -> Divergence:
    pairs = list(zip(truth.tokens, tokens, strict=False))
    index = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    expected = truth.tokens[index] if index < len(truth.tokens) else None
    got = tokens[index] if index < len(tokens) else None
    gap = None
    if truth.logits_NV is not None and expected is not None and got is not None:
        row = truth.logits_NV[index].float()
        gap = float(row[expected] - row[got])
    return Divergence(prompt, index, expected, got, gap)

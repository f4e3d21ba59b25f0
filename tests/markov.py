"""A runner over a tiny vocabulary with known distributions, and noise that enumerates all outcomes of decoding.

A uniform value is an interval, and every comparison splits the interval in two. The distributions may therefore be
arbitrary, and a value that is used twice stays the same value. With a grid, a value is a range of the cells of the
grid, and probabilities are exact fractions.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from fractions import Fraction
from types import SimpleNamespace

import torch

from orthrus.backends.select import DraftWeights
from orthrus.backends.torch import TorchKernels
from orthrus.cache import KVCache
from orthrus.config import DiffusionConfig
from orthrus.decoder_config import DecoderConfig, RopeConfig
from orthrus.decoding.sequence import Sequence
from orthrus.model.draft_head import DraftHead
from orthrus.model.embedding import Embedding
from orthrus.runner.executor import DiffusionResult, JointResult

ROUNDING = 1e-6
"""The rounding error of an fp32 probability of 0 or 1."""


class MarkovRunner:
    """A runner whose AR view follows a chain (weights of the next token, given the last one) and whose diffusion view
    follows a drafter (weights by the root and how many tokens after it). head: whether a draft head with random weights
    corrects the drafter by the token before."""

    device, max_rows, kernels, ragged, exact, page_bytes = torch.device("cpu"), 512, TorchKernels(), True, True, 1

    between_passes = staticmethod(nullcontext)
    draft_weights = DraftWeights()

    def __init__(self, drafter, trained_rows, chain, *, head=False):
        self._drafter, self._chain = drafter, chain
        self.diffusion = DiffusionConfig(trained_rows + 1, 0, trained_rows)
        self.decoder = SimpleNamespace(
            draft_head=random_head(trained_rows) if head else None,
            embedding=Embedding(torch.eye(3)),
            draft_temperatures=lambda: [1.0] * trained_rows,
        )

    def new_cache(self, pages):
        config = DecoderConfig("markov", 2, 2, 2, 1, 1, 1, 2, 1e-5, (RopeConfig((1.0,)),), 512)
        return KVCache(config, pages, torch.float32, self.device)

    def workspace_positions(self, drafts, blocks, width):
        return 1 + drafts + blocks * width

    def diffuse_rows(self, roots, width, tables, *, rows):
        del width, tables
        drawn = [[_logits(self._drafter(root, j)) for j in range(rows)] for root in roots if root is not None]
        logits = torch.stack([torch.stack(block) for block in drawn])
        return DiffusionResult(logits, logits.clamp(min=-4.0))

    def ar_and_diffuse(self, rows, block_roots, width, tables, *, parents=None, logit_rows, eager_logits=False):
        """The rows of a block are its logits, with `eager_logits` and without. An AR row depends on its token alone,
        whatever its parent is."""
        del eager_logits, parents
        inputs = [[own[row] for row in asked] for own, asked in zip(rows, logit_rows, strict=True)]
        roots = [[own[row] for row in chosen] for own, chosen in zip(rows, block_roots, strict=True)]
        logits = [torch.stack([_logits(self._chain[token]) for token in own]) for own in inputs]
        blocks = [self.diffuse_rows(own, width, tables, rows=width) if own else (None, None) for own in roots]
        return JointResult(logits, *(list(part) for part in zip(*blocks, strict=True)))

    def draft_logits(self, hidden):
        return hidden


def random_head(rows):
    """A draft head over three hidden units and three tokens that changes probabilities by half and more."""
    head, generator = DraftHead(3, 16, rows, torch.float32, torch.device("cpu")), torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return head


def _logits(weights):
    return torch.tensor(weights).float().log()


def inject(monkeypatch):
    """Make new sequences use injected noise. Returns the function that sets this noise."""
    original, held = Sequence.__init__, [None]

    def with_noise(self, *arguments, **more):
        original(self, *arguments, **more)
        (self.sampler.noise,) = held

    monkeypatch.setattr(Sequence, "__init__", with_noise)
    return lambda noise: held.__setitem__(0, noise)


class Enumeration:
    """Enumerates all outcomes of a branching computation, depth first. `for tree in Enumeration()` runs the body once
    per outcome; after it, `probability` is the probability of that outcome.

    grid: how many values a uniform value has, the centres of as many cells; None for all of [0, 1).
    """

    def __init__(self, grid=None):
        self._path, self._depth, self.probability, self._values, self._grid = [], 0, 1.0, {}, grid

    def __iter__(self):
        while True:
            self._depth, self.probability, self._values = 0, 1.0 if self._grid is None else Fraction(1), {}
            yield self
            while self._path and not self._path[-1]:
                self._path.pop()
            if not self._path:
                return
            self._path[-1] = False

    def uniform(self, position, purpose, block=0, node=0):
        """The value at an address: equal addresses give the same value."""
        made = Uniform(self) if self._grid is None else GridUniform(self, self._grid)
        return self._values.setdefault((position, purpose, block, node), made)

    def branch(self, share):
        """True with this probability."""
        if self._depth == len(self._path):
            self._path.append(True)
        taken = self._path[self._depth]
        self._depth += 1
        self.probability *= share if taken else 1 - share
        return taken


class Uniform:
    """A value in [0, 1) that is known only by its comparisons so far."""

    def __init__(self, tree):
        self._tree, self._low, self._high = tree, 0.0, 1.0

    def below(self, bound):
        """Whether the value is below a bound. Branches if that is not known yet."""
        if bound <= self._low + ROUNDING or bound >= self._high - ROUNDING:
            return bound > self._low + ROUNDING
        below = self._tree.branch((bound - self._low) / (self._high - self._low))
        self._low, self._high = (self._low, bound) if below else (bound, self._high)
        return below

    def __mul__(self, factor):
        return _Scaled(self, float(factor))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Supports only `torch.searchsorted(borders, value, right=True)`."""
        del types
        if function is not torch.searchsorted or kwargs != {"right": True}:
            return NotImplemented
        borders, value = args
        return next((n for n, threshold in enumerate(borders.tolist()) if value.below(threshold)), len(borders))


class GridUniform(Uniform):
    """One of the centres of the cells of a grid, of which the comparisons so far leave a range."""

    def __init__(self, tree, grid):
        super().__init__(tree)
        self._low, self._high, self._grid = 0, grid, grid

    def below(self, bound):
        """Whether the value is below a bound, which is no centre. Branches if that is not known yet."""
        cells = min(max(math.ceil(bound * self._grid - 0.5), self._low), self._high)
        if cells in (self._low, self._high):
            return cells == self._high
        below = self._tree.branch(Fraction(cells - self._low, self._high - self._low))
        self._low, self._high = (self._low, cells) if below else (cells, self._high)
        return below


class _Scaled:
    """A value times a factor, to be compared."""

    def __init__(self, value, factor):
        self._value, self._factor = value, factor

    def __ge__(self, bound):
        return not self._value.below(float(bound) / self._factor) if self._factor else float(bound) <= 0


def target(weights, params, prompt, tokens, ends):
    """The distribution of the next token, computed in plain Python by the definition of each setting in order."""
    scores = [math.log(weight) if weight else -math.inf for weight in weights]
    for token, score in enumerate(scores):
        if token in (*prompt, *tokens):
            scores[token] = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
        count = tokens.count(token)
        scores[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        scores[token] += dict(params.logit_bias).get(token, 0.0)
        if len(tokens) < params.min_new_tokens and token in ends:
            scores[token] = -math.inf
    shares = _normalised([math.exp(score / params.temperature) for score in scores])
    if params.top_k:
        shares = _at_least(shares, sorted(shares, reverse=True)[params.top_k - 1])
    if params.top_p < 1:
        total = 0.0
        for share in sorted(shares, reverse=True):
            threshold, total = share, total + share
            if total >= params.top_p:
                break
        shares = _at_least(shares, threshold)
    return _at_least(shares, params.min_p * max(shares))


def _at_least(shares, threshold):
    return _normalised([share if share >= threshold else 0.0 for share in shares])


def _normalised(shares):
    return [share / sum(shares) for share in shares]


def target_texts(chain, params, prompt, max_tokens, ends):
    """The probability of every text of at most `max_tokens` tokens; an end token ends a text earlier."""
    ended, open_texts = {}, {(): 1.0}
    for _ in range(max_tokens):
        following = {}
        for text, probability in open_texts.items():
            shares = target(chain[(*prompt, *text)[-1]], params, prompt, text, ends)
            for token, share in enumerate(shares):
                if share:
                    texts = ended if token in ends else following
                    texts[(*text, token)] = probability * share
        open_texts = following
    return ended | open_texts

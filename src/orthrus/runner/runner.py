"""The runner lays out passes of a decoder and has an executor run them. Each kind of pass is a method.

`ar` verifies drafts and extends the cache, `diffuse` drafts, `ar_and_diffuse` does both in one pass. Tokens are passed
as integers, per sequence, with the block table of each sequence. Logits are returned per sequence, with rows in
ascending order of position.

Guarantee: where the probes hold (`exact`), the logits of an AR row, and the K/V it leaves in the cache, have the same
bits whatever else ran in its pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from itertools import accumulate

import torch
from torch import Tensor

from orthrus import torch_threads
from orthrus.backends.interface import MAX_ROWS, AttentionChoice, ExecutableLinear, Kernels, RowRule
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.select import DraftWeights, choose_attention, choose_draft_weights, pack_linears
from orthrus.backends.torch import TorchKernels, attend_in_blocks
from orthrus.batch import ForwardBatch
from orthrus.cache import BlockTable, KVCache, page_bytes, pages_for
from orthrus.config import KEY_BLOCK, DiffusionConfig
from orthrus.decoder_config import DecoderConfig
from orthrus.model.decoder import Decoder
from orthrus.model.linear import Linear
from orthrus.runner import native
from orthrus.runner.cuda_graphs import CUDAGraphs, capture_on_cuda
from orthrus.runner.eager import EagerExecutor
from orthrus.runner.executor import DiffusionResult, Executor, JointResult, PassResult
from orthrus.runner.float_state import DenormalsKept
from orthrus.runner.layout import BatchLayout, Root, block_starts, forward_batch, place_blocks, workspace_rows
from orthrus.runner.native import NativeForward
from orthrus.runner.trees import Parents, path_tables, trees_of


def bytes_of(linear: Linear) -> int:
    """The bytes of weights that one call of a linear map reads."""
    return linear.stored_bytes if isinstance(linear, ExecutableLinear) else linear.weight.nbytes


Tokens = Sequence[Sequence[int]]
"""Token ids per sequence. The sequences may have different lengths."""


class Runner:
    """Runs passes of one decoder. Several threads may use it at once.

    Use `prepare` to make one. `Runner(decoder)` runs plain weights with torch's kernels; it guarantees no bits.

    exact: whether the probes found a layout under which the bits hold. page_bytes: the size of a page of the cache.
    """

    def __init__(
        self,
        decoder: Decoder,
        kernels: Kernels | None = None,
        attention: AttentionChoice | None = None,
        draft_weights: DraftWeights | None = None,
    ) -> None:
        self.decoder, self.kernels = decoder, kernels or TorchKernels()
        self.attention = attention or AttentionChoice(
            attend_in_blocks, RowRule(2, MAX_ROWS, exact=False), key_multiple=KEY_BLOCK
        )
        self.draft_weights = draft_weights or choose_draft_weights(decoder, self.kernels)
        self.page_bytes = page_bytes(decoder.config, decoder.dtype)
        rules = [getattr(linear, "rule", RowRule(2, MAX_ROWS, exact=False)) for linear in decoder.linears().values()]
        self.exact = self.attention.rule.exact and all(rule.exact for rule in rules)
        self.layout = BatchLayout(self.attention, max(rule.multiple for rule in rules))
        self._executors = self._choose_executors()

    @staticmethod
    def prepare(
        decoder: Decoder, kernels: Kernels | None = None, *, int8: bool | None = False, low_precision: bool = False
    ) -> Runner:
        """Choose a kernel for every linear map and for attention, and probe every shape. Replaces the plain weights of
        the decoder.

        int8: which maps are multiplied by int8 activations; see `select.by_int8`.
        low_precision: draft by low-precision weights where kernels have them, and maps are not in int8 anyway.
        """
        kernels = kernels or TorchKernels()
        drafting = choose_draft_weights(decoder, kernels, int8=int8, low_precision=low_precision)
        pack_linears(decoder, kernels, int8=int8)
        attention = choose_attention(decoder.config, decoder.dtype, decoder.device, kernels)
        return Runner(decoder, kernels, attention, drafting)

    def _choose_executors(self) -> dict[bool, Executor]:
        """The fastest available executors: for passes that only draft (True) and for all others (False)."""
        eager = EagerExecutor(self.decoder, self.kernels, self.attention, self.draft_weights)
        if native.supported(self.decoder, self.kernels, self.attention):
            assert isinstance(self.kernels, NativeKernels)
            return {
                draft_only: NativeForward(self.decoder, self.kernels, self.draft_weights, draft_only=draft_only)
                for draft_only in (False, True)
            }
        if self.decoder.device.type == "cuda" and self.attention.ragged and self.config.experts is None:
            graphs = CUDAGraphs(eager, capture_on_cuda(self.decoder.device))
            return {False: graphs, True: graphs}
        return {False: eager, True: eager}

    def with_executors(self, wrap: Callable[[Executor], Executor]) -> Runner:
        """A runner with the same decoder and kernels whose executors are wrapped, to profile or to replace them."""
        runner = copy(self)
        runner._executors = {draft_only: wrap(executor) for draft_only, executor in self._executors.items()}
        return runner

    def eager(self) -> Runner:
        """A runner of the same decoder that runs kernel by kernel: the reference of the other executors."""
        executor = EagerExecutor(self.decoder, self.kernels, self.attention, self.draft_weights)
        return self.with_executors(lambda _: executor)

    def between_passes(self) -> AbstractContextManager[None]:
        """What to enter for work between passes: where C kernels run them, torch leaves the processors to those."""
        return torch_threads.on_one() if isinstance(self._executors[False], NativeForward) else nullcontext()

    @property
    def config(self) -> DecoderConfig:
        """The shape of the backbone."""
        return self.decoder.config

    @property
    def diffusion(self) -> DiffusionConfig | None:
        """The diffusion view, where there is one."""
        return self.decoder.diffusion

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        return self.decoder.device

    @property
    def linear_kernels(self) -> list[str]:
        """The kernels of the linear maps that an AR pass runs, by name."""
        ar = [linear for name, linear in self.decoder.linears().items() if ".diffusion." not in name]
        return sorted({getattr(linear, "name", "torch linear") for linear in ar})

    @property
    def draft_bytes(self) -> int:
        """Bytes of the weights that only drafting needs: diffusion view, draft head and low-precision copies."""
        view = [linear for name, linear in self.decoder.linears().items() if ".diffusion." in name]
        norms = [p.nbytes for name, p in self.decoder.named_parameters() if ".diffusion." in name and "norm" in name]
        norms += [p.nbytes for p in self.decoder.draft_head.parameters()] if self.decoder.draft_head else []
        return sum(norms) + sum(bytes_of(linear) for linear in (*view, *self.draft_weights.linears))

    @property
    def executors(self) -> list[Executor]:
        """The executors of passes with AR rows and of passes that only draft."""
        return list(self._executors.values())

    @property
    def ragged(self) -> bool:
        """Whether attention takes sequences with different numbers of rows without padding."""
        return self.attention.ragged

    @property
    def max_rows(self) -> int:
        """The maximum rows of one sequence per pass. Longer prompts are prefilled in chunks."""
        return self.attention.rule.max_rows

    def new_cache(self, pages: int) -> KVCache:
        """An empty cache for sequences of this decoder."""
        return KVCache(self.config, pages, self.decoder.dtype, self.device)

    def new_tables(self, sequences: int = 1, positions: int | None = None) -> list[BlockTable]:
        """Empty sequences in a cache of their own, with room for `positions` positions each (default: the whole
        context) and for the rows of a pass."""
        width = self.diffusion.block_size if self.diffusion else 1
        workspace = self.workspace_positions(self.max_rows, width + 1, width)
        cache = self.new_cache(sequences * pages_for((positions or self.config.max_positions) + workspace))
        return [BlockTable(cache) for _ in range(sequences)]

    def workspace_positions(self, drafts: int, blocks: int, width: int) -> int:
        """The most positions behind the cached ones that a pass needs: an anchor, drafts, and blocks beside them."""
        return 1 + drafts + workspace_rows(blocks, width) + self.attention.key_multiple

    def ar(
        self,
        rows: Tokens,
        tables: Sequence[BlockTable],
        *,
        parents: Sequence[Parents | None] | None = None,
        logit_rows: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Causal pass over `rows` of each sequence. Writes their K/V after the cached positions and commits nothing.

        Returns, per sequence, the logits [R, V] of `logit_rows` (all rows if None; it may be empty). Row i predicts the
        token after it. parents: see `ar_and_diffuse`.
        """
        asked = None if logit_rows is None else [logit_rows] * len(rows)
        return self.ar_and_diffuse(rows, [()] * len(rows), 0, tables, parents=parents, logit_rows=asked).logits

    def diffuse(self, roots: Sequence[int | None], width: int, tables: Sequence[BlockTable], *, rows: int) -> Tensor:
        """Diffusion pass over one block per sequence: its root, then `width` - 1 mask tokens, right after the cache.

        Every row attends to the cache and to all rows of its block. Returns the logits [B, rows, V] of the first `rows`
        rows: row j predicts the token j + 1 positions after the root. A sequence whose root is None is left out.
        """
        return self.diffuse_rows(roots, width, tables, rows=rows).logits

    def diffuse_rows(
        self, roots: Sequence[int | None], width: int, tables: Sequence[BlockTable], *, rows: int
    ) -> DiffusionResult:
        """The same with the hidden states of these rows, from which a draft head goes on."""
        own = [[] if root is None else [(root, t.length)] for root, t in zip(roots, tables, strict=True)]
        return self.diffuse_at(own, width, tables, rows=rows)

    @torch.inference_mode()
    def diffuse_at(
        self, roots: Sequence[Sequence[tuple[int, int]]], width: int, tables: Sequence[BlockTable], *, rows: int
    ) -> DiffusionResult:
        """The same for any number of roots per sequence, each a token and its position, at most the cached length: a
        block attends to the keys before its root."""
        blocks = [
            [Root(*root, start) for root, start in zip(own, block_starts(t.length, len(own), width), strict=True)]
            for own, t in zip(roots, tables, strict=True)
        ]
        count = sum(len(own) for own in blocks)
        if count == 0:
            sizes = self.config.vocab_size, self.config.hidden_size
            return DiffusionResult(*(torch.empty(0, rows, size).to(self.decoder.norm.weight) for size in sizes))
        span = self._reserve(tables, [own[-1].start + width if own else 0 for own in blocks])
        views = [self.layout.blocks(blocks, width, tables, self.decoder.mask_token_id)]
        logit_rows = [start * width + row for start in range(count) for row in range(rows)]
        result = self._run(forward_batch(views, tables, span, logit_rows, len(logit_rows)))
        return DiffusionResult(*(part.view(count, rows, part.shape[1]) for part in result))

    @torch.inference_mode()
    def ar_and_diffuse(
        self,
        rows: Tokens,
        block_roots: Sequence[Sequence[int]],
        width: int,
        tables: Sequence[BlockTable],
        *,
        parents: Sequence[Parents | None] | None = None,
        logit_rows: Sequence[Sequence[int]] | None = None,
        eager_logits: bool = False,
    ) -> JointResult:
        """An AR pass over `rows` of each sequence that also computes draft blocks of `width` rows rooted in these rows.

        parents: per sequence None for a chain, or the row that each row follows: an earlier one, or -1 for the newest
        cached position. Then a row attends to the cache, its ancestors and itself, and has their position plus one. Its
        bits are those of the chain of its ancestors and itself. It is written as many places after the cache as there
        are rows before it, from where `BlockTable.commit_path` takes the rows of one path.

        block_roots: per sequence, the rows in which its blocks are rooted; it may be empty. The block of row r equals
        the one that `diffuse` would compute by the same weights if the ancestors of r (in a chain, the rows before r)
        were cached and r were the anchor: it attends to the cache, its ancestors and itself. No AR row depends on it.

        Returns the AR logits of `logit_rows` per sequence (all rows if None) and the hidden states of the blocks.
        `draft_logits` turns those into logits once it is known which block is used. With `eager_logits` the pass
        returns the logits of the blocks too: a few more rows cost the head little.
        """
        counts, trees = [len(own) for own in block_roots], trees_of(parents, len(rows))
        roots = place_blocks(rows, block_roots, width, tables, trees)
        placed = zip(rows, tables, roots, strict=True)
        ends = [blocks[-1].start + width if blocks else t.length + len(own) for own, t, blocks in placed]
        span = self._reserve(tables, ends)
        views = [self.layout.ar_rows(rows, tables, trees)]
        if any(counts):
            views.append(self.layout.blocks(roots, width, tables, self.decoder.mask_token_id))
        starts = accumulate(map(len, rows[:-1]), initial=0)
        wanted = [range(len(own)) for own in rows] if logit_rows is None else logit_rows
        asked = [[start + row for row in own] for own, start in zip(wanted, starts, strict=True)]
        indices = [row for own in asked for row in own]
        ar_logits, drafted, offset = len(indices), sum(counts) * width, len(views[0].tokens)
        indices += range(offset, offset + drafted)
        num_logits = len(indices) if eager_logits else ar_logits
        result = self._run(forward_batch(views, tables, span, indices, num_logits, path_tables(trees, tables)))
        return JointResult.of(result, [len(own) for own in asked], counts, width)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The head over final hidden states: logits [N, V]."""
        return self._head(self.decoder.head, hidden_ND)

    def draft_logits(self, hidden_ND: Tensor) -> Tensor:
        """The same for drafts, by the weights of passes that only draft; see `Decoder.over_vocabulary`."""
        return self.decoder.over_vocabulary(self._head(self.draft_weights.head or self.decoder.head, hidden_ND))

    def _head(self, head: torch.nn.Module, hidden_ND: Tensor) -> Tensor:
        with DenormalsKept():
            return self.decoder.capped(head(hidden_ND))

    def _reserve(self, tables: Sequence[BlockTable], positions: Sequence[int]) -> int:
        """Give every sequence pages for its rows. Returns how many keys per sequence attention reads."""
        multiple = self.attention.key_multiple
        rounded = [-(-own // multiple) * multiple for own in positions]
        for table, own in zip(tables, rounded, strict=True):
            table.reserve(own)
        return max(rounded)

    def _run(self, batch: ForwardBatch) -> PassResult:
        with DenormalsKept():
            return self._executors[batch.draft_only].run(batch)

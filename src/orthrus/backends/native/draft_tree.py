"""The choice of a tree of drafts in C. The reference implementation is `orthrus.backends.draft_tree`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from orthrus.backends.draft_tree import HeadInputs
from orthrus.backends.native import structs
from orthrus.backends.native.embedding import table_of
from orthrus.drafters.tree import DraftTree, Kind
from orthrus.ngrams import EVIDENCE, LEAST, LEAST_REST, LONGEST, MOST, NEW_SLOPE, NO_ROW, SHIFT, SLOPE, Lookup, Match
from orthrus.torch_threads import kernel_threads

_INTEGER = ctypes.c_int64


class NativeDraftTree:
    """The function of `c/draft_tree.h`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._choose = library.draft_tree
        pointers = (ctypes.POINTER(own) for own in (structs.DraftBlock, structs.DraftHead, structs.DraftNodes))
        self._choose.argtypes, self._choose.restype = (*pointers, _INTEGER), _INTEGER
        matches = (Match(0, length, alike) for length in range(1, LONGEST + 1) for alike in (False, True))
        self._evidence = np.array([EVIDENCE[match.row] for match in matches], np.float32)
        self._numbers = self._evidence.ctypes.data, SLOPE, SHIFT, NEW_SLOPE, NO_ROW, LEAST, MOST, LEAST_REST

    def __call__(
        self,
        logits_RV: Tensor,
        temperatures: Sequence[float],
        nodes: int | None,
        inputs: HeadInputs | None,
        lookup: Lookup | None,
    ) -> DraftTree:
        """See `Kernels.draft_tree`."""
        logits_RV = logits_RV.contiguous()
        rows, vocabulary = logits_RV.shape
        count = rows if nodes is None else nodes
        fp32, over = logits_RV.dtype == torch.float32, (ctypes.c_float * rows)(*temperatures)
        states = None if inputs is None else inputs.hidden_SD.contiguous()
        first = -1 if inputs is None or inputs.first_token is None else inputs.first_token
        text = None if lookup is None else self._context(lookup)
        block = structs.DraftBlock(
            logits_RV.data_ptr(), None if states is None else states.data_ptr(), ctypes.addressof(over), rows,
            vocabulary, fp32, first, count, nodes is None, None if text is None else ctypes.addressof(text),
        )  # fmt: skip
        tokens, parents, looked_up, confidence = *((_INTEGER * count)() for _ in range(3)), (ctypes.c_float * count)()
        found = structs.DraftNodes(*(ctypes.addressof(own) for own in (tokens, parents, confidence, looked_up)))
        head = None if inputs is None else _draft_head(inputs)
        taken = self._choose(block, head, found, kernel_threads())
        if taken < 0:
            raise MemoryError
        kinds: list[Kind] = ["lookup" if alone else "agrees" for alone in looked_up[:taken]]
        return DraftTree(tokens[:taken], parents[:taken], confidence[:taken], kinds, [None] * taken)

    def _context(self, lookup: Lookup) -> structs.DraftContext:
        evidence, *numbers = self._numbers
        return structs.DraftContext(lookup.text.address, len(lookup.text), evidence, lookup.first, *numbers)


def _draft_head(inputs: HeadInputs) -> structs.DraftHead:
    head, hidden = inputs.head, inputs.hidden_SD.shape[1]
    assert head.row.dtype == inputs.hidden_SD.dtype
    weights = head.bias, head.row, head.before, head.token, head.output
    table = table_of(inputs.embedding, hidden, head.row.dtype)
    return structs.DraftHead(*(weight.data_ptr() for weight in weights), table, hidden, head.units)

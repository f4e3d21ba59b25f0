"""Passes of a model as calls of `forward` in a memory image: a whole decoding, to run it again on another processor.

The text is decoded plainly, one token per pass, then again in passes that verify random trees of drafts, draft blocks,
or do both. What a row must equal is known without the tokens of that processor: `Recording.same` pairs the rows.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from native_image import NULL, POINTER, Image, Place
from torch import Tensor

from orthrus.backends.native import linears, structs
from orthrus.batch import ForwardBatch
from orthrus.cache import KVCache
from orthrus.masks import first_keys
from orthrus.runner import native
from orthrus.runner.executor import PassResult
from orthrus.runner.native import NativeForward
from orthrus.runner.runner import Runner

MAX_ROWS = 64
ORDERED = {linears.INT8: "order_int8", linears.Q4 + linears.BY_INT8: "order_codes"}
"""The functions of the driver for formats of weights whose order differs between levels."""
TREES: tuple[tuple[int, ...], ...] = (
    (-1,),
    (-1, 0, 1, 2),
    (-1, 0, 0, 1, 1, 3),
    (-1, 0, 0, 0, 2, 4, 4),
    (-1, 0, 1, 2, 3, 4),
)
"""Parents of the rows of passes; row 0 is the anchor."""


class Recorder:
    """The image of what a runner is asked to do. Results are named by `label`, which is set before every pass."""

    def __init__(self, runner: Runner, positions: int, threads: int) -> None:
        self.image, self.label, self.threads = Image(), "", threads
        self._decoder, self._caches = runner.decoder, dict[int, tuple[structs.KVCache, int]]()
        angles = [rope.tables(positions) for rope in runner.decoder.ropes]
        self._angles = [self.image.pointers([self.image.put(pair[part]) for pair in angles]) for part in range(2)]
        self._place_of = _placer(self.image, [*_tensors(runner.decoder), *_tensors(*runner.draft_weights.linears)])
        self._ordered = set[int]()
        self.runner = runner.with_executors(lambda own: _Recorded(self, own))

    def model(self, own: NativeForward) -> Place:
        """The place of the weights of an executor."""
        layers, model = (type(made).from_buffer_copy(made) for made in (own._layers, own._model))
        model.layers = None
        for made in (*layers, model):
            _relocate(made, self._place_of)
            self._order(made)
        model.layers = self.image.structs(layers)
        return self.image.struct(model)

    def _order(self, made: ctypes.Structure) -> None:
        """Call for the order of weights that the level reads which runs this, once for each of the maps in a struct."""
        for weights in _linear_maps(made):
            if weights.format in ORDERED and weights.weight not in self._ordered:
                self._ordered.add(weights.weight)
                self.image.call(ORDERED[weights.format], Place(weights.weight), weights.outputs, weights.inputs)

    def add(self, model: Place, workspace: Place, batch: ForwardBatch) -> None:
        """The call of one pass."""
        image, config = self.image, self._decoder.config
        places = [image.put(torch.tensor(values, dtype=torch.int64)) for values in batch.integers]
        views, _ = native._views(batch, places, config)
        for view, rows in zip(views, batch.views, strict=True):
            starts = [None if size is None else first_keys(rows.kv_lens, rows.view, size) for size in config.windows]
            view.kv_starts = image.pointers([NULL if own is None else image.put(torch.tensor(own)) for own in starts])
        rows, wanted = sum(view.padded_rows for view in views), len(batch.logit_rows)
        made = structs.ForwardBatch(
            image.structs(views), places[-1], len(views), rows, wanted, batch.num_logits, *self._angles,
            *self._cache(batch.cache),
        )  # fmt: skip
        dtype = self._decoder.dtype
        hidden = image.empty((wanted, config.hidden_size), dtype)
        logits = image.empty((batch.num_logits, config.vocab_size), dtype, self.label)
        image.call("forward", model, image.struct(made), hidden, logits, workspace, NULL, self.threads)

    def _cache(self, cache: KVCache) -> tuple[structs.KVCache, int]:
        """The first layer of a cache in the image, and the scalars between layers."""
        if id(cache) not in self._caches:
            _, heads, slots, size = cache.keys.shape
            stored = [self.image.empty(cache.keys.shape, cache.keys.dtype) for _ in "kv"]
            self._caches[id(cache)] = structs.KVCache(*stored, heads, size, slots * size), heads * slots * size
            copy_slots = cache.copy_slots

            def recorded(sources: Sequence[int], targets: Sequence[int]) -> None:
                copy_slots(sources, targets)
                moves = [self.image.put(torch.tensor(slots)) for slots in (sources, targets)]
                planes, itemsize = cache.keys.shape[0] * heads, cache.keys.itemsize
                sizes = len(sources), planes, slots * size * itemsize, size * itemsize
                for place in stored:
                    self.image.call("copy_slots", place, *moves, *sizes)

            cache.copy_slots = recorded
        return self._caches[id(cache)]


class _Recorded:
    """An executor whose passes are recorded, too."""

    def __init__(self, recorder: Recorder, own: NativeForward) -> None:
        self._recorder, self._own, self._model = recorder, own, recorder.model(own)
        bytes_needed = own._workspace_bytes(own._model, MAX_ROWS, recorder.threads)
        self._workspace = recorder.image.empty(
            (2 * bytes_needed,), torch.uint8
        )  # levels differ in their scratch memory

    def run(self, batch: ForwardBatch) -> PassResult:
        self._recorder.add(self._model, self._workspace, batch)
        return self._own.run(batch)


def _placer(image: Image, tensors: Sequence[Tensor]) -> Callable[[int], Place]:
    """Gives the place of what is at an address: the largest tensor that begins there."""
    known: dict[int, Tensor] = {}
    for tensor in sorted(tensors, key=lambda own: own.nbytes):
        known[tensor.data_ptr()] = tensor
    places: dict[int, Place] = {}

    def place_of(address: int) -> Place:
        if address not in places:
            places[address] = image.put(known[address])
        return places[address]

    return place_of


def _tensors(*parents: torch.nn.Module) -> Iterator[Tensor]:
    for parent in parents:
        for module in parent.modules():
            own = (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
            yield from (value for value in own if isinstance(value, Tensor))


def _linear_maps(made: ctypes.Structure) -> Iterator[structs.LinearWeights]:
    if isinstance(made, structs.LinearWeights):
        yield made
    for name, _ in made._fields_:
        value = getattr(made, name)
        for own in value if isinstance(value, ctypes.Array) else (value,):
            if isinstance(own, ctypes.Structure):
                yield from _linear_maps(own)


def _relocate(made: ctypes.Structure, place_of: Callable[[int], Place]) -> None:
    """Put places for the addresses in a struct and in those inside it."""
    for name, kind in made._fields_:
        value = getattr(made, name)
        if kind is POINTER and value:
            setattr(made, name, place_of(value))
        elif isinstance(value, ctypes.Structure):
            _relocate(value, place_of)
        elif isinstance(value, ctypes.Array):
            for own in value:
                _relocate(own, place_of)


@dataclass(frozen=True)
class Recording:
    """image: the calls. text: the prompt and its greedy answer. logits: what this processor found, by label. same: a
    row of plain decoding, and one that must have its bits, each by label and row. plain: the label of the pass that
    gives each token of the answer."""

    image: Image
    text: list[int]
    logits: dict[str, Tensor]
    same: list[tuple[tuple[str, int], tuple[str, int]]]
    plain: list[str]

    def different(self, found: dict[str, Tensor]) -> list[tuple[str, int]]:
        """The rows that do not have the bits of plain decoding in these results."""
        return [row for own, row in self.same if not torch.equal(found[own[0]][own[1]], found[row[0]][row[1]])]

    def answer(self, found: dict[str, Tensor]) -> list[int]:
        """The greedy tokens of the plain passes in these results."""
        return [int(found[label][-1].argmax()) for label in self.plain]


def record(runner: Runner, prompt: Sequence[int], new_tokens: int, *, threads: int, seed: int = 0) -> Recording:
    """Decode a prompt plainly, then in trees of drafts and with blocks."""
    assert len(prompt) <= MAX_ROWS
    recorder = Recorder(runner, len(prompt) + new_tokens + MAX_ROWS, threads)
    text, logits, same, plain = list(prompt), dict[str, Tensor](), [], list[str]()
    (table,) = recorder.runner.new_tables(1, len(prompt) + new_tokens)
    rest = text
    for step in range(new_tokens):
        recorder.label = f"plain {step}"
        (found,) = recorder.runner.ar([rest], [table], logit_rows=[len(rest) - 1])
        table.commit(len(text))
        logits[recorder.label], rest = found, [int(found[-1].argmax())]
        plain.append(recorder.label)
        text += rest
    for label, found, path, start in _in_trees(recorder, text, len(prompt), random.Random(seed)):
        logits[label] = found
        same += [((f"plain {start + depth}", 0), (label, row)) for depth, row in enumerate(path)]
    return Recording(recorder.image, text, logits, same, plain)


def _in_trees(
    recorder: Recorder, text: list[int], prompt: int, rng: random.Random
) -> Iterator[tuple[str, Tensor, list[int], int]]:
    """Passes over trees of which one path is the text: label, logits, the rows of the path, and the token of the answer
    that its first row gives."""
    runner, width = recorder.runner, 4
    (table,) = runner.new_tables(1, len(text))
    recorder.label = "prefill"
    (found,) = runner.ar([text[:prompt]], [table], logit_rows=[prompt - 1])
    table.commit(prompt)
    yield recorder.label, found, [0], 0
    for number in range(len(text)):
        at = table.length
        if at >= len(text) - 1:
            return
        rows, path = _tree(TREES[number % len(TREES)], text[at:-1], rng)
        parents = list(TREES[number % len(TREES)])
        recorder.label = f"block {number}"
        yield recorder.label, runner.diffuse([text[at]], width, [table], rows=width)[0], [], 0
        recorder.label = f"tree {number}"
        if number % 2:
            (found,) = runner.ar([rows], [table], parents=[parents])
        else:
            (found,) = runner.ar_and_diffuse([rows], [[0, len(rows) - 1]], width, [table], parents=[parents]).logits
        yield recorder.label, found, path, at - prompt + 1
        table.commit_path(path)


def _tree(parents: Sequence[int], text: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """Tokens of a tree whose path to a random row follows the text; and that path. Other rows have wrong tokens."""
    path = [rng.randrange(len(parents))]
    while path[0]:
        path.insert(0, parents[path[0]])
    path = path[: len(text)]
    rows = [(text[0] + 1 + row) % 256 for row in range(len(parents))]
    for row, token in zip(path, text, strict=False):
        rows[row] = token
    return rows, path

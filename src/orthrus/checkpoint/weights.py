"""The weights of a decoder from the tensors of files.

Names and shapes are checked before memory is allocated; then the values are copied, fused and cast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthrus.checkpoint import low_rank
from orthrus.checkpoint.tensors import TensorFile, finite, refuse_non_finite
from orthrus.config import DiffusionConfig
from orthrus.decoder_config import DecoderConfig
from orthrus.model.decoder import Decoder
from orthrus.model.embedding import StoredEmbedding
from orthrus.model.stored import StoredLinear
from orthrus.model.tensor_names import EMBEDDING, sources
from orthrus.quantization import Part, Quantized, StoredMatrix, fused

HEAD = "lm_head.weight"
ROWS = 2048
"""Rows of a quantised matrix that are expanded at once."""


def meta_decoder(
    config: DecoderConfig, diffusion: DiffusionConfig | None, files: TensorFile | None, rank: int | None = None
) -> Decoder:
    """A decoder on the meta device, which allocates no weights, checked against the tensors of a file.

    The file holds the diffusion view if `diffusion` is given, otherwise the backbone. rank: that of a view whose
    factors it holds. Raises ValueError naming a tensor
    that is missing, has another shape or type, or is unknown.
    """
    decoder = Decoder(config, diffusion, torch.bfloat16, torch.device("meta"))
    view = sources(config, "diffusion")
    if rank is not None:
        low_rank.make_empty(decoder, rank)
        view = low_rank.sources(config)
    if files is not None:
        parameters = dict(decoder.named_parameters(remove_duplicate=False))
        for ours, theirs in (sources(config) if diffusion is None else view).items():
            for part, name in zip(split(config, ours, parameters[ours], len(theirs)), theirs, strict=True):
                _refuse_shape(files.shape(name), part.shape, f"{files.path}: tensor {name}")
        _refuse_unknown(files, config, view)
    return decoder


def fill(decoder: Decoder, names: dict[str, tuple[str, ...]], files: TensorFile, *, lazily: bool = False) -> None:
    """Copy tensors into the decoder, fused and cast. names: those of the file, as `sources` gives them. `lazily` leaves
    the weights of linear maps in their file: see `StoredLinear`. An embedding that is left there is checked alone.

    Raises ValueError naming a tensor that is missing, has a wrong shape, or overflows in the dtype of the decoder, and
    where a file with tied embeddings has another head.
    """
    tied = decoder.config.tied_head
    if tied and EMBEDDING in names and HEAD in files.names:
        _refuse_other_head(files, *names[EMBEDDING])
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    linears = {f"{name}.weight": linear for name, linear in decoder.linears().items()}
    if tied:
        linears[EMBEDDING] = decoder.head
    for ours, theirs in names.items():
        stored = _StoredWeight(decoder.config, decoder.dtype, ours, theirs, files)
        if ours == EMBEDDING and isinstance(decoder.embedding, StoredEmbedding):
            stored.group_quantized()
            if tied:
                decoder.head = StoredLinear(decoder.head, stored)
            continue
        if lazily and ours in linears and ours != EMBEDDING:
            parent, _, name = ours.removesuffix(".weight").rpartition(".")
            setattr(decoder.get_submodule(parent), name, StoredLinear(linears[ours], stored))
            continue
        stored.read(parameters[ours])
        if ours in linears:
            linears[ours].group_quantized = stored.group_quantized()


def leave_embedding(decoder: Decoder, files: TensorFile) -> None:
    """Leave the embedding of a decoder on the CPU in its file, where that holds it quantised: see `StoredEmbedding`.

    The file must stay as it is while the decoder is used.
    """
    (name,) = sources(decoder.config)[EMBEDDING]
    stored = files.group_quantized(name)
    if stored is not None:
        decoder.embedding = StoredEmbedding(stored, decoder.dtype)


@dataclass(frozen=True)
class _StoredWeight:
    """One tensor of a decoder of `dtype` in a file: `ours` in the decoder, a fusion of `theirs` in the file."""

    config: DecoderConfig
    dtype: torch.dtype
    ours: str
    theirs: tuple[str, ...]
    files: TensorFile

    def read(self, target: Tensor) -> Tensor:
        """Copy the values into a tensor of the decoder. Raises ValueError as `fill` does."""
        with torch.no_grad():
            for part, name in zip(split(self.config, self.ours, target, len(self.theirs)), self.theirs, strict=True):
                what = f"{self.files.path}: tensor {name}"
                _refuse_shape(self.files.shape(name), part.shape, what)
                for rows, stored in self._ranges(name):
                    part[rows].copy_(stored)
                    if finite(part[rows]):
                        continue
                    refuse_non_finite(stored, what)
                    kind = str(self.dtype).removeprefix("torch.")
                    raise ValueError(f"{what} has values outside the range of {kind}; load it in another dtype")
            order = rotary_order(self.config, self.ours)
            return target if order is None else target.copy_(target[order])

    def _ranges(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """A tensor in ranges of rows: expanding all of a quantised matrix at once takes several times its memory."""
        quantized = self.files.group_quantized(name)
        if quantized is None:
            yield slice(None), self.files.tensor(name)
            return
        for start in range(0, len(quantized.raw), ROWS):
            rows = slice(start, start + ROWS)
            yield rows, replace(quantized, raw=quantized.raw[rows]).values()

    def weight(self, shape: tuple[int, int]) -> Tensor:
        """See `WeightSource`, as for the next."""
        return self.read(torch.empty(shape, dtype=self.dtype))

    def group_quantized(self) -> Quantized | None:
        """See `WeightSource`. Raises ValueError where a scale is NaN or infinite."""
        parts = [Part(self.files.shape(name)[0], self.files.group_quantized(name)) for name in self.theirs]
        for part, name in zip(parts, self.theirs, strict=True):
            for units in part.quantized.units if part.quantized else ():
                refuse_non_finite(units, f"{self.files.path}: tensor {name}")
        quantized, order = fused(parts), rotary_order(self.config, self.ours)
        return quantized if order is None else _reordered(quantized, order)


def _reordered(quantized: Quantized | None, order: Tensor) -> Quantized | None:
    """The rows of a matrix of one type in another order. A matrix of several types is expanded instead."""
    return replace(quantized, raw=quantized.raw[order]) if isinstance(quantized, StoredMatrix) else None


def rotary_order(config: DecoderConfig, name: str) -> Tensor | None:
    """The order in which a tensor of ours has the rows of its sources; None where it is the same.

    Kernels rotate dimension i of a head together with i + E/2. Files with partial rotary embeddings pair i with i + R/2
    among the first R dimensions, or i with i + 1 (`rotary_pairs`), so q and k get their rows in another order: the
    rotated halves first in each half. Scores are sums over dimensions and do not depend on it.
    """
    E, R = config.head_dim, config.rotary_dim or config.head_dim
    reordered = config.rotary_pairs or R < E
    if not reordered or name.endswith(low_rank.DOWN) or not (".qkv." in name or name.endswith(("q_norm", "k_norm"))):
        return None
    rotated, rest = torch.arange(R), torch.arange(R, E)
    first, second = (rotated[::2], rotated[1::2]) if config.rotary_pairs else rotated.chunk(2)
    head = torch.cat((first, rest[: (E - R) // 2], second, rest[(E - R) // 2 :]))
    if ".qkv." not in name:
        count = 1 if config.qk_norm == "head" else config.heads if name.endswith("q_norm") else config.kv_heads
        return (torch.arange(count)[:, None] * E + head).flatten()
    heads = torch.arange(config.heads + config.kv_heads)[:, None] * E + head
    values = torch.arange((config.heads + config.kv_heads) * E, (config.heads + 2 * config.kv_heads) * E)
    return torch.cat((heads.flatten(), values))


def split(config: DecoderConfig, name: str, tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    """The `count` parts of a tensor of ours, as views, in the order of its sources."""
    if count == 1:
        return (tensor,)
    if ".qkv." not in name:
        return tensor.chunk(count)
    sizes = [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
    return tensor.split(sizes)


def _refuse_shape(actual: Sequence[int], expected: Sequence[int], what: str) -> None:
    if list(actual) != list(expected):
        raise ValueError(f"{what} has shape {list(actual)}, the config asks for {list(expected)}")


def _refuse_other_head(files: TensorFile, embedding: str) -> None:
    """A head that was trained apart from the embedding would be lost, as it is nowhere read."""
    if not torch.equal(files.tensor(HEAD), files.tensor(embedding)):
        raise ValueError(
            f"{files.path}: {HEAD} differs from {embedding}, which the config says it equals; set"
            ' "tie_word_embeddings" to false in config.json to use it, or remove it from the file'
        )


def _refuse_unknown(files: TensorFile, config: DecoderConfig, view: dict[str, tuple[str, ...]]) -> None:
    """Refuse files with unread tensors: they mean that the config does not describe this model."""
    known = {name for names in (*sources(config).values(), *view.values()) for name in names}
    known |= {HEAD} if config.tied_head else set()
    unknown = [n for n in files.names if n not in known and not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        listed = ", ".join(name[:80] for name in sorted(unknown)[:4]) + (", ..." if len(unknown) > 4 else "")
        raise ValueError(
            f"{files.path}: {len(unknown)} unexpected tensors for a {config.family} with this config: {listed}"
        )

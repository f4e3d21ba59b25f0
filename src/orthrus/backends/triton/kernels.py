"""Kernels in Triton for CUDA devices: the operations between linear maps, and ragged attention.

Every row is computed independently, in one fixed order, whatever other rows the launch has. The device code is in
`device.py`, the reference implementations in `backends/torch.py`. Without a GPU it runs in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from orthrus.backends.interface import CACHE_LIMIT, ExecutableLinear, LinearForm
from orthrus.backends.linears import Int8Linear
from orthrus.backends.torch import TorchKernels
from orthrus.backends.triton import device
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.config import PAGE
from orthrus.decoder_config import DecoderConfig
from orthrus.model.linear import Linear
from orthrus.quantization import stored_matrices

QUERIES = 32
"""Query rows per program: rows of a segment times query heads per key/value head. It is fixed, for equal bits."""
KEYS, FEW_KEYS, CHUNK = 64, 16, 256
"""Keys per step, fewer where the keys of a step would not fit into the registers, and keys per chunk."""
WIDE_KEY = 256
"""Bytes of a key up to which the keys of two steps fit into the shared memory of any GPU (99 KB)."""
MAX_SPLIT_QUERIES = 64
"""Query rows of a segment up to which its chunks of keys run in separate programs and are merged by another kernel."""
SMALL_TILE, LARGE_TILE = 16, 32
"""Rows per program of a linear map. With 64, some GPUs would run other instructions, which may round differently."""
TILES, FEW_OUTPUTS = ((16, 256), (32, 128)), 4096
"""Outputs per program of a linear map, and inputs per step: of maps with at most 4096 outputs, for which there would be
too few programs with wider tiles, and of others."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, stages: int = 3) -> None:
    """Launch a kernel on the device of its first argument. Multiplications and additions are not fused: each kernel
    might fuse them otherwise, and round otherwise.

    Raises RuntimeError if the kernel cannot be compiled for this GPU, or needs more shared memory than it has.
    """
    with torch.cuda.device_of(arguments[0]):
        try:
            kernel[grid](*arguments, num_stages=stages, enable_fp_fusion=False)
        except triton.TritonError as error:
            raise RuntimeError(f"Triton cannot run {kernel.__name__} here: {error}") from error


class TileLinear(ExecutableLinear):
    """A linear map in tiles of fixed sizes: each row is summed in one order, whatever the number of rows. Libraries
    choose another algorithm, which rounds differently, by the number of rows."""

    name = "Triton, fixed tiles"
    min_multiple = 1

    def __init__(self, plain: Linear) -> None:
        if plain.dtype.itemsize != 2:
            raise RuntimeError("there are no matrix instructions for this type that round as fp32 does")
        super().__init__(plain, plain.weight.nbytes)
        self._weight_OI = plain.weight.detach().contiguous()

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        N, outputs = len(x_NI), self.shape[0]
        out_NO = x_NI.new_empty(N, outputs)
        rows = SMALL_TILE if N <= SMALL_TILE else LARGE_TILE
        width, depth = TILES[outputs > FEW_OUTPUTS]
        launch(
            device.linear_tile, (triton.cdiv(N, rows), triton.cdiv(outputs, width)), x_NI, self._weight_OI, self.bias,
            out_NO, N, *self.shape, rows, width, depth, self.bias is not None, stages=4,
        )  # fmt: skip
        return out_NO


class IntegerLinear(Int8Linear):
    """int8 by `torch._int_mm`, which needs more than 16 rows and multiples of 8."""

    name = "torch._int_mm"
    probed = True

    def keep(self, weight_OI: Tensor) -> None:
        """[inputs, outputs], outputs outermost in memory."""
        self._weight_IO = weight_OI.T

    def sums(self, q_NI: Tensor) -> Tensor:
        """See `Int8Linear`."""
        padded = F.pad(q_NI.to(torch.int8), (0, 0, 0, -len(q_NI) % 32))
        return torch._int_mm(padded, self._weight_IO)[: len(q_NI)].float()


def keys_per_step(head_dim: int, bytes_of_element: int) -> int:
    """The keys of a step of attention. In fp32, whose products run without matrix units, all operands are registers."""
    return FEW_KEYS if bytes_of_element == 4 and head_dim >= 128 else KEYS


class TritonKernels(TorchKernels):
    """See `Kernels`."""

    name = "Triton"
    build = f"triton {triton.__version__}"

    @classmethod
    def lacking(cls, config: DecoderConfig) -> list[str]:
        """See `Kernels`."""
        return list(config.features)

    def packed(self, plain: Linear) -> Iterator[LinearForm]:
        """See `Kernels`, as for all below."""
        yield partial(TileLinear, plain)
        yield from super().packed(plain)

    def quantised(self, plain: Linear) -> Iterator[LinearForm]:
        """See `Kernels`."""
        matrices = stored_matrices(plain.group_quantized)
        four_bits = bool(matrices) and all(matrix.type.startswith("Q4") for matrix in matrices)
        if not four_bits and plain.shape[0] % 8 == 0 and plain.shape[1] % 8 == 0:
            yield partial(IntegerLinear, plain)
        yield from super().quantised(plain)

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """See `Kernels`."""
        return super().norm(x_ND, weight_D, eps, offset) if offset else self._norm(x_ND, None, weight_D, eps)

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        if offset:
            return super().add_norm(hidden_ND, delta_ND, weight_D, eps, offset)
        return hidden_ND, self._norm(hidden_ND, delta_ND, weight_D, eps)

    def _norm(self, x_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
        out_ND, (N, D) = torch.empty_like(x_ND), x_ND.shape
        added = x_ND if delta_ND is None else delta_ND
        size = triton.next_power_of_2(D)
        launch(device.norm_row, (N,), x_ND, added, weight_D, out_ND, D, eps, size, delta_ND is not None)
        return out_ND

    def rope_and_cache_write(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        mapping: SlotMapping,
        keys_GSE: Tensor,
        values_GSE: Tensor,
    ) -> Tensor:
        """See `Kernels`."""
        G, slots, E = keys_GSE.shape
        if (norms and (mapping.norm_offset or mapping.norm_last)) or triton.next_power_of_2(E) != E:
            return super().rope_and_cache_write(qkv_NF, norms, mapping, keys_GSE, values_GSE)
        (B, A), N = mapping.query_shape, mapping.table_2N.shape[1]
        H = qkv_NF.shape[1] // E - 2 * G
        q = qkv_NF.new_empty(B, A, H, E) if mapping.full else qkv_NF.new_zeros(B, A, H, E)
        q_norm, k_norm = norms or (qkv_NF, qkv_NF)
        launch(
            device.rope_and_cache_write_head, (N, H + 2 * G), qkv_NF, q_norm,
            k_norm, mapping.cos, mapping.sin, mapping.table_2N, q, keys_GSE, values_GSE, N, H, G,
            slots * E, mapping.norm_eps, E, norms is not None, CACHE_LIMIT,
        )  # fmt: skip
        return q

    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """See `Kernels`."""
        if activation != "silu":
            return super().gate(gate_up_NF, activation)
        N, size = len(gate_up_NF), gate_up_NF.shape[1] // 2
        out = gate_up_NF.new_empty(N, size)
        launch(device.silu_mul, (N, triton.cdiv(size, 1024)), gate_up_NF, out, size, 1024)
        return out

    def supports_ragged_attention(self, head_dim: int) -> bool:
        """See `Kernels`."""
        return head_dim >= 16 and head_dim == triton.next_power_of_2(head_dim)

    def attend(self, q_NHE: Tensor, keys_GSE: Tensor, values_GSE: Tensor, metadata: AttentionMetadata) -> Tensor:
        """See `Kernels`."""
        (N, H, E), (G, slots, _), tables = q_NHE.shape, keys_GSE.shape, metadata.block_tables
        group, out = H // G, torch.empty_like(q_NHE)
        if group > QUERIES:
            raise RuntimeError(f"{group} query heads share a key head, and these kernels take at most {QUERIES}")
        tree = metadata.row_paths is not None
        row_paths, paths = metadata.row_paths, tables if metadata.path_tables is None else metadata.path_tables
        tile_rows = 1 if tree else QUERIES // group  # rows of a tree have different keys
        tiles = triton.cdiv(metadata.max_segment_rows, tile_rows)
        split = metadata.max_segment_rows * group <= MAX_SPLIT_QUERIES
        chunks = (
            triton.cdiv(tables.shape[1] * PAGE, CHUNK) if split else 0
        )  # and one more chunk, for the own keys of a segment
        shape = (N * H, chunks + 1) if split else (1, 1)
        sums, tops, totals = (q_NHE.new_empty(*shape, n, dtype=torch.float32) for n in (E, 1, 1))
        stages = 2 if E * q_NHE.element_size() <= WIDE_KEY else 1
        launch(
            device.attend_segment, (len(metadata.segments) * tiles, G, chunks + 1), q_NHE, keys_GSE,
            values_GSE, metadata.segments, metadata.kv_lens, tables, tables.shape[1], row_paths, paths,
            paths.shape[1], out, sums, tops, totals, tiles, H, slots * E, E**-0.5, group, tile_rows, E, QUERIES,
            keys_per_step(E, q_NHE.element_size()), CHUNK, PAGE, split, tree, stages=stages,
        )  # fmt: skip
        if split:
            launch(device.merge_row, (N * H,), sums, tops, totals, out, chunks + 1, E)
        return out.view(N, H * E)

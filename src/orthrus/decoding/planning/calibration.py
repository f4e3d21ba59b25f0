"""The cost table of a model on this machine: measured on first use, kept on disk, measured again where it is bad."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import fields
from math import inf
from threading import Lock

import torch

from orthrus import file_cache
from orthrus.decoding.planning.cost_model import Costs, measure
from orthrus.model.decoder import Decoder

MEASURE_AGAIN_AFTER = 300.0
"""Seconds after which a table that other work disturbed is measured again."""
log = logging.getLogger(__name__)


class Calibration:
    """What passes of one decoder cost. Safe for many threads: one measures, the others wait for it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._lock = decoder, Lock()
        self._costs: Costs | None = None

    @property
    def key(self) -> str:
        """Names a cost table: the shapes, precision, device, threads and version it holds for."""
        decoder = self._decoder
        gpu = torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else None
        parts = (
            decoder.config, decoder.diffusion, str(decoder.dtype), gpu or file_cache.processor_name(),
            torch.get_num_threads(), torch.__version__, decoder.kernels.build,
            sorted({linear.name for linear in decoder.linears().values()}),
            decoder.drafting_head is None,
            [(f.name, f.type) for f in fields(Costs)],
        )  # fmt: skip
        return f"costs-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

    @property
    def known(self) -> bool:
        """Whether there is a table already."""
        return self._costs is not None or file_cache.age_of(self.key) < inf

    def costs(self, *, anew: bool = False) -> Costs:
        """The table, measured in seconds where there is none yet, or `anew`.

        One that other work disturbed is measured again by a later run, and the calmer of the two is kept. Raises
        ValueError where there is no diffusion view to plan for.
        """
        if self._decoder.diffusion is None:
            raise ValueError("without a diffusion view there is nothing to plan: see --adapter")
        with self._lock:
            if self._costs is None or anew:
                self._costs = self._measured(anew=anew)
            return self._costs

    def _measured(self, *, anew: bool) -> Costs:
        fresh = anew or not self.known
        found = self._kept(lambda: measure(self._decoder), anew=anew)
        if found.disturbed and not fresh and file_cache.age_of(self.key) > MEASURE_AGAIN_AFTER:
            log.info("what passes cost was measured beside other work; it is measured again")
            found = self._kept(lambda: min(found, measure(self._decoder), key=lambda costs: costs.spread), anew=True)
        if found.disturbed:
            log.info("other work disturbed the measuring of what passes cost; a later run measures again")
        return found

    def _kept(self, compute: Callable[[], Costs], *, anew: bool) -> Costs:
        found: Costs = file_cache.cached_json(self.key, lambda: compute().as_dict(), read=Costs.of, anew=anew)
        return found

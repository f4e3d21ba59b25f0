"""How many sequences are decoded together by default: as many as memory has room for, up to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from orthrus.cache import pages_for
from orthrus.config import DecodingConfig
from orthrus.decoding.drafting import workspace_positions
from orthrus.decoding.sequence import Limits, Request
from orthrus.runner.memory import affordable_pages
from orthrus.runner.runner import Runner

MAX_BATCH, MAX_BATCH_ON_CPU = 128, 32
"""The most sequences of a batch that is chosen here. A CPU gains nothing from more rows per pass, a GPU little, and the
first answers would come later."""


def pages_of(runner: Runner, requests: Iterable[Request], config: DecodingConfig, limits: Limits) -> list[int]:
    """The pages with which a request is never preempted, of each request, ascending."""
    workspace = workspace_positions(runner, config)
    lengths = (min(len(r.prompt) + r.stop.max_new_tokens, limits.max_positions) for r in requests)
    return sorted(pages_for(length + workspace) for length in lengths)


def affordable_batch(runner: Runner, requests: Sequence[Request], config: DecodingConfig, limits: Limits) -> int:
    """How many of these requests are decoded together: as many as have room for their keys and values, whichever they
    are, up to the limit of the device; 1 if there are none. Raises ValueError where the longest alone does not fit."""
    most = MAX_BATCH_ON_CPU if runner.device.type == "cpu" else MAX_BATCH
    longest = pages_of(runner, requests, config, limits)[::-1][:most]
    if not longest:
        return 1
    pages = affordable_pages(runner.page_bytes, runner.device, sum(longest), longest[0])
    return sum(together <= pages for together in accumulate(longest))

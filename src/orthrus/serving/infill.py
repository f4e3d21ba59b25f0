"""Requests of llama.cpp's `/infill` as those of the engine, and where their answers end early."""

from __future__ import annotations

import re
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from orthrus.decoding.sequence import Request
from orthrus.serving import prompts
from orthrus.serving.protocol.common import Sampling
from orthrus.serving.protocol.infill import InfillRequest

if TYPE_CHECKING:
    from orthrus.serving.service import Service


LINE_BEGUN = re.compile(r"\n[ \t]*\Z")


class _InfillSampling(Sampling):
    PROMPT = "input_prefix"


def infill_request(body: InfillRequest, service: Service) -> tuple[Request, bool]:
    """The request of a gap, and whether texts of it were cut. Raises ValueError or APIError where it is wrong.

    Texts around the gap are cut at lines to `infill_tokens` of the settings; other files, the oldest first, to what is
    left of the context.
    """
    sampling = _InfillSampling.model_construct(
        temperature=body.temperature, top_k=body.top_k, top_p=body.top_p, min_p=body.min_p, min_tokens=body.min_tokens,
        seed=None if body.seed == -1 else body.seed, stop=body.stop, presence_penalty=body.presence_penalty,
        repetition_penalty=body.repeat_penalty or body.repetition_penalty, frequency_penalty=body.frequency_penalty,
        stop_token_ids=body.stop_token_ids, drafts=body.drafts, priority=body.priority, ignore_eos=body.ignore_eos,
    )  # fmt: skip
    files = [(other.filename, other.text) for other in body.input_extra or ()]
    given = body.input_prefix + body.prompt, body.input_suffix
    prompts.check_size(service, given, sampling)
    fim, most = service.model.fill_in_middle, service.max_model_len
    around = fim.window(*given, min(service.settings.infill_tokens, most // 2))
    limit = body.n_predict if body.n_predict is not None and body.n_predict >= 0 else most
    kept = fim.newest(files, most - len(fim.prompt(*around)) - min(limit, most // 4))
    tokens = list(fim.prompt(*around, files=kept))
    options = prompts.sampling_options(sampling, service.model)
    request = prompts.make_request(service, tokens, options, sampling, max(1, limit))
    if limit == 0:
        request = replace(request, stop=replace(request.stop, max_new_tokens=1))
    return request, around != given or len(kept) < len(files)


class EarlyEnd:
    """Where an answer ends before its model ends it: a line that is indented too little, or its time is up."""

    def __init__(self, body: InfillRequest) -> None:
        self._indent, self._blank = body.n_indent or 0, body.n_predict == 0
        self._milliseconds = -1 if body.t_max_predict_ms is None else body.t_max_predict_ms
        self._text, self._taken = "", 0
        self._first: float | None = None
        self.reached = False

    @property
    def seconds(self) -> float:
        """Seconds since the first text."""
        return 0.0 if self._first is None else perf_counter() - self._first

    def take(self, text: str) -> str:
        """What has become certain by the next text. `reached` says whether the answer ends there.

        The start of a line is held back until its indentation is known.
        """
        if self._blank:
            return ""
        self._text += text
        self._first = self._first or perf_counter()
        end = self._shallow_line()
        if end is not None:
            self.reached = True
            return self._shown(end)
        late = 0 < self._milliseconds < self.seconds * 1000
        self.reached = late and "\n" in self._text
        begun = LINE_BEGUN.search(self._text) if self._indent and not self.reached else None
        return self._shown(begun.start() if begun else len(self._text))

    def rest(self) -> str:
        """What was held back, where the answer has ended by itself."""
        return "" if self.reached else self._shown(len(self._text))

    def _shown(self, end: int) -> str:
        start, self._taken = self._taken, max(self._taken, end)
        return self._text[start:end]

    def _shallow_line(self) -> int | None:
        """Where the line break before the first line that is indented too little stands; None if there is none."""
        at = self._text.find("\n", self._taken) if self._indent else -1
        while at >= 0:
            line = self._text[at + 1 :].partition("\n")[0]
            if len(line) - len(line.lstrip(" \t")) < min(self._indent, len(line)):
                return at
            at = self._text.find("\n", at + 1)
        return None

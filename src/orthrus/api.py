"""The Python face: load a model, generate, stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from orthrus.checkpoint import hub
from orthrus.checkpoint.known_models import DEMO
from orthrus.config import SamplingParams
from orthrus.decoding.batch_size import affordable_batch
from orthrus.decoding.cycle import Step
from orthrus.decoding.engine import Engine
from orthrus.decoding.sequence import Request
from orthrus.decoding.text import Piece
from orthrus.load_options import DTYPES, LoadOptions, LoadSettings
from orthrus.loaded_model import LoadedModel
from orthrus.options import Options, check_type
from orthrus.progress import AnswerProgress
from orthrus.requests import SamplingParamsOfEach
from orthrus.results import Chunk, Result, chunks, grouped, in_order, result_of
from orthrus.runner import prepare
from orthrus.tokenization import Message, Prompt, prompt_list, prompts_in

__all__ = ["DTYPES", "Chunk", "Message", "Model", "Options", "Piece", "Prompt", "Result", "load", "result_of"]

OnePrompt = str | list[Message] | list[int]
SeveralPrompts = list[str] | list[list[Message]] | list[list[int]] | list[Prompt] | Iterator[Prompt]


class Model(LoadedModel):
    """A loaded checkpoint that generates text, losslessly. Several threads may use it at once."""

    @overload
    def generate(
        self,
        prompt: OnePrompt,
        sampling_params: SamplingParams | None = None,
        *,
        n: None = None,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: OnePrompt,
        sampling_params: SamplingParams | None = None,
        *,
        n: int,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> list[Result]: ...
    @overload
    def generate(
        self,
        prompt: SeveralPrompts,
        sampling_params: SamplingParamsOfEach = None,
        *,
        n: None = None,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> list[Result]: ...
    @overload
    def generate(
        self,
        prompt: SeveralPrompts,
        sampling_params: SamplingParamsOfEach = None,
        *,
        n: int,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> list[list[Result]]: ...
    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParamsOfEach = None,
        *,
        n: int | None = None,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> Result | list[Result] | list[list[Result]]:
        """Decode one prompt, giving a `Result`, or several, giving a list of them in the same order.

        A prompt is a string, a list of chat messages, or a list of token ids. Those of a list, a generator or a column
        are decoded together; each gets the tokens it gets alone. With `n`, a list of n samples replaces each result.
        sampling_params: a record, or one for each prompt; options go before it. progress: whether stderr shows a bar;
        None: on a terminal. Raises ValueError naming the option or the prompt that is wrong.

        Options (None for one is its default):
            max_new_tokens, max_tokens: int = 256 in [0, inf). The most tokens of an answer; 0 needs prompt_logprobs.
            min_new_tokens: int = 0 in [0, inf). No end token is chosen before that many tokens.
            stop: str | list[str] = (). Strings that end an answer, and are cut from it.
            stop_token_ids: list[int] = (). Tokens that end an answer, beside those of the model.
            temperature: float = 0.0 in [0, 100]. Below 1e-5: greedy, the most likely token.
            top_k: int = 0 in [0, inf). Keeps that many likely tokens; 0 keeps all.
            top_p: float = 1.0 in (0, 1]. Keeps the smallest set of tokens with that probability.
            min_p: float = 0.0 in [0, 1]. Keeps tokens at least that fraction as likely as the most likely one.
            repetition_penalty: float = 1.0 in [0.01, 100]. Above 1 discourages tokens of prompt and answer.
            presence_penalty: float = 0.0 in [-2, 2]. Subtracted from the logits of tokens of the answer.
            frequency_penalty: float = 0.0 in [-2, 2]. The same, times the number of their occurrences.
            logit_bias: dict[int, float] = (). Added to the logits of tokens, values in [-1e6, 1e6].
            seed: int = None in [0, 18446744073709551615]. Of the noise of sampling; drawn, and reported, if None.
            sample_index: int = 0 in [0, 4294967295]. Another number gives another sample of the same seed.
            cycle: str = 'auto'. Or 'ar' (plain; the default without a diffusion view), 'two-pass', 'one-pass'.
            rule: str = 'exact'. Plain decoding's tokens; 'rejection': its distribution, more drafts accepted.
            width: int = None in [2, inf). Rows of a draft block, at most the block size, which is the default.
            candidates: int = None in [1, inf). The most blocks of a one-pass cycle; needs cycle='one-pass'.
            tree_nodes: int = None in [0, 64]. The most drafts of a pass, as a tree; 0: a chain. None: as planned.
            batch_size: int = None in [1, inf). Prompts decoded together; None: as many as memory allows.
            raw: bool = False. Continues the prompt without the chat template.
            suffix: str = None. Fills in the middle: the answer goes between the prompt and this text.
            system: str = None. A system message before the prompt.
            chat_template_kwargs: dict[str, Any] = {}. Variables of the chat template.
            json_object: bool = False. The answer is a JSON object.
            json_schema: dict | str | type = None. The answer matches a schema; classes of pydantic are schemas.
            regex: str = None. The answer matches a regular expression.
            grammar: str = None. The answer matches a Lark grammar.
            tools: list[dict] = (). Tools in OpenAI's format; see `Result.tool_calls`.
            tool_choice: str | dict = 'auto'. Or 'none', 'required', or the name of a tool.
            logprobs: int = None in [0, 20]. Log-probabilities of the answer, with that many alternatives.
            prompt_logprobs: int = None in [0, 20]. The same for the prompt.
            logits_processors: list[Callable] = (). Called with the tokens before a row and its scores: new scores.
        """
        prompts, many = prompts_in(prompt)
        results = self._decoded(prompts, sampling_params, n, progress, options)
        ordered: Any = [one for _, one in (results if n is None else grouped(results, n))]
        return ordered if many else ordered[0]

    @overload
    def results(
        self,
        prompts: Iterable[Prompt],
        sampling_params: SamplingParamsOfEach = None,
        *,
        n: None = None,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[int, Result]]: ...
    @overload
    def results(
        self,
        prompts: Iterable[Prompt],
        sampling_params: SamplingParamsOfEach = None,
        *,
        n: int,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[int, list[Result]]]: ...
    def results(
        self,
        prompts: Iterable[Prompt],
        sampling_params: SamplingParamsOfEach = None,
        *,
        n: int | None = None,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> Iterator[tuple[int, Result]] | Iterator[tuple[int, list[Result]]]:
        """Decode prompts together, yielding (index, result) in input order as soon as order allows.

        Arguments and options are those of `generate`; `prompts` is any iterable, which is read to its end. Raises
        ValueError when called, before anything is decoded.
        """
        results = self._decoded(prompt_list(prompts), sampling_params, n, progress, options)
        return results if n is None else grouped(results, n)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Chunk]:
        """Decode one prompt, yielding text as it becomes certain; the last chunk carries the `Result`.

        engine: one made by `engine()`. It keeps its cache from call to call: of a prompt that starts like an earlier
        one, such as the next turn of a chat, only the new tokens are computed. The options are those of `generate`.

        Raises ValueError when called, before anything is decoded.
        """
        if engine is None:
            steps = self._steps(self._requests.samples([prompt], options, sampling_params), options)
        else:
            steps = engine.follow(engine.add(self._requests.one(prompt, options, sampling_params)))
        return chunks(steps, self.token_texts)

    def _decoded(
        self,
        prompts: Seq[Prompt],
        sampling_params: SamplingParamsOfEach,
        n: int | None,
        progress: bool | None,
        options: Options,
    ) -> Iterator[tuple[int, Result]]:
        """Check everything now, and decode when asked: the results of all samples of all prompts, in order."""
        requests = self._requests.samples(prompts, options, sampling_params, n)
        return in_order(self._steps(requests, options), self.token_texts, AnswerProgress(len(requests), shown=progress))

    def _steps(self, requests: list[Request], options: Options) -> Iterator[Step]:
        config = self.decoding_config(options)
        if options.get("batch_size") is None:
            config = replace(config, batch_size=affordable_batch(self.runner, requests, config, self.limits))
        return self.run(requests, config)


def load(name: str | Path = DEMO, **options: Unpack[LoadOptions]) -> Model:
    """Load a known model by its name, a checkpoint directory, a GGUF file, or a hub id, with an optional adapter.

    Args:
        name: what to load.
        **options: as follows.
            adapter: directory of a trained diffusion view; by default the one bundled for this backbone, if any.
            dtype: "bfloat16" (default) or "float32".
            device: where to run, "cpu" by default.
            quantize: "int8" for int8 weights and activations in all linear maps, "none" for products in `dtype` alone.
                By default int8 activations are multiplied by the codes of a GGUF file, as llama.cpp does, where the
                processor has kernels for that and `dtype` is not float32; everything else is computed in `dtype`.
                Lossless refers to plain decoding in the same arithmetic.
            low_precision_drafts: draft by low-precision weights (the diffusion view in four bits, int8 copies of the
                others) where they are faster and memory allows: no token changes. True by default.
            revision: hub revision.
            allow_other_backbone: load an adapter whose backbone had other weights (same shapes and tokenizer).
            ctx_size: the most tokens of a sequence, prompt included; by default the model's whole context.
            cache: keep the packed weights and the findings of the probes on disk, and read them from there. True by
                default. See `orthrus.tensor_cache` for where, and how much.

    Raises:
        ValueError: naming the file, tensor, family or setting that is wrong.
    """
    check_type("name", name, (str, Path), "a string or a path")
    given = LoadSettings.of(options)
    checkpoint = hub.load(
        str(name),
        adapter=given.adapter,
        dtype=given.dtype,
        device=given.device,
        revision=given.revision,
        allow_other_backbone=given.allow_other_backbone,
        lazily=torch.device(given.device).type == "cpu",
    )
    decoder, unread = checkpoint.decoder, checkpoint.unread
    if unread is None:
        runner = prepare.prepare(decoder, int8=given.int8, low_precision_drafts=given.low_precision_drafts)
    else:
        runner = prepare.prepare_unread(
            decoder, unread.read, unread.identity, int8=given.int8, low_precision_drafts=given.low_precision_drafts,
            cache=given.cache,
        )  # fmt: skip
    return Model(replace(checkpoint, unread=None), runner, given.ctx_size)

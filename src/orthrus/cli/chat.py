"""`orthrus chat`: a conversation in the terminal, with a model in this process or with a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orthrus.cli import _sampling as sampling
from orthrus.cli import _tokens as tokens
from orthrus.cli._chat import options as given
from orthrus.cli._chat import settings
from orthrus.cli._chat.answers import Answerer
from orthrus.cli._chat.remote import RemoteAnswers
from orthrus.cli._chat.session import COMMANDS, Session
from orthrus.cli._chat.terminal import LineReader, PromptReader, Reader, history_file
from orthrus.cli._costs import measure_costs
from orthrus.cli._defaults import described, starting_options
from orthrus.cli._limits import apply_limits, check_length
from orthrus.cli._server import ApiKeyOption, ServerClient, UrlOption
from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    CacheOption,
    CycleOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    QuantizeOption,
    compile_ahead,
    load_model,
    print_notice,
    stderr,
    without_none,
)
from orthrus.prompt_files import parse_object

if TYPE_CHECKING:
    from orthrus.api import Model

DEFAULT_MODEL, DEFAULT_MAX_TOKENS = "smollm2-demo", 512
ONLY_LOCAL = (
    "with --url the model is the server's: --adapter, --cycle, --rule, --width, --logit-bias, --stop-token and"
    " --chat-template-kwargs are for a model in this process"
)


def command(
    model: given.ModelOption = None,
    adapter: AdapterOption = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    system: given.SystemOption = None,
    max_new_tokens: given.MaxNewTokensOption = None,
    min_new_tokens: given.MinNewTokensOption = None,
    temperature: sampling.TemperatureOption = None,
    top_p: sampling.TopPOption = None,
    top_k: sampling.TopKOption = None,
    min_p: sampling.MinPOption = None,
    repetition_penalty: sampling.RepetitionPenaltyOption = None,
    presence_penalty: given.PresencePenaltyOption = None,
    frequency_penalty: given.FrequencyPenaltyOption = None,
    logit_bias: sampling.LogitBiasOption = None,
    seed: sampling.SeedOption = None,
    stop: sampling.StopOption = None,
    stop_token: sampling.StopTokenOption = None,
    chat_template_kwargs: sampling.ChatTemplateKwargsOption = None,
    cycle: CycleOption = None,
    rule: given.RuleOption = None,
    width: sampling.WidthOption = None,
    threads: sampling.ThreadsOption = None,
    color: given.ColorOption = True,
    history: given.HistoryOption = True,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    ctx_size: sampling.ContextOption = None,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Chat with a model, or with any OpenAI-compatible server. Ctrl-C stops an answer, Ctrl-D leaves."""
    options = without_none(
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, temperature=temperature, top_p=top_p,
        top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    if url is None:
        compile_ahead(dtype, device)
    settings.check(options)
    engine = without_none(cycle=cycle, rule=rule, width=width)
    with_tokens = _WithTokens(chat_template_kwargs, logit_bias, stop_token)
    answerer: Answerer
    if url is not None:
        if adapter is not None or engine or with_tokens.given:
            raise ValueError(ONLY_LOCAL)
        answerer = RemoteAnswers(ServerClient(url, api_key), model)
    else:
        _check_local(engine, ctx_size, threads)
        name = model or DEFAULT_MODEL
        loaded = load_model(name, adapter, dtype, device, allow_other_backbone, quantize, cache, ctx_size)
        answerer = _local(loaded, engine, with_tokens)
        check_length(loaded, max_new_tokens)
        options = starting_options(
            loaded.checkpoint.default_sampling, {"max_new_tokens": DEFAULT_MAX_TOKENS, **options}
        )
        stderr.print(f"sampling: {described(options)}; /set changes it", style="dim", markup=False, soft_wrap=True)
    _chat(answerer, options, system, color=color, history=history)


class _WithTokens:
    """Options of every answer that need the tokenizer or its template."""

    def __init__(self, template: str | None, biases: list[str] | None, stop_token: list[str] | None) -> None:
        """Raises ValueError for text that cannot be parsed."""
        self._template = None if template is None else parse_object(template, "--chat-template-kwargs")
        self._biases, self._stop = tokens.biases(biases), stop_token or []

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return self._template is not None or bool(self._biases or self._stop)

    def options(self, model: Model) -> dict[str, Any]:
        """The options by name. Raises ValueError for a token that is unknown."""
        return without_none(
            **{name: value or None for name, value in tokens.named_tokens(model, self._stop, self._biases).items()},
            chat_template_kwargs=self._template,
        )


def _check_local(engine: dict[str, Any], ctx_size: int | None, threads: int | None) -> None:
    """Check what can be checked before a model is loaded, and set the threads. Raises ValueError."""
    from orthrus.options import Settings

    Settings.of(engine)
    apply_limits(ctx_size, threads)


def _local(model: Model, engine: dict[str, Any], with_tokens: _WithTokens) -> Answerer:
    from orthrus.cli._chat.local import LocalAnswers

    print_notice(model)
    if model.decoder.diffusion is not None and model.decoding_config(engine).cycle == "auto":  # type: ignore[arg-type]
        measure_costs(model)
    return LocalAnswers(model, engine, with_tokens.options(model))  # type: ignore[arg-type]


def _chat(answerer: Answerer, options: dict[str, Any], system: str | None, *, color: bool, history: bool) -> None:
    reader: Reader
    if sys.stdin.isatty():
        reader = PromptReader(tuple(COMMANDS), history_file() if history else None)
    else:
        reader = LineReader(sys.stdin)
    session = Session(answerer, reader, Console(highlight=False), stderr, color=color)
    session.conversation.system, session.options = system, options
    try:
        session.run()
    finally:
        answerer.close()

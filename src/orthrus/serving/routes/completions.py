"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from orthrus.decoding import sequence
from orthrus.decoding.cycle import Step
from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.serving import prompts
from orthrus.serving.answers import Answer, follow, usage
from orthrus.serving.drafts import draft_info
from orthrus.serving.exchange import DONE, Identity, admit, as_json, as_stream, event, prepared, responses
from orthrus.serving.logprobs import TextOffsets, completion_logprobs
from orthrus.serving.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from orthrus.serving.service import Service
from orthrus.serving.tickets import Ticket
from orthrus.token_texts import TokenTexts

DEFAULT_MAX_TOKENS = 16


def router(service: Service) -> APIRouter:
    """The route of text completions."""
    routes, texts = APIRouter(tags=["completions"]), service.model.token_texts

    @routes.post("/v1/completions", response_model=Completion, responses=responses(Completion))
    async def create_completion(body: CompletionRequest, http: Request) -> Response:
        """Go on with one or several texts."""
        prompts.check_model(body.model, service)
        check(body)
        requests = await prepared(service, http, body, lambda: requests_of(body, service))
        texts_of = Texts(service, texts, body, requests)
        tickets = await admit(service, http, body, requests)
        if body.stream:
            return await as_stream(texts_of.chunks(tickets))
        return as_json(await texts_of.completion(tickets))

    return routes


def check(body: CompletionRequest) -> None:
    """Raise APIError for fields that do not go together."""
    prompts.check_stream_options(body)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise prompts.conflict("best_of", "must equal n: choices are not ranked")
    if body.suffix:
        if body.echo:
            raise prompts.conflict("echo", "does not go with suffix: the answer stands between the two")
        if not all(isinstance(prompt, str) for prompt in prompts_of(body)):
            raise prompts.conflict("suffix", "needs a prompt that is a text, not token ids")
    if body.max_tokens == 0 and not body.echo:
        raise prompts.conflict("max_tokens", "may be 0 only with echo")


def prompts_of(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a request: texts or token ids."""
    given: Any = body.prompt
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def requests_of(body: CompletionRequest, service: Service) -> list[sequence.Request]:
    """`n` requests per prompt, in order. Raises ValueError or APIError where something in them is wrong."""
    options = prompts.sampling_options(body, service.model)
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
        if body.echo:
            options["prompt_logprobs"] = body.logprobs
    requests = []
    if body.suffix:
        options["suffix"] = body.suffix
    for prompt in prompts_of(body):
        prompts.check_size(service, [prompt, body.suffix], body)
    for prompt in prompts_of(body):
        tokens = service.model.encode(prompt) if isinstance(prompt, str) and not body.suffix else prompt
        made = prompts.make_request(service, tokens, options, body, limit)
        requests += prompts.choices_of(made, body.n or 1)
    return requests


class Texts:
    """A request and its continuations."""

    def __init__(
        self, service: Service, texts: TokenTexts, body: CompletionRequest, requests: Sequence[sequence.Request]
    ) -> None:
        self._model, self._texts, self._body, self._requests = service.model, texts, body, requests
        self._n = body.n or 1
        self._prompt_tokens = sum(len(request.prompt) for request in requests[:: self._n])
        self._identity = Identity(service, "cmpl-")
        self._answers = [Answer() for _ in requests]
        self._scored: list[tuple[TokenLogprobs | None, ...]] = [()] * len(requests)
        self._offsets = [TextOffsets(texts) for _ in requests]

    async def completion(self, tickets: Sequence[Ticket]) -> Completion:
        """All continuations, once they are complete."""
        async for index, step, _ in follow(tickets, self._answers):
            self._score(index, step)
        return Completion(
            object="text_completion",
            choices=[self._choice(index, answer) for index, answer in enumerate(self._answers)],
            usage=self._usage(),
            **self._identity.fields(),
        )

    def _score(self, index: int, step: Step) -> None:
        self._scored[index] = self._scored[index] or step.prompt_logprobs

    def _usage(self) -> Any:
        found = usage(self._answers, self._prompt_tokens, self._n)
        if self._body.max_tokens == 0:
            found.completion_tokens, found.total_tokens = 0, self._prompt_tokens
        return found

    def _choice(self, index: int, answer: Answer) -> CompletionChoice:
        prompt = self._prompt(index) if self._body.echo else ""
        text = "" if self._body.max_tokens == 0 else answer.text
        logprobs = self._logprobs(index, answer.tokens, answer.logprobs, first=True)
        return CompletionChoice(index=index, text=prompt + text, logprobs=logprobs, finish_reason=answer.finish_reason)

    def _prompt(self, index: int) -> str:
        given = prompts_of(self._body)[index // self._n]
        return given if isinstance(given, str) else self._model.decode(given)

    def _logprobs(
        self, index: int, tokens: Sequence[int], found: Sequence[TokenLogprobs], *, first: bool
    ) -> CompletionLogprobs | None:
        """Of tokens that were generated, and of the prompt before the first of them where it is echoed."""
        if self._body.logprobs is None:
            return None
        all_tokens, all_found = list(tokens), list[TokenLogprobs | None](found)
        if self._body.max_tokens == 0:
            all_tokens, all_found = [], []
        prompt = self._requests[index].prompt if first and self._body.echo else ()
        offsets = self._offsets[index].of_prompt(self._prompt(index), prompt) if prompt else []
        offsets += self._offsets[index].of_answer(all_tokens)
        if prompt:
            all_found = [*self._scored[index], *all_found]
        return completion_logprobs(all_found, [*prompt, *all_tokens], self._texts, offsets)

    async def chunks(self, tickets: Sequence[Ticket]) -> AsyncGenerator[str]:
        """The events of a stream: what each pass adds. The first of a choice begins with the prompt where it is
        echoed."""
        asked, begun = self._body.stream_options, set[int]()
        async for index, step, delta in follow(tickets, self._answers):
            self._score(index, step)
            first = index not in begun
            begun.add(index)
            prompt = self._prompt(index) if first and self._body.echo else ""
            text = "" if self._body.max_tokens == 0 else delta.content
            choice = CompletionChoice(
                index=index,
                text=prompt + text,
                logprobs=self._logprobs(index, step.kept.tokens, step.logprobs, first=first),
                finish_reason=self._answers[index].finish_reason,
            )
            more: dict[str, Any] = {}
            if asked is not None and asked.include_drafts:
                more["orthrus"] = draft_info(index, step, self._model.decode)
            if choice.text or choice.finish_reason or choice.logprobs or more:
                if asked is not None and asked.continuous_usage_stats:
                    more["usage"] = self._usage()
                yield self._event([choice], **more)
        if asked is not None and asked.include_usage:
            yield self._event([], usage=self._usage())
        yield DONE

    def _event(self, choices: list[CompletionChoice], **more: Any) -> str:
        return event(Completion(object="text_completion", choices=choices, **self._identity.fields(), **more))

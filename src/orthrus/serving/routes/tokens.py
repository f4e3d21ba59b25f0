"""`/tokenize`, `/detokenize` and `/tokenizer_info`."""

from __future__ import annotations

import asyncio
from typing import cast

from fastapi import APIRouter

from orthrus.options import Options
from orthrus.serving import prompts
from orthrus.serving.errors import APIError
from orthrus.serving.exchange import responses
from orthrus.serving.protocol import tokens as protocol
from orthrus.serving.service import Service


def router(service: Service) -> APIRouter:
    """The routes of the tokenizer."""
    routes, texts = APIRouter(tags=["tokens"]), service.model.token_texts

    def encode(body: protocol.TokenizeRequest) -> list[int]:
        if body.messages is not None:
            options: prompts.Chosen = {"chat_template_kwargs": body.chat_template_kwargs}
            if body.tools:
                options["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
            return list(service.model.prompt_tokens(prompts.messages_of(body.messages), cast("Options", options)))
        assert body.prompt is not None
        return service.model.encode(body.prompt, special_tokens=body.add_special_tokens is not False)

    @routes.post("/tokenize", responses=responses(), response_model_exclude_unset=True)
    async def tokenize(body: protocol.TokenizeRequest) -> protocol.TokenizeResponse:
        """The tokens of a text or of messages."""
        prompts.check_model(body.model, service)
        if (body.prompt is None) == (body.messages is None):
            raise prompts.conflict("prompt", "or messages must be given, and not both")
        for field in ("tools", "chat_template_kwargs"):
            if body.messages is None and getattr(body, field):
                raise prompts.conflict(field, "needs messages")
        try:
            tokens = await service.prepare(lambda: encode(body))
        except ValueError as error:
            raise prompts.told_to_client(error, body) from error
        found = protocol.TokenizeResponse(tokens=tokens, count=len(tokens), max_model_len=service.max_model_len)
        if body.return_token_strs:
            found.token_strs = [texts.text(token) for token in tokens]
        return found

    @routes.post("/detokenize", responses=responses())
    async def detokenize(body: protocol.DetokenizeRequest) -> protocol.DetokenizeResponse:
        """The text of tokens."""
        prompts.check_model(body.model, service)
        size = service.model.limits.vocab_size
        beyond = [token for token in body.tokens if token >= size]
        if beyond:
            raise APIError(f"tokens holds {beyond[0]}, which is outside of the vocabulary of {size}", param="tokens",
                           code="invalid_value")  # fmt: skip
        return protocol.DetokenizeResponse(prompt=await asyncio.to_thread(service.model.decode, body.tokens))

    @routes.get("/tokenizer_info", responses=responses())
    async def tokenizer_info() -> protocol.TokenizerInfo:
        """The end token and the chat template, as vLLM and lm-eval know them."""
        tokenizer = service.model.checkpoint.text
        end, template = tokenizer.eos_token_id, tokenizer.chat_template
        return protocol.TokenizerInfo(
            eos_token=None if end is None else texts.text(end),
            chat_template=template if isinstance(template, str) else None,
        )

    return routes

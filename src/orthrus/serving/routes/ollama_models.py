"""What clients of Ollama ask of its models: `/api/tags`, `/api/show`, `/api/ps` and `/api/version`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from orthrus.reasoning import BEGIN
from orthrus.serving import ollama
from orthrus.serving.exchange import responses
from orthrus.serving.protocol import ollama as protocol
from orthrus.serving.routes.ollama import now
from orthrus.serving.service import Service

API_VERSION = "0.12.6"
"""Clients compare it with the first version that has what they use."""
NEVER = "9999-12-31T23:59:59Z"
"""When the model is unloaded."""
GAP = "{{{{- if .Suffix }}}}{}{{{{ .Prompt }}}}{}{{{{ .Suffix }}}}{}{{{{- end }}}}"
"""Clients take `.Suffix` in a template for a sign that `suffix` works."""


def router(service: Service) -> APIRouter:
    """The routes."""
    routes, errors = APIRouter(tags=["ollama"]), responses(error=protocol.OllamaError)
    started, facts = now(), _Facts(service)

    @routes.get("/api/tags", responses=errors, response_model_exclude_unset=True)
    async def tags() -> protocol.ModelsListed:
        """The served model."""
        return protocol.ModelsListed(models=[facts.listed(modified_at=started)])

    @routes.get("/api/ps", responses=errors, response_model_exclude_unset=True)
    async def ps() -> protocol.ModelsListed:
        """The same: it is always loaded."""
        loaded = facts.listed(expires_at=NEVER, size_vram=0, context_length=service.max_model_len)
        return protocol.ModelsListed(models=[loaded])

    @routes.post("/api/show", responses=errors)
    async def show(body: protocol.ShowRequest) -> protocol.Shown:
        """What the model can do."""
        ollama.check_model(body.model or body.name, service)
        return protocol.Shown(
            modelfile="", parameters=f"num_ctx {service.max_model_len}", template=facts.template, details=facts.details,
            model_info=facts.info, capabilities=facts.capabilities, modified_at=started,
        )  # fmt: skip

    @routes.get("/api/version", responses=errors)
    async def version() -> protocol.OllamaVersion:
        """The version of Ollama whose API this is a subset of; `/version` has that of the server."""
        return protocol.OllamaVersion(version=API_VERSION)

    return routes


class _Facts:
    """What is known of the served model."""

    def __init__(self, service: Service) -> None:
        model, config = service.model, service.model.decoder.config
        self._name, self._digest, family = service.model_name, model.checkpoint.backbone.sha256, config.family
        self._size = model.parameters * model.decoder.dtype.itemsize
        self.details = protocol.Details(
            parent_model="", format="gguf" if model.checkpoint.backbone.id.endswith(".gguf") else "safetensors",
            family=family, families=[family], parameter_size=_short(model.parameters), quantization_level=model.kernels,
        )  # fmt: skip
        self.info: dict[str, Any] = {
            "general.architecture": family, "general.parameter_count": model.parameters,
            f"{family}.context_length": service.max_model_len, f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.layers,
        }  # fmt: skip
        chat_template = str(model.checkpoint.text.chat_template or "")
        fim = model.checkpoint.fim
        names = {token: name for name, token in model.checkpoint.text.vocabulary().items()} if fim else {}
        self.template = GAP.format(*(names[token] for token in (fim.prefix, fim.suffix, fim.middle))) if fim else ""
        having = {"insert": fim is not None, "tools": "tools" in chat_template, "thinking": BEGIN in chat_template}
        self.capabilities = ["completion", *(name for name, has in having.items() if has)]

    def listed(self, **more: Any) -> protocol.Listed:
        """The model as an entry of a list."""
        return protocol.Listed(
            name=self._name, model=self._name, size=self._size, digest=self._digest, details=self.details, **more
        )


def _short(parameters: int) -> str:
    """A number of parameters as in 494.03M."""
    billions = parameters / 1e9
    return f"{billions:.1f}B" if billions >= 1 else f"{parameters / 1e6:.2f}M"

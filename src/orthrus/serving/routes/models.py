"""`/v1/models`."""

from __future__ import annotations

from time import time

from fastapi import APIRouter

from orthrus.serving import prompts
from orthrus.serving.exchange import responses
from orthrus.serving.protocol.models import ModelCard, ModelList
from orthrus.serving.service import Service


def router(service: Service) -> APIRouter:
    """The routes of the served model."""
    routes, started = APIRouter(tags=["models"]), int(time())

    def card() -> ModelCard:
        name, root = service.model_name, service.model.checkpoint.backbone.id
        return ModelCard(id=name, created=started, root=root, max_model_len=service.max_model_len)

    @routes.get("/v1/models", responses=responses())
    async def list_models() -> ModelList:
        """The served model."""
        return ModelList(data=[card()])

    @routes.get("/v1/models/{model:path}", responses=responses())
    async def retrieve_model(model: str) -> ModelCard:
        """One model; its name may hold slashes."""
        prompts.check_model(model, service)
        return card()

    return routes

"""What a server says about itself: /health, /metrics, /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from prefine import __version__
from prefine.serving.models import ServedModel, ServedReward
from prefine.serving.service import Service
from prefine.web.errors import ApiError, json_response
from prefine.web.json_body import JsonRoute


def about_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute)

    @router.get("/health")
    async def health() -> Response:
        """Whether requests are answered: 200, or 503."""
        state = service.worker.state()
        healthy = state.pop("healthy")
        return json_response({**state, "version": __version__}, 200 if healthy else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> Response:
        """What clients may put into `model`."""
        return json_response({"object": "list", "data": [_about(service, model) for model in service.models.all()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One of them."""
        found = next((each for each in service.models.all() if name in (each.id, each.name)), None)
        if found is None:
            raise ApiError(
                404, f"there is no model {name[:100]!r}", kind="not_found_error", param="model", code="model_not_found"
            )
        return json_response(_about(service, found))

    return router


def _about(service: Service, model: ServedModel | ServedReward) -> dict[str, Any]:
    about = {"id": model.id, "object": "model", "created": model.created, "owned_by": "prefine"}
    if isinstance(model, ServedReward):
        return {**about, "kind": "reward"}
    return {**about, "kind": "language", "max_model_len": service.prompter(model).context}

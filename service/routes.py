"""The routes without jobs: labels, webhook secret, health, metrics and the documentation."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path as FilePath

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from pathar.contract import Draining, NoModel, NoWorker, Unauthorized
from service.auth import ForAll, InOwner
from service.context import InContext
from service.models import offered
from service.response_schemas import Health, LabelList, WebhookSecret, label_list

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)

router = APIRouter(tags=["service"])


@router.get("/labels", response_model=LabelList)
def get_labels(context: InContext, _: InOwner) -> LabelList:
    """The labels that can be drawn, and their models."""
    models = context.registry.models()
    if not models:
        raise NoModel("no worker has reported a model lately")
    return label_list(offered(models))


@router.get("/webhook-secret", response_model=WebhookSecret)
def get_webhook_secret(context: InContext, owner: InOwner) -> WebhookSecret:
    """The secret that signs the webhooks of this API key, until the key is revoked."""
    secret = context.keys.webhook_secret(owner)
    if secret is None:
        raise Unauthorized("this API key has been revoked")
    return WebhookSecret(secret=f"whsec_{base64.b64encode(secret).decode()}")


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process is alive."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health)
def readyz(context: InContext) -> Health:
    """Redis answers, a warm worker is alive, and this process is not stopping."""
    if context.drain.begun:
        raise Draining("this process is stopping; use another one")
    if not any(known.ready for known in context.registry.models()):
        raise NoWorker("no warm worker has sent a heartbeat lately")
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[ForAll])
def metrics(context: InContext) -> Response:
    """Prometheus metrics of this process."""
    return Response(context.metrics.render(), media_type=PROMETHEUS_TEXT)


@router.get("/openapi.json", include_in_schema=False, dependencies=[ForAll])
async def document(request: Request) -> JSONResponse:
    """The OpenAPI document, with the path under which the API is mounted."""
    described = request.app.openapi()
    if request.scope["root_path"]:
        described = {**described, "servers": [{"url": request.scope["root_path"]}]}
    return JSONResponse(described)


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False, dependencies=[ForAll])
async def docs() -> HTMLResponse:
    """The documentation page, made from /openapi.json. Loads nothing from other hosts."""
    return HTMLResponse(_page(), headers={"Content-Security-Policy": DOCS_POLICY})


@cache
def _page() -> str:
    return FilePath(__file__).with_name("static").joinpath("docs.html").read_text()

"""The app factory: connects settings, store, listener, metrics and routes.

Importing it has no side effects. Two apps in one process share nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import redis
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

import service
from pathar.contract import VERSION
from runtime.connection import connect
from runtime.objects import open_objects
from runtime.telemetry import open_traces
from service import dataset_routes, draw_routes, event_routes, files, job_routes, routes
from service.connections import BusyMiddleware, ConnectionLimit
from service.context import Context
from service.drain import Drain, DrainMiddleware
from service.errors import install_handlers
from service.following import Feeds
from service.front import Front
from service.metrics import ApiMetrics, MetricsMiddleware
from service.notify import Notifier
from service.request_schemas import DecodeBody, EncodeBody, GenerateBody
from service.response_schemas import Problem, TokenGrids, reference
from service.settings import read_settings
from service.turns import Turns
from service.waiting import Subscriber
from store.access import KeyStore
from store.condition import conditions
from store.datasets import DatasetStore
from store.jobs import JobStore
from store.notices import NoticeStore
from store.registry import Registry
from store.results import ResultStore
from store.statistics import StatisticsReader

PROBLEM_TYPE = "application/problem+json"
READ_BY_HAND = (GenerateBody, EncodeBody, DecodeBody, TokenGrids)
"""Models of bodies and answers that routes read or write themselves: FastAPI does not know them."""
CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
CORS_HEADERS = (
    *("Authorization", "Content-Type", "If-None-Match", "If-Range", "Last-Event-ID", "Prefer"),
    *("Range", "traceparent"),
)
CORS_EXPOSED = (
    *("Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag"),
    *("Location", "Preference-Applied", "Retry-After"),
)
"""What a page of an origin in PATHAR_CORS_ORIGINS may send, and may read of an answer."""
REDIS_TIMEOUT_S = 1.0
"""Time-out of Redis, short enough that slow answers do not use up all threads."""
OBJECTS_TIMEOUT_S = 3.0
"""Time-out of the storage of results, which may be further away."""


class Api(FastAPI):
    """FastAPI with a corrected OpenAPI document: errors have their media type, and no parameter may
    be null, as a URL or header has no null."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document. It is built once."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            for model in READ_BY_HAND:
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {})
                schemas[model.__name__] = schema
            for operation in _operations(document):
                for status, response in operation["responses"].items():
                    if status[0] in "45" and "content" in response:
                        response["content"] = {PROBLEM_TYPE: {"schema": reference(Problem)}}
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
        return super().openapi()


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    kept = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(kept) != 1:
        return schema
    return {**kept[0], **{name: value for name, value in schema.items() if name != "anyOf"}}


def _operations(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def create_app(env: Mapping[str, str] | None = None) -> FastAPI:
    """The API with settings from `env` (None: the process's environment).

    SettingsError on a bad setting. Redis and the storage need not be reachable yet.
    """
    settings = read_settings(os.environ if env is None else env)
    objects = open_objects(settings.results_url, timeout_s=OBJECTS_TIMEOUT_S)
    client = connect(settings.redis_url, timeout_s=REDIS_TIMEOUT_S, patient=False)
    keys, subscriber = KeyStore(client), Subscriber(settings.redis_url)
    jobs = JobStore(client, result_ttl=settings.result_ttl, max_waiting=settings.max_waiting)
    connections = ConnectionLimit(settings.max_connections)
    context = Context(
        settings=settings,
        keys=keys,
        jobs=jobs,
        registry=Registry(client),
        results=ResultStore(client, objects),
        datasets=DatasetStore(client),
        objects=objects,
        subscriber=subscriber,
        feeds=Feeds(jobs, keys, subscriber),
        metrics=ApiMetrics(
            VERSION, StatisticsReader(client).read, connections.counts, partial(conditions, client)
        ),
        traces=open_traces("pathar-service"),
        drain=Drain(),
        connections=connections,
        turns=Turns(),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with suppress(redis.RedisError):  # learn early whether keys are needed (`KeyStore.seen`)
            await run_in_threadpool(context.keys.required)
        notifier = Notifier(
            NoticeStore(client), jobs, keys, settings.notify_networks, context.metrics.webhook
        )
        tasks = [asyncio.create_task(run) for run in (context.subscriber.listen(), notifier.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            context.traces.close()
            client.close()

    app = Api(
        title="PathAR",
        version=VERSION,
        description=service.__doc__ or "",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    app.state.context = context
    app.add_middleware(Front, root_path=settings.root_path, trusted=settings.trusted_proxies)
    app.add_middleware(BusyMiddleware, limit=connections)
    app.add_middleware(MetricsMiddleware, metrics=context.metrics)
    app.add_middleware(DrainMiddleware, drain=context.drain)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_HEADERS,
            expose_headers=CORS_EXPOSED,
        )
    parts = (draw_routes, job_routes, event_routes, files, dataset_routes, routes)
    routers = [part.router for part in parts]
    for router in routers:
        app.include_router(router)
    every = [*app.routes, *(route for router in routers for route in router.routes)]
    install_handlers(app, [route for route in every if isinstance(route, Route)])
    return app

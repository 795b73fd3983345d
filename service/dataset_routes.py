"""The routes of data sets: make, look up, list, pause, resume, cancel, and their files.

Workers write the files; what is stored does not change, so it has ETags and supports ranges. Knows
no keys of Redis and no formats.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from model.request import RequestError
from pathar.contract import NotFound, NotOffered, sha256
from pathar.recipe import Recipe, RecipeError
from runtime.objects import Objects
from service.auth import InOwner
from service.body import read_json
from service.context import Context, InContext
from service.dataset_schemas import (
    DatasetBody,
    DatasetList,
    DatasetState,
    ShardFiles,
    dataset_state,
    dataset_summary,
    shard_files,
)
from service.datasets import MOST_SHARDS, find_dataset, make_dataset
from service.files import BINARY, Conditions, InConditions, file_headers
from service.request_schemas import PATHS, DatasetId, DeleteQuery, InUrl
from service.response_schemas import Problem, reference
from store.access import Owner
from store.datasets import Change, Dataset, record_path

CHUNK_BYTES = 1 << 20
"""What is read from the storage at once."""
LONGEST_NAME = 255
TYPES = {
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".tar": "application/x-tar",
}
ANY_TYPE = "application/octet-stream"

log = logging.getLogger("pathar.service")
router = APIRouter(tags=["data sets"])


def get_storage(context: InContext, _: InOwner) -> Objects:
    """The storage of data sets. NotOffered."""
    if context.objects is None:
        raise NotOffered(
            "PATHAR_RESULTS_URL is not set: data sets are written to the storage that it names "
            "(s3://BUCKET/PREFIX or file:///FOLDER); set it for the API and the workers"
        )
    return context.objects


async def get_recipe(request: Request) -> Recipe:
    """The checked recipe in the body of a request."""
    values = await read_json(request)
    if not isinstance(values, dict):
        raise RequestError("body", values, "a JSON object")
    try:
        return Recipe.from_dict(values)
    except RecipeError as error:
        raise RequestError(error.field, error.value, error.expected) from None


InStorage = Annotated[Objects, Depends(get_storage)]
InRecipe = Annotated[Recipe, Depends(get_recipe)]
ShardNumber = Annotated[int, Path(ge=0, lt=MOST_SHARDS, description=PATHS["shard"]), InUrl]
FilePath = Annotated[str, Path(max_length=1000, description=PATHS["path"])]
TAKES_RECIPE = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": reference(DatasetBody)}},
    }
}
_OF_DATASET = {"dataset_id": "$response.body#/dataset_id"}
LINKS = {
    name: {"operationId": name, "parameters": _OF_DATASET}
    for name in ("get_dataset", "pause_dataset", "resume_dataset", "delete_dataset")
}
"""OpenAPI links from a data set to the routes that follow it."""
KINDS = {kind.partition(";")[0]: {"schema": BINARY} for kind in (*TYPES.values(), ANY_TYPE)}
FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": KINDS},
    206: {"description": "The requested range", "content": KINDS},
    304: {"description": "The file has an ETag of If-None-Match"},
    416: {"model": Problem, "description": "The range is beyond the end of the file"},
}


@router.post(
    "/datasets",
    response_model=DatasetState,
    status_code=201,
    responses={
        200: {"model": DatasetState, "links": LINKS},
        201: {"links": LINKS},
        501: {"model": Problem, "description": "The service has no storage for data sets"},
    },
    openapi_extra=TAKES_RECIPE,
)
def post_dataset(
    request: Request, context: InContext, owner: InOwner, _: InStorage, recipe: InRecipe
) -> Response:
    """Draw a data set: workers write its shards to the storage of results. 201, or 200 when the
    same recipe has been sent before and the same models draw it: it is one data set.
    """
    dataset, new = make_dataset(context, owner, recipe, None)
    where = {"Location": f"datasets/{dataset.id}"}  # relative: correct under any mount path
    return _told(request, context, dataset, 201 if new else 200, where)


@router.put(
    "/datasets/{dataset_id}",
    response_model=DatasetState,
    responses={200: {"links": LINKS}, 201: {"model": DatasetState, "links": LINKS}},
    openapi_extra=TAKES_RECIPE,
)
def put_dataset(
    request: Request,
    context: InContext,
    owner: InOwner,
    _: InStorage,
    dataset_id: DatasetId,
    recipe: InRecipe,
) -> Response:
    """Draw a data set under an id that you choose: 201. The same id and recipe return the same
    data set: 200. Another recipe with this id gets 409.
    """
    dataset, new = make_dataset(context, owner, recipe, dataset_id)
    return _told(request, context, dataset, 201 if new else 200)


@router.get("/datasets", response_model=DatasetList)
def list_datasets(context: InContext, owner: InOwner, _: InStorage) -> Response:
    """Your data sets, newest first: up to 100, without their shards."""
    where = context.settings.results_url or ""
    listed = [dataset_summary(each, where) for each in context.datasets.all(owner=owner)]
    answer = DatasetList(datasets=listed).model_dump_json()
    return Response(answer, media_type="application/json")


@router.get("/datasets/{dataset_id}", response_model=DatasetState)
def get_dataset(
    request: Request, context: InContext, owner: InOwner, _: InStorage, dataset_id: DatasetId
) -> Response:
    """A data set's state: pairs, rate, seconds left, and the shards that are stored."""
    return _told(request, context, find_dataset(context, owner, dataset_id))


@router.post("/datasets/{dataset_id}/pause", response_model=DatasetState)
def pause_dataset(
    request: Request, context: InContext, owner: InOwner, _: InStorage, dataset_id: DatasetId
) -> Response:
    """Ask for no more pairs until the data set is resumed. What is being drawn is drawn to its
    end, and kept as long as other results. A data set that has ended stays as it is.
    """
    return _changed(request, context, owner, dataset_id, "pause")


@router.post("/datasets/{dataset_id}/resume", response_model=DatasetState)
def resume_dataset(
    request: Request, context: InContext, owner: InOwner, _: InStorage, dataset_id: DatasetId
) -> Response:
    """Go on with a data set that was paused or has failed. Stored shards stay as they are."""
    return _changed(request, context, owner, dataset_id, "resume")


@router.delete("/datasets/{dataset_id}", response_model=DatasetState)
def delete_dataset(
    request: Request,
    context: InContext,
    owner: InOwner,
    _: InStorage,
    dataset_id: DatasetId,
    query: Annotated[DeleteQuery, Query()],
) -> Response:
    """Cancel a data set. Stored shards stay; one that has ended stays as it is, so a retry is safe.

    With `files=true` it is forgotten, its id is free, and a worker deletes its files.
    """
    answer = _changed(request, context, owner, dataset_id, "cancel")
    if query.files:
        context.datasets.change(dataset_id, "drop", owner=owner)
        log.info("data set dropped", extra={"dataset": dataset_id, "key": owner.name})
    return answer


@router.get("/datasets/{dataset_id}/shards/{shard}", response_model=ShardFiles)
def get_shard(
    request: Request,
    context: InContext,
    owner: InOwner,
    storage: InStorage,
    dataset_id: DatasetId,
    shard: ShardNumber,
) -> Response:
    """The files of a stored shard, each with its size and SHA-256."""
    dataset = find_dataset(context, owner, dataset_id)
    [record] = (
        storage.get([f"{dataset.folder}/{record_path(shard)}"])
        if shard < len(dataset.shards)
        else [None]
    )
    if record is None:
        there = f"{len(dataset.shards)} of {len(dataset.plan.shards)} shards are stored"
        raise NotFound(f"data set {dataset_id} has no shard {shard}; {there}")
    base = f"{request.scope['root_path']}/datasets/{dataset_id}/files"
    answer = shard_files(shard, json.loads(record), base).model_dump_json()
    return Response(answer, media_type="application/json")


@router.get(
    "/datasets/{dataset_id}/files/{path:path}",
    response_class=Response,
    responses=FILE_ANSWERS,
)
def get_dataset_file(
    context: InContext,
    owner: InOwner,
    storage: InStorage,
    asked: InConditions,
    dataset_id: DatasetId,
    path: FilePath,
) -> Response:
    """A file of a data set by its path: of a stored shard, or `manifest.json`, `README.md`,
    `contact_sheet.jpg`, which come last.
    """
    dataset = find_dataset(context, owner, dataset_id)
    where = f"{dataset.folder}/{path}"
    size = storage.size(where) if _is_path(path) else None
    if size is None:
        raise NotFound(f"data set {dataset_id} has no file of this path, or not yet")
    return _sent(storage, where, size, asked)


def _sent(storage: Objects, where: str, size: int, asked: Conditions) -> Response:
    """The response with a file, which is read while it is sent, or with the requested range. Its
    bytes follow from the data set, whose uid is part of its place.
    """
    headers = file_headers(f'"{sha256(f"{where} {size}")[:32]}"')
    if asked.has(headers["ETag"]):
        return Response(status_code=304, headers=headers)
    span = asked.span(headers["ETag"], size)
    first, last = span or (0, size - 1)
    headers["Content-Length"] = str(last - first + 1)
    if span is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    kind = TYPES.get(PurePosixPath(where).suffix, ANY_TYPE)
    pieces = _pieces(storage, where, first, last)
    return StreamingResponse(pieces, 200 if span is None else 206, headers, kind)


def _pieces(storage: Objects, where: str, first: int, last: int) -> Iterator[bytes]:
    while first <= last:
        piece = storage.read(where, first, min(CHUNK_BYTES, last + 1 - first))
        if not piece:
            raise NotFound(f"{where} was deleted while it was being sent")
        first += len(piece)
        yield piece


def _is_path(path: str) -> bool:
    """Whether it can be the path of a file that clients may read."""
    return path.isprintable() and all(
        name and not name.startswith(".") and len(name.encode()) <= LONGEST_NAME
        for name in path.split("/")
    )


def _changed(
    request: Request, context: Context, owner: Owner, dataset_id: str, change: Change
) -> Response:
    before = find_dataset(context, owner, dataset_id)
    context.datasets.change(dataset_id, change, owner=owner)
    after = find_dataset(context, owner, dataset_id)
    if after.status != before.status:
        about = {"dataset": dataset_id, "key": owner.name}
        log.info("data set %s", after.status, extra=about)
    return _told(request, context, after)


def _told(
    request: Request,
    context: Context,
    dataset: Dataset,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    where = context.settings.results_url or ""
    state = dataset_state(dataset, where, request.scope["root_path"]).model_dump_json()
    return Response(state, status, headers, "application/json")

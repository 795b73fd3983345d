"""Given structure: a job keeps it once, its images get it back whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import random
import zlib
from dataclasses import replace

import pytest
import redis

from model.structure import Structure, StructureRef, packed, reference, unpacked
from store import keys
from store.access import Limits
from store.jobs import JobStore, TooMuch, most_images, structure_bytes
from store.parts import PartStore, RefusedPart, read_part
from store.scripts import IMAGE_BYTES, PART_BYTES, RECORD_BYTES
from tests.store.conftest import ANN, FILES, INFO, ROOM, ask
from tests.store.test_memory import counted, taken

MASK = random.Random(1).randbytes(INFO.image_size**2 // 8)
"""The mask that compresses least."""
TOKENS = tuple(range(INFO.grid_size**2))


def put(jobs: JobStore, structure: Structure, n: int = 1, name: str = "a") -> None:
    jobs.submit(ask(n), INFO, owner=ANN, job_id=name, digest=name, structure=structure)


@pytest.mark.parametrize("structure", [MASK, TOKENS, bytes(len(MASK)), (0,) * 16, (65535,)])
def test_a_structure_is_packed_and_unpacked(structure: Structure) -> None:
    assert unpacked(packed(structure), reference(structure)) == structure


def test_a_mask_is_known_by_the_digest_of_its_pixels() -> None:
    pixels = b"8 8\n" + bytes([0, 255, 255, 0, 0, 0, 0, 0]) + bytes(56)
    mask = bytes([0b01100000]) + bytes(7)
    assert reference(mask) == StructureRef("mask", hashlib.sha256(pixels).hexdigest())


@pytest.mark.parametrize("structure", [MASK, TOKENS])
def test_every_image_of_a_job_gets_the_structure_that_it_keeps_once(
    structure: Structure, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, structure, n=3)
    for claim in parts.claim(3):
        image = read_part(claim)
        assert image.structure == reference(structure)
        whole = parts.completed(claim, image)
        assert whole == replace(image, structure=structure)
        assert parts.start(claim, whole) is not None
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert job.request.structure == reference(structure)
    held = [
        key for key in client.scan_iter() if packed(structure).encode() in _content(client, key)
    ]
    assert held == [f"{keys.RECORD}{keys.owned_id(ANN.id, 'a')}".encode()]


def _content(client: redis.Redis, key: bytes) -> bytes:
    return client.dump(key) or b"" if client.type(key) == b"hash" else b""


@pytest.mark.parametrize(
    "kept",
    [
        None,
        b"not base64!",
        b"AAAA",
        packed(TOKENS).encode(),
        base64.b64encode(zlib.compress(bytes(64 << 20))),
        packed(MASK)[:-9].encode(),
    ],
    ids=["lost", "no base64", "no zlib", "another", "bomb", "cut off"],
)
def test_a_part_whose_structure_is_lost_or_another_is_refused(
    kept: bytes | None, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, MASK, n=2)
    record = keys.RECORD + keys.owned_id(ANN.id, "a")
    client.hdel(record, "structure")
    if kept is not None:
        client.hset(record, "structure", kept)
    claim, _ = parts.claim(2)
    with pytest.raises(RefusedPart, match="structure") as refused:
        parts.completed(claim, read_part(claim))
    assert parts.refuse(claim, str(refused.value))
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert (job.status, job.error) == ("failed", str(refused.value))


def test_a_part_of_a_record_that_is_none_is_refused(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, MASK)
    (claim,) = parts.claim(1)
    record = keys.RECORD + keys.owned_id(ANN.id, "a")
    client.delete(record)
    client.set(record, "x")
    with pytest.raises(RefusedPart, match="no record"):
        parts.completed(claim, read_part(claim))


@pytest.mark.parametrize("structure", [MASK, TOKENS])
def test_it_counts_until_its_job_is_dropped_and_takes_no_more_than_it_counts(
    structure: Structure, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    before, given = taken(client), structure_bytes(structure)
    put(jobs, structure)
    assert counted(client) == RECORD_BYTES + given + PART_BYTES + ROOM
    assert taken(client) - before < counted(client) - ROOM
    (claim,) = parts.claim(1)
    held = parts.start(claim, parts.completed(claim, read_part(claim)))
    assert held is not None
    assert parts.finish(held, FILES, 1.0) is not None
    files = sum(map(len, FILES.values()))
    assert counted(client) == RECORD_BYTES + given + IMAGE_BYTES + files
    assert jobs.drop("a", owner=ANN)
    assert taken(client) - before < counted(client) == RECORD_BYTES


def test_it_counts_against_the_limit_of_its_key(jobs: JobStore) -> None:
    one = RECORD_BYTES + structure_bytes(MASK) + PART_BYTES + ROOM
    small = replace(ANN, limits=Limits(stored_bytes=one))
    assert most_images(small, INFO, MASK) == 1
    less = replace(ANN, limits=Limits(stored_bytes=one - 1))
    assert most_images(less, INFO, MASK) == 0
    jobs.submit(ask(), INFO, owner=small, structure=MASK)
    with pytest.raises(TooMuch) as full:
        jobs.submit(ask(), INFO, owner=small, structure=MASK)
    assert full.value.limit == "stored"

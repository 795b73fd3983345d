"""What is given: a job keeps it once, its images get it back whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import pytest
import redis

from model.given import (
    Given,
    GivenRef,
    Stream,
    StreamRef,
    keep_bits,
    of_tokens,
    packed,
    reference,
    unpacked,
)
from store import keys
from store.access import Limits
from store.jobs import JobStore, TooMuch, given_bytes, most_images
from store.parts import PartStore, RefusedPart, read_part
from store.scripts import IMAGE_BYTES, PART_BYTES, RECORD_BYTES
from tests.store.conftest import ANN, FILES, INFO, ROOM, ask
from tests.store.test_memory import counted, taken

CHANCE, PIXELS, LOCATIONS = random.Random(1), INFO.image_size**2, INFO.grid_size**2
KEEP = keep_bits([at > 0 for at in range(LOCATIONS)])
BITS = Stream("mask", CHANCE.randbytes(PIXELS // 8))
RGB = Stream("image", CHANCE.randbytes(3 * PIXELS))
MASK = Given(BITS)
"""The mask that compresses least."""
TOKENS = Given(of_tokens(range(LOCATIONS)))
BOTH = Given(replace(BITS, keep=KEEP), replace(RGB, keep=KEEP))
"""As much as can be given, of what compresses least."""


def put(jobs: JobStore, given: Given, n: int = 1, name: str = "a") -> None:
    jobs.submit(ask(n), INFO, owner=ANN, job_id=name, digest=name, given=given)


@pytest.mark.parametrize(
    "given",
    [
        *(MASK, TOKENS, BOTH, Given(None, RGB), Given(BITS, RGB), Given(Stream("segmented"), RGB)),
        Given(Stream("mask", bytes(PIXELS // 8))),
        *(Given(of_tokens(ids)) for ids in ([0] * 16, [65535], [None, 0, 5], [1, None])),
        Given(of_tokens([None, 0, 5]), of_tokens([None, 0, 5])),
    ],
)
def test_what_is_given_is_packed_and_unpacked(given: Given) -> None:
    ref = reference(given)
    assert unpacked(packed(given), ref) == given
    assert GivenRef.from_dict(json.loads(json.dumps(asdict(ref)))) == ref


def test_masks_and_images_are_known_by_the_digests_of_their_pixels() -> None:
    pixels = b"8 8\n" + bytes([0, 255, 255, 0, 0, 0, 0, 0]) + bytes(56)
    mask = Stream("mask", bytes([0b01100000]) + bytes(7))
    image = Stream("image", bytes(range(192)))
    of_image = hashlib.sha256(b"8 8 3\n" + bytes(range(192))).hexdigest()
    assert reference(Given(mask, image)) == GivenRef(
        StreamRef("mask", hashlib.sha256(pixels).hexdigest()), StreamRef("image", of_image)
    )
    found = reference(Given(Stream("segmented", keep=b"\xf0"), image)).structure
    assert found == StreamRef("segmented", of_image, hashlib.sha256(b"\xf0").hexdigest())


@pytest.mark.parametrize("holes", [(), (0,), (9,), (0, 9), range(1, 10), range(10)])
def test_holes_are_the_locations_that_are_not_kept(holes: Sequence[int]) -> None:
    ids = [None if at in holes else at for at in range(10)]
    stream = of_tokens(ids)
    assert stream.kept(10) == [token is not None for token in ids]
    assert (stream.keep is None) is (not holes)


@pytest.mark.parametrize("given", [MASK, TOKENS, BOTH], ids=["mask", "tokens", "both"])
def test_every_image_of_a_job_gets_what_it_was_given_and_keeps_once(
    given: Given, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, given, n=3)
    for claim in parts.claim(3):
        image = read_part(claim)
        assert image.given == reference(given)
        whole = parts.completed(claim, image)
        assert whole == replace(image, given=given)
        assert parts.start(claim, whole) is not None
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert job.request.given == reference(given)
    held = [key for key in client.scan_iter() if packed(given).encode() in _content(client, key)]
    assert held == [f"{keys.RECORD}{keys.owned_id(ANN.id, 'a')}".encode()]


def _content(client: redis.Redis, key: bytes) -> bytes:
    return client.dump(key) or b"" if client.type(key) == b"hash" else b""


@pytest.mark.parametrize(
    "kept",
    [
        lambda: None,
        lambda: b"not base64!",
        lambda: b"AAAA",
        lambda: packed(TOKENS).encode(),
        lambda: base64.b64encode(zlib.compress(bytes(64 << 20))),
        lambda: packed(MASK)[:-9].encode(),
    ],
    ids=["lost", "no base64", "no zlib", "another", "bomb", "cut off"],
)
def test_a_part_of_which_what_was_given_is_lost_or_another_is_refused(
    kept: Callable[[], bytes | None], jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, MASK, n=2)
    record = keys.RECORD + keys.owned_id(ANN.id, "a")
    client.hdel(record, "given")
    if (value := kept()) is not None:
        client.hset(record, "given", value)
    claim, _ = parts.claim(2)
    with pytest.raises(RefusedPart, match="what the job was given") as refused:
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


@pytest.mark.parametrize("given", [MASK, TOKENS, BOTH], ids=["mask", "tokens", "both"])
def test_it_counts_until_its_job_is_dropped_and_takes_no_more_than_it_counts(
    given: Given, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    before, size = taken(client), given_bytes(given)
    put(jobs, given)
    assert counted(client) == RECORD_BYTES + size + PART_BYTES + ROOM
    assert taken(client) - before < counted(client) - ROOM
    (claim,) = parts.claim(1)
    held = parts.start(claim, parts.completed(claim, read_part(claim)))
    assert held is not None
    assert parts.finish(held, FILES, 1.0) is not None
    files = sum(map(len, FILES.values()))
    assert counted(client) == RECORD_BYTES + size + IMAGE_BYTES + files
    assert jobs.drop("a", owner=ANN)
    assert taken(client) - before < counted(client) == RECORD_BYTES


def test_it_counts_against_the_limit_of_its_key(jobs: JobStore) -> None:
    one = RECORD_BYTES + given_bytes(MASK) + PART_BYTES + ROOM
    small = replace(ANN, limits=Limits(stored_bytes=one))
    assert most_images(small, INFO, MASK) == 1
    less = replace(ANN, limits=Limits(stored_bytes=one - 1))
    assert most_images(less, INFO, MASK) == 0
    jobs.submit(ask(), INFO, owner=small, given=MASK)
    with pytest.raises(TooMuch) as full:
        jobs.submit(ask(), INFO, owner=small, given=MASK)
    assert full.value.limit == "stored"

"""What the service, the workers, the store and the client agree on: words, names, ids, digests,
errors.

Each is defined here once. Standard library only. The service sends an error as a problem document
(RFC 9457). The client raises the same class, which it finds by the document's `type`. Knows no HTTP
library, no Redis and no tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

VERSION = "0.1.0"
"""The version of everything here: package, API, images."""

Status = Literal["queued", "started", "finished", "failed", "canceled"]
"""The state of a job or of one image."""
STATUSES: tuple[Status, ...] = get_args(Status)
END_STATES: tuple[Status, ...] = ("finished", "failed", "canceled")
"""The states in which nothing changes any more, and the events that say so."""

DatasetStatus = Literal["queued", "started", "paused", "finished", "failed", "canceled", "dropped"]
"""The state of a data set; `dropped` is never shown."""

Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
DEFAULT_PRIORITY: Priority = "interactive"

IMAGE_NAME = "image.png"
MASK_NAME = "mask.png"
INSTANCES_NAME = "instances.png"
TOKENS_NAME = "tokens.json"
FILE_NAMES = (IMAGE_NAME, MASK_NAME, INSTANCES_NAME, TOKENS_NAME)
"""The files of one image."""
ARCHIVE_NAME = "pairs.zip"
"""All pairs of a finished job in one file."""
ARCHIVE_MANIFEST = "manifest.json"
"""The file in it that lists the others, with their SHA-256."""

RECORD_KEY = "pathar"
"""The keyword of the text in a PNG that says where it came from (docs/provenance.md)."""
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for what a trained model made."""
XMP_KEY = "XML:com.adobe.xmp"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><Iptc4xmpExt:DigitalSourceType>'
    f"{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
)
"""What a PNG says to software that knows no PathAR: made by a trained model (IPTC)."""

LEAST_MPP, MOST_MPP = 0.001, 1000.0
"""Microns a pixel."""

MAX_IMAGES = 1000
"""The most images that one request may ask for."""

MAX_BEST_OF = 32
"""The most draws of which one image is the best."""

MAX_SIDE = 2048
"""The most pixels a side that a service draws."""
LARGEST_SIDE = 8192
"""The most pixels a side at all: readers of PNG refuse more than about 9,400 a side as a bomb."""
SIDE_STEP = 8
"""The least step of a side in pixels: the segmenter halves an image three times."""

LEAST_MASK_BYTES = 160 * 1024
"""What a PNG of a given mask may have at any size. One of 256 pixels a side takes 66 kB without any
compression, one of 1024 without any order about 140 kB with it."""


def most_mask_bytes(width: int, height: int) -> int:
    """The largest PNG of a given mask: a quarter more than its pixels have at one bit each, as many
    as those of a mask without any order take."""
    return max(LEAST_MASK_BYTES, width * height * 5 // 32)


LEAST_IMAGE_BYTES = 384 * 1024
"""What a PNG of a given image may have at any size. One of 256 pixels a side takes 197 kB without
any compression, 263 kB with alpha."""
MOST_IMAGE_PIXELS = 1 << 20
"""The most pixels of a given image that a service takes."""


def most_image_bytes(width: int, height: int) -> int:
    """The largest PNG of a given image: a little more than its pixels have without compression."""
    return max(LEAST_IMAGE_BYTES, width * height * 13 // 4)


MAX_SEED = 2**53 - 1
"""Seeds are 0..2^53 - 1, the integers that a JavaScript number keeps exactly."""

SCALE_SIGN = "@"
"""Between a label and the scale that it is seen at, in the name of both: `histology@0.5`."""
SCALE_RANGE = (0.01, 100.0)
"""What a scale may be: 0.5 is half the magnification of the label's own patches."""

SETTING_RANGES = {"cfg_scale": (1.0, 10.0), "temperature": (0.0, 2.0), "top_p": (0.0, 1.0)}
"""What the settings may be, both ends included; a `top_p` of 0 is none."""
SETTINGS = (*SETTING_RANGES, "top_k")
"""`top_k` is an integer from 0 to the codebook size."""
StreamName = Literal["structure", "appearance"]
STREAMS: tuple[StreamName, ...] = get_args(StreamName)
Setting = float | Mapping[str, float]
"""What a setting is in JSON: a number for both streams, or one for each."""

JOB_ID = "[A-Za-z0-9_-]{1,64}"
JOB_ID_EXPECTED = "1 to 64 of A-Z a-z 0-9 _ -"
EVENT_ID = "[0-9]{1,19}(-[0-9]{1,19})?"


def setting_of(text: str, number: Callable[[str], float]) -> Setting:
    """A setting as users type it: a number for both streams, or two as 1:2. ValueError on anything
    else."""
    structure, *others = [number(part) for part in text.split(":")]
    if not others:
        return structure
    [appearance] = others
    return {"structure": structure, "appearance": appearance}


def settled(told: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings among JSON fields, each of its type: JSON has one type of number."""

    def typed(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {stream: typed(name, number) for stream, number in value.items()}
        return int(value) if name == "top_k" else float(value)

    return {name: typed(name, value) for name, value in told.items() if name in SETTINGS}


def canonical_json(data: Mapping[str, Any]) -> str:
    """The one JSON text of an object: keys sorted, no spaces, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def sha256(text: str) -> str:
    """64 hex digits of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def pixels_sha256(shape: Sequence[int], pixels: bytes) -> str:
    """64 hex digits of pixels and their shape: height, width, and channels unless there is one.

    `pixels` goes row by row, as PNG has it without filters: values of 16 bits are big endian.
    """
    return hashlib.sha256(f"{' '.join(map(str, shape))}\n".encode() + pixels).hexdigest()


def record_of(png: bytes) -> dict[str, Any]:
    """The record in a PNG, unchecked; empty where it has none."""
    begins, at = f"{RECORD_KEY}\0\0\0\0\0".encode(), 8
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        text = png[at + 8 : at + 8 + length]
        if kind == b"iTXt" and text.startswith(begins):
            record: dict[str, Any] = json.loads(text.removeprefix(begins))
            return record
        at += 12 + length
    return {}


def pixel_size(record: Mapping[str, Any]) -> bytes:
    """The content of a PNG's chunk pHYs, in pixels a metre, by the `mpp` (microns a pixel) of its
    record; empty where that has none."""
    mpp = record.get("mpp")
    if not isinstance(mpp, int | float) or not LEAST_MPP <= mpp <= MOST_MPP:
        return b""
    return struct.pack(">IIB", round(1e6 / mpp), round(1e6 / mpp), 1)


def scaled_name(label: str, scale: float) -> str:
    """The name of a label at a scale; at 1 that of the label."""
    return label if scale == 1 else f"{label}{SCALE_SIGN}{scale:g}"


def split_scale(name: str) -> tuple[str, float]:
    """The label and the scale of a name, inverse of `scaled_name`."""
    label, _, text = name.rpartition(SCALE_SIGN)
    try:
        scale = float(text)
    except ValueError:
        scale = 1.0
    low, high = SCALE_RANGE
    known = label and low <= scale <= high and scaled_name(label, scale) == name
    return (label, scale) if known else (name, 1.0)


def numerics_of(facts: Mapping[str, str]) -> str:
    """12 hex digits for all facts that determine the bytes beside the model's version."""
    return sha256(canonical_json(facts))[:12]


def is_job_id(text: str) -> bool:
    """Whether `text` can be a job's id; anything else is not looked up."""
    return re.fullmatch(JOB_ID, text) is not None


def image_seed(seed: int, index: int) -> int:
    """The row seed of image `index` of a request with `seed` (docs/method.md, section 4).

    Image 0 has the request's own seed, so that posting any image's seed with n = 1 returns that
    image; later images have a fixed 53-bit hash of (seed, index).
    """
    if index == 0:
        return seed
    digest = hashlib.sha256(f"pathar-image-seed:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


class ServiceError(Exception):
    """A service refused or failed. `detail` is a sentence for whoever reads it.

    `status` is the HTTP status, None where there was no answer. `errors` has field, value and
    expected of each wrong field. `retry_after` is in seconds, None where nobody said. `headers` go
    with the service's answer.
    """

    type: ClassVar[str] = ""
    title: ClassVar[str] = ""
    status: int | None = None

    def __init_subclass__(cls, *, status: int | None = None, title: str = "") -> None:
        """Enter a class that has a status in ERRORS: NotFound is of type urn:pathar:not-found."""
        if status is not None:
            words = re.findall("[A-Z][a-z]+", cls.__name__)
            cls.type, cls.status, cls.title = f"urn:pathar:{'-'.join(words).lower()}", status, title
            ERRORS[cls.type] = cls

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        self.detail = detail
        self.status = status if status is not None else self.status
        self.errors = tuple(errors)
        self.retry_after = retry_after
        self.headers = headers
        super().__init__(detail)


ERRORS: dict[str, type[ServiceError]] = {}
"""The errors that follow, by their `type`."""


class BadBody(ServiceError, status=400, title="The body cannot be read"):
    """The body is not JSON, or nested too deeply, or no form with parts."""


class Unauthorized(ServiceError, status=401, title="An API key is needed"):
    """The API key is missing, unknown or revoked."""


class Forbidden(ServiceError, status=403, title="Not allowed from this origin"):
    """Without keys the service answers only programs on its own machine: see Host and Origin."""


class NotFound(ServiceError, status=404, title="Not found"):
    """There is no such route, job or image."""


class MethodNotAllowed(ServiceError, status=405, title="Method not allowed"):
    """The route exists for other methods."""


class RequestTimeout(ServiceError, status=408, title="The request took too long"):
    """The headers or the body did not come in time."""


class JobCanceled(ServiceError, status=409, title="The job was canceled"):
    """The job that was waited for has been canceled."""


class NotFinished(ServiceError, status=409, title="The job is not finished"):
    """The job has images that are not drawn yet."""


class OtherJob(ServiceError, status=409, title="The id stands for another job"):
    """The id stands for a job with another body."""


class Gone(ServiceError, status=410, title="The job has expired"):
    """The job has expired, with its files."""


class BodyTooLarge(ServiceError, status=413, title="The body is too large"):
    """The body is over the limit."""


class UnsupportedMediaType(ServiceError, status=415, title="The body is of another type"):
    """The body's Content-Type is neither JSON nor, where a route takes files, a form."""


class RangeNotSatisfiable(ServiceError, status=416, title="The range cannot be satisfied"):
    """Range asks for bytes beyond the end of a file."""


class InvalidRequest(ServiceError, status=422, title="The request is not valid"):
    """Fields are unknown, of a wrong type or out of range; `errors` names each."""


class TooManyRequests(ServiceError, status=429, title="Too many requests"):
    """The key or the queue is at a limit. After `retry_after` seconds there is room."""


class TooMuchStored(TooManyRequests, status=429, title="The key stores too much"):
    """The key's jobs and results take as many bytes as they may. Dropping some gives room."""


class JobFailed(ServiceError, status=500, title="The job failed"):
    """The job that was waited for has failed."""


class InternalError(ServiceError, status=500, title="Internal error"):
    """A defect of the service."""


class NotOffered(ServiceError, status=501, title="The service offers no data sets"):
    """The service has no storage to write data sets to."""


class Unavailable(ServiceError):
    """Something that the service needs does not answer. Try again later."""


class StoreDown(Unavailable, status=503, title="Redis does not answer"):
    """Redis does not answer."""


class StoreFull(Unavailable, status=503, title="Redis is full"):
    """Redis has no memory left for this. Canceling jobs and dropping files gives some back."""


class StoreReadOnly(Unavailable, status=503, title="Redis takes no writes"):
    """The service reaches a read-only replica of Redis."""


class StoreLoading(Unavailable, status=503, title="Redis is loading its data"):
    """Redis has been started and reads its file. It answers when that is done."""


class StoreDisk(Unavailable, status=503, title="Redis cannot write to its disk"):
    """Redis accepts nothing that it cannot keep."""


class ResultsDown(Unavailable, status=503, title="The storage of results does not answer"):
    """The storage that the files lie in does not answer; Redis does."""


class NoModel(Unavailable, status=503, title="No model is known"):
    """No worker has reported a model lately."""


class NoWorker(Unavailable, status=503, title="No worker is ready"):
    """No worker is ready."""


class Busy(Unavailable, status=503, title="No connection is free"):
    """All connections of this process are in use."""


class Draining(Unavailable, status=503, title="This process is stopping"):
    """This process was told to stop. Another process takes over."""

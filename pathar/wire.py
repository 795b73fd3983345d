"""Parses server-sent events, as far as this service uses the format."""

from __future__ import annotations

import json

from pathar.errors import InternalError
from pathar.pairs import Event


class EventParser:
    """The parser of one stream. Skips comments, which the service sends as pings."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. InternalError on data that is not JSON."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := self._line(line.rstrip(b"\r")))]

    def _line(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.decode(errors="replace").partition(":")
            self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        try:
            data = dict(json.loads(fields["data"]))
        except (ValueError, TypeError):
            raise InternalError(f"an event is not JSON: {fields['data'][:100]!r}") from None
        return Event(fields.get("id", ""), fields.get("event", ""), data)

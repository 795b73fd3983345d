"""The one owner of where each stream sits: lengths, order, grid coordinates, what sees what.

Sequence `y, s_1, a_1, ..., s_N, a_N` in raster order over a latent grid, as two
kinds of position (docs/method.md, section 3):

- structure position p = 0..N has input the label prefix (p = 0) or s_p and, for p < N, predicts
  s_(p+1);
- appearance position p = 1..N has input the begin token (p = 1) or a_(p-1) and predicts a_p.

Both kinds with the same p run in the same step of the pair decode. Appearance position 0 does
not exist; a cache keeps an unused place for it so that both kinds index alike. Locations are
counted from 0 in code: location i holds s_(i+1) and a_(i+1) of the paper.

Tables have a row for each position and a column for each stream. Standard library only: the service
counts steps too. Knows no tokens, no tensors and no caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

NOWHERE = -1
"""The location of a key that is not rotated: the label's and the begin token's."""


@dataclass(frozen=True)
class TokenLayout:
    """The layout of one square latent grid of `grid_size` locations a side."""

    grid_size: int

    @property
    def locations(self) -> int:
        """N, the number of latent locations, so of tokens in each stream."""
        return self.grid_size * self.grid_size

    @property
    def steps(self) -> int:
        """Sequential steps of the pair decode: N + 1."""
        return self.locations + 1

    @cached_property
    def targets(self) -> tuple[tuple[int, int], ...]:
        """[N + 1][2]: where the predicted tokens sit, so queries, noise and given tokens."""
        structure, appearance = self.structure_query_location, self.appearance_query_location
        return tuple((structure(p), appearance(p)) for p in range(self.steps))

    @cached_property
    def contents(self) -> tuple[tuple[int, int], ...]:
        """[N + 1][2]: where the inputs sit, so keys and learned positions, or NOWHERE."""
        structure, appearance = self.structure_key_location, self.appearance_key_location
        return tuple((structure(p), appearance(p)) for p in range(self.steps))

    @property
    def token_rows(self) -> tuple[slice, slice]:
        """Where each stream's tokens lie in a table of inputs by position, [N + 2][2].

        Step p reads row p, s_p and a_(p-1), and writes row p + 1; a_0 is the begin token.
        """
        return slice(1, self.steps), slice(2, self.steps + 1)

    def seen(self, stream: int, position: int) -> tuple[range, range]:
        """The positions of the structure keys and of the appearance keys that a query sees."""
        return range(position + 1), range(1, position + 1) if stream else range(0)

    def coordinates(self, location: int) -> tuple[int, int]:
        """(row, column) of a location; s and a of one location share it."""
        return divmod(location, self.grid_size)

    def structure_query_location(self, position: int) -> int:
        """Where the token predicted by structure position `position` sits (the last: its own)."""
        return min(position, self.locations - 1)

    def appearance_query_location(self, position: int) -> int:
        """Where the token predicted by appearance position `position` sits."""
        return max(position - 1, 0)

    def structure_key_location(self, position: int) -> int:
        """Where the content of structure position `position` sits; NOWHERE for the label."""
        return position - 1

    def appearance_key_location(self, position: int) -> int:
        """Where the content of appearance position `position` sits; NOWHERE for begin."""
        return max(position - 2, NOWHERE)

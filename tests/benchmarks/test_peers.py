"""Peers are in no set-up of ours: where they are not installed, they are named and left out."""

import sys
from importlib.util import find_spec

import pytest

from benchmarks.peers import PEERS, PeerError, Shape, start

pytestmark = pytest.mark.processes

SHAPE = Shape(layers=2, heads=2, width=32, vocabulary=64, tokens=64, rows=4, threads=1)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_draws_or_says_what_it_lacks(name: str) -> None:
    modules, _ = PEERS[name]
    if find_spec(modules[0]) is None:
        with pytest.raises(PeerError, match=f"No module named '{modules[0]}'"):
            start(name, SHAPE, [sys.executable])
        return
    peer = start(name, SHAPE, [sys.executable])
    try:
        peer(1)
        peer(2)
        assert all(peer.versions.values())
    finally:
        peer.close()

"""Peers are in no set-up of ours: where they are not installed, they are named and left out."""

import sys

import pytest

from benchmarks.peers import PEERS, MissingPeer, Shape, start

pytestmark = pytest.mark.processes

SHAPE = Shape(layers=2, heads=2, width=32, vocabulary=64, tokens=12, rows=4, threads=1)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_draws_or_says_what_it_lacks(name: str) -> None:
    try:
        peer = start(name, SHAPE, [sys.executable], None)
    except MissingPeer as missing:
        assert f"{sys.executable}: No module named " in str(missing)
        return
    try:
        peer(1)
        peer(2)
        assert all(peer.versions.values())
    finally:
        peer.close()

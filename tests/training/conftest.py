"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_features() -> Iterator[None]:
    """Networks of features see images of a quarter of the side, in a tenth of the time."""
    from training.evaluation import features

    resized = features.resized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "resized", lambda images, side: resized(images, side // 4))
        yield

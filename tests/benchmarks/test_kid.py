import json
from pathlib import Path

import pytest

from benchmarks import kid
from model.engine import BUILD
from model.native_decoder import libraries
from tests.training.phantoms import write_phantoms

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not libraries(), reason="the compiled decode step is not built")
def test_both_decoders_are_compared_with_real_patches_and_with_each_other(
    organ_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, kept = write_phantoms(tmp_path / "data"), tmp_path / "kept"
    words = ["--checkpoint", str(organ_checkpoint), "--data", str(data), "--images", "8"]
    words += ["--features", "efficientnet-lite0", "--kept", str(kept), "--threads", "1"]
    kid.main(words)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["kid"]
    assert found.keys() == {"histology"}
    assert found["histology"].keys() == kid.COMPARED.keys()
    drawn = {path.name.split("-", 1)[1] for path in kept.iterdir()}
    assert drawn == {
        f"{BUILD}-TorchDecoder-histology-0-8.npy",
        f"{BUILD}-NativeDecoder-histology-0-8.npy",
        f"{BUILD}-NativeDecoder-histology-8-16.npy",
    }
    # Noise of random weights does not look like phantoms.
    (both, _), (chance, deviation) = (
        found["histology"][name] for name in ("fp32 to 8 bits", "8 bits to 8 bits")
    )
    assert found["histology"]["fp32 to real"][0] > max(both, chance) + deviation

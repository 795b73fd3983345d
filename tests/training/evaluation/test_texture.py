import pytest
import torch
from torch import Tensor

from training.evaluation import texture


def noise(count: int = 8, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("period", [8, 16])
def test_a_lattice_stands_out_by_its_period_in_rows_and_columns(period: int) -> None:
    """One of 16 pixels has harmonics at 8 and 5.3."""
    plain = noise()
    bars = (torch.arange(64) % period == 0).float() * 0.4
    assert texture.lattice(plain) < 1.5
    assert texture.lattice(plain + bars) > 5
    assert texture.lattice(plain + bars[:, None]) == pytest.approx(
        texture.lattice((plain + bars[:, None]).transpose(2, 3)), rel=1e-5
    )


def test_a_ramp_has_no_lattice() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
    assert texture.lattice(ramp + noise(2)) < 2


def test_the_checkerboard_is_in_grey_levels() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    checks = ((y + x) % 2).float().expand(1, 3, 64, 64) * 2 / 255
    assert texture.checkerboard(checks) == pytest.approx(2.0, abs=1e-3)
    smooth = (y + 2 * x).float().expand(1, 3, 64, 64) / 255
    assert texture.checkerboard(smooth) == pytest.approx(0.0, abs=1e-3)


def test_detail_is_lost_by_a_blur_and_kept_by_a_change_of_light() -> None:
    real = noise()
    blurred = torch.nn.functional.avg_pool2d(real, 5, 1, 2)
    assert texture.detail(real, real) == pytest.approx(1)
    assert texture.detail(real + 0.5, real) == pytest.approx(1, abs=1e-3)
    assert texture.detail(blurred, real) < 0.5


def test_each_set_has_its_figures_beside_those_of_real_patches() -> None:
    real = noise()
    metrics = texture.texture_metrics({"swap": real * 2}, real, "blood")
    assert [m.name for m in metrics] == ["swap_lattice", "swap_checkerboard", "swap_detail"]
    assert {m.label for m in metrics} == {"blood"}
    lattice, checks, detail = metrics
    assert lattice.value == pytest.approx(lattice.floor or 0)
    assert checks.value == pytest.approx(2 * (checks.floor or 0), rel=1e-3)
    assert (detail.value, detail.floor) == (pytest.approx(4, rel=1e-3), 1.0)

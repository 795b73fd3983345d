"""`python -m training.instances`: the rules on patches whose nuclei are known."""

from __future__ import annotations

import json
from pathlib import Path

from tests.training.commands import run
from tests.training.phantoms import write_phantoms
from tests.training.test_data import with_instances


def test_every_rule_is_measured_on_every_label_with_instance_maps(tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "data")
    with_instances(data)
    said = run("instances", "--data", data, "--size", 64)
    rows = json.loads(said.splitlines()[-1])
    assert {row["label"] for row in rows} == {"cytology", "blood", "fluorescence", "histology"}
    for row in rows:
        assert f"| {row['label']} | {row['patches']} | {row['rule']} |" in said
        assert 0 < row["aji"] <= 1
        assert 0 < row["pq"] <= 1
        assert row["nuclei"] > 0 < row["found"]


def test_patches_without_instance_maps_are_refused(tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "data")
    said = run("instances", "--data", data, "--size", 64, code=1)
    assert "--data: no validation patch has an instance map" in said

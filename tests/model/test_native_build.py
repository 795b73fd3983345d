"""`python -m model.native.build`: what it leaves beside the source, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.native import build
from tests.system import program

pytestmark = pytest.mark.processes


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that compiles in no time, with a library of an earlier one beside it."""
    path = tmp_path / "decode.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCE", path)
    earlier = build.library("avx512_vnni")
    earlier.write_text("compiled from this")
    assert list(build.built()) == ["avx512_vnni"]
    path.write_text('extern "C" int answer() { return 43; }\n')
    monkeypatch.delenv("CXX", raising=False)
    return path


def names(source: Path) -> list[str]:
    return sorted(path.name for path in source.parent.iterdir())


def test_what_the_compiler_refuses_is_left_out(
    source: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = tmp_path_factory.mktemp("old") / "old-compiler"
    refuse = "case $* in *' -m'*) echo unknown >&2; exit 1;; esac"
    old.write_text(f'#!/bin/sh\n{refuse}\nexec {program("c++")} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CXX", f"{old} -DNDEBUG")
    assert build.main() == 0
    assert names(source) == [build.library("portable").name, "decode.cpp"]
    assert list(build.built()) == ["portable"]
    assert "cannot compile it for amx, avx512_vnni, avx_vnni, avx2" in capsys.readouterr().out


def test_a_source_that_does_not_compile_leaves_nothing(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program("c++")
    source.write_text("int answer() { return forty_two; }\n")
    assert build.main() == 1
    assert names(source) == ["decode.cpp"]
    said = capsys.readouterr().err
    assert "forty_two" in said
    assert "torch decodes" in said


def test_without_a_compiler_nothing_changes(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(source)
    assert build.built() == {}, "what is there was compiled from another source"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main() == 1
    assert names(source) == before
    assert "install g++ or clang, then: python -m model.native.build" in capsys.readouterr().err

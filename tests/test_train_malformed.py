"""``daemon train`` on malformed site folders: one clear message each, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_site_malformed import PARTS, WHOLE, Build
from typer.testing import CliRunner, Result

from daemon.cli import app


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An installation with the tiny backbone and an empty site folder; the command's umask ends with it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "settings.toml").write_text(
        '[service]\ndata_dir = "data"\n[model]\ndevice = "cpu"\nthreads = 1\n[study]\n'
        "maximum_frame_pixels = 1048576\n"
    )
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def train(folder: Path, *options: str) -> Result:
    """Run the command in this process."""
    places = ("--site-data", str(folder / "site"), "--settings", str(folder / "settings.toml"))
    return CliRunner().invoke(app, ["train", *places, "--name", "x", *options])


def refusal(folder: Path) -> str:
    """The one error of a training that is refused; neither bundle nor report nor folds are left."""
    done = train(folder)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1, done.output
    assert done.stdout == "" and "CANARY" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    left = {p.relative_to(folder / "data").as_posix() for p in (folder / "data").rglob("*")}
    assert left <= {"pseudonym.key"}, left
    return message


@pytest.mark.parametrize(("build", "message"), WHOLE, ids=lambda v: getattr(v, "__name__", ""))
def test_a_folder_that_cannot_be_fitted_on_is_one_line_and_no_bundle(
    folder: Path, build: Build, message: str
) -> None:
    """Nothing usable, one class or one patient: exit code 1 and what is missing."""
    build(folder / "site")
    assert message in refusal(folder)


@pytest.mark.parametrize(("build", "message"), PARTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_malformed_part_is_named_by_the_dry_run_and_makes_up_no_case(
    folder: Path, build: Build, message: str
) -> None:
    """The table has one row for it; the sound cases beside it, one patient a class, still do not suffice."""
    build(folder / "site")
    shown = train(folder, "--dry-run")
    assert shown.exit_code == 0, shown.output
    rows = [line for line in shown.stdout.splitlines() if line.strip().startswith("skipped")]
    assert sum(message in row for row in rows) == 1, shown.stdout
    assert "CANARY" not in shown.output
    assert "cross-validation needs at least 2 patients per class" in refusal(folder)

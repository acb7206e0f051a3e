"""``daemon train`` and ``daemon evaluate`` as processes: annotated images in, figures and bundles out."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import commands
import numpy as np
import pytest
import site_factories as make
import test_site_malformed as malformed
from commands import Done
from phantoms import picture
from PIL import Image
from pydicom.dataset import Dataset

from daemon.cli_train import _Course

pytestmark = pytest.mark.slow

IMAGES = Path(os.environ.get("SITE_IMAGES", Path(__file__).parents[2] / "shared" / "images"))
BACKBONE = '[service]\ndata_dir = "data"\n[model]\ndevice = "cpu"\nthreads = 1\n'


def start(folder: Path, *arguments: object, model: str = "") -> commands.Command:
    """Start ``daemon`` in a folder with settings of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.toml").write_text(BACKBONE + model)
    return commands.start(*arguments, cwd=folder)


def finish(command: commands.Command) -> Done:
    """Wait for the end; a traceback on the way is a failure."""
    done = command.finish()
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def run(folder: Path, *arguments: object, model: str = "") -> Done:
    """Run ``daemon`` to its end."""
    return finish(start(folder, *arguments, model=model))


def bundles(folder: Path) -> list[Path]:
    """Bundle files of an installation."""
    return sorted((folder / "data" / "bundles").glob("*.safetensors"))


def rows_of(text: str) -> dict[str, str]:
    """A printed table as first column → rest."""
    pairs = (line.strip().split("  ", 1) for line in text.splitlines() if "  " in line.strip())
    return {key: value.strip() for key, value in pairs}


def annotated(number: int, images: Sequence[Dataset], truth: make.Mask) -> Dataset:
    """A SEG, an RTSTRUCT or an SR of the truth, in turn."""
    if number % 3 == 0:
        return make.seg(images, truth)
    if number % 3 == 1:
        return make.rtstruct(images, truth)
    return make.report(images, make.regions(images, truth))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven patients: five declared normal by their folder, six with lesions in SEG, RTSTRUCT and SR.

    Slices far from every mask of the four with SEG or RTSTRUCT are normal too; a report vouches for none.
    """
    root = tmp_path_factory.mktemp("phantoms")
    for number in range(5):
        make.save(root / "normal" / str(number), *make.study(number, lesion=False, n=3)[0])
    for number in range(10, 16):
        images, truth = make.study(number)
        annotation = annotated(number, images, truth)
        make.save(root / "export" / str(number), *images, annotation)
    return root


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """An installation after one training on the phantoms."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(folder, "train", "-d", phantoms, "--name", "phantom", "--epochs", 3)


def test_dry_run_says_what_was_understood_and_stores_nothing(phantoms: Path, tmp_path: Path) -> None:
    """Cases, patients, slices, masks and where the labels came from; no bundle."""
    done = run(tmp_path, "train", "-d", phantoms, "--name", "phantom", "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert rows["cases"] == "11: 6 abnormal, 5 normal"
    assert rows["patients"] == "11"
    assert rows["masks"] == rows["abnormal images"] == "18"
    for source in ("SEG (2 cases)", "RTSTRUCT (2 cases)", "SR (2 cases)", "folder (5 cases)"):
        assert source in rows["labels from"]
    assert int(rows["unused images"].split(":")[0]) > 0
    assert not (tmp_path / "data" / "bundles").exists() and "CANARY" not in done.stdout


def test_dry_run_needs_no_weights(phantoms: Path, tmp_path: Path) -> None:
    """A folder can be looked at before the weights are there; a training says that they are missing."""
    command = ("train", "-d", phantoms, "--name", "phantom")
    model = 'backbone = "ViT-L-14-336"\nweights = "ViT-L-14-336.safetensors"\n'
    shown = run(tmp_path, *command, "--dry-run", model=model)
    assert shown.returncode == 0, shown.stderr
    assert rows_of(shown.stdout)["cases"] == "11: 6 abnormal, 5 normal"
    refused = run(tmp_path, *command, model=model)
    assert refused.returncode == 1 and "ViT-L-14-336.safetensors" in refused.stderr


def test_the_course_of_a_training_goes_on_to_its_end() -> None:
    """Of two folds with two inner fits each and the last fit, epochs are counted over all seven."""
    course = _Course()
    stages = [f"fold {i} of 2{part}" for i in (1, 2) for part in (", inner 1", ", inner 2", "")]
    assert [course.at(stage, 5, 10) for stage in stages] == [(10 * i + 5, 70) for i in range(6)]
    assert course.at("final fit", 10, 10) == (70, 70)


def test_training_stores_a_bundle_without_promoting_it(trained: tuple[Path, Done]) -> None:
    """Figures with intervals on stdout, the bundle stored but not in use, and what would promote it."""
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert "image AUROC" in done.stdout and "pixel AUROC" in done.stdout
    assert " of 9 (" in rows_of(done.stdout)["flagged normal patients"]
    assert len(bundles(folder)) == 1
    version = bundles(folder)[0].stem.removeprefix("phantom-")
    assert f"put it to use: daemon adapters promote {version}" in done.stdout
    assert not (folder / "data" / "bundles" / "promoted.json").exists()
    assert not (folder / "data" / "training").exists() or not any((folder / "data" / "training").iterdir())


def test_the_report_is_one_page_without_patient_data(trained: tuple[Path, Done]) -> None:
    """report.html is self-contained, readable by its owner alone, and names no patient."""
    folder, done = trained
    report = Path(next(line for line in done.stdout.splitlines() if line.startswith("report "))[7:])
    page = (folder / report).read_text()
    assert "<img" in page and "image AUROC" in page
    for file in (folder / report).parent.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0
        assert b"CANARY" not in file.read_bytes()
    assert "CANARY" not in done.stdout + done.stderr
    assert b"CANARY" not in bundles(folder)[0].read_bytes()


def test_the_same_seed_gives_the_same_version_and_promote_puts_it_to_use(
    phantoms: Path, trained: tuple[Path, Done]
) -> None:
    """A repeated training leaves one file; with ``--promote`` it is in use."""
    folder, _ = trained
    before = bundles(folder)
    again = run(folder, "train", "-d", phantoms, "--name", "phantom", "--epochs", 3, "--promote")
    assert again.returncode == 0, again.stderr
    assert bundles(folder) == before
    assert "is in use" in again.stdout
    assert json.loads((folder / "data" / "bundles" / "promoted.json").read_text())


def test_an_interrupted_training_goes_on_with_resume(phantoms: Path, tmp_path: Path) -> None:
    """Ctrl-C keeps the folds that are done, exit code 130; ``--resume`` takes them over and ends as usual."""
    command = ("train", "-d", phantoms, "--name", "phantom", "--epochs", 10)
    process = start(tmp_path, *command)
    kept = tmp_path / "data" / "training" / "phantom"
    deadline = time.monotonic() + 90
    while not (kept / "fold-1.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert "--resume" in stopped.stderr
    first = kept / "fold-1.safetensors"
    saved_at = first.stat().st_mtime_ns
    partial = bundles(tmp_path)
    process = start(tmp_path, *command, "--resume", "--promote")
    with contextlib.suppress(FileNotFoundError):  # it is deleted when the training is over
        while process.poll() is None:
            assert first.stat().st_mtime_ns == saved_at, "the fold was not taken over"
            time.sleep(0.02)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert not kept.exists()
    assert len(set(bundles(tmp_path)) - set(partial)) == 1


def test_an_operating_point_that_the_data_cannot_support_is_refused(phantoms: Path, tmp_path: Path) -> None:
    """One line names the normal patients, the smallest rate, the one asked for, and how many it needs."""
    done = run(tmp_path, "train", "-d", phantoms, "--name", "phantom", "--alpha", 0.01)
    assert done.returncode == 1
    assert "9 held-out normals reach p = 0.1 at best, above alpha = 0.01" in done.stderr
    assert "up to 99" in done.stderr
    nothing_is_left(tmp_path)


def nothing_is_left(folder: Path) -> None:
    """No bundle, no half-done training, no report."""
    left = {p.relative_to(folder / "data").as_posix() for p in (folder / "data").rglob("*")}
    assert left <= {"pseudonym.key"}, left


def test_a_folder_that_cannot_be_fitted_on_is_one_line_and_no_bundle(tmp_path: Path) -> None:
    """Empty, one patient, annotations alone: exit 1, one error, nothing left behind."""
    cases = [
        (malformed.nothing, "folder is empty"),
        (malformed.one_patient, "every case is of one patient"),
        (malformed.annotation_alone, "none of the"),
    ]
    running = []
    for build, message in cases:
        folder = tmp_path / build.__name__
        (folder / "site").mkdir(parents=True)
        build(folder / "site")
        running.append((folder, message, start(folder, "train", "-d", "site", "--name", "x")))
    for folder, message, process in running:
        done = finish(process)
        assert done.returncode == 1, folder.name
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and message in errors[0], done.stderr
        assert done.stdout == ""
        nothing_is_left(folder)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "-d", "site", "--name", "a/b"), "--name"),
        (("train", "-d", "site", "--name", "x", "--recipe", "best"), "--recipe"),
        (("evaluate", "-d", "a/site", "-d", "b/site", "--leave-out", "site"), "same name"),
    ],
)
def test_a_wrong_option_is_named_before_any_work(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    """Exit code 2 and one line, before data are read."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "data").exists()


def test_evaluate_prints_figures_and_baselines_as_json(
    phantoms: Path, trained: tuple[Path, Done], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On other patients: figures, each baseline, and the paired differences; stdout is JSON alone."""
    folder, _ = trained
    other = tmp_path_factory.mktemp("other")
    for number in range(20, 30):
        make.save(other / "normal" / str(number), *make.study(number, lesion=False, n=2)[0])
    for number in range(30, 33):
        images, truth = make.study(number)
        make.save(other / "export" / str(number), *images, make.seg(images, truth))
    command = ("evaluate", "--bundle", bundles(folder)[0].stem.removeprefix("phantom-")[:6], "--data", other)
    shown, measured = (
        start(folder, *command),
        start(folder, *command, "--baselines", "--fitted-on", phantoms, "--json", "--report", "second"),
    )
    done = finish(shown)
    assert done.returncode == 0, done.stderr
    assert "image AUROC" in done.stdout and "report.html" in done.stdout
    done = finish(measured)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["flagged_normal_patients"][1] == 13
    assert set(found["baselines"]) == {"text only", "memory only", "PatchCore-style"}
    ours, theirs = (found["figures"]["image AUROC"][0], found["baselines"]["text only"]["figures"])
    gain = found["differences"]["text only"]["image AUROC"][0]
    assert gain == pytest.approx(ours - theirs["image AUROC"][0], abs=2e-4)
    assert (folder / "second" / "report.html").is_file()


def _pictures(root: Path, seed: int, folders: Iterable[tuple[str, bool]], masks: str) -> None:
    rng = np.random.default_rng(seed)
    for name, lesion in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            image, mask = picture(rng, lesion, 64)
            Image.fromarray((image * 255).astype(np.uint8)).save(root / name / f"{seed}{i}.png")
            if lesion:
                (root / masks).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / masks / f"{seed}{i}.png")


def test_folders_with_the_same_file_names_are_trained_on_together(tmp_path: Path) -> None:
    """Two folders whose pictures have the same names: each is a patient, for baselines, too."""
    for name in ("first", "second"):
        _pictures(tmp_path / name, 7, [("normal", False), ("abnormal", True)], "mask")
    command = ("train", "-d", "first", "-d", "second", "--name", "x", "--alpha", 0.25, "--epochs", 1)
    done = run(tmp_path, *command, "--baselines")
    assert done.returncode == 0, done.stderr
    assert " of 6 (" in rows_of(done.stdout)["flagged normal patients"]
    assert "adapters minus PatchCore-style, image AUROC" in done.stdout


def test_leave_out_fits_on_the_others_alone(tmp_path: Path) -> None:
    """Three folders of pictures: the one left out is evaluated by adapters of the other two."""
    for seed, name in enumerate(("one", "two", "three"), start=1):
        _pictures(tmp_path / name, seed, [("normal", False), ("abnormal", True)], "mask")
    folders = [part for name in ("one", "two", "three") for part in ("--data", name)]
    done = run(tmp_path, "evaluate", "--leave-out", "two", *folders, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["flagged_normal_patients"][1] == 3
    assert 0 <= found["figures"]["pixel AUROC"][0] <= 1


def test_the_published_protocol_runs_on_the_bmad_layout(tmp_path: Path) -> None:
    """Image and pixel AUROC of the best and the last epoch, with the shots drawn, at the size asked for."""
    for seed, part in enumerate(("valid", "test"), start=1):
        base = tmp_path / "bmad" / "Brain_AD" / part
        _pictures(base, seed, [("good/img", False), ("Ungood/img", True)], "Ungood/anomaly_mask")
    command = ("evaluate", "--protocol", "mvfa", "--data", "bmad", "--class-name", "Brain", "--shots", 1)
    done = run(tmp_path, *command, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures = ("image_auroc", "pixel_auroc", "last_image_auroc", "last_pixel_auroc")
    assert all(0 <= found[name] <= 1 for name in figures), found
    assert found["shots"] == 1 and len(found["chosen"]) == 2
    smaller = run(tmp_path, *command, "--image-size", 64, "--json")
    assert smaller.returncode == 0, smaller.stderr
    assert [json.loads(smaller.stdout)[name] for name in figures] != [found[name] for name in figures]
    refused = run(tmp_path, "evaluate", "--bundle", "any", "--data", "bmad", "--image-size", 64)
    assert refused.returncode == 2 and "--image-size goes with --protocol" in refused.stderr


@pytest.mark.shared
def test_real_ultrasound_as_dicom_with_three_kinds_of_annotation(tmp_path: Path) -> None:
    """Real images as DICOM studies with SEG, RTSTRUCT and SR: understood, fitted, reported, promoted."""
    task = IMAGES / "breast_us" / "train"
    if not task.is_dir():
        pytest.skip("the shared images are absent (SITE_IMAGES)")

    def read(file: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        return np.asarray(Image.open(file).convert("L"))

    for number, file in enumerate(sorted((task / "normal").glob("*.png"))[:9]):
        images = make.image_study(f"normal/{number}", [read(file)], f"CANARY-N{number}")
        make.save(tmp_path / "site" / "normal" / str(number), *images)
    for number, file in enumerate(sorted((task / "abnormal").glob("*.png"))[:6]):
        images = make.image_study(f"abnormal/{number}", [read(file)], f"CANARY-A{number}")
        truth = read(task / "mask" / file.name)[None] > 127
        annotation = annotated(number, images, truth)
        make.save(tmp_path / "site" / "export" / str(number), *images, annotation)
    command = ("train", "-d", "site", "--name", "breast", "--class-name", "Breast ultrasound", "--epochs", 3)
    dry = run(tmp_path, *command, "--dry-run")
    rows = rows_of(dry.stdout)
    assert rows["cases"] == "15: 6 abnormal, 9 normal" and rows["masks"] == "6"
    done = run(tmp_path, *command, "--promote", "--baselines")
    assert done.returncode == 0, done.stderr
    assert "adapters minus text only, pixel AUROC" in done.stdout
    assert len(bundles(tmp_path)) == 1 and "is in use" in done.stdout
    page = next((tmp_path / "data" / "reports").rglob("report.html")).read_text()
    assert "CANARY" not in page + dry.stdout + done.stdout + done.stderr

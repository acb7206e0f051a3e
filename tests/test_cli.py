"""The command line as a user meets it: processes, exit codes, what is on stdout and what on stderr."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import factories
import pytest
import typer
from commands import Done, run, start
from conftest import RunningDaemon
from peers import free_port, orthanc
from pydicom import dcmread
from typer.main import get_command
from typer.testing import CliRunner

from adapters import registry
from adapters.bundle import AdapterBundle
from daemon import cli
from daemon.index import Index
from daemon.phantom import make_case, write_case
from daemon.spool import StoredInstance


def _settings(folder: Path, text: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "settings.toml"
    path.write_text('[service]\ndata_dir = "data"\n' + text)
    return path


def _destination(port: int, ae_title: str = "ORTHANC") -> str:
    return (
        f'[[destinations]]\nname = "pacs"\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\n'
        "connect_timeout_s = 2.0\n"
    )


def _clean(done: Done) -> str:
    """Its stderr; a traceback in it is a failure."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done.stderr


def _put_to_use(folder: Path, bundle: AdapterBundle) -> None:
    bundles = folder / "data" / "bundles"
    registry.store(bundles, bundle)
    registry.promote(bundles, bundle.name, bundle.version)


@pytest.fixture(scope="module")
def bundle_file(phantom_bundle: AdapterBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's bundle as a file to import."""
    return phantom_bundle.save(tmp_path_factory.mktemp("bundle") / "phantom.safetensors")


def _commands() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    todo = [("daemon", get_command(cli.app))]
    while todo:
        name, command = todo.pop()
        children = getattr(command, "commands", None)
        if children is None:
            yield name, command
        todo += [(f"{name} {child}", item) for child, item in (children or {}).items()]


def test_every_command_has_help_with_an_example_of_itself() -> None:
    """Each command's help says what it does and shows one call of it."""
    commands = dict(_commands())
    assert len(commands) >= 12
    for name, command in commands.items():
        assert command.help and f"Example: {name}" in command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_no_word_of_a_help_is_lost_as_markup() -> None:
    """Rich takes words in brackets for styles: each help is printed as it stands in the source."""
    for name, command in _commands():
        shown = CliRunner().invoke(cli.app, [*name.split()[1:], "--help"]).output
        words = set(re.sub(r"[│╭╮╰╯─]", " ", shown).split())
        texts = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
        assert set(" ".join(filter(None, texts)).split()) - words == set(), name


def test_help_states_the_exit_codes(tmp_path: Path) -> None:
    """``daemon --help`` documents the exit codes, and itself ends with 0."""
    done = run("--help", cwd=tmp_path)
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "0 done, 1 the work failed, 2 settings or arguments are wrong, 130 interrupted" in text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[receiver]\nprot = 1\n", "receiver.prot"),
        ("[receiver]\nport = 0\n", "receiver.port"),
        ("[study]\nquiet_s = 'soon'\n", "study.quiet_s"),
        ("[receiver\n", "settings.toml is not valid TOML"),
    ],
)
def test_a_mistake_in_the_settings_names_the_key_and_ends_with_2(tmp_path: Path, text: str, key: str) -> None:
    """An unknown key, a value out of range, a wrong type and broken TOML: one clear error each."""
    _settings(tmp_path, text)
    done = run("check", cwd=tmp_path)
    assert done.returncode == 2
    assert key in _clean(done)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nonsense"], 2, "No such command"),
        (["echo", "nobody"], 2, "no destination or peer is called 'nobody'"),
        (["check", "--settings", "absent.toml"], 2, "absent.toml does not exist"),
        (["run", "--role", "cook"], 2, "--role must be one of receive, score, send"),
        (["studies"], 2, "no daemon has run in"),
        (["show", "1.2.3"], 2, "no daemon has run in"),
        (["adapters", "import", "absent.safetensors"], 2, "absent.safetensors does not exist"),
        (["adapters", "rollback", "liver"], 1, "no earlier version"),
        (["score", "absent", "--out", "results"], 1, "absent does not exist"),
        (["score", ".", "--out", "results"], 1, "no adapter bundle is in use"),
        (["score", ".", "--out", "settings.toml"], 1, "settings.toml"),
        (["send", "pacs", "absent"], 1, "absent does not exist"),
    ],
)
def test_a_users_mistake_is_one_line_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    """No mistake of a user ends in a traceback; the message says what is wrong."""
    _settings(tmp_path, _destination(free_port()))
    done = run(*arguments, cwd=tmp_path)
    assert says in _clean(done)
    assert done.returncode == code


def test_what_is_no_bundle_is_not_imported(tmp_path: Path) -> None:
    """A file that is no adapter bundle ends with 1 and a reason, and nothing is in use."""
    _settings(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    done = run("adapters", "import", "junk.safetensors", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: " in _clean(done)
    assert "no bundles" in run("adapters", "list", cwd=tmp_path).stdout


def test_score_writes_results_and_json_alone_on_stdout(tmp_path: Path, bundle_file: Path) -> None:
    """``daemon score --json``: SEG, SR and PNG on disk, and nothing but JSON on stdout."""
    _settings(tmp_path)
    case = make_case(901, abnormal=True, seed=1)
    write_case(case, tmp_path / "ct")
    (tmp_path / "ct" / "notes.txt").write_text("no DICOM")
    assert run("adapters", "import", bundle_file, cwd=tmp_path).returncode == 0
    assert "→phantom-ct" in run("adapters", "list", cwd=tmp_path).stdout.replace(" ", "")
    done = run("score", "ct", "--out", "results", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (study,) = json.loads(done.stdout)
    assert study["study_instance_uid"] == case.study_instance_uid
    assert study["series"][0]["findings"]
    assert study["series"][0]["scored"] == study["series"][0]["total"] == len(case.lesion)
    files = [tmp_path / file for file in study["files"]]
    assert {file.name for file in files} == {"seg-1.dcm", "sr-2.dcm", "preview-1.png"}
    assert {dcmread(file).Modality for file in files if file.suffix == ".dcm"} == {"SEG", "SR"}
    assert files[-1].read_bytes().startswith(b"\x89PNG")
    assert "skipped: 1 × not a DICOM object" in _clean(done)
    assert "\x1b" not in done.stderr, "a progress bar without a terminal"


def test_score_draws_a_bar_on_a_terminal(tmp_path: Path, phantom_bundle: AdapterBundle) -> None:
    """With a terminal on stderr, long work shows how far it is."""
    _settings(tmp_path)
    _put_to_use(tmp_path, phantom_bundle)
    write_case(make_case(901, abnormal=False, slices=3, seed=1), tmp_path / "ct")
    main, side = pty.openpty()
    command = [sys.executable, "-m", "daemon", "score", "ct", "--out", "results"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=side, env=environment)
    os.close(side)
    seen = b""
    try:
        while chunk := os.read(main, 65536):
            seen += chunk
    except OSError:  # Linux: the other side is closed
        pass
    os.close(main)
    assert process.wait(60) == 0
    assert b"3/3" in seen


def test_a_study_with_nothing_to_score_ends_with_1(tmp_path: Path, phantom_bundle: AdapterBundle) -> None:
    """A folder of localizers: exit 1, and the reason is shown."""
    _settings(tmp_path)
    _put_to_use(tmp_path, phantom_bundle)
    factories.write_all([factories.localizer()], tmp_path / "scout")
    done = run("score", "scout", "--out", "results", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing could be scored" in _clean(done)
    assert "not scored: 1 ×" in done.stdout


def test_an_interrupt_ends_with_130(tmp_path: Path, phantom_bundle: AdapterBundle) -> None:
    """Ctrl-C during work: exit code 130, one line, no traceback."""
    _settings(tmp_path)
    _put_to_use(tmp_path, phantom_bundle)
    write_case(make_case(901, abnormal=False, slices=40, seed=1), tmp_path / "ct")
    process = start("score", "ct", "ct", "--out", "results", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "results").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    done = process.finish()
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_tells_how_to_get_weights_without_network(tmp_path: Path) -> None:
    """A missing weight file fails the check with the way to get it, before any bundle is there."""
    _settings(tmp_path, '[model]\nbackbone = "ViT-B-32"\nweights = "/nowhere/clip.safetensors"\n')
    done = run("check", cwd=tmp_path)
    assert done.returncode == 1
    assert "clip.safetensors is missing" in done.stdout
    assert "on a machine with network access download the file, copy it here" in done.stdout
    _clean(done)
    assert not (tmp_path / "data").exists(), "a check leaves nothing behind"


@pytest.mark.parametrize(
    "arguments",
    [
        "score absent --out results",
        "send pacs absent",
        "train --site-data absent --name liver --class-name Liver",
        "evaluate --bundle liver --data absent",
    ],
)
def test_a_path_that_is_missing_is_told_before_the_model_is_loaded(arguments: str, tmp_path: Path) -> None:
    """Nobody waits until torch is there to read that a name was mistyped."""
    _settings(tmp_path, _destination(free_port()))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "daemon", *arguments.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "does not exist" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "daemon.cli" in imported and "torch" not in imported


def test_check_finds_a_dead_pacs_in_finite_time(tmp_path: Path) -> None:
    """A destination that nobody listens at is an error of the check, a deaf modality only a warning."""
    peer = f'[[peers]]\nname = "ct1"\nae_title = "CT1"\nhost = "127.0.0.1"\nport = {free_port()}\n'
    _settings(tmp_path, _destination(free_port()) + peer)
    done = run("check", cwd=tmp_path)
    assert done.returncode == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[1:]}
    assert "✗" in lines["destination"] and "pacs  no connection to 127.0.0.1" in lines["destination"]
    assert "!" in lines["peer"] and "✓" in lines["settings"]


@pytest.mark.peer
def test_check_echo_and_send_with_a_real_pacs(tmp_path: Path) -> None:
    """Orthanc up: check passes, echo answers, send stores every instance."""
    case = make_case(901, abnormal=False, slices=3, seed=1)
    write_case(case, tmp_path / "ct")
    with orthanc(tmp_path) as pacs:
        _settings(tmp_path, "[receiver]\nreserve_bytes = 1000\n" + _destination(pacs.port))
        checked = run("check", cwd=tmp_path)
        assert checked.returncode == 0, checked.stdout
        assert "answers and accepts SEG and SR" in checked.stdout
        answered = run("echo", "pacs", cwd=tmp_path)
        assert answered.returncode == 0 and "pacs: answers" in answered.stdout
        sent = run("send", "pacs", "ct", cwd=tmp_path)
        assert sent.returncode == 0 and "3 of 3 instances stored at pacs" in sent.stdout
        assert len(pacs.instances()) == 3


def test_echo_and_send_to_a_dead_port_fail_in_one_line(tmp_path: Path) -> None:
    """Nobody listens: exit 1 and one clear line, for a hundred files as for one."""
    factories.write_all(factories.ct_series(60, 8, 8), tmp_path / "ct")
    port = free_port()
    _settings(tmp_path, _destination(port))
    for arguments in (["echo", "pacs"], ["send", "pacs", "ct"]):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        lines = [line for line in _clean(done).splitlines() if "event=" not in line]
        assert len(lines) == 1 and f"no connection to 127.0.0.1:{port}" in lines[0], lines


@pytest.mark.peer
def test_echo_names_the_ae_titles_of_a_rejected_association(tmp_path: Path) -> None:
    """A wrong AE title: the error says which two to compare."""
    with orthanc(tmp_path) as pacs:
        _settings(tmp_path, _destination(pacs.port, "SOMEBODY"))
        done = run("echo", "pacs", cwd=tmp_path)
    assert done.returncode == 1
    assert "check AE titles ANOMALYD (ours) and SOMEBODY (theirs)" in _clean(done)


def _received(folder: Path, studies: list[str]) -> None:
    """An index as a daemon leaves it behind, with one instance per study."""
    (folder / "data").mkdir()
    index = Index(f"sqlite:///{folder / 'data' / 'daemon.sqlite'}")
    for number, study in enumerate(studies):
        index.add_instance(
            StoredInstance(
                sop_instance_uid=f"{study}.1.1",
                sop_class_uid=factories.CT,
                study_instance_uid=study,
                series_instance_uid=f"{study}.1",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                path=f"{number}.dcm",
                size_bytes=1,
                received_at=1_700_000_000.0 + number,
                calling_ae="CT1",
            )
        )
    index.close()


def test_studies_and_show_find_a_study_by_the_end_of_its_uid(tmp_path: Path) -> None:
    """Whole UIDs in a pipe, one study a line; show and retry take the end of a UID, if one study has it."""
    _settings(tmp_path)
    _received(tmp_path, ["1.2.826.0.1.3680043.8.498.11111111111111111111111111111111111", "1.2.3.45"])
    listed = run("studies", cwd=tmp_path)
    assert listed.returncode == 0
    rows = listed.stdout.splitlines()[1:]
    assert [row.split()[2] for row in rows] == [
        "1.2.3.45",
        "1.2.826.0.1.3680043.8.498.11111111111111111111111111111111111",
    ]
    shown = run("show", "3.45", cwd=tmp_path)
    assert "study      1.2.3.45" in shown.stdout and "receiving" in shown.stdout
    unclear = run("show", "2.99", cwd=tmp_path)
    assert unclear.returncode == 1
    assert "0 studies end in '2.99'" in _clean(unclear)
    again = run("retry", "3.45", cwd=tmp_path)
    assert again.returncode == 0 and "it will be scored again" in again.stdout


@pytest.mark.peer
@pytest.mark.slow
def test_studies_show_and_retry_beside_a_runningrun(
    tmp_path: Path, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """What a study became is shown while the daemon runs; retry of a scored one says what it does."""
    from peers import storescu

    case = make_case(901, abnormal=True, slices=6, seed=1)
    files = write_case(case, tmp_path / "ct")
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, quiet_s=0.3)
        storescu(daemon.port, *map(str, files))
        daemon.wait_for(
            lambda index: (
                bool(found := index.deliveries(case.study_instance_uid))
                and all(d.state == "sent" for d in found)
            )
        )
        options = ["--settings", daemon.settings_path]
        listed = run("studies", *options, cwd=tmp_path)
        assert case.study_instance_uid in listed.stdout and "sent" in listed.stdout
        shown = run("show", case.study_instance_uid, *options, cwd=tmp_path)
        assert "state      scored (revision 1)" in shown.stdout
        assert "delivery   pacs: sent after 1 attempts" in shown.stdout
        assert "revision 1 SR" in shown.stdout


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+psycopg://u:SECRET@127.0.0.1:1/x", "sqlite:////nowhere/x.sqlite"]
)
def test_a_database_that_cannot_be_opened_is_one_line_without_the_url(tmp_path: Path, url: str) -> None:
    """A wrong database URL names its key and does not repeat the password in it."""
    (tmp_path / "settings.toml").write_text(f'[service]\ndatabase = "{url}"\n')
    done = run("studies", cwd=tmp_path)
    assert done.returncode == 1
    assert "service.database" in _clean(done)
    assert "SECRET" not in done.stderr

"""README and docs against the code: every command, flag, key, variable and file that they name exists."""

import json
import re
import shlex
import textwrap
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from factories import ct_series, write_all
from peers import orthanc
from typer.main import get_command
from typer.testing import CliRunner

from daemon import cli
from daemon.sender import send
from daemon.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Options of other programs stand on lines that name them.
_OTHER_PROGRAMS = ("storescu", "dcmsend", "echoscu", "make ", "git ")


def _text() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def _pieces() -> Iterator[str]:
    """Every piece of code of the pages: what stands in backquotes, and each indented line."""
    for page in PAGES:
        text = page.read_text()
        yield from re.findall(r"`([^`\n]+)`", text)
        yield from (line.strip() for line in text.splitlines() if line.startswith("    "))


def _mentions() -> set[tuple[str, ...]]:
    """The words after ``daemon`` of every mention of a command, alternatives (a | b) taken apart."""
    found = set()
    for piece in _pieces():
        match = re.search(r"(?:^|python -m )daemon ((?!\.)[a-z].*?)(?:\s{2,}|#|$)", piece)
        if match is None or piece.startswith("daemon/"):
            continue
        for words in _alternatives(match[1].split(" | ")):
            found.add(words)
    return found


def _alternatives(parts: list[str]) -> Iterator[tuple[str, ...]]:
    first = parts[0].split()
    yield tuple(first)
    for part in parts[1:]:
        head = first[:1] if first[0] == "adapters" else []
        yield (*head, *part.split())


def _resolve(words: tuple[str, ...]) -> tuple[typer.core.TyperCommand, tuple[str, ...]]:
    command = get_command(cli.app)
    rest = words
    while rest and (children := getattr(command, "commands", None)):
        assert rest[0] in children, f"the pages name `daemon {' '.join(words)}`: no such command"
        command, rest = children[rest[0]], rest[1:]
    return command, rest


def test_every_command_and_flag_that_the_pages_name_exists() -> None:
    """``daemon …`` in README and docs is a command with these flags."""
    mentions = _mentions()
    assert len(mentions) > 10
    for words in mentions:
        command, rest = _resolve(words)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        flags = {word for word in rest if word.startswith("-")}
        assert flags <= known, f"`daemon {' '.join(words)}`: {flags - known}"


def test_every_command_is_in_the_readme() -> None:
    """No command is hidden from whoever reads README alone."""
    named = {words[0] for words in _mentions()}
    children = get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(children) <= named


def test_every_settings_key_that_the_pages_name_exists() -> None:
    """``section.key`` in the pages is a key of settings.toml."""
    named = set()
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)\b(?!\.)", _text()):
        if section in Settings.model_fields and key not in ("py", "toml", "sqlite"):
            named.add((section, key))
            annotation = Settings.model_fields[section].annotation
            assert key in annotation.model_fields, f"the pages name {section}.{key}"  # type: ignore[union-attr]
    assert len(named) > 5
    for table in re.findall(r"`\[\[?([a-z]+)\]\]?`", _text()):
        assert table in Settings.model_fields


def test_every_environment_variable_that_the_pages_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ``DAEMON_…=value`` of the pages and of settings.toml changes the key that it names."""
    shipped = (ROOT / "settings.toml").read_text()
    found = set(re.findall(r"DAEMON_([A-Z]+)__([A-Z_]+)=([^\s`,.]+)", _text() + shipped))
    assert found
    for section, key, value in found:
        with monkeypatch.context() as patch:
            patch.setenv(f"DAEMON_{section}__{key}", value)
            settings = load_settings(ROOT / "settings.toml")
        assert str(getattr(getattr(settings, section.lower()), key.lower())) == value


def test_every_file_that_the_pages_link_exists() -> None:
    """Links and pictures point to files of the project."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_every_module_that_the_readme_names_exists() -> None:
    """The table of processes names files that are there."""
    named = set(re.findall(r"`(?:daemon/)?([a-z_]+\.py)`", (ROOT / "README.md").read_text()))
    assert len(named) > 8
    assert {name for name in named if not (ROOT / "daemon" / name).is_file()} == set()


def test_the_states_of_a_study_are_those_of_the_index() -> None:
    """The table of states lists each state of the code, and no other."""
    from typing import get_args

    from daemon.records import StudyState

    text = (ROOT / "docs" / "administrator.md").read_text().split("## What becomes of a study")[1]
    table = text.split("\n## ")[0]
    rows = [row for row in re.findall(r"^\| ([a-z]+) \|", table, re.M) if row != "state"]
    assert rows == list(get_args(StudyState))


def test_the_statuses_of_c_store_are_those_of_the_code() -> None:
    """Each status that the receiver answers is in the administrator's table, and no other."""
    from daemon import dimse

    text = (ROOT / "docs" / "administrator.md").read_text().split("## Statuses")[1].split("\n## ")[0]
    shown = {int(value, 16) for value in re.findall(r"^\| (0x[0-9A-F]{4}) \|", text, re.M)}
    rooms = [ROOT / "daemon" / f"{name}.py" for name in ("receiver", "incoming", "storing")]
    rooms += (ROOT / "daemon" / "reception").glob("*.py")
    source = "".join(room.read_text() for room in rooms)
    used = {
        value
        for name, value in vars(dimse).items()
        if name.isupper() and isinstance(value, int) and re.search(rf"\b{name}\b", source)
    }
    assert shown == {dimse.SUCCESS} | {value for value in used if value > 0xFF}


def test_pages_say_research_use_only_once() -> None:
    """Each page carries the statement once, where it belongs."""
    for page in PAGES:
        assert page.read_text().count("not for diagnosis") == 1, page.name


def test_service_unit_waits_longer_than_the_daemon_takes_to_stop() -> None:
    """systemd must not kill what the roles, stopped one after the other, may still finish."""
    unit = (ROOT / "deploy" / "pacs-anomaly-daemon.service").read_text()
    seconds = int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0])
    shipped = tomllib.loads((ROOT / "settings.toml").read_text())
    assert seconds >= 3 * (shipped["service"]["stop_timeout_s"] + 5)


def _command_lines() -> set[tuple[str, ...]]:
    """Arguments of every whole command line of the pages: indented lines, without their comment."""
    found = set()
    for page in PAGES:
        for line in re.findall(r"^    (?:\S*python -m )?daemon ([a-z].*)$", page.read_text(), re.M):
            text = re.split(r"\s{2,}|\s#|\s>\s", line)[0]
            if " | " not in text and "…" not in text:
                found.add(tuple(shlex.split(text)))
    return found


def test_every_command_line_of_the_pages_is_one_that_the_program_takes() -> None:
    """The real parser takes each command line as it stands: every argument it needs, no value it refuses."""
    lines = _command_lines()
    assert len(lines) > 15
    for words in lines:
        command, rest = _resolve(words)
        try:
            command.make_context(words[0], list(rest))
        except typer.Exit as stopped:
            assert stopped.exit_code == 0
        except typer.BadParameter as error:
            # The example's folders and files are the reader's.
            assert "does not exist" in error.message, f"`daemon {' '.join(words)}`: {error.message}"


@pytest.mark.parametrize("line", ["conformance", "adapters list", "check"])
def test_commands_that_need_no_peer_run(line: str, tmp_path: Path) -> None:
    """What the pages tell a new administrator to call does something, on a fresh installation."""
    assert tuple(line.split()) in {words[: len(line.split())] for words in _mentions()}
    path = tmp_path / "settings.toml"
    path.write_text("[receiver]\nreserve_bytes = 1000\n")
    result = CliRunner().invoke(cli.app, [*line.split(), "--settings", str(path)])
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def test_the_profiles_of_the_page_are_those_of_the_code() -> None:
    """docs/pacs-setup.md lists each profile and each option with its values, and no other."""
    from typing import get_args

    from daemon import profiles

    text = (ROOT / "docs" / "pacs-setup.md").read_text().split("## Profiles")[1].split("\n## ")[0]
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([a-z_]+)` \| ([^|]*) \|", text, re.M)}
    options = list(profiles.Profile.__dataclass_fields__)
    assert set(rows) == {*profiles.PROFILES, *options}
    kinds = (
        "SegType",
        "Unaligned",
        "EmptyFrames",
        "Projection",
        "ParametricMap",
        "SecondaryCapture",
        "Coordinates",
    )
    for option, kind in zip(options, kinds, strict=True):
        assert re.findall(r"`([a-z]+)`", rows[option]) == list(get_args(getattr(profiles, kind)))


@pytest.mark.peer
def test_orthanc_sends_on_as_its_page_says(tmp_path: Path) -> None:
    """With settings and script of the page a study goes to our node; what it sent does not."""
    section = (ROOT / "docs" / "pacs-setup.md").read_text().split("## Orthanc")[1].split("\n## ")[0]
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", section, re.M)]
    options, script = json.loads("{" + blocks[0] + "}"), blocks[1]
    (tmp_path / "route.lua").write_text(script)
    theirs = write_all(ct_series(2, series="theirs"), tmp_path / "theirs")
    ours = write_all(ct_series(2, series="ours"), tmp_path / "ours")
    (tmp_path / "node").mkdir()
    (tmp_path / "pacs").mkdir()
    with orthanc(tmp_path / "node", "ANOMALYD") as node:
        options["DicomModalities"]["anomalyd"][1:] = ["127.0.0.1", node.port]
        options["DicomModalities"]["ct"] = ["CT1", "127.0.0.1", 104]
        with orthanc(
            tmp_path / "pacs", StableAge=1, LuaScripts=[str(tmp_path / "route.lua")], **options
        ) as pacs:
            sent = [
                *send(ours, pacs.destination(calling_ae="ANOMALYD")),
                *send(theirs, pacs.destination(calling_ae="CT1")),
            ]
            assert all(outcome.ok for outcome in sent)
            deadline = time.monotonic() + 60
            while len(node.instances()) < len(theirs) and time.monotonic() < deadline:
                time.sleep(0.2)
            # One job sends a study's series: had ours been among them, it would be there or come at once.
            time.sleep(1)
            assert set(node.instances()) == {_uid_of(path) for path in theirs}


def _uid_of(path: Path) -> str:
    """SOP Instance UID of a file."""
    from pydicom import dcmread

    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)

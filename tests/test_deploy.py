"""Units, Dockerfile and compose file name what exists; licences of everything installed are allowed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from daemon.settings import Settings, load_settings
from daemon.supervisor import ROLES

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def _unit(path: Path) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_the_daemon_and_waits_until_it_is_ready(path: Path) -> None:
    """The command of each unit is ``daemon run`` with options that it has, under sd_notify and a watchdog."""
    service = _unit(path)["Service"]
    command = service["ExecStart"].split()
    assert command[1:4] == ["-m", "daemon", "run"]
    said = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin"},
    )
    assert all(word in said.stdout for word in command if word.startswith("--"))
    assert (service["Type"], service["UMask"], service["RestartPreventExitStatus"]) == ("notify", "0077", "2")
    assert float(service["WatchdogSec"]) > 0
    roles = 1 if "%i" in service["ExecStart"] else len(ROLES)
    assert float(service["TimeoutStopSec"]) > roles * Settings().service.stop_timeout_s


@pytest.mark.peer
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_units_and_finds_them_closed(path: Path, tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say, and the exposure that it counts is low."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / path.name
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text(), flags=re.M))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert float(exposure) < 2.5


def _dockerfile() -> list[list[str]]:
    """The instructions of the Dockerfile, each as its words."""
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_the_image_installs_the_project_and_does_not_run_as_root() -> None:
    """What the Dockerfile copies exists and is all that setup needs; its ports are those of the settings."""
    words = _dockerfile()
    assert words[0][0] == "FROM" and ":" in words[0][1]
    copied = {name for word in words if word[0] == "COPY" for name in word[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} <= copied
    users = [word[1] for word in words if word[0] == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert [w[0] for w in words].index("USER") < [w[0] for w in words].index("ENTRYPOINT")
    exposed = {int(port) for word in words if word[0] == "EXPOSE" for port in word[1:]}
    assert {Settings().receiver.port, Settings().web.port} <= exposed


def test_what_the_image_copies_is_all_that_the_daemon_needs(tmp_path: Path) -> None:
    """Installed from the copied files alone, entry point, tables, templates and static files are there."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in (name for word in _dockerfile() if word[0] == "COPY" for name in word[1:-1]):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([sys.executable, "-m", *pip, str(source)], check=True, capture_output=True)
    for package in ("daemon", "adapters", "training"):
        copied = {p.relative_to(source) for p in (source / package).rglob("*") if p.is_file()}
        assert {path for path in copied if not (site / path).is_file()} == set()
    (entry,) = [json.loads(" ".join(word[1:])) for word in _dockerfile() if word[0] == "ENTRYPOINT"]
    (command,) = [json.loads(" ".join(word[1:])) for word in _dockerfile() if word[0] == "CMD"]
    data = tmp_path / "data"
    (data / "spool").mkdir(parents=True)
    (tmp_path / "settings.toml").write_text(f'[service]\ndata_dir = "{data}"\n')
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    for arguments in (
        [*command, "--help"],
        ["index", "rebuild", "--settings", str(tmp_path / "settings.toml")],
    ):
        done = subprocess.run(
            [sys.executable, *entry[1:], *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (data / "daemon.sqlite").is_file()


def test_image_compose_file_and_units_agree_on_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings file and data folder are the same everywhere, and the database of compose.yaml is taken."""
    (command,) = [json.loads(" ".join(word[1:])) for word in _dockerfile() if word[0] == "CMD"]
    (volume,) = [word[1] for word in _dockerfile() if word[0] == "VOLUME"]
    daemon = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["daemon"]
    mounted = {entry.split(":")[1] for entry in daemon["volumes"]}
    settings = command[command.index("--settings") + 1]
    assert mounted == {settings, volume}
    for path in UNITS:
        service = _unit(path)["Service"]
        assert settings in service["ExecStart"].split()
        assert f"/var/lib/{service['StateDirectory']}" == volume
    for name, value in daemon["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{[^}]*\}", "secret", value))
    assert load_settings(None).database_url.startswith(
        "postgresql+psycopg://anomalyd:secret@database/anomalyd"
    )


def test_the_compose_file_names_what_exists() -> None:
    """Services, volumes, build file and the settings' environment variables of compose.yaml are real."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"daemon", "database"}
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source.startswith("./") or source in compose["volumes"]
        assert set(service.get("depends_on", {})) <= set(services)
        assert all(name.startswith(("DAEMON_", "POSTGRES_")) for name in service["environment"])
    built = services["daemon"]["build"]
    assert (DEPLOY / built["context"] / built["dockerfile"]).is_file()
    for name in services["daemon"]["environment"]:
        section, _, key = name.removeprefix("DAEMON_").lower().partition("__")
        assert key in type(getattr(Settings(), section)).model_fields
    assert services["daemon"]["read_only"] and services["daemon"]["cap_drop"] == ["ALL"]
    ports = {int(str(port).split(":")[-1]) for port in services["daemon"]["ports"]}
    assert ports == {Settings().receiver.port, Settings().web.port}


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    """The script of ``make licences``."""
    loader = SourceFileLoader("licences", str(ROOT / ".ci" / "licences"))
    spec = spec_from_loader("licences", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_nothing_that_is_installed_is_under_the_gpl(licences: ModuleType) -> None:
    """Every dependency, and theirs, has a licence that the policy of .ci/licences allows."""
    found = licences.closure(licences.ROOT)
    assert {"torch", "pynetdicom", "psycopg", "starlette"} <= set(found)
    verdicts = {name: licences.verdict(name, licences.licence(name, dist)) for name, dist in found.items()}
    assert {name: why for name, why in verdicts.items() if why} == {}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("MIT", True),
        ("LGPL-3.0-only", True),
        ("GNU Lesser General Public License v3 (LGPLv3)", True),
        ("MIT OR GPL-2.0-only", True),
        ("GPL-3.0-or-later", False),
        ("AGPL-3.0", False),
        ("GNU General Public License v2 (GPLv2)", False),
        ("MIT AND GPL-2.0-only", False),
        ("", False),
    ],
)
def test_the_policy_tells_copyleft_apart(licences: ModuleType, text: str, allowed: bool) -> None:
    """GPL and AGPL are refused, a choice and the LGPL are not, and silence needs a person."""
    assert (licences.verdict("some-package", text) == "") == allowed

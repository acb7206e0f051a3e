"""settings.toml, the code and the errors that a wrong file gives."""

import re
import tomllib
from pathlib import Path

import pytest

from daemon.errors import SettingsError
from daemon.settings import Settings, load_settings

SHIPPED = Path(__file__).parent.parent / "settings.toml"


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_shipped_file_shows_every_key_with_its_default() -> None:
    """The shipped settings.toml has exactly the keys of the code, each with the code's default."""
    shown = tomllib.loads(SHIPPED.read_text())
    defaults = Settings().model_dump(mode="json", exclude={"peers", "destinations", "rules"})
    assert shown == defaults


def test_every_key_of_the_shipped_file_says_why() -> None:
    """Each key stands on a line with a comment of its own."""
    lines = [line for line in SHIPPED.read_text().splitlines() if re.match(r"^[a-z_0-9]+ = ", line)]
    assert len(lines) > 30
    assert [line for line in lines if "#" not in line] == []


def test_commented_blocks_of_the_shipped_file_are_valid(tmp_path: Path) -> None:
    """The [[peers]] and [[destinations]] examples load once their comment marks are removed."""
    text = re.sub(r"^# ((\[\[|[a-z_]+ = ).*)$", r"\1", SHIPPED.read_text(), flags=re.M)
    settings = load_settings(_write(tmp_path, text))
    assert [d.name for d in settings.destinations] == ["pacs"]
    assert [p.name for p in settings.peers] == ["ct1"]
    assert [r.name for r in settings.rules] == ["liver"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[receiver]\nprt = 1", "receiver.prt"),
        ('[receiver]\nport = "a"', "receiver.port"),
        ("[receiver]\nport = 0", "receiver.port"),
        ("[reciever]\nport = 1", "reciever"),
        ('[receiver]\nae_title = "SEVENTEEN_LETTERS"', "receiver.ae_title"),
        ('[model]\ndevice = "gpu"', "model.device"),
        ('[model]\nweights_sha256 = "abc"', "model.weights_sha256"),
        ("[model]\nallow_download = true", "allow_download"),
        ("[receiver]\naccept_unknown_peers = false", "accept_unknown_peers"),
        ("[delivery]\nretry_delay_s = 10\nmaximum_delay_s = 5", "retry_delay_s"),
        ('[[destinations]]\nname = "a"\nae_title = "A"', "destinations.0.host"),
        ('[[rules]]\nname = "a"\nbundle = "b"\nstation = "("', "rules.0.station"),
        ('[model]\nbundle = "a"\n[[rules]]\nname = "a"\nbundle = "b"', "model.bundle"),
        (
            '[[destinations]]\nname = "a"\nae_title = "A"\nhost = "h"\n'
            '[[destinations]]\nname = "a"\nae_title = "B"\nhost = "h"',
            "destinations",
        ),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, text: str, key: str) -> None:
    """An unknown key, a wrong type, a value out of range and a contradiction each name the key."""
    with pytest.raises(SettingsError, match=re.escape(key)):
        load_settings(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[receiver]\nprot = 1", "receiver.prot: unknown key; did you mean port?"),
        ('[[destinations]]\nae_titel = "A"', "destinations.0.ae_titel: unknown key; did you mean ae_title?"),
        ("[reciever]\nport = 1", "reciever: unknown key; did you mean receiver?"),
        ("[receiver]\nzzz = 1", "receiver.zzz: unknown key; see settings.toml"),
    ],
)
def test_a_mistyped_key_is_told_the_right_one(tmp_path: Path, text: str, said: str) -> None:
    """The existing key that looks most like it, wherever it stands; else where to look."""
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings(_write(tmp_path, text))


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    """A syntax error is reported as such."""
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(_write(tmp_path, "[receiver\n"))


def test_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DAEMON_ variable wins over the file."""
    monkeypatch.setenv("DAEMON_RECEIVER__PORT", "11199")
    assert load_settings(_write(tmp_path, "[receiver]\nport = 11198")).receiver.port == 11199


def test_a_mistyped_environment_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DAEMON_ variable of no section is an error, not silence."""
    monkeypatch.setenv("DAEMON_RECIEVER__PORT", "1")
    with pytest.raises(SettingsError, match="DAEMON_RECIEVER__PORT"):
        load_settings(None)


def test_data_dir_is_relative_to_the_file(tmp_path: Path) -> None:
    """A relative data_dir does not depend on the folder that the command was started in."""
    settings = load_settings(_write(tmp_path, '[service]\ndata_dir = "here"'))
    assert settings.service.data_dir == tmp_path / "here"


def test_files_of_the_model_are_relative_to_the_file(tmp_path: Path) -> None:
    """Weights and bundle beside settings.toml are found from anywhere; tags and names stay what they are."""
    (tmp_path / "own").write_bytes(b"")
    for key, value, expected in (
        ("weights", "clip/ViT.safetensors", tmp_path / "clip/ViT.safetensors"),
        ("weights", "ViT.pt", tmp_path / "ViT.pt"),
        ("weights", "/srv/ViT.pt", "/srv/ViT.pt"),
        ("weights", "laion2b_s34b_b79k", "laion2b_s34b_b79k"),
        ("bundle", "liver-ct.v2", "liver-ct.v2"),
        ("bundle", "liver.safetensors", tmp_path / "liver.safetensors"),
        ("bundle", "own", tmp_path / "own"),
    ):
        settings = load_settings(_write(tmp_path, f'[model]\n{key} = "{value}"'))
        assert getattr(settings.model, key) == str(expected)

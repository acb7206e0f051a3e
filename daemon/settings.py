"""settings.toml and the environment → one frozen, validated object.

Each key is stated once, in ``daemon.sections``; ``settings.toml`` shows the same keys with their
defaults and a test keeps both equal. Environment variables override the file:
``DAEMON_RECEIVER__PORT=11113``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from daemon.errors import SettingsError
from daemon.profiles import PROFILES, Profile
from daemon.sections import (
    AuditSettings,
    CommitmentSettings,
    DeliverySettings,
    DestinationSettings,
    EngineSettings,
    FindingsSettings,
    ModelSettings,
    PeerSettings,
    ReceiverSettings,
    ResultsSettings,
    RetentionSettings,
    RuleSettings,
    ServiceSettings,
    StudySettings,
    TLSSettings,
    WebSettings,
)

# A database host that is cut off answers nothing at all: without these, a query waits for a quarter
# of an hour. Options in service.database replace them (libpq, chapter 34.1.2).
_POSTGRESQL_OPTIONS = (
    "connect_timeout=10&keepalives_idle=15&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=30000"
)

_MODEL_FILES = (".safetensors", ".pt", ".bin")


class Settings(BaseSettings):
    """Everything that the daemon can be told; frozen."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="DAEMON_", env_nested_delimiter="__", validate_default=True
    )

    service: ServiceSettings = ServiceSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    tls: TLSSettings = TLSSettings()
    study: StudySettings = StudySettings()
    model: ModelSettings = ModelSettings()
    findings: FindingsSettings = FindingsSettings()
    results: ResultsSettings = ResultsSettings()
    delivery: DeliverySettings = DeliverySettings()
    commitment: CommitmentSettings = CommitmentSettings()
    engine: EngineSettings = EngineSettings()
    retention: RetentionSettings = RetentionSettings()
    web: WebSettings = WebSettings()
    audit: AuditSettings = AuditSettings()
    peers: tuple[PeerSettings, ...] = ()
    destinations: tuple[DestinationSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file; no .env and no secrets folder."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("destinations", "peers", "rules")
    @classmethod
    def _names_are_unique(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} is used twice")
        return value

    @model_validator(mode="after")
    def _somebody_may_store(self) -> Settings:
        if not self.receiver.accept_unknown_peers and not any("store" in peer.may for peer in self.peers):
            raise ValueError(
                'receiver.accept_unknown_peers = false needs at least one [[peers]] entry that may "store"'
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Settings:
        if self.rules and self.model.bundle:
            raise ValueError("model.bundle and [[rules]] contradict each other: keep one of them")
        return self

    def profile_of(self, entry: DestinationSettings) -> Profile:
        """What a destination gets: its profile, or that of ``[results]``, with its own options."""
        return PROFILES[entry.profile or self.results.profile].changed(entry.model_dump())

    @property
    def audience(self) -> dict[Profile, tuple[str, ...]]:
        """Destinations by what they get; without any, the profile of ``[results]`` for whoever comes."""
        found: dict[Profile, tuple[str, ...]] = {}
        for entry in self.destinations:
            profile = self.profile_of(entry)
            found[profile] = (*found.get(profile, ()), entry.name)
        return found or {PROFILES[self.results.profile]: ()}

    @property
    def committing(self) -> list[str]:
        """Names of the destinations that are asked for storage commitment."""
        return [entry.name for entry in self.destinations if entry.commitment]

    @property
    def spool_dir(self) -> Path:
        """Received instances."""
        return self.service.data_dir / (self.service.spool_dir or "spool")

    @property
    def bundles_dir(self) -> Path:
        """Adapter bundles."""
        return self.service.data_dir / "bundles"

    @property
    def views_dir(self) -> Path:
        """Heat maps and outlines for the page."""
        return self.service.data_dir / "views"

    @property
    def metrics_dir(self) -> Path:
        """Counters of every role on this host."""
        return self.service.data_dir / "metrics"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of index and queue."""
        if url := self.service.database:
            # The driver that is installed, for a URL that names none.
            url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
            has_options = "?" in url or not url.startswith("postgresql+")
            return url if has_options else f"{url}?{_POSTGRESQL_OPTIONS}"
        return f"sqlite:///{(self.service.data_dir / 'daemon.sqlite').resolve()}"

    @property
    def engine_url(self) -> str:
        """URL of the queue's tables: the same database."""
        return self.database_url


def load_settings(path: Path | None) -> Settings:
    """Read and check the settings once.

    Parameters
    ----------
    path
        settings.toml; None for defaults and environment alone.

    Returns
    -------
    Settings
        Frozen; relative folders are relative to the file.

    Raises
    ------
    SettingsError
        Names every wrong key and what is wrong with it.
    """
    if path is not None:
        _check_toml(path)
    _check_environment()

    class _FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        settings: Settings = _FromFile()
    except ValidationError as error:
        where = str(path) if path else "the environment"
        raise SettingsError(f"{where}:\n" + "\n".join(_explain(error))) from None
    return settings if path is None else _beside(settings, path.resolve().parent)


def _beside(settings: Settings, folder: Path) -> Settings:
    """Make every path of the file absolute: a relative one is relative to the file."""
    service = settings.service.model_copy(update={"data_dir": (folder / settings.service.data_dir).resolve()})
    tls = settings.tls.model_copy(update=_joined(settings.tls, folder, ("certificate", "key", "ca")))
    files = ("certificate", "private_key", "training_dir")
    web = settings.web.model_copy(update=_joined(settings.web, folder, files))
    destinations = tuple(
        entry.model_copy(update=_joined(entry, folder, ("tls_ca",))) for entry in settings.destinations
    )
    model = settings.model.model_copy(update=_model_files(settings, folder))
    audit = settings.audit.model_copy(update=_joined(settings.audit, folder, ("syslog_ca",)))
    changed = {"service": service, "tls": tls, "web": web, "destinations": destinations, "audit": audit}
    return settings.model_copy(update=changed | {"model": model})


def _model_files(settings: Settings, folder: Path) -> dict[str, str]:
    """The model's files; a pretrained tag or a bundle's name, which the keys take as well, stays as it is."""
    found = _joined(settings.model, folder, ("weights", "bundle"))
    return {
        key: path
        for key, path in found.items()
        if Path(path).is_file()
        or "/" in (value := getattr(settings.model, key))
        or value.endswith(_MODEL_FILES)
    }


def _joined(section: Any, folder: Path, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: str(folder / value) for key in keys if (value := getattr(section, key))}


def _check_toml(path: Path) -> None:
    if not path.is_file():
        raise SettingsError(
            f"{path} does not exist: copy settings.toml from the project, or name another with --settings"
        )
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _check_environment() -> None:
    known = {f"DAEMON_{section}".upper() for section in Settings.model_fields}
    for name in os.environ:
        if name.upper().startswith("DAEMON_") and name.upper().split("__")[0] not in known:
            raise SettingsError(f"environment variable {name}: no such section of the settings")


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; see settings.toml for the keys that exist"
            if near := _nearest(item["loc"]):
                message = f"unknown key; did you mean {near}?"
        yield f"  {key}: {message}"


def _nearest(place: tuple[int | str, ...]) -> str:
    """The existing key beside a mistyped one that looks most like it, or ""."""
    model: Any = Settings
    for part in place[:-1]:
        # The entries of a table array are told apart by number, their model is the array's.
        if isinstance(part, str):
            kind = model.model_fields[part].annotation
            model = next((inner for inner in (*get_args(kind), kind) if hasattr(inner, "model_fields")), None)
            if model is None:
                return ""
    return next(iter(difflib.get_close_matches(str(place[-1]), model.model_fields, 1)), "")

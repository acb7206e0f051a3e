"""The tables of settings.toml, each with its keys, types, bounds and defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from daemon.profiles import (
    Coordinates,
    EmptyFrames,
    ParametricMap,
    ProfileName,
    Projection,
    SecondaryCapture,
    SegType,
    Unaligned,
)

AETitle = Annotated[
    str, Field(min_length=1, max_length=16, pattern=r"^[\x21-\x5b\x5d-\x7e][ -\x5b\x5d-\x7e]*$")
]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400 * 365)]
UID = Annotated[str, Field(max_length=64, pattern=r"^[0-2](\.(0|[1-9]\d*))+$")]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ServiceSettings(Section):
    """``[service]``: where things are kept and how the log looks."""

    data_dir: Path = Path("var")
    spool_dir: str = ""
    database: str = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    stop_timeout_s: Seconds = 30.0


class ReceiverSettings(Section):
    """``[receiver]``: the Storage and Verification SCP."""

    ae_title: AETitle = "ANOMALYD"
    host: str = "127.0.0.1"
    port: Port = 11112
    accept_unknown_peers: bool = True
    require_called_ae_title: bool = True
    private_sop_classes: tuple[UID, ...] = ()
    processes: Annotated[int, Field(ge=1, le=16)] = 2
    maximum_associations: Annotated[int, Field(ge=1, le=1000)] = 25
    maximum_connections: Annotated[int, Field(ge=1, le=10_000)] = 256
    maximum_request_bytes: Annotated[int, Field(ge=4096, le=1 << 24)] = 262_144
    maximum_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 24)] = 131_072
    maximum_instance_bytes: Annotated[int, Field(ge=1024)] = 4_294_967_296
    maximum_pending_messages: Annotated[int, Field(ge=1, le=1000)] = 16
    acse_timeout_s: Seconds = 30.0
    dimse_timeout_s: Seconds = 60.0
    network_timeout_s: Seconds = 60.0
    pdu_timeout_s: Seconds = 30.0
    minimum_bytes_per_s: Annotated[int, Field(ge=0)] = 10_000
    reserve_bytes: Annotated[int, Field(ge=0)] = 2_147_483_648
    reception: Literal["fast", "stock"] = "fast"
    plain: bool = True
    tls_port: Annotated[int, Field(ge=0, le=65535)] = 0
    require_client_certificate: bool = True

    @model_validator(mode="after")
    def _somewhere_to_listen(self) -> ReceiverSettings:
        if not self.plain and not self.tls_port:
            raise ValueError("plain = false needs tls_port: else nobody could associate")
        if self.plain and self.tls_port == self.port:
            raise ValueError("tls_port must not be port: plain and encrypted associations need one each")
        return self


class TLSSettings(Section):
    """``[tls]``: our certificate and whom we trust, for the TLS port and for encrypted destinations."""

    certificate: str = ""
    key: str = ""
    ca: str = ""

    @model_validator(mode="after")
    def _a_pair(self) -> TLSSettings:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: give both or none")
        return self


class PeerSettings(Section):
    """``[[peers]]``: a node that may talk to us."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    ae_title: AETitle
    host: str
    port: Port = 104
    tls: bool = False
    may: frozenset[Literal["store", "echo", "commit"]] = frozenset({"store", "echo"})


class StudySettings(Section):
    """``[study]``: when a study is stable, and how large a thing may be."""

    quiet_s: Seconds = 60.0
    close_at_release: bool = False
    maximum_frame_pixels: Annotated[int, Field(ge=1)] = 67_108_864
    maximum_study_frames: Annotated[int, Field(ge=1)] = 5_000


class ModelSettings(Section):
    """``[model]``: the backbone, the bundle and where they run."""

    backbone: str = "tiny"
    weights: str = ""
    weights_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    allow_download: bool = False
    image_size_px: Annotated[int, Field(ge=0, le=2048)] = 0
    seed: int = 0
    bundle: str = ""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: Annotated[int, Field(ge=0, le=1024)] = 0
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    decoders: Annotated[int, Field(ge=0, le=64)] = 0
    early: bool = True

    @model_validator(mode="after")
    def _downloads_need_a_name(self) -> ModelSettings:
        if self.allow_download and not self.weights:
            raise ValueError("allow_download = true needs weights = an open_clip pretrained tag")
        return self


class FindingsSettings(Section):
    """``[findings]``: which regions are worth reporting."""

    minimum_voxels: Annotated[int, Field(ge=1)] = 9
    minimum_volume_mm3: Annotated[float, Field(ge=0)] = 0.0
    maximum_findings: Annotated[int, Field(ge=1, le=50)] = 20


class ResultsSettings(Section):
    """``[results]``: who wrote them, and their form where a destination does not say."""

    manufacturer: Annotated[str, Field(min_length=1, max_length=64)] = "pacs-anomaly-daemon"
    device_serial_number: Annotated[str, Field(min_length=1, max_length=64)] = "1"
    profile: ProfileName = "standard"


class RuleSettings(Section):
    """``[[rules]]``: which bundle serves which series; the first rule that matches wins."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    bundle: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    shadow: Annotated[str, Field(pattern=r"^([A-Za-z0-9_.-]{1,64}@[0-9a-f]{12})?$")] = ""
    modality: str = ""
    body_part: str = ""
    series_description: str = ""
    station: str = ""

    @field_validator("series_description", "station")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value


class DestinationSettings(Section):
    """``[[destinations]]``: a node that gets SEG and SR."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    ae_title: AETitle
    host: str
    port: Port = 104
    calling_ae_title: AETitle | None = None
    profile: ProfileName | Literal[""] = ""
    seg: SegType | Literal[""] = ""
    unaligned: Unaligned | Literal[""] = ""
    empty_frames: EmptyFrames | Literal[""] = ""
    projection: Projection | Literal[""] = ""
    parametric_map: ParametricMap | Literal[""] = ""
    secondary_capture: SecondaryCapture | Literal[""] = ""
    coordinates: Coordinates | Literal[""] = ""
    commitment: bool = False
    tls: bool = False
    tls_ca: str = ""
    tls_host_name: str = ""
    connect_timeout_s: Seconds = 10.0
    acse_timeout_s: Seconds = 30.0
    dimse_timeout_s: Seconds = 60.0


class DeliverySettings(Section):
    """``[delivery]``: how stubbornly results are sent."""

    quick_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    retry_delay_s: Seconds = 30.0
    maximum_delay_s: Seconds = 3_600.0
    give_up_s: Seconds = 259_200.0

    @model_validator(mode="after")
    def _delays_grow(self) -> DeliverySettings:
        if self.retry_delay_s > self.maximum_delay_s:
            raise ValueError("retry_delay_s must not be larger than maximum_delay_s")
        return self


class WebSettings(Section):
    """``[web]``: the page, its users' sessions and what it may show."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    certificate: str = ""
    private_key: str = ""
    https: bool = False
    session_s: Seconds = 43_200.0
    show_patient_names: bool = True
    public_metrics: bool = True
    echo_s: Seconds = 60.0
    proxy_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")] = ""
    proxy_addresses: tuple[str, ...] = ("127.0.0.1",)
    proxy_role: Literal["", "viewer", "operator", "administrator"] = ""
    training_dir: str = ""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> WebSettings:
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("certificate and private_key belong together: set both or none")
        return self

    @property
    def secure(self) -> bool:
        """Whether browsers speak HTTPS, to us or to a proxy."""
        return self.https or bool(self.certificate)

    @property
    def proxied(self) -> bool:
        """Whether a proxy stands before the page: only then can an address be another's word."""
        return self.https or bool(self.proxy_header)


class CommitmentSettings(Section):
    """``[commitment]``: how destinations with ``commitment = true`` are asked to keep what they got."""

    timeout_s: Seconds = 600.0
    maximum_delay_s: Seconds = 3_600.0
    maximum_requests: Annotated[int, Field(ge=1, le=1000)] = 20
    wait_s: Annotated[float, Field(ge=0, le=600)] = 5.0


class AuditSettings(Section):
    """``[audit]``: the audit trail (PS3.15 A.5), to files and to a repository."""

    folder: str = "audit"
    file_bytes: Annotated[int, Field(ge=10_000)] = 10_485_760
    keep_files: Annotated[int, Field(ge=1, le=10_000)] = 50
    syslog: Annotated[str, Field(pattern=r"^(|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):\d{1,5})$")] = ""
    syslog_ca: str = ""
    source_id: Annotated[str, Field(max_length=64)] = ""
    site_id: Annotated[str, Field(max_length=64)] = ""


class EngineSettings(Section):
    """``[engine]``: the durable queue."""

    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    maximum_recovery_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    node: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    dead_after_s: Annotated[float, Field(ge=3, le=86_400)] = 90.0
    keep_completed_days: Annotated[float, Field(gt=0, le=3_650)] = 7.0


class RetentionSettings(Section):
    """``[retention]``: when the files of delivered studies are removed."""

    maximum_age_days: Annotated[float, Field(ge=0, le=36_500)] = 30.0
    prune_below_bytes: Annotated[int, Field(ge=0)] = 4_294_967_296
    hour: Annotated[int, Field(ge=0, le=23)] = 3

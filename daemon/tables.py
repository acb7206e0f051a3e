"""SQLAlchemy tables of the index: UIDs, counts, times and states; never patient data.

Every table starts with ``pacs_`` so that the engine's own tables in the same database stay apart.
Times are seconds since the epoch, UTC.
"""

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, String, Text, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PREFIX = "pacs_"


class Base(DeclarativeBase):
    """Metadata of the index's tables."""


class StudyRow(Base):
    """One study: when it came, which revision it has and how far that revision is."""

    __tablename__ = "pacs_studies"

    study_instance_uid: Mapped[str] = mapped_column(String, primary_key=True)
    first_received: Mapped[float] = mapped_column(Float)
    last_received: Mapped[float] = mapped_column(Float, index=True)
    instance_count: Mapped[int] = mapped_column(Integer, default=0)
    # The newest opened revision; 0 means that none was opened yet.
    revision: Mapped[int] = mapped_column(Integer, default=0)
    state: Mapped[str] = mapped_column(String(16), index=True)
    state_reason: Mapped[str] = mapped_column(Text, default="")
    # True when an instance arrived (or a retry was asked for) that no revision holds yet.
    dirty: Mapped[bool] = mapped_column(default=True, index=True)
    # True when evidence says that the study is complete: no quiet time is waited for.
    closed: Mapped[bool] = mapped_column(default=False)
    # When the files were removed; the row stays, so that a study that comes again gets a new revision.
    pruned_at: Mapped[float | None] = mapped_column(Float, default=None)
    # "NAME VERSION" that a person wants for the next revision; "" = what is in use then.
    wanted_bundle: Mapped[str] = mapped_column(String(80), default="", server_default="")


class InstanceRow(Base):
    """One version of one instance; a changed instance under the same UID is a new version."""

    __tablename__ = "pacs_instances"

    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), primary_key=True
    )
    sop_instance_uid: Mapped[str] = mapped_column(String, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(String)
    sop_class_uid: Mapped[str] = mapped_column(String)
    transfer_syntax_uid: Mapped[str] = mapped_column(String)
    path: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[float] = mapped_column(Float)
    calling_ae: Mapped[str] = mapped_column(String(16))
    # The first revision that holds this version; none until one is opened.
    revision: Mapped[int | None] = mapped_column(Integer, default=None)

    __table_args__ = (Index("ix_pacs_instances_sop", "sop_instance_uid"),)


class ResultRow(Base):
    """One result object of one study revision."""

    __tablename__ = "pacs_results"

    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), primary_key=True
    )
    revision: Mapped[int] = mapped_column(Integer, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String, primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(String)
    sop_class_uid: Mapped[str] = mapped_column(String)
    kind: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    # Names of the destinations that get it; "" is every one.
    destinations: Mapped[str] = mapped_column(Text, default="", server_default="")

    __table_args__ = (Index("ix_pacs_results_sop", "sop_instance_uid"),)


class ScoreRow(Base):
    """What one bundle said of one frame group of one study revision; shadows are candidates."""

    __tablename__ = "pacs_scores"

    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), primary_key=True
    )
    revision: Mapped[int] = mapped_column(Integer, primary_key=True)
    group_key: Mapped[str] = mapped_column(String(16), primary_key=True)
    bundle_version: Mapped[str] = mapped_column(String(12), primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(String)
    modality: Mapped[str] = mapped_column(String(16))
    bundle_name: Mapped[str] = mapped_column(String(64), index=True)
    shadow: Mapped[bool] = mapped_column()
    slices: Mapped[int] = mapped_column(Integer)
    maximum: Mapped[float] = mapped_column(Float)
    mean: Mapped[float] = mapped_column(Float)
    findings: Mapped[int] = mapped_column(Integer)
    scored_at: Mapped[float] = mapped_column(Float)
    # Keyed hash of StationName: tells scanners apart and names none.
    scanner: Mapped[str] = mapped_column(String(16), default="", server_default="")
    # Whether drift has taken it in: into a block, or as a later revision, which belongs to none.
    counted: Mapped[bool] = mapped_column(default=False, server_default=false())

    # What no block has yet is looked for every minute, among all that was ever scored.
    __table_args__ = (
        Index(
            "ix_pacs_scores_uncounted",
            "bundle_name",
            "bundle_version",
            "scanner",
            "scored_at",
            sqlite_where=text("counted = 0 AND shadow = 0"),
            postgresql_where=text("NOT counted AND NOT shadow"),
        ),
    )


class DeliveryRow(Base):
    """One result object on its way to one destination."""

    __tablename__ = "pacs_deliveries"

    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), primary_key=True
    )
    revision: Mapped[int] = mapped_column(Integer, primary_key=True)
    destination: Mapped[str] = mapped_column(String, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String, primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    last_error: Mapped[str] = mapped_column(Text, default="")
    next_at: Mapped[float] = mapped_column(Float, default=0.0)
    # When a delivery that still fails becomes a dead letter.
    expires_at: Mapped[float] = mapped_column(Float, default=0.0)
    # When the destination committed itself to keep it; none before, or where it is not asked to.
    committed_at: Mapped[float | None] = mapped_column(Float, default=None)

    # What is not committed yet is looked for every few seconds.
    __table_args__ = (Index("ix_pacs_deliveries_commitment", "destination", "committed_at"),)


class CommitmentRow(Base):
    """One request for storage commitment of one revision's results at one destination."""

    __tablename__ = "pacs_commitments"

    transaction_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), index=True
    )
    revision: Mapped[int] = mapped_column(Integer)
    destination: Mapped[str] = mapped_column(String)
    asked_at: Mapped[float] = mapped_column(Float)
    # "asked"; "accepted" once the destination took the request; "past" when a person had it asked anew.
    state: Mapped[str] = mapped_column(String(16), default="asked", server_default="asked")


class ExecutorRow(Base):
    """One process that works on the queue, and when it was last heard of on the database's clock."""

    __tablename__ = "pacs_executors"

    executor_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    last_seen: Mapped[float] = mapped_column(Float)


class PauseRow(Base):
    """One destination that gets nothing until it is resumed."""

    __tablename__ = "pacs_pauses"

    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    since: Mapped[float] = mapped_column(Float)

"""SQLAlchemy tables of the page: users, verdicts on findings, blocks of scores; never patient data."""

from sqlalchemy import Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from daemon.tables import Base


class UserRow(Base):
    """Somebody who may sign in."""

    __tablename__ = "pacs_users"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    # Argon2id with its own parameters and salt (RFC 9106).
    password_hash: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[float] = mapped_column(Float)


class VerdictRow(Base):
    """One verdict on one finding; the newest one counts, the older ones stay as history."""

    __tablename__ = "pacs_verdicts"

    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), primary_key=True
    )
    tracking_uid: Mapped[str] = mapped_column(String, primary_key=True)
    given_at: Mapped[float] = mapped_column(Float, primary_key=True)
    given_by: Mapped[str] = mapped_column(String(64))
    verdict: Mapped[str] = mapped_column(String(16))
    # JSON: slice index → polygons that a person drew; "" where nothing was drawn.
    correction: Mapped[str] = mapped_column(Text, default="")
    revision: Mapped[int] = mapped_column(Integer)
    group_key: Mapped[str] = mapped_column(String(16))
    series_instance_uid: Mapped[str] = mapped_column(String)
    bundle_version: Mapped[str] = mapped_column(String(12))
    peak: Mapped[float] = mapped_column(Float)


class FeedbackExportRow(Base):
    """When the feedback on a study was last exported as a training case."""

    __tablename__ = "pacs_feedback_exports"

    study_instance_uid: Mapped[str] = mapped_column(
        ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"), primary_key=True
    )
    exported_at: Mapped[float] = mapped_column(Float)


class ScoreBlockRow(Base):
    """So many studies in a row of one bundle version on one scanner; never changed once it is full."""

    __tablename__ = "pacs_score_blocks"

    bundle_name: Mapped[str] = mapped_column(String(64), primary_key=True)
    bundle_version: Mapped[str] = mapped_column(String(12), primary_key=True)
    scanner: Mapped[str] = mapped_column(String(16), primary_key=True)
    # From 1, the reference of the others.
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    starts_at: Mapped[float] = mapped_column(Float)
    ends_at: Mapped[float] = mapped_column(Float, index=True)
    # JSON: the highest slice score of each study.
    scores: Mapped[str] = mapped_column(Text)
    # Of the test against the first block; none for that one itself.
    p_first: Mapped[float | None] = mapped_column(Float)

"""Studies, instances, results and deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _study_key() -> sa.Column[str]:
    return sa.Column(
        "study_instance_uid",
        sa.String(),
        sa.ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"),
        primary_key=True,
    )


def upgrade() -> None:
    """Bring the schema to this version."""
    op.create_table(
        "pacs_studies",
        sa.Column("study_instance_uid", sa.String(), primary_key=True),
        sa.Column("first_received", sa.Float(), nullable=False),
        sa.Column("last_received", sa.Float(), nullable=False, index=True),
        sa.Column("instance_count", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("dirty", sa.Boolean(), nullable=False, index=True),
        sa.Column("closed", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "pacs_instances",
        _study_key(),
        sa.Column("sop_instance_uid", sa.String(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=True),
    )
    op.create_index("ix_pacs_instances_sop", "pacs_instances", ["sop_instance_uid"])
    op.create_table(
        "pacs_results",
        _study_key(),
        sa.Column("revision", sa.Integer(), primary_key=True),
        sa.Column("sop_instance_uid", sa.String(), primary_key=True),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_index("ix_pacs_results_sop", "pacs_results", ["sop_instance_uid"])
    op.create_table(
        "pacs_deliveries",
        _study_key(),
        sa.Column("revision", sa.Integer(), primary_key=True),
        sa.Column("destination", sa.String(), primary_key=True),
        sa.Column("sop_instance_uid", sa.String(), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("committed_at", sa.Float(), nullable=True),
    )
    op.create_table(
        "pacs_commitments",
        sa.Column("transaction_uid", sa.String(64), primary_key=True),
        sa.Column(
            "study_instance_uid",
            sa.String(),
            sa.ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "pacs_scores",
        _study_key(),
        sa.Column("revision", sa.Integer(), primary_key=True),
        sa.Column("group_key", sa.String(16), primary_key=True),
        sa.Column("bundle_version", sa.String(12), primary_key=True),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("bundle_name", sa.String(64), nullable=False, index=True),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.Column("slices", sa.Integer(), nullable=False),
        sa.Column("maximum", sa.Float(), nullable=False),
        sa.Column("mean", sa.Float(), nullable=False),
        sa.Column("findings", sa.Integer(), nullable=False),
        sa.Column("scored_at", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    """Take the schema back to the version before."""
    for table in (
        "pacs_commitments",
        "pacs_scores",
        "pacs_deliveries",
        "pacs_results",
        "pacs_instances",
        "pacs_studies",
    ):
        op.drop_table(table)

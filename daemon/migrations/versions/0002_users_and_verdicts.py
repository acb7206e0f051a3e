"""Users of the page, and what people said of findings."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    op.create_table(
        "pacs_users",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "pacs_verdicts",
        sa.Column(
            "study_instance_uid",
            sa.String(),
            sa.ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("tracking_uid", sa.String(), primary_key=True),
        sa.Column("given_at", sa.Float(), primary_key=True),
        sa.Column("given_by", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("correction", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("group_key", sa.String(16), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("bundle_version", sa.String(12), nullable=False),
        sa.Column("peak", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.drop_table("pacs_verdicts")
    op.drop_table("pacs_users")

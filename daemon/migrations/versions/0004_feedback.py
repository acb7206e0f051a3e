"""Which bundle a person wants, which scanner a score is of, and which feedback was exported."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    op.add_column(
        "pacs_studies", sa.Column("wanted_bundle", sa.String(80), nullable=False, server_default="")
    )
    op.add_column("pacs_scores", sa.Column("scanner", sa.String(16), nullable=False, server_default=""))
    op.create_table(
        "pacs_feedback_exports",
        sa.Column(
            "study_instance_uid",
            sa.String(),
            sa.ForeignKey("pacs_studies.study_instance_uid", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("exported_at", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.drop_table("pacs_feedback_exports")
    op.drop_column("pacs_scores", "scanner")
    op.drop_column("pacs_studies", "wanted_bundle")

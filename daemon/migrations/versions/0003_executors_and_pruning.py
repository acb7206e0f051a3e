"""Who is at work and since when not, which destinations are paused, which studies were pruned."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    op.create_table(
        "pacs_executors",
        sa.Column("executor_id", sa.String(255), primary_key=True),
        sa.Column("last_seen", sa.Float(), nullable=False),
    )
    op.create_table(
        "pacs_pauses",
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("since", sa.Float(), nullable=False),
    )
    op.add_column("pacs_studies", sa.Column("pruned_at", sa.Float(), nullable=True))


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.drop_column("pacs_studies", "pruned_at")
    op.drop_table("pacs_pauses")
    op.drop_table("pacs_executors")

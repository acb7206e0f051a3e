"""Blocks of scores that are tested for drift, each once, and which scores are in them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    # What was scored so far is cut into blocks from the oldest on, when drift is next looked for.
    op.add_column(
        "pacs_scores", sa.Column("counted", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.create_index(
        "ix_pacs_scores_uncounted",
        "pacs_scores",
        ["bundle_name", "bundle_version", "scanner", "scored_at"],
        sqlite_where=sa.text("counted = 0 AND shadow = 0"),
        postgresql_where=sa.text("NOT counted AND NOT shadow"),
    )
    op.create_table(
        "pacs_score_blocks",
        sa.Column("bundle_name", sa.String(64), primary_key=True),
        sa.Column("bundle_version", sa.String(12), primary_key=True),
        sa.Column("scanner", sa.String(16), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("starts_at", sa.Float(), nullable=False),
        sa.Column("ends_at", sa.Float(), nullable=False),
        sa.Column("scores", sa.Text(), nullable=False),
        sa.Column("p_first", sa.Float(), nullable=True),
    )
    op.create_index("ix_pacs_score_blocks_ends_at", "pacs_score_blocks", ["ends_at"])


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.drop_table("pacs_score_blocks")
    op.drop_index("ix_pacs_scores_uncounted", "pacs_scores")
    op.drop_column("pacs_scores", "counted")

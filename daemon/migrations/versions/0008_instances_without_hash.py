"""Instances have no hash any more: whether one came again is seen by its bytes, and nobody else asked."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    op.drop_column("pacs_instances", "sha256")


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.add_column("pacs_instances", sa.Column("sha256", sa.String(64), nullable=False, server_default=""))

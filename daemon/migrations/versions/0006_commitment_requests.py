"""Whether a destination accepted a request for commitment, and an index for what is not committed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    # Nobody noted whether the requests so far reached anybody: they do not count.
    op.add_column(
        "pacs_commitments", sa.Column("state", sa.String(16), nullable=False, server_default="asked")
    )
    op.create_index("ix_pacs_deliveries_commitment", "pacs_deliveries", ["destination", "committed_at"])


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.drop_index("ix_pacs_deliveries_commitment", "pacs_deliveries")
    op.drop_column("pacs_commitments", "state")

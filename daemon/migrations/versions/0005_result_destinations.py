"""Which destinations get a result: their profiles ask for different forms of it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this version."""
    op.add_column("pacs_results", sa.Column("destinations", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Take the schema back to the version before."""
    op.drop_column("pacs_results", "destinations")

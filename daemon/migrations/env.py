"""Run the migrations on the connection that the index hands over; tables of others stay untouched."""

from typing import Any

from alembic import context

from daemon.tables import PREFIX, Base


def _is_ours(_item: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
    # Indexes and columns belong to their table, which is asked about first.
    return kind != "table" or (name or "").startswith(PREFIX)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    include_object=_is_ours,
    version_table=f"{PREFIX}alembic_version",
)
context.run_migrations()

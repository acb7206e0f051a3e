"""Users of the page: names, roles and Argon2id password hashes (RFC 9106)."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from daemon.errors import SettingsError
from daemon.tables_web import UserRow

Role = Literal["viewer", "operator", "administrator"]
ROLES: tuple[Role, ...] = get_args(Role)
MINIMUM_PASSWORD = 10
_NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@")


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may sign in; ``stamp`` changes with the password or role and ends old sessions."""

    name: str
    role: Role
    stamp: str

    def may(self, role: Role) -> bool:
        """Whether this account has the rights of a role: each role has those before it."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Accounts:
    """The table of users.

    Parameters
    ----------
    reader, writer
        The database, to read with and to write with.
    """

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader, self._writer = reader, writer
        self._hasher = PasswordHasher()
        # Verified when the name is unknown, so that the time taken does not tell which names exist.
        self._nobody = self._hasher.hash("nobody has this password")

    def set(self, name: str, password: str, role: Role) -> None:
        """Make a user, or change the password and role of one.

        Raises
        ------
        SettingsError
            The name or the password will not do.
        """
        if not name or len(name) > 64 or not set(name) <= _NAME_CHARACTERS:
            raise SettingsError(f"user name {name!r}: use at most 64 letters, digits, '.', '_', '-' and '@'")
        if len(password) < MINIMUM_PASSWORD:
            raise SettingsError(f"the password is too short: use at least {MINIMUM_PASSWORD} characters")
        hashed = self._hasher.hash(password)
        with Session(self._writer) as session, session.begin():
            session.merge(UserRow(name=name, role=role, password_hash=hashed, changed_at=time.time()))

    def remove(self, name: str) -> None:
        """Delete a user; their sessions end at once.

        Raises
        ------
        SettingsError
            Nobody is called so.
        """
        with Session(self._writer) as session, session.begin():
            row = session.get(UserRow, name)
            if row is None:
                raise SettingsError(f"there is no user {name!r}; `daemon user list` shows them")
            session.delete(row)

    def check(self, name: str, password: str) -> Account | None:
        """The account if name and password are right."""
        with Session(self._reader) as session:
            row = session.get(UserRow, name)
        try:
            self._hasher.verify(row.password_hash if row else self._nobody, password)
        except (VerifyMismatchError, InvalidHashError):
            return None
        return _account(row) if row else None

    def find(self, name: str) -> Account | None:
        """The account of a name."""
        with Session(self._reader) as session:
            row = session.get(UserRow, name)
        return _account(row) if row else None

    def all(self) -> list[Account]:
        """Every account, by name."""
        with Session(self._reader) as session:
            return [_account(row) for row in session.scalars(select(UserRow).order_by(UserRow.name))]

    def count(self) -> int:
        """How many users there are."""
        with Session(self._reader) as session:
            return session.scalar(select(func.count()).select_from(UserRow)) or 0


def _account(row: UserRow) -> Account:
    stamp = hashlib.sha256(f"{row.role} {row.password_hash}".encode()).hexdigest()[:16]
    role: Role = next((known for known in ROLES if known == row.role), "viewer")
    return Account(row.name, role, stamp)

"""Certificates of the settings and how long they are good for."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.errors import SettingsError
from daemon.settings import Settings
from daemon.tls import days_left


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate and its days until expiry."""

    name: str
    days: float

    @property
    def words(self) -> str:
        """How long it is good for."""
        return "has expired" if self.days < 0 else f"expires in {self.days:.0f} days"


def certificates(settings: Settings) -> list[Certificate]:
    """Every certificate that the settings name, by the key that names it."""
    try:
        return [Certificate(name, days) for name, days in sorted(days_left(settings).items())]
    except SettingsError as error:
        # Unreadable is as good as expired; the message names the key and the file.
        return [Certificate(str(error), -1.0)]

"""What can be wrong with the data of a fit.

::

    DataError               the cases are too few or do not fit together
    └── SiteDataError       nothing can be fitted on a site folder; the message says what is missing
        └── AnnotationError     one annotation, label or image cannot be used; the rest of the site can
"""

from __future__ import annotations

from training.cases import SiteData


class DataError(ValueError):
    """The cases are too few or do not fit together; the message says what is missing."""


class SiteDataError(DataError):
    """The site folder cannot be fitted on; the message says what is missing and what to do.

    Parameters
    ----------
    message
        One sentence for the site's engineer.
    site
        What was understood all the same, for the table of a dry run.
    """

    def __init__(self, message: str, site: SiteData | None = None) -> None:
        super().__init__(message)
        self.site = site


class AnnotationError(SiteDataError):
    """One file, or one part of it, cannot be used; the message says why."""

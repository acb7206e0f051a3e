"""The presentation contexts of an association in which its peer may store."""

from typing import Any

from pynetdicom.association import Association
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class


class StorageContexts:
    """Which of an association's contexts are for storage, each looked at once.

    Parameters
    ----------
    assoc
        The association; what it was asked for is negotiated before a request comes.
    """

    def __init__(self, assoc: Association) -> None:
        self._assoc: Any = assoc
        self._known: dict[int, tuple[str, str]] = {}

    def find(self, context_id: int) -> tuple[str, str]:
        """Return SOP class and transfer syntax of a context that we receive in; both empty for another."""
        if context_id not in self._known:
            self._known[context_id] = self._look(context_id)
        return self._known[context_id]

    def _look(self, context_id: int) -> tuple[str, str]:
        context = self._assoc._accepted_cx.get(context_id)
        if context is None or not context.as_scp:
            return "", ""
        sop_class_uid = str(context.abstract_syntax)
        if uid_to_service_class(sop_class_uid) is not StorageServiceClass:
            return "", ""
        return sop_class_uid, str(context.transfer_syntax[0])

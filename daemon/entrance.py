"""The entrance: whoever asks for an association is judged, given a place while there is one, or told why not.

Rejections: PS3.8 table 9-21.
"""

from daemon import dimse
from daemon.admission import Admission, Peer, Verdict
from daemon.audit import Trail
from daemon.doorstep import Request
from daemon.fellows import Fellow
from daemon.limits import LimitError, plain_address
from daemon.log import event


class Entrance:
    """The entrance of one process of the receiving role.

    Parameters
    ----------
    admission
        Who may associate, from where, and what each may do.
    fellow
        Counts this process' associations and connections for all processes of its role.
    maximum_associations
        Of all of them together.
    trail
        Where refusals are audited.
    """

    def __init__(self, admission: Admission, fellow: Fellow, maximum_associations: int, trail: Trail) -> None:
        self._admission, self._fellow, self._trail = admission, fellow, trail
        self._maximum_associations = maximum_associations

    @property
    def places(self) -> int:
        """How many associations of this process have a place."""
        return self._fellow.places

    def admit(self, request: Request, address: str) -> Verdict:
        """Judge an association request; one that is let in has a place until :meth:`leave`."""
        address = plain_address(address)
        verdict = self._admission.judge(request.calling_ae, request.called_ae, address)
        if verdict.reject is None and not self._fellow.enter(self._maximum_associations):
            reason = "too many associations (receiver.maximum_associations)"
            verdict = Verdict(dimse.REJECT_LIMIT, frozenset(), reason)
        if verdict.reject is not None:
            outcome = f"rejected: {verdict.reason}"
            calling_ae, called_ae = request.calling_ae, request.called_ae
            event("association", calling_ae=calling_ae, called_ae=called_ae, address=address, outcome=outcome)
            self._trail.refused(request.calling_ae, address, verdict.reason)
        return verdict

    def leave(self) -> None:
        """Give the place of an association back."""
        self._fellow.leave()

    def ended(self) -> None:
        """Take note that a connection has ended."""
        self._fellow.ended()

    def alarm(self, address: str, error: LimitError) -> None:
        """Audit a peer that TLS did not let in."""
        if error.reason.startswith("TLS:"):
            self._trail.refused("", plain_address(address), error.reason)

    def peer(self, calling_ae: str, address: str) -> Peer | None:
        """Return the listed peer that calls so, from there."""
        return self._admission.find(calling_ae, plain_address(address))

"""The fast path of reception: C-STORE requests are taken out of the socket's buffer, not out of queues.

pynetdicom keeps the association: negotiation, release, abort, every other service and every
surprise. Its private attributes are touched here and nowhere else, so that this room holds for the
one version that it names (:func:`daemon.reception.choice.why_not`); with another the node receives
the stock way, slower and just as well.

    socket → PDVs in place → message → journal (durable: Success) → file of its own → index
"""

"""Exceptions about pixels, weights and bundles.

::

    AdapterError
    ├── DecodeError        a frame cannot be decoded, or is over the limits
    ├── BackboneError      weights are missing, damaged or of another model
    ├── BundleError        a bundle is damaged, or made for another backbone
    └── CalibrationError   the held-out normals cannot support the asked operating point
"""


class AdapterError(Exception):
    """The model cannot go on with this; the message says what is wrong and what to do."""


class DecodeError(AdapterError):
    """The pixel data cannot be decoded; the message is fit for an administrator, without patient data."""


class BackboneError(AdapterError):
    """The backbone's weights are missing, damaged or belong to another model."""


class BundleError(AdapterError):
    """The adapter bundle is damaged or belongs to another backbone."""


class CalibrationError(AdapterError):
    """Too few held-out normals for this operating point."""

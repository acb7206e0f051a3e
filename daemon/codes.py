"""Every coded concept that we emit, with the context group (PS3.16 CID) it comes from."""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

PRIVATE_SCHEME = "99ANOMD"

# SEG, CID 7150 and CID 7151
ABNORMAL_STRUCTURE = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
LESION = CodedConcept("52988006", "SCT", "Lesion")
# CID 7162
ARTIFICIAL_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")
# CID 7005
PROCESSING_EQUIPMENT = CodedConcept("109102", "DCM", "Processing Equipment")

# SR root: CID 7021, CID 270
IMAGING_MEASUREMENT_REPORT = CodedConcept("126000", "DCM", "Imaging Measurement Report")
DEVICE = CodedConcept("121007", "DCM", "Device")
ENGLISH_US = CodedConcept("en-US", "RFC5646", "English (United States)")

# Image library, TID 1600 to 1606
IMAGE_LIBRARY = CodedConcept("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = CodedConcept("126200", "DCM", "Image Library Group")
MODALITY = CodedConcept("121139", "DCM", "Modality")
FRAME_OF_REFERENCE = CodedConcept("112227", "DCM", "Frame of Reference UID")
PIXEL_DATA_ROWS = CodedConcept("110910", "DCM", "Pixel Data Rows")
PIXEL_DATA_COLUMNS = CodedConcept("110911", "DCM", "Pixel Data Columns")
SOURCE = CodedConcept("260753009", "SCT", "Source")
PIXELS = CodedConcept("{pixels}", "UCUM", "Pixels")

# Statements about a series: CID 240 (presence), CID 242 (normality)
PRESENT = CodedConcept("52101004", "SCT", "Present")
ABSENT = CodedConcept("272519000", "SCT", "Absent")
UNDETERMINED = CodedConcept("373068000", "SCT", "Undetermined")
NORMALITY = CodedConcept("121402", "DCM", "Normality")
ABNORMAL = CodedConcept("263654008", "SCT", "Abnormal")
NORMAL = CodedConcept("17621005", "SCT", "Normal")
NORMALITY_UNDETERMINED = CodedConcept("371934000", "SCT", "Normality undetermined")
COMMENT = CodedConcept("121106", "DCM", "Comment")

# Measurements
ANOMALY_SCORE = CodedConcept("ANOMSCORE", PRIVATE_SCHEME, "Anomaly score")
IMAGES_SCORED = CodedConcept("IMAGESCORED", PRIVATE_SCHEME, "Images scored")
VOLUME = CodedConcept("118565006", "SCT", "Volume")
AREA = CodedConcept("42798000", "SCT", "Area")
DIAMETER = CodedConcept("81827009", "SCT", "Diameter")
VOXEL_SUMMATION = CodedConcept("YEKZ", "IBSI", "Volume from Voxel Summation")
# CID 3488
MAXIMUM = CodedConcept("56851009", "SCT", "Maximum")
MEAN = CodedConcept("373098007", "SCT", "Mean")
# CID 7181
NO_UNITS = CodedConcept("1", "UCUM", "no units")
IMAGES = CodedConcept("{images}", "UCUM", "images")
MM = CodedConcept("mm", "UCUM", "millimeter")
MM2 = CodedConcept("mm2", "UCUM", "square millimeter")
MM3 = CodedConcept("mm3", "UCUM", "cubic millimeter")

# CID 100: the imaging procedure that was reported on
_PROCEDURES = {
    "CT": CodedConcept("25045-6", "LN", "CT unspecified body region"),
    "MR": CodedConcept("25056-3", "LN", "MRI unspecified body region"),
    "CR": CodedConcept("43468-8", "LN", "XR unspecified body region"),
    "DX": CodedConcept("43468-8", "LN", "XR unspecified body region"),
    "RG": CodedConcept("43468-8", "LN", "XR unspecified body region"),
    "PT": CodedConcept("44136-0", "LN", "PET unspecified body region"),
    "NM": CodedConcept("49118-3", "LN", "NM unspecified body region"),
}
IMAGING_PROCEDURE = CodedConcept("363679005", "SCT", "Imaging procedure")


def procedure(modality: str) -> CodedConcept:
    """Imaging procedure (CID 100) of a modality, the general one where CID 100 has none."""
    return _PROCEDURES.get(modality, IMAGING_PROCEDURE)


def modality_code(modality: str) -> CodedConcept | None:
    """Acquisition modality (CID 29) of a Modality value, or None if CID 29 lacks it."""
    for keyword in codes.cid29.dir():
        code = getattr(codes.cid29, keyword)
        if code.value == modality and code.scheme_designator == "DCM":
            return CodedConcept.from_code(code)
    return None


def private_scheme() -> CodingSchemeIdentificationItem:
    """Identification of our private coding scheme (PS3.3 C.12.1.4.1)."""
    return CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME,
        name="PACS anomaly daemon codes",
        version="1",
        responsible_organization="pacs-anomaly-daemon",
    )

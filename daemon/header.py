"""Headers of source images: what is read of them, and how it is copied byte for byte."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from adapters.bounded import HEADER_LIMIT_BYTES
from daemon.attributes import attributes
from daemon.errors import EncodeError, SpoolError

# Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study modules
# (PS3.3 C.7.1.1, C.7.1.3, C.7.2.1 to C.7.2.3): the same in source, SEG and SR.
_PATIENT_AND_STUDY = """
    SpecificCharacterSet TimezoneOffsetFromUTC PatientName PatientID IssuerOfPatientID
    IssuerOfPatientIDQualifiersSequence TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex
    OtherPatientIDsSequence OtherPatientNames EthnicGroup PatientComments PatientSpeciesDescription
    PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence
    BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    QualityControlSubject ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName
    ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber
    IssuerOfAccessionNumberSequence StudyDescription PhysiciansOfRecord NameOfPhysiciansReadingStudy
    ProcedureCodeSequence ReasonForPerformedProcedureCodeSequence AdmittingDiagnosesDescription
    AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientWeight PatientSexNeutered
    PatientState PregnancyStatus SmokingStatus MedicalAlerts Allergies Occupation
    AdditionalPatientHistory LastMenstrualDate AdmissionID IssuerOfAdmissionIDSequence
    ServiceEpisodeID ServiceEpisodeDescription ClinicalTrialTimePointID
    ClinicalTrialTimePointDescription
    """.split()
# What the encoders read beside it.
_IMAGE = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID Modality NumberOfFrames SliceThickness
    PatientOrientation Laterality BodyPartExamined AnatomicRegionSequence
    SharedFunctionalGroupsSequence LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod PositionReferenceIndicator
    """.split()
# Type 2 of those modules: highdicom reads them from the first source image.
TYPE_2 = """
    PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime
    ReferringPhysicianName
    """.split()


def read_header(path: Path) -> Dataset:
    """Read the white-listed attributes of one file, never its pixels.

    Parameters
    ----------
    path
        Of a Part 10 file.

    Returns
    -------
    The attributes, as stored.

    Raises
    ------
    EncodeError
        If it cannot be read.
    """
    try:
        with attributes(path, (*_PATIENT_AND_STUDY, *_IMAGE), HEADER_LIMIT_BYTES) as ds:
            return ds
    except SpoolError as error:
        raise EncodeError("a source image can no longer be read: restore it to the spool") from error


def restore_attributes(header: Dataset, ds: Dataset) -> None:
    """Copy patient and study attributes verbatim: damaged dates and character sets stay as they came.

    Parameters
    ----------
    header
        From :func:`read_header`.
    ds
        Result object; changed in place. Its own text is ASCII, hence right in any character set.
    """
    for keyword in _PATIENT_AND_STUDY:
        tag = _tag(keyword)
        if tag not in header:
            if keyword not in TYPE_2:
                ds.pop(tag, None)
            continue
        ds[tag] = _verbatim(header, tag)


def _verbatim(header: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    """Element of a header with the value's bytes as stored; sequences are decoded copies."""
    element: DataElement | RawDataElement = header.get_item(tag)
    vr = dictionary_VR(tag)
    if isinstance(element, RawDataElement) and vr != "SQ":
        return element._replace(VR=vr, is_implicit_VR=False, is_little_endian=True, is_raw=True)
    return deepcopy(header[tag])


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return Tag(tag)

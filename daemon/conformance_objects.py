"""The part of the conformance statement that says what is in the objects that we create."""

OBJECTS = """
Manufacturer is `{manufacturer}`, Device Serial Number `{serial}` (`results.manufacturer`,
`results.device_serial_number`). UIDs are `2.25.` and a UUID of version 8 hashed from study, instances,
model, parameters and revision: the same revision makes the same objects, byte for byte.

Common to all: the Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study
modules of the source, verbatim; Timezone Offset From UTC of the source, in which our times are written;
Instance Creator UID; one Contributing Equipment item (109102, DCM, "Processing Equipment") with Device UID
for each algorithm; a series of its own; the word "research" in Series Description; Burned In Annotation NO
in images; Content Qualification RESEARCH where the IOD has it.

| object | series number | made |
|---|---|---|
| Comprehensive 3D SR | 9000 | one for each study revision that has an image |
| Segmentation, Label Map Segmentation | 9001 | one for each frame group, or frame out of space, with any |
| Parametric Map | 9002 | one for each frame group with a frame of reference, where a destination wants it |
| Secondary Capture | 9003 | one for each frame group, where a destination wants it |

### Segmentation

On the grid of the source frames: Rows, Columns, orientation and positions are theirs. One segment for each
finding, at most {findings}; category (49755003, SCT), type (52988006, SCT); AUTOMATIC, algorithm family
(123110, DCM); Tracking ID and UID as in the SR; Recommended Display CIELab Value. Each frame has a
Derivation Image item with its source instance and, for multi-frame sources, frame number; Referenced Series
Sequence lists the source. Type BINARY, or FRACTIONAL (OCCUPANCY, maximum 1), or LABELMAP, as the profile of
the destination says. Frame Of Reference UID is the source's. An image without a place in space has a SEG
without one, which refers to its pixels; where the profile says so (projection = plane, as `ohif` does), that
SEG has a new Frame Of Reference UID of its own and an assumed plane: axial unless the image has an
orientation, in the image's pixel spacing, else with pixels of 1 mm.

### Comprehensive 3D SR

TID 1500 with a TID 1600 image library, device observer (TID 1004), language en-US. One TID 1501 group for
each frame group: Lesion present, absent or undetermined; Normality; a comment that says "scored N of M",
what could not be scored and why; the algorithm with the hash of its adapters (TID 4019); the highest slice
score, whose SCOORD is a mark in the upper left corner of an image and no region. For each finding a
TID 1410 group with the outline of its largest slice (SCOORD) and its size, and a TID 1411 group (a volume)
or TID 1410 group (an image) with its segment, score and volume. COMPLETE, UNVERIFIED, PRELIMINARY.
Predecessor Documents Sequence names the SR of the revision before, at the same destination.

### Parametric Map

The score of every pixel, 0 to 1: unsigned 16 bits with slope 1/65535, or 32-bit floating point. Real World
Value Mapping: LUT Label ANOMSCORE, unit (1, UCUM), quantity (ANOMSCORE, 99ANOMD).

### Secondary Capture

RGB, 8 bits, Conversion Type WSD; no spacing and no orientation, so that nobody measures in it.
"""

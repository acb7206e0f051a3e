"""The judges of the result objects: dciodvfy, dcentvfy and PixelMed's SR validator, run as programs.

dicom-validator is not among them: it needs the standard's tables, which it would download.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

# The tools' own faults, each with why it is not ours. Everything else that they call an error is one.
KNOWN_DCIODVFY = (
    # CP-2061 and later attributes are unknown to the packaged dictionary.
    re.compile(r"DeviceUID.*not standard|QUANTITY.*not standard"),
)
KNOWN_PIXELMED = (
    # It applies TID 1410 and 1411 to every group named "Measurement Group", TID 1501's as well: a
    # group that has neither coordinates nor a segment, and needs none, then lacks them.
    re.compile(
        r"Template 141[01] .*(Image Region|Referenced Segment|Volume Surface).*Missing conditional content"
    ),
    # Its CID 100 is of an edition before the general LOINC codes for projection radiography.
    re.compile(r"Code \(43468-8,LN,.*not found in context group 100"),
)
# Newer Java stops at the number of operators in PixelMed's style sheet. The program ends before the second
# compiler has paid off.
_JAVA = (
    "-Djdk.xml.xpathTotalOpLimit=0 -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathExprGrpLimit=0 "
    "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
)


def require(program: str) -> str:
    """Return the path of a validator, or skip the test and say which package has it."""
    path = shutil.which(program)
    if path is None:
        package = "pixelmed-apps" if program == "DicomSRValidator" else "dicom3tools"
        pytest.skip(f"{program} is missing: install the Debian package {package}")
    return path


def dciodvfy_errors(path: Path) -> list[str]:
    """Return the errors of an object against its IOD (PS3.3), without the known faults of the tool."""
    return _unknown(_run([require("dciodvfy"), str(path)]), "Error", KNOWN_DCIODVFY)


def dcentvfy_errors(paths: Iterable[Path]) -> list[str]:
    """Return where a set of objects contradicts itself about patient, study, series or frame of reference."""
    return _unknown(_run([require("dcentvfy"), *map(str, paths)]), "Error", ())


def pixelmed_errors(path: Path) -> list[str]:
    """Return the errors of an SR against its templates (PS3.16), without the known faults of the tool."""
    output = _run([require("DicomSRValidator"), str(path)], {"JAVA_TOOL_OPTIONS": _JAVA})
    if "IOD validation complete" not in output:
        return [f"PixelMed did not finish: {output[:500]}"]
    return _unknown(output, "Error", KNOWN_PIXELMED)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.stdout + done.stderr


def _unknown(output: str, word: str, known: tuple[re.Pattern[str], ...]) -> list[str]:
    lines = [line for line in output.splitlines() if line.startswith(word)]
    return [line for line in lines if not any(pattern.search(line) for pattern in known)]

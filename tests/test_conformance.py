"""The conformance statement is what the code says, and the document is the statement."""

import re
from pathlib import Path

from typer.testing import CliRunner

from daemon import cli, dimse
from daemon.conformance import statement
from daemon.profiles import RESULT_CLASSES
from daemon.settings import Settings

DOCUMENT = Path(__file__).parent.parent / "docs" / "conformance.md"


def test_the_document_is_current() -> None:
    """docs/conformance.md is the output of the code with default settings."""
    assert DOCUMENT.read_text() == statement(Settings()), "run: daemon conformance > docs/conformance.md"


def test_the_command_prints_the_statement_of_the_site(tmp_path: Path) -> None:
    """``daemon conformance`` shows the AE title and port of the given settings."""
    path = tmp_path / "settings.toml"
    path.write_text('[receiver]\nae_title = "SITE7"\nport = 11999\n')
    result = CliRunner().invoke(cli.app, ["conformance", "--settings", str(path)])
    assert result.exit_code == 0
    assert "`SITE7`" in result.stdout and "11999" in result.stdout


def test_every_class_and_syntax_that_we_take_is_listed() -> None:
    """Each SOP class and transfer syntax of the acceptor has its row, and so has each class of results."""
    section = DOCUMENT.read_text().split("### Transfer syntaxes")[1].split("\n## ")[0]
    rows = set(re.findall(r"^\| ([0-9.]+) \|", section, re.M))
    assert rows == set(dimse.storage_sop_classes()) | set(dimse.transfer_syntaxes())
    assert set(RESULT_CLASSES) <= rows


def test_every_status_of_c_store_is_listed() -> None:
    """The statement's statuses are those that the receiver answers (as the administrator's page has them)."""
    page = (DOCUMENT.parent / "administrator.md").read_text()
    table = page.split("## Statuses")[1].split("\n## ")[0]
    here = DOCUMENT.read_text().split("### Statuses of C-STORE")[1].split("\n### ")[0]
    statuses = [set(re.findall(r"^\| (0x[0-9A-F]{4}) \|", text, re.M)) for text in (table, here)]
    assert statuses[0] == statuses[1] and statuses[0]

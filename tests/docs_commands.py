"""The commands that README and docs give to their readers, as a sandbox can run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# First words of what a reader types; an indented block that begins with none of them is no shell.
_PROGRAMS = ("daemon", "make", "git", "useradd", "cp", "systemctl", "python")
# First lines of the indented blocks that nobody types into a shell.
_NO_SHELL = ("association →", "event=", "export/", "[audit]", "[[rules]]", '"DicomModalities"', "function ")

# What no sandbox can run, and why; the words that a command begins with.
NOT_RUN = {
    "git clone": "fetches from wherever the reader got the project",
    "useradd": "changes the machine's users: needs root on the target",
    "cp deploy/*.service": "installs into /etc of the target; tests/test_deploy.py checks the units",
    "systemctl": "no systemd in a container; tests/test_deploy.py checks the units",
    "make audit": "asks an advisory service on the network",
    "make demo": "sets the environment up anew; what it then runs, `daemon demo`, is run here",
    "make test": "is what runs these tests",
    "make licences": "may set the environment up anew; `make test` runs what it does",
    "daemon evaluate --protocol mvfa": "fits for 50 epochs; tests/test_train_cli.py runs the same",
    "python -m benchmarks.real_tasks": "needs the shared data and an hour",
    "python -m benchmarks.faults": "kills processes for hours; tests/test_faults.py runs it in small",
}


def blocks(page: Path) -> list[list[str]]:
    """The indented blocks of a page, each as its lines."""
    found: list[list[str]] = [[]]
    for line in page.read_text().splitlines():
        if line.startswith("    "):
            found[-1].append(line[4:])
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def is_shell(block: list[str]) -> bool:
    """True for a block that a reader types.

    Raises
    ------
    ValueError
        It is of no known kind.
    """
    if block[0].split()[0] in _PROGRAMS:
        return True
    if block[0].startswith(_NO_SHELL):
        return False
    raise ValueError(f"a block of no known kind begins with: {block[0]}")


def commands() -> list[str]:
    """Every whole command of a shell block, in the order of the pages, alternatives (a | b) taken apart."""
    lines = (line for page in PAGES for block in blocks(page) if is_shell(block) for line in block)
    return list(dict.fromkeys(command for line in lines for command in _taken_apart(line)))


def mentions() -> list[str]:
    """Every command that stands in backquotes within the text; it may lack its arguments."""
    pieces = (piece for page in PAGES for piece in re.findall(r"`([^`\n]+)`", page.read_text()))
    return list(dict.fromkeys(p for p in pieces if re.match(r"(daemon|make) [a-z]|python -m bench", p)))


def _taken_apart(line: str) -> Iterator[str]:
    text = re.split(r"\s{2,}#|\s#\s", line)[0].strip()
    parts = text.split(" | ")
    yield parts[0]
    first = parts[0].split()
    for part in parts[1:]:
        yield " ".join([*first[: 2 if first[1] == "adapters" else 1], part])


# Mentions of a flag within the text, as the whole commands that they stand for.
_COMPLETED = {"daemon train --promote": "daemon train --site-data DIR --name N --promote"}


def all_commands() -> list[str]:
    """Every command that must run or be excused: the whole ones, and mentions that are no part of another."""
    found = [*commands(), *(_COMPLETED.get(mention, mention) for mention in mentions())]
    whole = list(dict.fromkeys(found))
    return [c for c in whole if not any(other != c and _begins(other, c) for other in whole)]


def why_not(command: str) -> str:
    """Why a command is not run, "" if it is."""
    return next((why for words, why in NOT_RUN.items() if _begins(command, words)), "")


def _begins(command: str, words: str) -> bool:
    return command.split()[: len(words.split())] == words.split()


# Placeholders by command, then those that mean the same everywhere.
_OF_COMMAND = {
    ("user", "NAME"): "grace",
    ("tls", "FOLDER"): "first-try",
    ("feedback", "FOLDER"): "cases/feedback",
    ("discard", "NAME"): "the-pacs-before",
}
_EVERYWHERE = {
    "NAME": "pacs",
    "DEST": "pacs",
    "FOLDER": "studies",
    "DIR": "export",
    "N": "liver-ct",
    "B": "liver-ct",
    "BUNDLE.safetensors": "handed-over.safetensors",
}


def filled(command: str, values: dict[str, str]) -> list[str]:
    """The words after ``daemon``, its placeholders (words in capitals) filled.

    Parameters
    ----------
    command
        As the pages have it.
    values
        Of STUDY and VERSION.

    Raises
    ------
    KeyError
        A placeholder that no convention explains.
    """
    words = shlex.split(command)[1:]
    known = _EVERYWHERE | values | {word: v for (name, word), v in _OF_COMMAND.items() if name == words[0]}
    return [known[word] if re.fullmatch(r"[A-Z]+(\.[a-z]+)?", word) else word for word in words]

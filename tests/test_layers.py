"""Who may import whom, and which library has which home."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Library → the modules that may import it; a swap of the library touches these and no other.
HOMES = {
    "pynetdicom": {
        "daemon.receiver",
        "daemon.known_uids",
        "daemon.connections",
        "daemon.listeners",
        "daemon.guard",
        "daemon.keeper",
        "daemon.commitment_service",
        "daemon.reporter",
        "daemon.incoming",
        "daemon.reception",
        "daemon.dimse",
        "daemon.storing",
        "daemon.tally",
        "daemon.requestor",
        "daemon.sender",
    },
    "highdicom": {
        "daemon.encoding",
        "daemon.companions",
        "daemon.conformance",
        "daemon.seg",
        "daemon.sr",
        "daemon.sr_groups",
        "daemon.sr_library",
        "daemon.codes",
        "daemon.source",
        "training",
    },
    "sqlalchemy": {
        "daemon.index",
        "daemon.intake",
        "daemon.orders",
        "daemon.outbox",
        "daemon.pledges",
        "daemon.tables",
        "daemon.database",
        "daemon.migrations",
        "daemon.upkeep",
        "daemon.arrivals",
        "daemon.accounts",
        "daemon.catalogue",
        "daemon.corrections",
        "daemon.score_blocks",
        "daemon.tables_web",
        "daemon.verdicts",
    },
    "xxhash": {"daemon.reception.record"},
    "fastapi": {"daemon.web"},
    "uvicorn": {"daemon.web"},
    "prometheus_client": {"daemon.metrics", "daemon.web.health"},
    "argon2": {"daemon.accounts"},
    "alembic": {"daemon.database", "daemon.migrations"},
    "cryptography": {"daemon.tls", "daemon.try_ca"},
    "dbos": {"daemon.workflows", "daemon.rescue"},
    "SimpleITK": {"daemon.findings", "training"},
    "torch": {"adapters", "training", "daemon.models"},
    "open_clip": {"adapters.backbone", "adapters.hub", "adapters.weights"},
    "huggingface_hub": {"adapters.hub"},
}


@functools.cache
def _modules() -> dict[str, set[str]]:
    """Every module of the three packages with what it imports."""
    found = {}
    for package in ("daemon", "adapters", "training"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            imports: set[str] = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imports |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            found[name] = imports
    return found


def _is_under(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _users(target: str) -> set[str]:
    return {name for name, imports in _modules().items() if any(_is_under(i, {target}) for i in imports)}


def test_adapters_and_training_know_nothing_of_the_daemon() -> None:
    """The model can be used, and fitted, without the DICOM node."""
    assert {name for name in _users("daemon") if not name.startswith("daemon")} == set()
    assert {name for name in _users("training") if name.startswith("adapters")} == set()


def test_only_the_command_line_fits() -> None:
    """Nothing that the service runs imports training."""
    assert {name for name in _users("training") if name.startswith("daemon")} <= {
        "daemon.cli",
        "daemon.cli_train",
        "daemon.cli_evaluate",
        "daemon.cli_site",
        "daemon.demo",
    }


def test_each_library_has_one_home() -> None:
    """A library is imported in its own rooms alone."""
    strays = {
        library: sorted(name for name in _users(library) if not _is_under(name, homes))
        for library, homes in HOMES.items()
    }
    assert {library: names for library, names in strays.items() if names} == {}


def test_service_is_the_composition_root() -> None:
    """Only the command line and the demo start services; the pipeline does not know of the network."""
    assert _users("daemon.service") <= {"daemon.cli", "daemon.cli_site", "daemon.check"}
    assert _users("daemon.cli") <= {"daemon.__main__"}
    reached, todo = set(), ["daemon.pipeline"]
    modules = _modules()
    while todo:
        name = todo.pop()
        for imported in modules.get(name, set()):
            if imported in modules and imported not in reached:
                reached.add(imported)
                todo.append(imported)
    assert reached & {"daemon.receiver", "daemon.sender", "daemon.index", "daemon.workflows"} == set()


def test_no_room_is_too_large() -> None:
    """No file of the packages is over 330 lines; aim for 300."""
    sizes = {
        p: len(p.read_text().splitlines())
        for name in ("daemon", "adapters", "training")
        for p in (ROOT / name).rglob("*.py")
    }
    assert {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > 330} == {}

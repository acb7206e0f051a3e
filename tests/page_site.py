"""A site for the page's tests: a running daemon with users, studies scored, refused and undeliverable."""

from __future__ import annotations

import base64
import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from pathlib import Path
from typing import Any

import commands
import factories
import numpy as np
from conftest import RunningDaemon
from peers import free_port, storescp, storescu, wait_for_port
from phantoms import picture, two_lesions
from PIL import Image

from adapters import registry
from adapters.bundle import AdapterBundle
from daemon.index import Index
from daemon.phantom import make_case, write_case
from daemon.settings import load_settings

PASSWORD = "correct horse battery"
ROLES = {"vera": "viewer", "otto": "operator", "ada": "administrator"}


class _Stay(urllib.request.HTTPRedirectHandler):
    """Redirects are answers too."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        """Follow none."""
        return


@dataclass(frozen=True)
class Answer:
    """What the page answered."""

    status: int
    headers: Message
    content: bytes

    def json(self) -> Any:
        """Its body."""
        return json.loads(self.content)


@dataclass
class PageSite:
    """The running daemon and what it holds.

    Parameters
    ----------
    daemon
        The process.
    folder
        Of the site: what was sent lies in ``sent``.
    scored, normal, refused
        Study Instance UIDs: two with findings (the first with two of them), one without, one that
        cannot be scored.
    bundle, other
        Versions: in use, and one more of the same name.
    """

    daemon: RunningDaemon
    folder: Path
    scored: tuple[str, str]
    normal: str
    refused: str
    bundle: str
    other: str

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.daemon.settings.web.port}"

    def ask(
        self,
        path: str,
        name: str = "",
        *,
        form: Mapping[str, str] | None = None,
        body: object = None,
        method: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask as a program does; a name signs in by HTTP Basic, redirects are not followed."""
        sent = dict(headers or {})
        if name:
            sent["Authorization"] = "Basic " + base64.b64encode(f"{name}:{PASSWORD}".encode()).decode()
        data = None
        if form is not None:
            data = urllib.parse.urlencode(form).encode()
        elif body is not None or method == "POST":
            data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(self.address + path, data, sent, method=method or None)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
        try:
            with opener.open(request, timeout=30.0) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def rest(self) -> None:
        """Wait until every study and delivery has come to rest."""
        self.daemon.wait_for(lambda index: _rested(index, 4))

    def add_user(self, name: str, role: str) -> None:
        """``daemon user add``, the password through a pipe."""
        words = ("user", "add", name, "--role", role, "--settings", self.daemon.settings_path)
        commands.run(*words, given=f"{PASSWORD}\n").check_returncode()


@contextlib.contextmanager
def run_page_site(folder: Path, bundle: AdapterBundle, extra_web: str = "") -> Iterator[PageSite]:
    """Run a site until its studies have come to rest: results at ``pacs``, dead letters for ``archive``."""
    with storescp(folder) as pacs:
        other = bundle.renamed(threshold=min(0.95, bundle.threshold + 0.05))
        path = folder / "settings.toml"
        path.write_text(_settings(pacs.port, other.version, extra_web))
        settings = load_settings(path)
        for one in (other, bundle):
            registry.store(settings.bundles_dir, one)
            registry.promote(settings.bundles_dir, one.name, one.version)
        log = folder / "log"
        daemon = RunningDaemon(path, settings, None, log)  # type: ignore[arg-type]
        daemon.start_again()
        try:
            wait_for_port(daemon.port, daemon.process, 90.0)
            wait_for_port(settings.web.port, daemon.process, 90.0)
            yield _filled(PageSite(daemon, folder, ("", ""), "", "", bundle.version, other.version))
        finally:
            daemon.kill()


def _settings(pacs_port: int, shadow: str, extra_web: str) -> str:
    archive = {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": free_port()}
    pacs = {"name": "pacs", "ae_title": "STORESCP", "host": "127.0.0.1", "port": pacs_port}
    blocks = [
        '[service]\ndata_dir = "data"',
        f"[receiver]\nport = {free_port()}\nreserve_bytes = 1000000",
        "[retention]\nprune_below_bytes = 0",
        f"[web]\nport = {free_port()}\necho_s = 2.0\ntraining_dir = 'cases'\n{extra_web}",
        "[study]\nquiet_s = 0.5",
        "[delivery]\nquick_attempts = 1\nretry_delay_s = 1.0\nmaximum_delay_s = 1.0\ngive_up_s = 3.0",
        "[engine]\npoll_s = 0.1",
        f'[[rules]]\nname = "chest"\nbundle = "phantom-ct"\nmodality = "CT"\nshadow = "phantom-ct@{shadow}"',
        *(
            "[[destinations]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in d.items())
            for d in (pacs, archive)
        ),
    ]
    return "\n".join(blocks)


def _filled(site: PageSite) -> PageSite:
    """Make the users and send the studies, each over an association of its own."""
    for name, role in ROLES.items():
        site.add_user(name, role)
    _write_cases(site.folder / "cases" / "pictures")
    abnormal = [two_lesions(903), make_case(902, abnormal=True, slices=12, seed=1)]
    cases = [*abnormal, make_case(901, abnormal=False, slices=12, seed=1)]
    sent = {
        case.study_instance_uid: write_case(case, site.folder / "sent" / str(case.number)) for case in cases
    }
    scout = factories.localizer(study="scout")
    sent[scout.StudyInstanceUID] = factories.write_all([scout], site.folder / "sent" / "scout")
    for files in sent.values():
        storescu(site.daemon.port, *map(str, files), calling="CT1")
    site.daemon.wait_for(lambda index: _rested(index, len(sent)), timeout_s=180.0)
    uids = [case.study_instance_uid for case in cases]
    return replace(site, scored=(uids[0], uids[1]), normal=uids[2], refused=str(scout.StudyInstanceUID))


def _write_cases(folder: Path) -> None:
    """A small site of pictures, normal and abnormal, for a training that is started from the page."""
    rng = np.random.default_rng(1)
    for number in range(20):
        label = "abnormal" if number % 2 else "normal"
        pixels, _ = picture(rng, lesion=label == "abnormal")
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255).astype(np.uint8)).save(folder / label / f"{number}.png")


def _rested(index: Index, studies: int) -> bool:
    found = index.list_studies(["scored", "refused"])
    return len(found) == studies and not index.deliveries(states=["pending", "failed"])

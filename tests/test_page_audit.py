"""The page's part of the audit trail: who signed in, who was refused, and who looked at which study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from audit_schema import check
from page_site import PASSWORD, Answer, PageSite
from test_audit import event_of

pytestmark = [pytest.mark.peer, pytest.mark.slow]

SIGNED_IN, SIGNED_OUT = ("110114", "110122", "0"), ("110114", "110123", "0")
NOT_SIGNED_IN, ACCESSED = ("110114", "110122", "4"), ("110103", "", "0")


def heard(site: PageSite, do: Callable[[], object]) -> list[ET.Element]:
    """Return the messages that the page's process has written meanwhile, each checked."""
    settings = site.daemon.settings
    path: Path = settings.service.data_dir / settings.audit.folder / "web.log"
    before = path.stat().st_size
    do()
    with path.open("rb") as stream:
        stream.seek(before)
        return [check(line.decode()) for line in stream.read().splitlines()]


def users(root: ET.Element) -> list[tuple[str, str]]:
    """Who is said to have asked, and from where."""
    return [
        (who.attrib["UserID"], who.attrib.get("NetworkAccessPointID", ""))
        for who in root.iter("ActiveParticipant")
        if who.attrib["UserIsRequestor"] == "true"
    ]


def objects(root: ET.Element) -> set[str]:
    """The participating objects' ids: study and patient."""
    return {found.attrib["ParticipantObjectID"] for found in root.iter("ParticipantObjectIdentification")}


def sign_in(site: PageSite, name: str, password: str) -> Answer:
    """Fill in the form."""
    return site.ask("/login", form={"name": name, "password": password, "next": "/"})


def test_signing_in_and_out_is_audited(page_site: PageSite) -> None:
    """One message each, with the name and the address (A.5.3.11)."""
    answers: list[Answer] = []
    came = heard(page_site, lambda: answers.append(sign_in(page_site, "otto", PASSWORD)))
    cookie = str(answers[0].headers["set-cookie"]).partition(";")[0]
    page = page_site.ask("/", headers={"Cookie": cookie})
    token = page.content.partition(b'name="token" value="')[2].partition(b'"')[0].decode()
    left = heard(
        page_site, lambda: page_site.ask("/logout", form={"token": token}, headers={"Cookie": cookie})
    )
    assert [event_of(root) for root in (*came, *left)] == [SIGNED_IN, SIGNED_OUT]
    assert [users(root) for root in (*came, *left)] == [[("otto", "127.0.0.1")]] * 2


def test_a_refused_sign_in_is_audited(page_site: PageSite) -> None:
    """A wrong password, in the form and of a program, is a failure with the name that was tried."""
    (form,) = heard(page_site, lambda: sign_in(page_site, "vera", "not her password"))
    wrong = {"Authorization": "Basic dmVyYTpub3QgaXQ="}
    (program,) = heard(page_site, lambda: page_site.ask("/api/me", headers=wrong))
    for root in (form, program):
        assert event_of(root) == NOT_SIGNED_IN
        assert users(root) == [("vera", "127.0.0.1")]


def test_a_study_that_is_looked_at_is_audited(page_site: PageSite) -> None:
    """Page, viewer, a fetched result, the API: each names the person, the study and its patient (A.5.3.6)."""
    study = page_site.scored[0]
    with page_site.daemon.index() as index:
        (result, *_) = index.results_of(study)
    page = page_site.ask(f"/studies/{study}", "vera")
    viewer = page.content.partition(f'href="/studies/{study}/'.encode())[2].partition(b'"')[0].decode()
    paths = [
        f"/studies/{study}",
        f"/studies/{study}/{viewer}",
        f"/studies/{study}/results/{result.sop_instance_uid}.dcm",
        f"/api/studies/{study}",
    ]
    for path in paths:
        answers: list[Answer] = []
        (root,) = heard(page_site, lambda path=path, kept=answers: kept.append(page_site.ask(path, "vera")))
        assert answers[0].status == 200, path
        assert event_of(root) == ACCESSED
        assert users(root) == [("vera", "127.0.0.1")]
        assert study in objects(root) and len(objects(root)) == 2


def test_the_pictures_of_a_study_are_one_access(page_site: PageSite) -> None:
    """Pictures fetched without a page are audited, and many of them once (A.5.3.6)."""
    study = page_site.scored[1]
    page = page_site.ask(f"/studies/{study}", "vera").content
    series = page.partition(f'href="/studies/{study}/'.encode())[2].partition(b"/view")[0].decode()
    pictures = [f"/studies/{study}/{series}/{frame}.jpg" for frame in range(3)]
    asked = [*pictures, f"/studies/{study}/{series}/view.json"]
    page_site.add_user("iris", "viewer")  # whom nobody has seen yet
    (root,) = heard(page_site, lambda: [page_site.ask(path, "iris") for path in asked])
    assert event_of(root) == ACCESSED and users(root) == [("iris", "127.0.0.1")]
    assert study in objects(root)


def test_pages_that_show_no_study_are_not_audited(page_site: PageSite) -> None:
    """The overview, a study that is not here, and a stranger's try leave no access in the trail."""
    study = page_site.scored[0]
    assert heard(page_site, lambda: page_site.ask("/", "vera")) == []
    assert heard(page_site, lambda: page_site.ask("/studies/1.2.3", "vera")) == []
    assert heard(page_site, lambda: page_site.ask(f"/studies/{study}")) == []


def test_what_an_earlier_run_left_makes_the_host_unready(page_site: PageSite) -> None:
    """A journal that nobody has taken in yet is said by /readyz, until it is gone."""
    left = page_site.daemon.settings.spool_dir / "journal" / "left.segment"
    assert page_site.ask("/readyz").json()["checks"]["journal"] is True
    left.touch(mode=0o600)
    try:
        answer = page_site.ask("/readyz")
        assert (answer.status, answer.json()["checks"]["journal"]) == (503, False)
    finally:
        left.unlink()
    assert page_site.ask("/readyz").json()["checks"]["journal"] is True

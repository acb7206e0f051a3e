"""The page's API and its doors: rights, tokens, cookies, headers, what is hidden, what is described."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from page_site import PASSWORD, Answer, PageSite, run_page_site

from adapters.bundle import AdapterBundle

pytestmark = [pytest.mark.peer, pytest.mark.slow]

# Every deed of the API with the least role that may do it, and a body.
DEEDS = [
    ("/api/studies/{study}/retry", "operator", None),
    ("/api/studies/{study}/rescore", "operator", {"bundle": "000000000000"}),
    ("/api/studies/{study}/forward", "operator", {"destination": "nowhere"}),
    ("/api/studies/{study}/verdicts", "operator",
     {"revision": 1, "group_key": "0" * 16, "tracking_uid": "1.2", "verdict": "accept"}),
    ("/api/destinations/nowhere/pause", "operator", None),
    ("/api/adapters/000000000000/promote", "administrator", None),
    ("/api/adapters/nothing/rollback", "administrator", None),
    ("/api/training", "administrator", {"folder": "nowhere", "name": "x"}),
]  # fmt: skip
RANK = {"vera": 0, "otto": 1, "ada": 2}
ROLE_RANK = {"viewer": 0, "operator": 1, "administrator": 2}
PAGES = ("/", "/studies", "/studies/{study}", "/adapters", "/quality", "/feedback", "/feedback.csv",
         "/live/now", "/api/me", "/api/now", "/api/studies", "/api/studies/{study}", "/api/destinations",
         "/api/adapters", "/api/quality", "/api/verdicts", "/api/corrections", "/api/training")  # fmt: skip


def _sign_in(site: PageSite, name: str, password: str = PASSWORD) -> Answer:
    return site.ask("/login", form={"name": name, "password": password, "next": "/"})


def _cookie(answer: Answer) -> str:
    return str(answer.headers["set-cookie"]).partition(";")[0]


def test_strangers_see_nothing(page_site: PageSite) -> None:
    """Without a name every page leads to the sign-in, and every part of the API says 401."""
    for path in PAGES:
        answer = page_site.ask(path.format(study=page_site.scored[0]), headers={"accept": "text/html"})
        if path.startswith("/api/"):
            assert answer.status == 401, path
        else:
            assert answer.status == 303 and answer.headers["location"].startswith("/login"), path
        assert page_site.scored[0].encode() not in answer.content


@pytest.mark.parametrize("name", RANK)
def test_each_deed_needs_its_role(page_site: PageSite, name: str) -> None:
    """Who has less than the role gets 403; who has it gets as far as the order's own mistake."""
    for path, role, body in DEEDS:
        path = path.format(study=page_site.refused if "verdicts" in path else "1.2.3")
        status = page_site.ask(path, name, body=body, method="POST").status
        if RANK[name] < ROLE_RANK[role]:
            assert status == 403, path
        else:
            assert status in (404, 409), path


def test_a_change_by_cookie_needs_its_token(page_site: PageSite) -> None:
    """A form without the session's token, with another's, or from another site changes nothing."""
    cookie = _cookie(_sign_in(page_site, "otto"))
    token = page_site.ask("/api/me", headers={"cookie": cookie}).json()["csrf_token"]
    other = _cookie(_sign_in(page_site, "otto"))
    foreign = page_site.ask("/api/me", headers={"cookie": other}).json()["csrf_token"]
    path = "/destinations/archive/resume"
    for form, headers, status in (
        ({}, {}, 403),
        ({"token": foreign}, {}, 403),
        ({"token": token}, {"sec-fetch-site": "cross-site"}, 403),
        ({"token": token}, {"origin": "http://elsewhere.example"}, 403),
        ({"token": token}, {"origin": page_site.address}, 303),
    ):
        answer = page_site.ask(path, form=form, headers={"cookie": cookie, **headers})
        assert answer.status == status, (form, headers)
    api = "/api/destinations/archive/resume"
    assert page_site.ask(api, method="POST", headers={"cookie": cookie}).status == 403
    headers = {"cookie": cookie, "x-csrf-token": token}
    assert page_site.ask(api, method="POST", headers=headers).status == 200


def test_the_cookie_is_kept_from_scripts_and_other_sites(page_site: PageSite) -> None:
    """HttpOnly, SameSite=Strict, for the whole host, with an end; a changed one is a stranger's."""
    answer = _sign_in(page_site, "vera")
    assert answer.status == 303
    flags = {part.strip().lower() for part in str(answer.headers["set-cookie"]).split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    assert any(flag.startswith("max-age=") for flag in flags)
    cookie = _cookie(answer)
    assert page_site.ask("/api/me", headers={"cookie": cookie}).json()["role"] == "viewer"
    assert page_site.ask("/api/me", headers={"cookie": cookie[:-2] + "xx"}).status == 401


def test_a_changed_password_ends_old_sessions(page_site: PageSite) -> None:
    """A session that began before the user's role or password changed is over."""
    page_site.add_user("temporary", "viewer")
    cookie = _cookie(_sign_in(page_site, "temporary"))
    assert page_site.ask("/api/me", headers={"cookie": cookie}).status == 200
    page_site.add_user("temporary", "operator")
    assert page_site.ask("/api/me", headers={"cookie": cookie}).status == 401


def test_guessing_passwords_is_slowed(page_site: PageSite) -> None:
    """After five wrong passwords the name is refused for a while, the right one included."""
    page_site.add_user("victim", "viewer")
    statuses = [_sign_in(page_site, "victim", "wrong wrong wrong").status for _ in range(5)]
    assert statuses == [401] * 5
    assert _sign_in(page_site, "victim").status == 429


def test_sign_in_leads_to_pages_of_ours_only(page_site: PageSite) -> None:
    """``next`` never leads to another host."""
    for target in ("//elsewhere.example", "https://elsewhere.example", "/\\elsewhere.example"):
        form = {"name": "vera", "password": PASSWORD, "next": target}
        assert page_site.ask("/login", form=form).headers["location"] == "/"


def test_every_answer_carries_the_headers(page_site: PageSite) -> None:
    """Pages, pictures, errors and the API forbid foreign content, framing, sniffing and caching."""
    study = page_site.ask(f"/api/studies/{page_site.scored[0]}", "vera").json()
    score = study["series"][0]["scores"][0]
    series = f"/studies/{page_site.scored[0]}/{score['revision']}/{score['group_key']}"
    pictures = tuple(f"{series}/{name}" for name in ("view", "0.jpg", "0.png", "view.json"))
    for path in ("/", "/login", "/nothing", "/api/now", "/static/app.css", "/healthz", *pictures):
        answer = page_site.ask(path, "vera")
        assert answer.status == (404 if path == "/nothing" else 303 if path == "/login" else 200), path
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in headers


def test_the_api_describes_itself(page_site: PageSite) -> None:
    """The OpenAPI description names every deed, and needs no signing in."""
    described = page_site.ask("/api/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert {"/api/studies", "/api/studies/{uid}/verdicts", "/api/training", "/api/now"} <= set(
        described["paths"]
    )
    assert "403" in described["paths"]["/api/studies/{uid}/rescore"]["post"]["responses"]


def test_the_api_tells_what_became_of_a_study(page_site: PageSite) -> None:
    """Timeline, series with who scored them or why not, findings, results and deliveries."""
    study = page_site.ask(f"/api/studies/{page_site.scored[0]}", "vera").json()
    said = [event["what"] for event in study["timeline"]]
    assert said[0] == "first instance received" and any("delivered to pacs" in text for text in said)
    assert any("to archive given up" in text for text in said)
    score = study["series"][0]["scores"][0]
    assert (score["bundle_version"], score["slices"]) == (page_site.bundle, 12)
    assert study["series"][0]["shadows"][0]["bundle_version"] == page_site.other
    assert study["findings"] and {result["kind"] for result in study["results"]} >= {"SEG", "SR"}
    refused = page_site.ask(f"/api/studies/{page_site.refused}", "vera").json()
    assert "localizer" in refused["series"][0]["not_scored"][0]["reason"]


def test_a_study_is_scored_with_a_bundle_of_ones_choice(page_site: PageSite) -> None:
    """Score again with another version uses it for this revision, and nothing else changes."""
    uid = page_site.normal
    before = page_site.ask(f"/api/studies/{uid}", "vera").json()["study"]["revision"]
    answer = page_site.ask(f"/api/studies/{uid}/rescore", "otto", body={"bundle": page_site.other})
    assert answer.status == 200
    page_site.daemon.wait_for(lambda index: index.get_study(uid).revision > before)
    page_site.rest()
    with page_site.daemon.index() as index:
        scores = [s for s in index.scores(uid) if s.revision == before + 1 and not s.shadow]
        assert [s.bundle_version for s in scores] == [page_site.other]
        assert index.wanted_bundle(uid) == ""
    kept = [b for b in page_site.ask("/api/adapters", "vera").json() if b["version"] == page_site.bundle]
    assert [b["in_use"] for b in kept] == [True]


def test_a_wrong_correction_is_refused(page_site: PageSite) -> None:
    """Points outside the slice, slices that are not there, too few points: 409, and no verdict."""
    uid = page_site.scored[0]
    study = page_site.ask(f"/api/studies/{uid}", "vera").json()
    finding = study["findings"][0]
    score = study["series"][0]["scores"][0]
    order = {
        "revision": score["revision"],
        "group_key": finding["group_key"],
        "tracking_uid": finding["tracking_uid"],
        "verdict": "correct",
    }
    square = [[10, 10], [20, 10], [20, 20]]
    for correction in (None, {}, {"0": [square[:2]]}, {"99": [square]}, {"0": [[[-1, 0], *square]]}):
        answer = page_site.ask(
            f"/api/studies/{uid}/verdicts", "otto", body={**order, "correction": correction}
        )
        assert answer.status == 409, correction


def test_health_readiness_and_metrics_need_no_name(page_site: PageSite) -> None:
    """Machines ask without signing in and learn no patient."""
    for path in ("/healthz", "/readyz", "/metrics"):
        answer = page_site.ask(path)
        assert answer.status == 200, (path, answer.content[:300])
        assert b"CANARY" not in answer.content and b"PHANTOM" not in answer.content


def test_live_events_follow_the_state(page_site: PageSite) -> None:
    """The stream opens with the present state, as an event of one line of JSON."""
    import base64

    value = base64.b64encode(f"vera:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(
        f"{page_site.address}/live/now", headers={"Authorization": f"Basic {value}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30.0) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [stream.readline().decode() for _ in range(2)]
    assert lines[0] == "event: content\n" and lines[1].startswith('data: "') and "archive" in lines[1]


def test_names_can_be_hidden_and_a_proxy_can_sign_people_in(
    tmp_path: Path, phantom_bundle: AdapterBundle
) -> None:
    """With show_patient_names off nobody sees a name; with proxy_header a name in it is signed in."""
    extra = 'show_patient_names = false\nproxy_header = "X-Remote-User"\nproxy_role = "viewer"'
    with run_page_site(tmp_path, phantom_bundle, extra) as site:
        for path in PAGES:
            if path != "/live/now":
                content = site.ask(path.format(study=site.refused), "ada").content
                assert b"CANARY" not in content and b"PHANTOM 9" not in content, path
        by_proxy = {"x-remote-user": "somebody"}
        me = site.ask("/api/me", headers=by_proxy).json()
        assert (me["name"], me["role"]) == ("somebody", "viewer")
        assert site.ask("/api/destinations/archive/resume", method="POST", headers=by_proxy).status == 403
        assert site.ask("/api/me", headers={"x-remote-user": "ada"}).json()["role"] == "administrator"

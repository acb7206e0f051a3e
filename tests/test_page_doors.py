"""What strangers can do to the page, what a proxy says, what is hidden, and what is no longer kept."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import Request
from light_page import BOXES, STUDY, LightPage, light_page
from page_site import PASSWORD, Answer

from daemon.accounts import Accounts
from daemon.database import open_database
from daemon.sections import WebSettings
from daemon.web.bodies import STRANGERS_BYTES, BodyBounds
from daemon.web.protocol import BoundedProtocol
from daemon.web.session import Guard

# SQLAlchemy 2.1 deprecates what 2.0 needs; the page runs in this process, so that warnings end a request.
pytestmark = pytest.mark.filterwarnings("ignore:The Result.tuples")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightPage]:
    """The page with the settings as they are shipped."""
    with light_page(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightPage]:
    """The page behind a proxy that ends HTTPS, which shows no names."""
    with light_page(
        tmp_path_factory.mktemp("proxied"), "https = true\nshow_patient_names = false"
    ) as running:
        yield running


def _said(page: LightPage, *pieces: bytes, timeout_s: float = 20.0) -> bytes:
    """What the page says to raw bytes, until it ends the connection."""
    with socket.create_connection(("127.0.0.1", page.daemon.settings.web.port), timeout_s) as wire:
        for piece in pieces:
            wire.sendall(piece)
        said = b""
        try:
            while more := wire.recv(65536):
                said += more
        except ConnectionResetError:
            pass
    return said


# Bodies


@pytest.mark.parametrize(
    ("path", "kind"), [("/login", "x-www-form-urlencoded"), ("/api/studies/1.2/verdicts", "json")]
)
def test_a_strangers_large_body_is_refused(page: LightPage, path: str, kind: str) -> None:
    """Announced or in chunks, what is over 64 KiB is answered 413 before it is read, and the line is cut."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/{kind}\r\n"
    announced = f"{head}Content-Length: {STRANGERS_BYTES + 1}\r\n\r\n".encode()
    assert _said(page, announced).startswith(b"HTTP/1.1 413 ")
    chunk = b"10001\r\n" + b" " * 0x10001 + b"\r\n"
    chunks = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk
    assert _said(page, chunks).startswith(b"HTTP/1.1 413 ")


def test_somebody_signed_in_may_send_a_large_drawing(page: LightPage) -> None:
    """100,000 points of a correction are taken, more than the whole bound are not."""
    loop = [[5.0 + n % 7, 5.0 + n % 5] for n in range(20_000)]
    tracking = page.ask(f"/api/studies/{STUDY}", "otto").json()["findings"][0]["tracking_uid"]
    order = {"revision": 1, "group_key": page.key, "tracking_uid": tracking, "verdict": "correct"}
    body = {**order, "correction": {"0": [loop]}}
    assert len(json.dumps(body)) > STRANGERS_BYTES
    assert page.ask(f"/api/studies/{STUDY}/verdicts", "otto", body=body).status == 200
    assert page.ask(f"/api/studies/{STUDY}/verdicts", body=body).status == 413


def test_a_body_that_does_not_come_ends(page: LightPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose body is promised and never sent is answered 408 in time."""
    monkeypatch.setattr(BodyBounds, "seconds", 0.5)
    form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 20\r\n\r\nname="
    assert _said(page, b"POST /login HTTP/1.1\r\nHost: x\r\n" + form).startswith(b"HTTP/1.1 408 ")


# Connections


def test_a_connection_that_says_nothing_is_ended(page: LightPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, a header that never ends, and one that drips: all are cut; a good request is answered."""
    monkeypatch.setattr(BoundedProtocol, "header_s", 1.0)
    for begin in (b"", b"GET / HTTP/1.1\r\nHost:", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he"):
        started = time.monotonic()
        _said(page, *([begin] if begin else []))
        assert time.monotonic() - started < 8.0
    where = ("127.0.0.1", page.daemon.settings.web.port)
    with socket.create_connection(where, 10.0) as wire, pytest.raises(OSError):
        for _ in range(40):
            wire.sendall(b"X")
            time.sleep(0.1)
    assert page.ask("/healthz").status == 200


def test_one_address_cannot_take_every_connection(page: LightPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one address has beyond its share is closed at once; the others' are answered."""
    monkeypatch.setattr(BoundedProtocol, "per_address", 3)
    where = ("127.0.0.1", page.daemon.settings.web.port)
    kept = [socket.create_connection(where, 10.0) for _ in range(3)]
    try:
        assert _said(page, timeout_s=5.0) == b""
        kept[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept[0].recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for wire in kept:
            wire.close()


# Passwords


class _Slow(Accounts):
    """Notes how many passwords are checked at a time."""

    now = most = 0

    def check(self, name: str, password: str) -> None:
        """Nobody's password is right."""
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.05)
        self.now -= 1


def _request(address: str = "192.0.2.1", **headers: str) -> Request:
    plain = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": plain, "client": (address, 1)})


def test_few_passwords_are_checked_at_a_time(tmp_path: Path) -> None:
    """Of many at once two are checked at a time, and no more of a name than may fail."""
    accounts = _Slow(*open_database(f"sqlite:///{tmp_path}/users.db"))
    tried: list[str] = []
    guard = Guard(accounts, WebSettings(), b"key", failed=lambda name, _address: tried.append(name))

    def guess(_number: int) -> None:
        basic = "Basic " + base64.b64encode(b"ada:guess").decode()
        guard.visitor(_request(authorization=basic))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(guess, range(16)))
    assert accounts.most == 2
    assert 5 <= len(tried) <= 6


# Behind a proxy

TWO = ("127.0.0.1", "10.0.0.1")


def _sign_in(page: LightPage, name: str, password: str, address: str) -> Answer:
    form = {"name": name, "password": password, "next": "/"}
    return page.ask("/login", form=form, headers={"x-forwarded-for": address})


def test_behind_an_https_proxy_the_cookie_is_secure(proxied: LightPage) -> None:
    """Secure and __Host-, and browsers are told to come back by HTTPS alone; without the setting not."""
    answer = _sign_in(proxied, "vera", PASSWORD, "192.0.2.9")
    cookie = str(answer.headers["set-cookie"])
    assert cookie.startswith("__Host-anomalyd=") and "secure" in cookie.lower()
    assert "max-age" in answer.headers["strict-transport-security"]


def test_behind_a_proxy_one_client_does_not_block_the_others(proxied: LightPage) -> None:
    """Wrong passwords from one address, whatever it says of others, count for that address."""
    for number in range(20):
        spoofed = f"198.51.100.{number}, 192.0.2.66"
        assert _sign_in(proxied, f"nobody{number}", "wrong", spoofed).status == 401
    assert _sign_in(proxied, "otto", PASSWORD, "198.51.100.1, 192.0.2.66").status == 429
    assert _sign_in(proxied, "otto", PASSWORD, "192.0.2.67").status == 303


@pytest.mark.parametrize(
    ("settings", "peer", "said", "address"),
    [
        ({"https": True}, "127.0.0.1", "192.0.2.5", "192.0.2.5"),
        ({"https": True}, "127.0.0.1", "evil, 198.51.100.1, 192.0.2.5", "192.0.2.5"),
        ({"https": True, "proxy_addresses": TWO}, "127.0.0.1", "192.0.2.5, 10.0.0.1", "192.0.2.5"),
        ({"https": True}, "127.0.0.1", "nonsense", "127.0.0.1"),
        ({"https": True}, "192.0.2.7", "192.0.2.5", "192.0.2.7"),
        ({}, "127.0.0.1", "192.0.2.5", "127.0.0.1"),
    ],
)  # fmt: skip
def test_a_forwarded_address_is_believed_from_the_proxy_alone(
    tmp_path: Path, settings: dict[str, object], peer: str, said: str, address: str
) -> None:
    """The nearest address that is no proxy's counts, and only what a configured proxy says."""
    accounts = Accounts(*open_database(f"sqlite:///{tmp_path}/users.db"))
    guard = Guard(accounts, WebSettings.model_validate(settings), b"key")
    assert guard.address(_request(peer, x_forwarded_for=said)) == address


# What is hidden and what is not kept


def test_with_hidden_names_no_result_is_downloaded(page: LightPage, proxied: LightPage) -> None:
    """A SEG holds name and ID: where they are hidden it is refused with the reason, and not offered."""
    path = f"/studies/{STUDY}/results/{page.result}.dcm"
    answer = proxied.ask(path, "ada")
    assert answer.status == 403 and "show_patient_names" in answer.json()["detail"]
    assert b"CANARY" not in answer.content
    study = proxied.ask(f"/studies/{STUDY}", "ada").content
    assert b"results/" not in study and b"No download" in study
    assert b"CANARY" in page.ask(path, "ada").content


@pytest.mark.parametrize("name", ["0.jpg", "0.png", "view.json"])
def test_no_browser_keeps_a_picture(page: LightPage, name: str) -> None:
    """Slices, heat maps and outlines are not stored, so that none outlives the sign-out."""
    answer = page.ask(f"{page.base}/{name}", "vera")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")


def test_findings_without_a_view_are_counted(page: LightPage, lost: Callable[[], None]) -> None:
    """Once the view is gone, page and API say how many findings there are and how to see them again."""
    before = page.ask(f"/api/studies/{STUDY}", "vera").json()
    assert len(before["findings"]) == len(BOXES) and before["findings_not_kept"]["count"] == 0
    lost()
    said = page.ask(f"/api/studies/{STUDY}", "vera").json()
    assert said["findings"] == [] and said["findings_not_kept"]["count"] == len(BOXES)
    assert "score the study again" in said["findings_not_kept"]["reason"]
    text = re.sub(r"\s+", " ", page.ask(f"/studies/{STUDY}", "vera").content.decode())
    assert "2 findings; their pictures are no longer kept: score the study again" in text
    assert "None above the threshold" not in text


@pytest.fixture
def lost(page: LightPage) -> Iterator[Callable[[], None]]:
    """Take the view of the series away, and put it back after the test."""
    away = page.view.with_suffix(".away")

    def take() -> None:
        page.view.rename(away)

    yield take
    away.rename(page.view)

"""Each error of a service, for browsers and programs, over real sockets."""

import json
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPConnection
from typing import NamedTuple

import pytest

from tests.template.prompts import choices
from tests.template.service import Answer, Server, Service

# On the worker of test_outcomes.py, whose services have the same environments.
pytestmark = pytest.mark.xdist_group("log")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


class Case(NamedTuple):
    status: int
    path: str
    method: str = "GET"
    headers: dict[str, str] = {}  # noqa: RUF012
    body: str = ""


MULTIPART = {"Content-Type": "multipart/form-data"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
# Statuses for which Django has its own page while DEBUG is on.
TECHNICAL = {
    "host": Case(400, "/", headers={"Host": "elsewhere"}),
    "suspicious": Case(400, "/fail/SuspiciousOperation/"),
    "bad request": Case(400, "/fail/BadRequest/"),
    "large": Case(400, "/form/", "POST", FORM, "a" * 1001),
    "no token": Case(403, "/token/", "POST"),
    "no such page": Case(404, "/nowhere/"),
    "not found": Case(404, "/fail/Http404/"),
    "raises": Case(500, "/fail/RuntimeError/"),
}
OWN = {
    "multipart": Case(400, "/form/", "POST", MULTIPART),
    "denied": Case(403, "/fail/PermissionDenied/"),
    "no thread": Case(503, "/busy/"),
    "deadline": Case(504, "/late/"),
    "late body": Case(504, "/late/", "POST", {"Content-Length": "9"}),
}
CASES = TECHNICAL | OWN


@pytest.fixture(scope="module", params=choices("django_version"))
def service(
    request: pytest.FixtureRequest, with_module: Callable[[str, str], Service]
) -> Service:
    return with_module(request.param, "errors")


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[Server]:
    with service.serve_module("errors") as server:
        yield server


@pytest.fixture(scope="module")
def debugged(service: Service) -> Iterator[Server]:
    with service.serve_module("errors", DEBUG="true") as server:
        yield server


def ask(server: Server, case: Case, accept: str | None = BROWSER) -> Answer:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = case.headers | ({"Accept": accept} if accept is not None else {})
    try:
        connection.request(case.method, case.path, case.body, headers)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read().decode())
    finally:
        connection.close()


def check_common(answer: Answer, case: Case) -> None:
    assert answer.status == case.status
    assert answer.headers["cache-control"] == "no-store"
    assert "secret" not in answer.body
    assert answer.headers.get("retry-after") == ("10" if case.status == 503 else None)
    closed = case == OWN["late body"]
    assert (answer.headers.get("connection") == "close") is closed


@pytest.mark.parametrize("name", CASES)
def test_browser_gets_a_page(server: Server, name: str) -> None:
    case = CASES[name]
    answer = ask(server, case)
    check_common(answer, case)
    check_page(answer)


def check_page(answer: Answer) -> None:
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    title = HTTPStatus(answer.status).phrase
    assert f"<title>{title} - My Async Service</title>" in answer.body
    assert f"<h1>{title}</h1>" in answer.body
    assert f"<code>{answer.headers['x-request-id']}</code>" in answer.body
    # One sentence for each status.
    assert re.search(r"<p>\s+[A-Z][^<>]+\.\s+</p>", answer.body)
    assert 'lang="en"' in answer.body
    assert "color-scheme: light dark" in answer.body
    assert not re.search("src=|href=|url", answer.body)
    if policy := answer.headers.get("content-security-policy"):
        [nonce] = re.findall(r'<style nonce="([\w-]+)">', answer.body)
        assert f"'nonce-{nonce}'" in policy


@pytest.mark.parametrize("accept", ["*/*", None])
@pytest.mark.parametrize("name", CASES)
def test_program_gets_a_problem(server: Server, name: str, accept: str | None) -> None:
    case = CASES[name]
    answer = ask(server, case, accept)
    check_common(answer, case)
    check_problem(answer)


def check_problem(answer: Answer) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem.pop("detail", "The form").startswith("The form")
    assert problem == {
        "type": "about:blank",
        "title": HTTPStatus(answer.status).phrase,
        "status": answer.status,
        "request_id": answer.headers["x-request-id"],
    }


@pytest.mark.parametrize("name", CASES)
def test_api_answers_a_browser_too_with_a_problem(server: Server, name: str) -> None:
    case = CASES[name]
    answer = ask(server, case._replace(path=f"/api{case.path}"))
    check_common(answer, case)
    check_problem(answer)


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("text/html", True),
        ("text/*", True),
        ("text/html; charset=utf-8", True),
        ("text/html;level=1, */*;q=0.8", True),
        ("text/html;level=1;q=0.5, application/json", False),
        ("application/json; version=1, text/html;q=0.9", False),
        ("image/avif, application/xhtml+xml, text/html;q=0.9, */*;q=0.8", True),
        ("text/html;q=0.9, application/json;q=0.8", True),
        ("text/html;q=0.8, application/problem+json", False),
        ("application/json, text/plain, */*", False),
        ("application/vnd.api+json", False),
        ("text/html;q=0, */*", False),
        ("", False),
        # Django's parser raises an exception for these.
        ("text/html;charset*=nope''x", False),
    ],
)
def test_client_gets_what_it_prefers(server: Server, accept: str, page: bool) -> None:
    answer = ask(server, CASES["no such page"], accept)
    assert answer.status == 404
    (check_page if page else check_problem)(answer)


@pytest.mark.parametrize("name", ["no such page", "raises", "no thread", "deadline"])
@pytest.mark.parametrize("accept", [BROWSER, "*/*"])
def test_head_has_the_headers_alone(server: Server, name: str, accept: str) -> None:
    case = CASES[name]
    answer = ask(server, case._replace(method="HEAD"), accept)
    check_common(answer, case)
    assert answer.body == ""
    assert (
        answer.headers["content-type"]
        == ask(server, case, accept).headers["content-type"]
    )


@pytest.mark.parametrize("name", ["no such page", "raises", "no thread", "deadline"])
def test_page_that_fails_is_replaced_by_a_problem(server: Server, name: str) -> None:
    case = CASES[name]
    answer = ask(server, case._replace(path=f"{case.path}?broken"))
    check_common(answer, case)
    check_problem(answer)
    request_id = answer.headers["x-request-id"]

    def is_logged() -> bool:
        lines = server.log.read_text(encoding="utf-8").splitlines()
        return any(request_id in line and "serving.errors" in line for line in lines)

    server.wait_for(is_logged)


@pytest.mark.parametrize("name", TECHNICAL)
def test_djangos_technical_page_stays_in_debug(debugged: Server, name: str) -> None:
    case = CASES[name]
    answer = ask(debugged, case)
    assert answer.status == case.status
    assert "DEBUG" in answer.body


@pytest.mark.parametrize("name", OWN)
def test_own_page_is_shown_in_debug_where_django_has_none(
    debugged: Server, name: str
) -> None:
    answer = ask(debugged, OWN[name])
    check_common(answer, OWN[name])
    check_page(answer)

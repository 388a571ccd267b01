"""A person logs in to the admin, over real sockets."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection, HTTPMessage
from http.cookies import SimpleCookie
from urllib.parse import urlencode

import pytest

from tests.template.conftest import Bake
from tests.template.prompts import choices
from tests.template.service import Service

pytestmark = pytest.mark.xdist_group("admin")


class Browser:
    """As far as a login needs one: cookies, and forms with their hidden token."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port = port
        self.headers = headers
        self.cookies: SimpleCookie = SimpleCookie()
        self.token = ""

    def open(self, path: str, **form: str) -> tuple[int, HTTPMessage, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        cookie = "; ".join(f"{c.key}={c.value}" for c in self.cookies.values())
        headers = self.headers | {"Cookie": cookie}
        if form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            form["csrfmiddlewaretoken"] = self.token
        method = "POST" if form else "GET"
        connection.request(method, path, urlencode(form) if form else None, headers)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        for value in response.headers.get_all("Set-Cookie", []):
            self.cookies.load(value)
        if found := re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', body):
            self.token = found[1]
        return response.status, response.headers, body


@pytest.fixture(scope="module", params=choices("django_version"))
def service(request: pytest.FixtureRequest, bake: Bake) -> Service:
    service = bake(django_version=request.param, admin="true")
    service.run("uv run manage.py migrate")
    service.run(
        "uv run manage.py createsuperuser --noinput",
        DJANGO_SUPERUSER_USERNAME="me",
        DJANGO_SUPERUSER_EMAIL="me@example.com",
        DJANGO_SUPERUSER_PASSWORD="correct horse",
    )
    return service


@contextmanager
def development(service: Service) -> Iterator[Browser]:
    command, *_ = service.readme_commands()
    with service.serve(f"{command} 8000") as server:
        yield Browser(server.port)


@contextmanager
def production(service: Service) -> Iterator[Browser]:
    """Behind a proxy that ends TLS, in the documented environment."""
    environment = service.readme_environment() | {"DEBUG": "", "SECRET_KEY": "x" * 50}
    service.run("uv run manage.py collectstatic --noinput", **environment)
    [command] = [c for c in service.readme_commands() if "uvicorn" in c]
    with service.serve(command, **environment) as server:
        status, headers, _ = Browser(server.port, Host="example.com").open("/admin/")
        assert (status, headers["Location"]) == (301, "https://example.com/admin/")
        yield Browser(
            server.port,
            Host="example.com",
            Origin="https://example.com",
            **{"X-Forwarded-Proto": "https"},
        )


@pytest.mark.parametrize("settings", [development, production])
def test_login_shows_the_admin_and_logout_ends_it(
    service: Service, settings: Callable[[Service], AbstractContextManager[Browser]]
) -> None:
    with settings(service) as browser:
        status, headers, page = browser.open("/admin/login/")
        assert status == 200
        secure = settings is production
        [css] = re.findall(r'href="(/static/admin/css/login\.[\w.]+)"', page)
        assert bool(re.search(r"login\.\w{12}\.css", css)) == secure
        status, headers, _ = browser.open(css)
        assert status == 200
        assert ("immutable" in headers["Cache-Control"]) == secure

        status, _, page = browser.open("/admin/login/", username="me", password="no")
        assert (status, "Please enter the correct username" in page) == (200, True)
        answer = {"username": "me", "password": "correct horse", "next": "/admin/"}
        status, headers, _ = browser.open("/admin/login/", **answer)
        assert (status, headers["Location"]) == (302, "/admin/")
        assert {c.key: bool(c["secure"]) for c in browser.cookies.values()} == {
            "csrftoken": secure,
            "sessionid": secure,
        }
        assert ("Strict-Transport-Security" in headers) == secure
        status, _, page = browser.open("/admin/")
        title = "<title>Site administration | My Async Service</title>"
        assert (status, title in page) == (200, True)
        assert "Django" not in page
        user = {"username": settings.__name__, "usable_password": "true"}
        passwords = {"password1": "battery staple", "password2": "battery staple"}
        browser.open("/admin/users/user/add/")
        status, headers, _ = browser.open("/admin/users/user/add/", **user, **passwords)
        assert status == 302
        assert re.fullmatch(r"/admin/users/user/\d/change/", headers["Location"])
        status, _, page = browser.open("/admin/logout/", go="1")
        assert (status, "Logged out" in page) == (200, True)
        assert browser.open("/admin/")[0] == 302


def test_policy_lets_in_every_script_and_style_of_the_pages(service: Service) -> None:
    with development(service) as browser:
        _, headers, page = browser.open("/")
        policy = headers["Content-Security-Policy"]
        if service.answers["django_version"] == "5.2":
            assert policy is None
            return
        [nonce] = re.findall(r'<style nonce="(.+?)">', page)
        assert f"'nonce-{nonce}'" in policy
        _, headers, page = browser.open("/admin/login/")
        assert headers["Content-Security-Policy"]
        assert not re.search(r"<(style|script)>|\son\w+=|\sstyle=", page)

"""A person logs in to the admin, over real sockets."""

import re
from http.client import HTTPConnection, HTTPMessage
from http.cookies import SimpleCookie
from urllib.parse import urlencode

import pytest

from tests.template.service import Service, Site, succeed

pytestmark = pytest.mark.xdist_group("admin")


class Browser:
    """As much of a browser as a login needs: cookies, and forms with a hidden token."""

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


def test_login_shows_the_admin_and_logout_ends_it(site: Site) -> None:
    secure = site.is_production
    if secure:
        plain = Browser(site.server.port, Host="example.com").open("/admin/")
        assert (plain[0], plain[1]["Location"]) == (301, f"{site.origin}/admin/")
    browser = Browser(site.server.port, Origin=site.origin, **site.headers)
    status, headers, page = browser.open("/admin/login/")
    assert status == 200
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
    user = {"username": f"production-{secure}", "usable_password": "true"}
    passwords = {"password1": "battery staple", "password2": "battery staple"}
    browser.open("/admin/users/user/add/")
    status, headers, _ = browser.open("/admin/users/user/add/", **user, **passwords)
    assert status == 302
    assert re.fullmatch(r"/admin/users/user/\d/change/", headers["Location"])
    status, _, page = browser.open("/admin/logout/", go="1")
    assert (status, "Logged out" in page) == (200, True)
    assert browser.open("/admin/")[0] == 302


def test_policy_lets_in_every_script_and_style_of_the_pages(site: Site) -> None:
    browser = Browser(site.server.port, **site.headers)
    _, headers, page = browser.open("/")
    policy = headers["Content-Security-Policy"]
    if site.service.answers["django_version"] == "5.2":
        assert policy is None
        return
    [nonce] = re.findall(r'<style nonce="(.+?)">', page)
    assert f"'nonce-{nonce}'" in policy
    _, headers, page = browser.open("/admin/login/")
    assert headers["Content-Security-Policy"]
    assert not re.search(r"<(style|script)>|\son\w+=|\sstyle=", page)


def test_shell_of_the_document_logs_in_and_writes_through_the_api(
    with_admin: Service,
) -> None:
    text = with_admin.documents()["docs/development.md"]
    [script] = re.findall(r"(?m)^    jar=.*\n(?:    .*\n)+", text)
    command = "uv run --no-sync manage.py runserver 8000 --noreload"
    with with_admin.serve(command) as server:
        script = script.replace(":8000", f":{server.port}")
        written = succeed(["bash", "-euo", "pipefail", "-c", script], with_admin.path)
    assert '"title": "Milk", "text": "", "version": 1}' in written

"""An owner's change breaks only the tests that it affects, and these explain why.

Each change is made as docs/development.md describes it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.template.service import TREE, Service, finish

# On one worker with the others that copy the default service: it is generated once.
pytestmark = pytest.mark.xdist_group("installed")

Change = Callable[[Service], None]
SETTINGS = "config/settings.py"


def below(entry: str, added: str) -> Change:
    """Another line of MIDDLEWARE."""

    def change(service: Service) -> None:
        line = f'    "{entry}",\n'
        service.replace(SETTINGS, line, f'{line}    "{added}",\n')

    return change


def other_defaults(service: Service) -> None:
    """In the table at the top of the settings."""
    text = (service.path / SETTINGS).read_text(encoding="utf-8")
    for name, value in OTHER_DEFAULTS.items():
        [line] = re.findall(rf'^    "{name}": ".*",\n', text, re.MULTILINE)
        service.replace(SETTINGS, line, f'    "{name}": "{value}",\n')


OTHER_DEFAULTS = {
    "LOG_LEVEL": "WARNING",
    "LOG_FORMAT": "json",
    "RESPONSE_HEADER_WHEN": "never",
}
SYNCHRONOUS = """\
def audit(get_response):
    def middleware(request):
        response = get_response(request)
        response["X-Audit"] = "1"
        return response

    return middleware
"""


def synchronous_middleware(service: Service) -> None:
    (service.path / "home" / "middleware.py").write_text(SYNCHRONOUS)
    below("django.middleware.common.CommonMiddleware", "home.middleware.audit")(service)
    empty = "SYNC_MIDDLEWARE: list[str] = []\n"
    service.replace(SETTINGS, empty, 'SYNC_MIDDLEWARE = ["home.middleware.audit"]\n')


def two_languages(service: Service) -> None:
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    below(session, "django.middleware.locale.LocaleMiddleware")(service)
    code = 'LANGUAGE_CODE = "en-us"\n'
    languages = 'LANGUAGES = [("en", "English"), ("de", "German")]\n'
    service.replace(SETTINGS, code, f"{code}{languages}")


login_required = below(
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
)


def another_admin_url(service: Service) -> None:
    service.replace("config/urls.py", 'path("admin/"', 'path("backoffice/"')


VIEWS = """\
from django.http import HttpRequest, HttpResponse


async def orders(request: HttpRequest) -> HttpResponse:
    return HttpResponse("orders")
"""
URLS = """\
from django.urls import path

from home import views

urlpatterns = [path("orders/", views.orders)]
"""
TEST_HOME = """\
from django.test import AsyncClient


async def test_orders_are_listed(async_client: AsyncClient) -> None:
    response = await async_client.get("/orders/")
    assert response.content == b"orders"
"""


def other_pages(service: Service) -> None:
    (service.path / "home" / "views.py").write_text(VIEWS)
    (service.path / "home" / "urls.py").write_text(URLS)
    (service.path / "home" / "templates" / "home" / "index.html").unlink()
    (service.path / "tests" / "test_home.py").write_text(TEST_HOME)


SYNC_CLIENT = """\
import pytest
from django.test import Client


@pytest.mark.django_db
def test_page_is_served(client: Client) -> None:
    assert client.get("/hello/you/").json() == {"hello": "you"}
"""


# mypy requires a type argument for ModelAdmin, which Django itself does not support.
APP = {
    "models.py": """\
from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.item


def pens() -> models.QuerySet[Order]:
    return Order.objects.filter(item="pen")
""",
    "admin.py": """\
from django import forms
from django.contrib import admin
from django.views.generic import ListView

from orders.models import Order


class OrderForm(forms.ModelForm[Order]):
    pass


class OrderList(ListView[Order]):
    pass


class OrderInline(admin.TabularInline[Order, Order]):
    pass


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin[Order]):
    form = OrderForm
""",
    "test_models.py": """\
import pytest
from django.test import AsyncClient
from django.urls import reverse

from orders.models import Order, pens
from users.models import User


@pytest.mark.django_db
async def test_pens_are_found(async_client: AsyncClient) -> None:
    await Order.objects.acreate(item="pen")
    assert await pens().acount() == 1
    user = await User.objects.acreate_superuser("me", password="secret")
    assert user.password.startswith("md5$")
    await async_client.aforce_login(user)
    page = reverse("admin:orders_order_changelist")
    assert "1 order" in (await async_client.get(page)).content.decode()
    assert (await async_client.get("/orders/")).json() == {"app": "orders"}
""",
}


def app_with_a_model(service: Service) -> None:
    service.run("uv run --no-sync manage.py startapp orders")
    for name, text in APP.items():
        (service.path / "orders" / name).write_text(text)
    service.replace(SETTINGS, '    "home",\n', '    "home",\n    "orders",\n')
    home = '    path("", include("home.urls")),\n'
    orders = '    path("orders/", include("orders.urls")),\n'
    service.replace("config/urls.py", home, home + orders)


CHANNELS = """

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter


class Echo(AsyncWebsocketConsumer):
    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None
    ) -> None:
        await self.send(text_data)


application = ProtocolTypeRouter(
    {"http": django, "lifespan": django, "websocket": Echo.as_asgi()}
)
"""


PHONE = """\
import pytest
from django.test import Client

from users.models import User

PAGES = "/admin/users/user"


@pytest.mark.django_db
def test_phone_of_a_user_is_in_the_admin(client: Client) -> None:
    client.force_login(User.objects.create_superuser("me"))
    assert 'name="phone"' in client.get(f"{PAGES}/add/").content.decode()
    form = {"username": "you", "usable_password": "false", "phone": "555-0100"}
    page = client.post(f"{PAGES}/add/", form).headers["Location"]
    assert 'value="555-0100"' in client.get(page).content.decode()
"""


def phone_of_a_user(service: Service) -> None:
    text = service.documents()["docs/development.md"]
    [field] = re.findall(r"`(phone = .*?)`", text)
    [admin] = [code for code in service.python_examples() if "UserAdmin" in code]
    (service.path / "users" / "admin.py").write_text(admin)
    (service.path / "users" / "tests.py").write_text(PHONE)
    with (service.path / "users" / "models.py").open("a") as models:
        models.write(f"\n    {field}\n")
    imported = "import AbstractUser\n"
    models_too = f"{imported}from django.db import models\n"
    service.replace("users/models.py", imported, models_too)


MEANWHILE = """\
import subprocess
import sys

import pytest

from users.models import User


@pytest.mark.django_db
def test_another_run_leaves_this_database_alone() -> None:
    command = [sys.executable, "-m", "pytest", "tests/test_users.py"]
    subprocess.run(command, check=True)
    User.objects.create(username="me")
"""


def sync_client_first(service: Service) -> None:
    (service.path / "tests" / "test_a_first.py").write_text(SYNC_CLIENT)


# Those of an entry are made together; none of them replaces a test.
CHANGES: dict[str, tuple[Change, ...]] = {
    "pages": (other_pages,),
    "settings": (
        *(synchronous_middleware, two_languages, other_defaults, another_admin_url),
        sync_client_first,
    ),
}
ENVIRONMENT = {"LOG_LEVEL": "ERROR", "LOG_FORMAT": "logfmt"}
DOTENV = "RESPONSE_HEADER_WHEN=never\nSERVER_TIMING=never\n"
REVERSED = """\
def pytest_collection_modifyitems(items):
    items.reverse()
"""
TEST = "uv run --no-sync pytest -p no:cacheprovider -rf"


@pytest.mark.parametrize("name", CHANGES)
def test_change_leaves_the_tests_green(copied: Service, name: str) -> None:
    for change in CHANGES[name]:
        change(copied)
    assert re.search(r"\n=+ \d+ passed in ", copied.run(TEST))


def test_own_app_and_field_of_the_user_are_in_the_admin(copied: Service) -> None:
    app_with_a_model(copied)
    phone_of_a_user(copied)
    copied.run("uv run --no-sync manage.py makemigrations")
    # mypy checks the example with the field in test_unrendered.py.
    copied.run("uv run --no-sync ruff check .")
    copied.run("uv run --no-sync ruff format --check .")
    assert " 3 passed in " in copied.run(f"{TEST} orders users")


def test_two_runs_at_once_have_a_database_each(copied: Service, tmp_path: Path) -> None:
    (copied.path / "tests" / "test_meanwhile.py").write_text(MEANWHILE)
    (folder := tmp_path / "temporary").mkdir()
    output = copied.run(f"{TEST} tests/test_meanwhile.py", TMPDIR=str(folder))
    assert " 1 passed in " in output
    # uv has a lock there.
    assert not [file for file in folder.iterdir() if "uv" not in file.name]


def test_login_for_every_page_fails_the_one_test_that_opens_them(
    copied: Service,
) -> None:
    login_required(copied)
    done = finish(TEST.split(), copied.path, copied.environment)
    [failure] = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    assert failure == "tests/test_home.py::test_pages_are_served"
    # The targets of the pages' links.
    assert "/admin/login/?next=/" in done.stdout


def test_channels_serves_websockets(copied: Service) -> None:
    named = "    application = get_asgi_application()\n"
    copied.replace("config/asgi.py", named, "    django = get_asgi_application()\n")
    with (copied.path / "config" / "asgi.py").open("a", encoding="utf-8") as file:
        file.write(CHANNELS)
    # Added to the environment for this command alone, which others share.
    added = "uv run --no-sync --with channels python"
    run = f"{added} -W error manage.py runserver 8000 --noreload"
    with copied.serve(run) as server:
        with connect(f"ws://127.0.0.1:{server.port}/") as websocket:
            websocket.send("hello")
            assert websocket.recv(10) == "hello"
        assert server.get("/hello/you/").status == 200
        server.wait_for(lambda: "Request took" in server.log.read_text())
    # Channels refuses the protocols that it is not given.
    assert "lifespan" not in server.log.read_text()


def test_environment_dotenv_and_order_leave_the_tests_green(
    copied: Service, tmp_path: Path
) -> None:
    with (copied.path / ".env").open("a", encoding="utf-8") as file:
        file.write(DOTENV)
    (tmp_path / "reversed_order.py").write_text(REVERSED)
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    assert " passed in " in copied.run(f"{TEST} -p reversed_order", **environment)


def test_development_document_describes_each_change() -> None:
    text = (TREE / "docs" / "development.md").read_text(encoding="utf-8")
    for words in (
        "your own pages",
        "the log's level or format",
        "an app of your own",
        "startapp orders",
        'path("orders/", include("orders.urls"))',
        "config/app_template/",
        "a synchronous middleware",
        "SYNC_MIDDLEWARE",
        "LocaleMiddleware",
        "LANGUAGES",
        "LoginRequiredMiddleware",
        "login_not_required",
        "the admin's address",
        "uv add channels",
        "ProtocolTypeRouter",
    ):
        assert words in text

"""What is loaded before a service is ready, so that no request has to."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.forms.renderers import get_default_renderer
from django.template import TemplateDoesNotExist
from django.template.loader import render_to_string
from django.urls import URLResolver, reverse
from django.utils.translation import trans_real
from onloop import health
from onloop.health import preload

UNREAD = {"unread_urls", "unread_processors", "unread_storage"}
URLS = """
from django.urls import include, path

urlpatterns = [path("a/", include(([path("b/", print, name="b")], "a")))]
"""


@pytest.fixture
def project(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """A project whose files nobody has read."""
    # Its forms look up a translation when they are imported.
    import_module("django.contrib.auth.forms")
    (tmp_path / "unread_urls.py").write_text(URLS)
    (tmp_path / "unread_processors.py").write_text("def processor(request): ...")
    (tmp_path / "unread_storage.py").write_text("class Storage: ...")
    (tmp_path / "page.html").write_text("a page")
    get_default_renderer.cache_clear()  # type: ignore[attr-defined]
    backend = "django.template.backends.django.DjangoTemplates"
    options = {"context_processors": ["unread_processors.processor"]}
    settings.TEMPLATES = [
        {"BACKEND": backend, "DIRS": [tmp_path], "OPTIONS": options},
    ]
    settings.ROOT_URLCONF = "unread_urls"
    settings.MESSAGE_STORAGE = "unread_storage.Storage"
    settings.LANGUAGE_CODE = "de"
    settings.LOCALE_PATHS = [tmp_path]
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    for name in UNREAD:
        sys.modules.pop(name, None)


def test_routes_templates_and_translations_are_loaded(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preload() is None
    (project / "page.html").unlink()
    assert render_to_string("page.html") == "a page"
    assert sys.modules.keys() >= UNREAD
    renderer: Any = get_default_renderer()
    [forms] = renderer.engine.engine.template_loaders
    assert "django/forms/div.html" in forms.get_template_cache
    # It collects the names, those of each namespace by themselves.
    monkeypatch.setattr(URLResolver, "_populate", None)
    assert reverse("a:b") == "/a/b/"
    assert "de" in trans_real._translations  # type: ignore[attr-defined]


def test_what_cannot_be_loaded_is_left_to_its_request(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "unread_urls.py").write_text("1 / 0")
    (project / "a").mkdir()
    (project / "a" / "broken.html").write_text("{% nonsense %}")
    (project / "a" / "binary.html").write_bytes(b"\xff")
    catalog = project / "de" / "LC_MESSAGES" / "django.mo"
    catalog.parent.mkdir(parents=True)
    catalog.write_bytes(b"no catalog")
    assert preload() is None
    (project / "page.html").unlink()
    assert render_to_string("page.html") == "a page"
    told = [record.getMessage() for record in caplog.records]
    assert "The routes cannot be loaded" in told
    assert "The translations cannot be loaded" in told
    assert not [message for message in told if "templates" in message]


def test_endless_template_folder_does_not_delay_the_start(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TEMPLATES_TIMEOUT", -1)
    assert preload() is None
    (project / "page.html").unlink()
    with pytest.raises(TemplateDoesNotExist):
        render_to_string("page.html")


@pytest.mark.parametrize("setting", ["FORM_RENDERER", "MESSAGE_STORAGE"])
def test_faulty_setting_leaves_the_rest_loaded(
    project: Path, settings: Any, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(settings, setting, "nowhere.Missing")
    assert preload() is None
    assert "cannot be loaded" in caplog.text
    (project / "page.html").unlink()
    assert render_to_string("page.html") == "a page"

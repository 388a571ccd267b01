"""An example resource below /api/; /api/docs is its UI."""

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.shortcuts import aget_object_or_404
from django.utils.decorators import async_only_middleware
from ninja import Field, NinjaAPI, Schema, Status
from ninja.errors import HttpError, ValidationError
from ninja.pagination import PageNumberPagination, paginate
from ninja.security import django_auth

from home.models import Note, Revision
from serving.errors import error_response
from serving.health import GetResponse

# If there are users, an operation requires a login unless it sets auth=None.
has_users = apps.is_installed("django.contrib.auth")
auth = django_auth if has_users else None
api = NinjaAPI(title=settings.PROJECT_NAME, urls_namespace="api", auth=auth)


class Text(Schema):
    # PostgreSQL stores every character except this one.
    text: str = Field(max_length=10_000, pattern="^[^\0]*$")


class NewNote(Text):
    title: str = Field(min_length=1, max_length=100, pattern="^[^\0]*$")


class Change(Text):
    version: int = Field(ge=1)


class NoteOut(Schema):
    id: int
    title: str
    text: str
    version: int


class Pages(PageNumberPagination):
    class Input(PageNumberPagination.Input):
        # The further back a page is, the more rows the database has to skip.
        page: int = Field(1, ge=1, le=10_000)


@api.get("/notes", response=list[NoteOut], auth=None)
@paginate(Pages)
async def list_notes(request: HttpRequest) -> QuerySet[Note]:
    # Without an order a note might be on two pages, or on none.
    return Note.objects.order_by("-pk")


@api.post("/notes", response={201: NoteOut})
async def create_note(request: HttpRequest, new: NewNote) -> Status[Note]:
    try:
        return Status(201, await insert(new))
    except IntegrityError:
        # Checking first is not enough: two requests may check at the same time.
        raise HttpError(409, "There is a note with this title.") from None


@api.get("/notes/{int:pk}", response=NoteOut, auth=None)
async def get_note(request: HttpRequest, pk: int) -> Note:
    return await aget_object_or_404(Note, pk=pk)


@api.patch("/notes/{int:pk}", response=NoteOut)
async def change_note(request: HttpRequest, pk: int, change: Change) -> Note:
    if note := await update(pk, change):
        return note
    await aget_object_or_404(Note, pk=pk)
    raise HttpError(409, "The note has changed since you read this version.")


@api.delete("/notes/{int:pk}", response={204: None})
async def delete_note(request: HttpRequest, pk: int) -> Status[None]:
    if not await remove(pk):
        raise HttpError(404, "Not Found")
    return Status(204, None)


# A transaction is one synchronous function, which runs in one thread. The thread goes
# on when the request is cancelled: either everything is committed, or nothing.
@sync_to_async
@transaction.atomic
def insert(new: NewNote) -> Note:
    note = Note.objects.create(title=new.title, text=new.text)
    note.revisions.create(version=note.version, text=note.text)
    return note


@sync_to_async
@transaction.atomic
def update(pk: int, change: Change) -> Note | None:
    # The statement that changes the note compares the version: one that was read before
    # may be outdated, and select_for_update() does nothing on SQLite.
    note = Note.objects.filter(pk=pk, version=change.version)
    if not note.update(text=change.text, version=F("version") + 1):
        return None
    version = change.version + 1
    Revision.objects.create(note_id=pk, version=version, text=change.text)
    return Note.objects.get(pk=pk)


@sync_to_async
@transaction.atomic
def remove(pk: int) -> bool:
    note = Note.objects.filter(pk=pk)
    # Locks the note, so that no change adds a revision meanwhile.
    return bool(note.update(version=F("version") + 1) and note.delete())


# Errors have the same form as everywhere in the service.
@api.exception_handler(HttpError)
def http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return error_response(request, status=error.status_code, detail=error.message)


@api.exception_handler(Http404)
def not_found(request: HttpRequest, error: Http404) -> HttpResponse:
    return error_response(request, status=404)


@api.exception_handler(ValidationError)
def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    return error_response(request, status=422, errors=error.errors)


@async_only_middleware
def method_not_allowed(get_response: GetResponse) -> GetResponse:
    """Django Ninja calls no exception handler if a path lacks the request's method."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = await get_response(request)
        if isinstance(response, HttpResponseNotAllowed):
            problem = error_response(request, status=405)
            problem.headers["Allow"] = response.headers["Allow"]
            return problem
        return response

    return middleware


urlpatterns, app_name = api.urls[0], api.urls_namespace

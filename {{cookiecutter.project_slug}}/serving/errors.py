"""What a client sees of an error: a page, or JSON (RFC 9457); never the exception."""

import logging

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

PROBLEM = "application/problem+json"
# With any parameters. curl accepts any type, while a browser prefers HTML.
TYPES = {"text/html", "text/*", "application/json", PROBLEM, "application/*", "*/*"}


def error_response(
    request: HttpRequest, exception: object = None, *, status: int, **members: object
) -> HttpResponse:
    title = HttpResponse(status=status).reason_phrase
    problem = {"type": "about:blank", "title": title, "status": status, **members}
    problem["request_id"] = request.META.get("HTTP_X_REQUEST_ID")
    response: HttpResponse = JsonResponse(problem, status=status, content_type=PROBLEM)
    try:
        types = [] if request.path_info.startswith("/api/") else request.accepted_types
        names = (f"{t.main_type}/{t.sub_type}" for t in types)
        if next((name for name in names if name in TYPES), "").startswith("text/"):
            context = {"service": settings.PROJECT_NAME, **problem}
            response = render(request, "serving/error.html", context, status=status)
    except Exception:
        logging.getLogger("serving.errors").exception("The error page failed")
    response.headers["Cache-Control"] = "no-store"
    return response


def csrf_failure(request: HttpRequest, reason: str) -> HttpResponse:
    detail = "The form could not be checked. Go back, reload the page and try again."
    return error_response(request, status=403, detail=detail)

"""What a client sees of an error: a page, or JSON (RFC 9457); never the exception."""

import logging

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

# On a tie, the first one wins: curl accepts any type, while a browser prefers HTML.
MEDIA_TYPES = ["application/json", "application/problem+json", "text/html"]


def error_response(
    request: HttpRequest, exception: object = None, *, status: int, **members: object
) -> HttpResponse:
    title = HttpResponse(status=status).reason_phrase
    problem = {"type": "about:blank", "title": title, "status": status, **members}
    problem["request_id"] = request.META.get("HTTP_X_REQUEST_ID")
    response: HttpResponse = JsonResponse(problem, status=status)
    response.headers["Content-Type"] = "application/problem+json"
    is_api = request.path_info.startswith("/api/")
    try:
        if not is_api and request.get_preferred_type(MEDIA_TYPES) == "text/html":
            context = {"service": settings.PROJECT_NAME, **problem}
            page = render_to_string("serving/error.html", context, request)
            response = HttpResponse(page, status=status)
    except Exception:
        logging.getLogger("serving.errors").exception("The error page failed")
    response.headers["Cache-Control"] = "no-store"
    return response


def csrf_failure(request: HttpRequest, reason: str) -> HttpResponse:
    detail = "The form could not be checked. Go back, reload the page and try again."
    return error_response(request, status=403, detail=detail)

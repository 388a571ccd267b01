"""Correct and mistaken middlewares."""

import os
from typing import Any

from asgiref.sync import (
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from asgiref.sync import markcoroutinefunction as mark
from django import http
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware
from django.utils.decorators import async_only_middleware, sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin


class Middleware:
    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)  # type: ignore[type-var]


# They stay on the event loop.


class Marked(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await self.get_response(request)
        response["X-Good"] = "1"
        return response


class Observer(Marked):
    def process_abort(self, request: HttpRequest, start: float, end: Any) -> None:
        pass


class PassesOn(Middleware):
    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)


class Hybrid:
    async_capable = True
    sync_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self.get_response):
            return self.__acall__(request)
        response = self.get_response(request)
        response["X-Good"] = "1"
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        waiting = self.get_response(request)
        assert waiting is not None
        response: HttpResponse = await waiting
        response["X-Good"] = "1"
        return response


class MarkedByAlias(Marked):
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        mark(self)


def set_up(middleware: Any, get_response: Any) -> None:
    middleware.get_response = get_response
    markcoroutinefunction(middleware)


class MarkedByHelper(Marked):
    def __init__(self, get_response: Any) -> None:
        set_up(self, get_response)


class ReturnsName(Hybrid):
    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self.get_response):
            coroutine = self.__acall__(request)
            return coroutine
        response = self.get_response(request)
        response["X-Good"] = "1"
        return response


class Closes(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        waiting = self.get_response(request)
        if request.GET:
            waiting.close()
            return HttpResponse()
        response: HttpResponse = await waiting
        return response


class AsyncViewHook(Marked):
    async def process_view(self, request: HttpRequest, *view: Any) -> None:
        pass


class AwaitsLater(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response = await response
        response["X-Good"] = "1"
        return response  # type: ignore[no-any-return]


class Nested(Middleware):
    def __call__(self, request: HttpRequest) -> Any:
        response = self.get_response(request)

        def mark(response: HttpResponse) -> None:
            response["X-Good"] = "1"

        async def remark(response: HttpResponse) -> None:
            response["X-Good"] += "1"

        async def copy(waiting: Any) -> HttpResponse:
            original = await waiting
            mark(original)
            await remark(original)
            return HttpResponse(original.content)

        copied = copy(response)
        return copied


class OwnCall(MiddlewareMixin):
    """Its __acall__() replaces that of the mixin, which would call the hook."""

    def process_request(self, request: HttpRequest) -> None:
        pass

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        waiting: Any = self.get_response(request)
        response: HttpResponse = await waiting
        return response


@sync_and_async_middleware
def both(get_response: Any) -> Any:
    async def asynchronous(request: HttpRequest) -> Any:
        return await get_response(request)

    def synchronous(request: HttpRequest) -> Any:
        response = get_response(request)
        response["X-Good"] = "1"
        return response

    return asynchronous if iscoroutinefunction(get_response) else synchronous


class Reading(Marked):
    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        os.stat(__file__)


class Unused(Marked):
    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        raise MiddlewareNotUsed


# They leave the event loop.


class SyncOnly:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)  # type: ignore[no-any-return]


def sync_only(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


class Mixed(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        pass

    def process_response(
        self, request: HttpRequest, response: HttpResponse
    ) -> HttpResponse:
        return response


async def nothing() -> None:
    pass


class Bridging(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        async_to_sync(nothing)()


class OwnSecurity(SecurityMiddleware):
    """A subclass of Django's middleware, whose addition may block."""

    def process_request(self, request: HttpRequest) -> Any:
        return super().process_request(request)


class OwnCsrf(CsrfViewMiddleware):
    pass


class ViewHook(Marked):
    def process_view(self, request: HttpRequest, *view: Any) -> None:
        pass


class ExceptionHook(Marked):
    async def process_exception(self, request: HttpRequest, exc: Exception) -> None:
        pass


# They leave the event loop in their code, and their class does not show it.


def work() -> None:
    pass


async def hop() -> None:
    await sync_to_async(work)()


class Hopping(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        await sync_to_async(work)()
        response: HttpResponse = await self.get_response(request)
        await hop()
        return response


class HoppingViewHook(Marked):
    async def process_view(self, request: HttpRequest, *view: Any) -> None:
        await hop()


@async_only_middleware
def hopping(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        await hop()
        return await get_response(request)

    return middleware


# They are mistaken.


class Unflagged:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await self.get_response(request)
        response["X-Tutorial"] = "1"
        return response


async def coroutine_factory(get_response: Any) -> Any:
    return get_response


def undecorated(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        return await get_response(request)

    return middleware


class Unmarked(Unflagged):
    async_capable = True
    sync_capable = False


class UnmarkedAgain(Middleware, Unmarked):
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    __call__ = Unflagged.__call__


class SyncCall(Middleware):
    def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self.get_response(request)
        response["X-Bad"] = "1"
        return response


class SyncAnswer(Middleware):
    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "secret" in request.path:
            return HttpResponse(status=403)
        return self.get_response(request)  # type: ignore[no-any-return]


class SyncAnswerByModule(Middleware):
    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "secret" in request.path:
            return http.HttpResponse(status=403)
        return self.get_response(request)  # type: ignore[no-any-return]


@async_only_middleware
def decorated_sync(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response["X-Bad"] = "1"
        return response

    return middleware


class Unawaited(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self.get_response(request)
        response["X-Bad"] = "1"
        return response


class UnawaitedPrivate(Middleware):
    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self._get_response = get_response

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self._get_response(request)
        response["X-Bad"] = "1"
        return response


class UnawaitedMixin(MiddlewareMixin):
    async def __acall__(self, request: HttpRequest) -> Any:
        response: Any = self.get_response(request)
        response["X-Bad"] = "1"
        return response


class ReturnsCoroutine(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)  # type: ignore[no-any-return]


@async_only_middleware
def decorated_unawaited(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response.headers["X-Bad"] = "1"
        return response

    return middleware


class AsyncHook(MiddlewareMixin):
    async def process_request(self, request: HttpRequest) -> None:
        pass

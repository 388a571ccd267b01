"""The undocumented names of Django and asgiref that onloop depends on.

They are all listed here and looked up when this module is imported, so that a release
without one of them is noticed at startup and not during a request.
"""

import signal
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from types import FunctionType
from typing import Any

import django

OLDEST_DJANGO = (5, 2)
# The newest version whose own tests pass with onloop's handler.
NEWEST_DJANGO = (6, 1)

# Each module with the names that it must have. "method#name" stands for an instance
# attribute (or another name) that must occur in the code of the method.
NAMES = {
    "asgiref.sync": """
        AsyncToSync.executors SyncToAsync.context_to_thread_executor
        SyncToAsync.thread_sensitive_context ThreadSensitiveContext.__init__#_exited
    """,
    "django.core.handlers.asgi": """
        ASGIHandler.create_request ASGIHandler.handle ASGIHandler.listen_for_disconnect
        ASGIHandler.read_body ASGIHandler.run_get_response ASGIHandler.send_response
        get_script_prefix
    """,
    "django.core.handlers.base": """
        BaseHandler.adapt_method_mode BaseHandler.get_response_async#_middleware_chain
        BaseHandler.get_response_async#_resource_closers BaseHandler.resolve_request
        reset_urlconf
    """,
    "django.core.handlers.exception": """
        convert_exception_to_response response_for_exception
    """,
    "django.contrib.messages.middleware": "MessageMiddleware.process_request#_messages",
    "django.contrib.sessions.backends.base": "SessionBase._get_session",
    "django.contrib.sessions.backends.file": """
        SessionStore._get_storage_path#_storage_path
    """,
    "django.core.cache": "close_caches",
    "django.db": "close_old_connections reset_queries",
    "django.db.backends.base.base": """
        BaseDatabaseWrapper.__init__#autocommit BaseDatabaseWrapper.__init__#close_at
        BaseDatabaseWrapper.__init__#errors_occurred
        BaseDatabaseWrapper.__init__#execute_wrappers
        BaseDatabaseWrapper.__init__#in_atomic_block
        BaseDatabaseWrapper.__init__#queries_log BaseDatabaseWrapper.allow_thread_sharing
        BaseDatabaseWrapper.close_if_unusable_or_obsolete BaseDatabaseWrapper.connect
        BaseDatabaseWrapper.init_connection_state
    """,
    "django.dispatch.dispatcher": """
        NO_RECEIVERS Signal.__init__#sender_receivers_cache Signal._live_receivers
    """,
    "django.http.request": """
        HttpRequest._load_post_and_files#_post HttpRequest.close#_files
    """,
    "django.http.response": """
        HttpResponseBase.close#_handler_class ResponseHeaders.__init__#_store
        StreamingHttpResponse.__aiter__#streaming_content
        StreamingHttpResponse._set_streaming_content#_iterator
    """,
    "django.middleware.csrf": "CsrfViewMiddleware._reject",
    "django.urls": "URLResolver.urlconf_module get_callable get_resolver get_urlconf",
    "django.utils.deprecation": "MiddlewareMixin.__acall__",
    "django.utils.functional": """
        LazyObject.__init__#_wrapped SimpleLazyObject.__init__#_setupfunc empty
    """,
    "django.utils.log": "log_response#_has_been_logged",
    "django.utils.translation.trans_real": "_translations translation",
}


def problems() -> Iterator[str]:
    if not OLDEST_DJANGO <= django.VERSION[:2] <= NEWEST_DJANGO:
        yield f"it was not tested with Django {django.get_version()}"
    for module, names in NAMES.items():
        for name in names.split():
            if not exists(module, name):
                yield f"{module}.{name.replace('#', ' -> ')} is missing"


def exists(module_name: str, name: str) -> bool:
    path, _, attribute = name.partition("#")
    try:
        module = import_module(module_name)
        found: Any = reduce(getattr, path.split("."), module)
    except (ImportError, AttributeError):
        return False
    found = getattr(found, "__func__", found)
    if not attribute or not defined_in(found, module):
        # An instrumentation's wrapper does not show the code that it wraps.
        return True
    return attribute in (*found.__code__.co_names, *found.__code__.co_consts)


def defined_in(function: Any, module: Any) -> bool:
    """Whether the module defines the function, and no instrumentation replaced it.

    ``functools.wraps()`` and wrapt copy a function's names, but not its globals.
    """
    return type(function) is FunctionType and function.__globals__ is vars(module)


def uvicorn_server() -> Any:
    """The uvicorn server that handles SIGTERM in this process, or None."""
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)


PROBLEM = next(problems(), None)

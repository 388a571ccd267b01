"""Find out from a middleware's source whether it awaits get_response().

Without the source, no mistake is reported.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from django.http.response import HttpResponseBase

Function = ast.FunctionDef | ast.AsyncFunctionDef
GET_RESPONSE = {"get_response", "self.get_response", "self._get_response"}


def is_coroutine_only(middleware: Any) -> bool:
    """Whether a request is certainly served by a coroutine function."""
    if isinstance(middleware, type):
        return inspect.iscoroutinefunction(middleware.__call__)
    inner = inner_functions(middleware)
    return bool(inner) and all(isinstance(f, ast.AsyncFunctionDef) for f in inner)


def is_synchronous(middleware: Any) -> bool:
    """Whether it certainly returns a response where Django awaits a coroutine."""
    if isinstance(middleware, type):
        call = middleware.__call__
        return not inspect.iscoroutinefunction(call) and returns_response(call)
    inner = inner_functions(middleware)
    return bool(inner) and all(
        isinstance(f, ast.FunctionDef) and misuse(f) for f in inner
    )


def unawaited(middleware: Any) -> Iterator[tuple[str, str]]:
    """The code that uses a coroutine as a response, and the call that returned it."""
    if isinstance(middleware, type):
        functions = [parse(coroutine_of(middleware))]
    else:
        functions = [*inner_functions(middleware)]
    for function in functions:
        if isinstance(function, ast.AsyncFunctionDef) and (found := misuse(function)):
            yield found


@cache
def parse(function: Any) -> Function | None:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, Function) else None


def is_get_response(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in GET_RESPONSE


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes in order of evaluation, without those of nested functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.Lambda | ast.ClassDef):
            yield from own_nodes(child)
        yield child


def inner_functions(factory: Any) -> list[Function]:
    """The functions within a middleware factory that may serve a request."""
    outer = parse(factory)
    return [
        node
        for node in (ast.walk(outer) if outer else ())
        if node is not outer
        and isinstance(node, Function)
        and any(is_get_response(child) for child in own_nodes(node))
    ]


def coroutine_of(cls: type) -> Any:
    """The coroutine function that serves an asynchronous request; None if unknown."""
    call = cls.__call__
    if inspect.iscoroutinefunction(call):
        return call
    for value in returned(parse(call)):
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            # A method of self, perhaps within a cast().
            method = inspect.getattr_static(cls, value.func.attr, None)
            if inspect.iscoroutinefunction(method):
                return method
    return None


def returned(function: Function | None) -> list[ast.expr | None]:
    """The expressions that it returns; instead of a name, what was assigned to it."""
    nodes = [*own_nodes(function)] if function else []
    assigned = {
        ast.unparse(target): node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    values = [node.value for node in nodes if isinstance(node, ast.Return)]
    return [value and assigned.get(ast.unparse(value), value) for value in values]


def returns_response(call: Any) -> bool:
    """Whether a plain __call__() certainly returns a response and no coroutine."""
    function = parse(call)
    values = [value for value in returned(function) if isinstance(value, ast.Call)]
    names = getattr(inspect.unwrap(call), "__globals__", {})
    responses = [value for value in values if is_response(value.func, names)]
    if len(responses) < sum(not is_get_response(value) for value in values):
        # Nothing is known about what the other calls return.
        return False
    return bool(responses) or misuse(function) is not None


def is_response(node: ast.expr, names: dict[str, Any]) -> bool:
    """Whether it names a response class, directly or as an attribute of a module
    (http.HttpResponse).
    """
    value = None
    if isinstance(node, ast.Name):
        value = names.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = names.get(node.value.id)
        if isinstance(module, ModuleType):
            value = getattr(module, node.attr, None)
    return isinstance(value, type) and issubclass(value, HttpResponseBase)


def misuse(function: Function | None) -> tuple[str, str] | None:
    """The code that uses get_response()'s coroutine as a response, and its function."""
    if function is None:
        return None
    is_async = isinstance(function, ast.AsyncFunctionDef)
    # By the name of the variable: the function whose coroutine it holds.
    coroutines: dict[str, str | None] = {}
    for node in own_nodes(function):
        value = getattr(node, "value", None)
        called = None
        if isinstance(value, ast.Name):
            called = coroutines.get(value.id)
        elif isinstance(value, ast.Call) and is_get_response(value):
            called = ast.unparse(value.func)
        reads = isinstance(node, ast.Attribute | ast.Subscript)
        # A coroutine has a close() too.
        reads = reads and getattr(node, "attr", "") != "close"
        if called and (reads or (is_async and isinstance(node, ast.Return))):
            return ast.unparse(node), called
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (t.id for t in targets if isinstance(t, ast.Name)):
                coroutines[name] = called
    return None

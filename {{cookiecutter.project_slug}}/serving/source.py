"""What the source of a middleware tells, without running it.

It sees what stands in the function, in the methods and in the coroutine functions
that this calls by name. Where the source cannot be found, it sees nothing.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

Function = ast.FunctionDef | ast.AsyncFunctionDef
MARKS = {"markcoroutinefunction", "_is_coroutine", "_is_coroutine_mark"}


@cache
def parse(function: Any) -> Function | None:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, Function) else None


def is_get_response(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {
        "get_response",
        "self.get_response",
        "self._get_response",
    }


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Without those of nested functions."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def coroutine_of(cls: type) -> Any:
    """The coroutine function that serves an asynchronous request; None if unknown."""
    call = cls.__call__
    if inspect.iscoroutinefunction(call):
        return call
    if call is MiddlewareMixin.__call__:
        return getattr(cls, "__acall__")  # noqa: B009
    for value in returned(parse(call)):
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            # Of self, if need be through a cast.
            method = inspect.getattr_static(cls, value.func.attr, None)
            if inspect.iscoroutinefunction(method):
                return method
    return None


def returned(function: Function | None) -> list[ast.expr | None]:
    nodes = own_nodes(function) if function else ()
    return [node.value for node in nodes if isinstance(node, ast.Return)]


def inner_functions(factory: Any) -> list[Function]:
    """Those that may serve a request."""
    outer = parse(factory)
    return [
        node
        for node in (ast.walk(outer) if outer else ())
        if node is not outer
        and isinstance(node, Function)
        and any(is_get_response(child) for child in own_nodes(node))
    ]


def sets_hook(factory: Any, name: str) -> bool:
    """Whether a function-style middleware gives itself this hook."""
    outer = parse(factory)
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr == name
        for node in (ast.walk(outer) if outer else ())
    )


def is_marked(cls: type) -> bool:
    """Whether the class marks its instances, or itself, as coroutine functions."""
    shadowed = False
    for base in cls.__mro__:
        if MARKS & vars(base).keys():
            return True
        for name, function in vars(base).items():
            if name == "__init__" and shadowed:
                continue
            if isinstance(function, FunctionType) and MARKS & names(function.__code__):
                return True
        init = vars(base).get("__init__")
        if isinstance(init, FunctionType) and "super" not in names(init.__code__):
            shadowed = True
    return False


def names(code: CodeType) -> set[str]:
    inner = [names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return {*code.co_names}.union(*inner)


def misuse(function: Function | None) -> tuple[str, str] | None:
    """What takes get_response()'s coroutine for a response, and how that is called."""
    if function is None:
        return None
    unawaited = Unawaited(isinstance(function, ast.AsyncFunctionDef))
    for statement in function.body:
        unawaited.visit(statement)
    return unawaited.found


def returns_response(call: Any) -> bool:
    """Whether a plain __call__ surely returns a response rather than a coroutine."""
    function = parse(call)
    values = [value for value in returned(function) if isinstance(value, ast.Call)]
    scope = Scope(call)
    responses = [value for value in values if is_response(scope.resolve(value.func))]
    if len(responses) < sum(not is_get_response(value) for value in values):
        # What the others return is not known.
        return False
    return bool(responses) or misuse(function) is not None


def is_response(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, HttpResponseBase)


class Unawaited(ast.NodeVisitor):
    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        # Each with what was called for it.
        self.coroutines: dict[str, str] = {}
        self.found: tuple[str, str] | None = None

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        self.assign(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self.assign([node.target], node.value)

    def assign(self, targets: list[ast.expr], value: ast.expr | None) -> None:
        for name in (t.id for t in targets if isinstance(t, ast.Name)):
            self.coroutines.pop(name, None)
            if called := self.called(value):
                self.coroutines[name] = called

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.used(node, node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.used(node, node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if self.asynchronous and node.value is not None:
            self.used(node, node.value)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.AST) -> None:
        pass

    visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_FunctionDef

    def used(self, node: ast.AST, value: ast.expr) -> None:
        called = self.called(value)
        if called and self.found is None:
            self.found = ast.unparse(node), called
        self.generic_visit(node)

    def called(self, node: ast.expr | None) -> str | None:
        if isinstance(node, ast.Name):
            return self.coroutines.get(node.id)
        if isinstance(node, ast.Call) and is_get_response(node):
            return ast.unparse(node.func)
        return None


class Scope:
    """What the names in a function stand for; reads no attribute of an instance."""

    def __init__(self, function: Any, cls: type | None = None) -> None:
        self.globals = getattr(inspect.unwrap(function), "__globals__", {})
        self.cls = cls

    def resolve(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.globals.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        if ast.unparse(node.value) == "self":
            method = inspect.getattr_static(self.cls, node.attr, None)
            return getattr(method, "__func__", method)
        base = self.resolve(node.value)
        return vars(base).get(node.attr) if isinstance(base, ModuleType) else None

    def wraps(self, node: ast.expr | None) -> bool:
        """Whether it is a call of sync_to_async()."""
        return isinstance(node, ast.Call) and self.resolve(node.func) in (
            sync_to_async,
            SyncToAsync,
        )

    def wrappers(self, function: Function | None) -> set[str]:
        """The names that the function may bind to what sync_to_async() returns."""
        return {
            ast.unparse(target)
            for node in (own_nodes(function) if function else ())
            if isinstance(node, ast.Assign) and self.may_wrap(node.value)
            for target in node.targets
        }

    def may_wrap(self, node: ast.expr) -> bool:
        if self.wraps(node):
            return True
        maker = self.resolve(node.func) if isinstance(node, ast.Call) else None
        if not isinstance(maker, FunctionType) or inspect.iscoroutinefunction(maker):
            return False
        # One step further: a function that returns what it wrapped.
        function, scope = parse(maker), Scope(maker, self.cls)
        wrapped = {
            ast.unparse(target)
            for node in (own_nodes(function) if function else ())
            if isinstance(node, ast.Assign) and scope.wraps(node.value)
            for target in node.targets
        }
        return any(
            value is not None and (scope.wraps(value) or ast.unparse(value) in wrapped)
            for value in returned(function)
        )


class Hops(ast.NodeVisitor):
    """Counts the calls through sync_to_async() that every request makes.

    Of branches the one with the fewest counts, and of loops none.
    """

    def __init__(
        self,
        scope: Scope,
        function: Function,
        wrappers: set[str],
        callers: tuple[Any, ...] = (),
    ) -> None:
        self.scope = scope
        self.callers = callers
        self.wrappers = wrappers | scope.wrappers(function)
        # Before and after get_response().
        self.counts = [0, 0]
        self.answered = False
        for statement in function.body:
            self.visit(statement)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        target = self.scope.resolve(node.func)
        if is_get_response(node):
            self.answered = True
        elif (
            isinstance(target, SyncToAsync)
            or self.scope.wraps(node.func)
            or ast.unparse(node.func) in self.wrappers
        ):
            self.counts[self.answered] += 1
        elif ast.unparse(node.func) in ("super().__acall__", "super().__call__"):
            # What MiddlewareMixin does, once for each hook.
            self.counts[0] += hasattr(self.scope.cls, "process_request")
            self.counts[1] += hasattr(self.scope.cls, "process_response")
            self.answered = True
        elif inspect.iscoroutinefunction(target) and target not in self.callers:
            self.follow(target)

    def follow(self, target: Any) -> None:
        if (function := parse(target)) is None:
            return
        scope, callers = Scope(target, self.scope.cls), (*self.callers, target)
        inner = Hops(scope, function, self.wrappers, callers)
        self.counts[self.answered] += inner.counts[0]
        self.answered = self.answered or inner.answered
        self.counts[self.answered] += inner.counts[1]

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self.branch(node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self.branch([node.body], [node.orelse])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.visit(node.values[0])
        self.branch(node.values[1:], [])

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        self.branch(*(case.body for case in node.cases), [])

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.branch(node.body, [])

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> None:
        self.branch(node.body, [])

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.branch(node.body, [])

    def visit_FunctionDef(self, node: ast.AST) -> None:
        pass

    visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_FunctionDef

    def branch(self, *bodies: Sequence[ast.AST]) -> None:
        before, answered = self.counts, self.answered
        after: list[list[int]] = []
        went_on = [answered]
        for body in bodies:
            self.counts, self.answered = [*before], answered
            for node in body:
                self.visit(node)
            after.append(self.counts)
            if not (body and isinstance(body[-1], ast.Return | ast.Raise)):
                went_on.append(self.answered)
        self.counts = min(after, key=sum)
        self.answered = any(went_on)


def hops(middleware: Any) -> tuple[int, int]:
    """Before and after get_response(), for an asynchronous request."""
    if isinstance(middleware, type):
        method = coroutine_of(middleware)
        function = parse(method)
        setup = getattr(middleware, "__init__")  # noqa: B009
        scope, wrappers = Scope(method, middleware), Scope(setup, middleware)
        bound = wrappers.wrappers(parse(setup))
    else:
        inner = inner_functions(middleware)
        found = [node for node in inner if isinstance(node, ast.AsyncFunctionDef)]
        function = found[0] if found else None
        scope = Scope(middleware)
        bound = scope.wrappers(parse(middleware))
    if function is None:
        return 0, 0
    before, after = Hops(scope, function, bound).counts
    return before, after

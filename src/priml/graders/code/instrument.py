"""Read the text of tests: which statements are tests, and which names they take from the program."""

import ast
import builtins
import re
import symtable
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

RUNS, TEST, IN_PLACE, COLLECTED = "__runs__", "__test__", "__in_place__", "__collected__"
"""Names that the instrumented text uses: whether test n is run, what it runs under, what a call may change, and what
runs a test function or a method of a test class."""
PROGRAM_MODULES = frozenset(
    {"solution", "main", "__main__", "program", "submission", "candidate", "my_module", "your_module", "your_solution"}
)
"""Modules that tests import the program from."""


class BrokenError(Exception):
    """The tests cannot run, or test nothing, whatever the program is."""


def parse(text: str, name: str) -> ast.Module:
    """Return the tree of the text; raise `BrokenError` if it does not compile."""
    try:
        return ast.parse(text, name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BrokenError(f"{name} does not compile: {error}") from error


def parse_stub(text: str) -> ast.Module:
    """Return the tree of a stub, which may end with a signature."""
    try:
        return parse(text, "<stub>")
    except BrokenError:
        return parse(f"{text}\n    pass", "<stub>")


def parse_tests(text: str) -> tuple[ast.Module, str]:
    """Return the tree of tests, as their authors run them, and its text. All of it may be indented.

    What stands under `if __name__ == "__main__":` is run. What starts a test runner is not: `instrument` runs all test
    functions and classes. What is imported from the program's module is looked for in the program.
    """
    text = textwrap.dedent(text) if text.lstrip("\n")[:1] in (" ", "\t") else text
    tree = parse(text, "<tests>")
    runners = _RUNNERS | {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}" in _RUNNERS
    }
    tree.body[:] = [
        inner
        for statement in tree.body
        for inner in (statement.body if _is_main_guard(statement) else [statement])
        if not _starts_runner(inner, runners)
    ]
    imports = _ProgramImports()
    if _IMPORTS_PROGRAM.search(text):  # a walk through all data of the tests takes long
        imports.visit(tree)
    return tree, ast.unparse(tree) if imports.found else text


def check_tests(kind: str, texts: Sequence[str]) -> None:
    """Raise `BrokenError` if the text of tests of that kind shows that they cannot run or test nothing."""
    instrument([parse_tests(text)[0] for text in texts], kind)


def is_class_name(name: str) -> bool:
    """Return whether a name is one of a class, by custom."""
    return name.lstrip("_")[:1].isupper()


def instrument(programs: Sequence[ast.Module], kind: str) -> int:
    """Make each test of the programs a block of its own, numbered from 0; return how many there are.

    Raises:
        BrokenError: there is none that may fail.
    """
    bodies = [_check_body(program) if kind == "check" else program.body for program in programs]
    if kind != "check":
        for program in programs:
            program.body += _collected(program)
    asserting = _asserting_functions(programs)
    failing = (_fails(statement, asserting) for body in bodies for statement in body if _is_test(statement))
    if not any(failing):
        raise BrokenError("the tests assert nothing")
    count = 0
    for program, body in zip(programs, bodies, strict=True):
        tests = [
            index
            for index, statement in enumerate(body)
            if isinstance(statement, _Collected) or (_is_test(statement) and _may_fail(statement, asserting))
        ]
        if kind == "assert_list" and tests:  # all of it is one test
            body[:] = [_numbered(count, body[:])]
            tests = tests[:1]
        else:
            for number, index in enumerate(tests, start=count):
                body[index] = _numbered(number, [body[index]])
        count += len(tests)
        _mark_discarding_calls(program)
        ast.fix_missing_locations(program)
    return count


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NO_TESTS = (*_FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def _check_body(program: ast.Module) -> list[ast.stmt]:
    for node in program.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            return node.body
    raise BrokenError("the tests define no `check`")


def _is_test(statement: ast.stmt) -> bool:
    return not isinstance(statement, _NO_TESTS)


# Test functions and test classes


class _Collected(ast.Expr):
    """The call of a test function or method that the tests define and do not call themselves."""


def _collected(program: ast.Module) -> list[ast.stmt]:
    """Return calls of the test functions and of the methods of test classes, in their order.

    Raises:
        BrokenError: one needs arguments (fixtures) that nobody gives.
    """
    called = _called_names(program)
    classes = {node.name: node for node in program.body if isinstance(node, ast.ClassDef)}
    calls: list[ast.stmt] = []
    for node in program.body:
        match node:
            case ast.FunctionDef(name=name) if name.startswith("test") and name not in called:
                _check_callable(node)
                calls.append(_make_call(name))
            case ast.ClassDef(name=name) if _is_test_class(node, classes):
                methods = _test_methods(node, classes)
                for method in methods.values():
                    _check_callable(method, given=1)
                calls += [_make_call(name, method) for method in methods]
    return calls


def _make_call(name: str, *method: str) -> ast.stmt:
    arguments: list[ast.expr] = [ast.Name(name, ast.Load()), *map(ast.Constant, method)]
    return _Collected(ast.Call(ast.Name(COLLECTED, ast.Load()), arguments, []))


def _called_names(program: ast.Module) -> set[str]:
    statements = (node for node in program.body if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)))
    calls = (node for statement in statements for node in _walk(statement) if isinstance(node, ast.Call))
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)}


def _check_callable(function: ast.FunctionDef, given: int = 0) -> None:
    parameters = function.args.posonlyargs + function.args.args
    needed = len(parameters) - len(function.args.defaults) - given
    if needed > 0 and not any("parametrize" in ast.unparse(decorator) for decorator in function.decorator_list):
        raise BrokenError(f"test function {function.name} needs arguments")


def _is_test_class(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> bool:
    return node.name.startswith("Test") or any(
        ast.unparse(base).endswith("TestCase")
        or (isinstance(base, ast.Name) and base.id in classes and _is_test_class(classes[base.id], classes))
        for base in node.bases
    )


def _test_methods(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, ast.FunctionDef]:
    """Return the test methods by name, inherited ones first."""
    methods: dict[str, ast.FunctionDef] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and classes[base.id] is not node:
            methods |= _test_methods(classes[base.id], classes)
    own = (item for item in node.body if isinstance(item, ast.FunctionDef))
    return methods | {item.name: item for item in own if item.name.startswith("test") or item.name == "runTest"}


# What starts the tests


def _is_main_guard(statement: ast.stmt) -> TypeGuard[ast.If]:
    return isinstance(statement, ast.If) and _MAIN_GUARD.fullmatch(ast.unparse(statement.test)) is not None


_MAIN_GUARD = re.compile(r"__name__ == '__main__'|'__main__' == __name__")
_RUNNERS = frozenset({"unittest.main", "pytest.main", "doctest.testmod"})
_EXITS = frozenset({"sys.exit", "exit", "quit"})


def _starts_runner(statement: ast.stmt, runners: frozenset[str]) -> bool:
    """Return whether a statement only runs what is run anyway, or only ends the tests."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return False
        case ast.Expr(value=ast.Call(func=function)) if ast.unparse(function) in _EXITS:
            return True
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in runners for node in _walk(statement))


_IMPORTS_PROGRAM = re.compile(rf"\b(?:from|import)\s.*\b(?:{'|'.join(PROGRAM_MODULES)})\b")


class _ProgramImports(ast.NodeTransformer):
    """Makes what is imported from the program's module a name that the tests do not define."""

    def __init__(self) -> None:
        self.found = False
        self._modules: set[str] = set()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        """`from solution import f, g as h` becomes `h = g`."""
        if node.module not in PROGRAM_MODULES:
            return node
        self.found = True
        renamed = [(alias.asname, alias.name) for alias in node.names if alias.asname not in (None, alias.name)]
        return [ast.Pass(), *(ast.parse(f"{new} = {old}").body[0] for new, old in renamed)]

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        """`import solution` becomes nothing, and `solution.f` below becomes `f`."""
        ours = [alias for alias in node.names if alias.name in PROGRAM_MODULES]
        if not ours:
            return node
        self.found = True
        self._modules |= {alias.asname or alias.name for alias in ours}
        rest = [alias for alias in node.names if alias not in ours]
        return ast.Import(rest) if rest else ast.Pass()

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """See `visit_Import`."""
        if isinstance(node.value, ast.Name) and node.value.id in self._modules:
            return ast.Name(node.attr, node.ctx)
        self.generic_visit(node)
        return node


# Assertions


def _walk(tree: ast.AST, *, heeds_all: bool = True) -> Iterator[ast.AST]:
    """Yield the nodes of the tree, without what is in lists and the like: tests may hold megabytes of data.

    Unless `heeds_all`, leave out what may fail without consequence: under `except AssertionError: print(...)`.
    """
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            left += reversed(
                [child for child in ast.iter_child_nodes(node) if heeds_all or child not in _ignored(node)]
            )


def _numbered(number: int, statements: list[ast.stmt]) -> ast.stmt:
    (block,) = ast.parse(f"if {RUNS}({number}):\n with {TEST}({number}): pass").body
    assert isinstance(block, ast.If)
    assert isinstance(block.body[0], ast.With)
    block.body[0].body = statements or [ast.Pass()]
    return block


def _asserting_functions(programs: Sequence[ast.Module]) -> frozenset[str]:
    """Return the functions and methods of the tests that may fail on purpose, directly or through each other."""
    helpers = [node for tree in programs for node in _walk(tree) if isinstance(node, _FUNCTIONS)]
    found: frozenset[str] = frozenset()
    while True:
        more = {helper.name for helper in helpers if any(_fails(node, found) for node in helper.body)}
        if more <= found:
            return found
        found |= more


def _may_fail(statement: ast.AST, asserting: frozenset[str]) -> bool:
    """Return whether there is an assertion in it. `assert True` is none: it tests nothing."""
    return any(_asserts(node, asserting) for node in _walk(statement))


def _fails(statement: ast.AST, asserting: frozenset[str]) -> bool:
    """Return whether there is an assertion in it that nobody catches."""
    return any(_asserts(node, asserting) for node in _walk(statement, heeds_all=False))


def _ignored(node: ast.AST) -> list[ast.stmt]:
    """Return the statements of a `try` whose failed assertions are caught, and nothing is made of it."""
    if not isinstance(node, ast.Try):
        return []
    for handler in node.handlers:
        names = (
            {item.id for item in ast.walk(handler.type) if isinstance(item, ast.Name)} if handler.type else _CATCHING
        )
        if names & _CATCHING:
            is_heeded = any(_asserts(inner, frozenset()) for line in handler.body for inner in ast.walk(line))
            return [] if is_heeded else node.body
    return []


_CATCHING = {"AssertionError", "Exception", "BaseException"}


def _asserts(node: ast.AST, asserting: frozenset[str]) -> bool:
    match node:
        case ast.Assert(test=ast.Constant(value=value)):
            return not value
        case ast.Assert(test=ast.Tuple(elts=items)):  # a condition and its message in brackets: always true
            return not items
        case ast.Assert() | ast.Raise() | ast.Call(func=ast.Attribute(attr="fail" | "raises") | ast.Name(id="raises")):
            return True
        case ast.Call(func=function, args=[ast.Constant(value=code)]) if code and ast.unparse(function) in _EXITS:
            return True
        case ast.Call(func=ast.Name(id=name)) if name in asserting:
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if name in asserting:
            return True
        case ast.Call(func=ast.Attribute(attr=name)) if name.startswith("assert"):
            return True
        case ast.Call(func=ast.Name(id=name), args=[*_, ast.Name(id=test) | ast.Constant(value=test)]):
            return name == COLLECTED and test in asserting
    return False


def _mark_discarding_calls(node: ast.AST) -> None:
    """Let calls whose value is discarded, `f(x)` as a statement, change their arguments.

    Other calls do not: with `result = f(x)` a program could change the `x` from which the tests then compute what they
    expect.
    """
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, field, ()):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                call = statement.value
                call.func = ast.Call(ast.Name(IN_PLACE, ast.Load()), [call.func], [])
            elif isinstance(statement, ast.AST):
                _mark_discarding_calls(statement)


def free_names(text: str, entry: str) -> set[str]:
    """Return the names that the text uses and does not define. Builtins are left out, unless `entry` is one."""
    used: set[str] = set()
    defined: set[str] = set()
    tables = [symtable.symtable(text, "<tests>", "exec")]
    for table in tables:
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            is_global = table.get_type() == "module" or symbol.is_global()
            if is_global and symbol.is_referenced():
                used.add(symbol.get_name())
            if is_global and (symbol.is_assigned() or symbol.is_imported()):
                defined.add(symbol.get_name())
    return used - defined - (vars(builtins).keys() - {entry})

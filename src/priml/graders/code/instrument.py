"""Read the text of tests: which statements are tests, and which names they take from the program."""

import ast
import builtins
import symtable

RUNS, TEST, IN_PLACE = "__runs__", "__test__", "__in_place__"
"""Names that the instrumented text uses: whether test n is run, what it runs under, what a call may change."""


class BrokenError(Exception):
    """The tests cannot run, whatever the program is."""


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


def is_class_name(name: str) -> bool:
    """Return whether a name is one of a class, by custom."""
    return name.lstrip("_")[:1].isupper()


def instrument(program: ast.Module, kind: str, first: int) -> int:
    """Make each test of the program a block of its own, numbered from `first`; return how many there are."""
    _mark_discarding_calls(program)
    body = program.body
    if kind == "check":
        body = next((node.body for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)
        if body is None:
            raise BrokenError("the tests define no `check`")
    asserting = _asserting_functions(program)
    tests = [
        index
        for index, statement in enumerate(body)
        if not isinstance(statement, _NO_TESTS) and _may_fail(statement, asserting)
    ]
    if kind == "assert_list" or not tests:  # all of it is one test
        body[:] = [_numbered(first, body[:])]
        tests = [0]
    else:
        for number, index in enumerate(tests, start=first):
            body[index] = _numbered(number, [body[index]])
    ast.fix_missing_locations(program)
    return len(tests)


_NO_TESTS = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def _numbered(number: int, statements: list[ast.stmt]) -> ast.stmt:
    (block,) = ast.parse(f"if {RUNS}({number}):\n with {TEST}({number}): pass").body
    assert isinstance(block, ast.If)
    assert isinstance(block.body[0], ast.With)
    block.body[0].body = statements or [ast.Pass()]
    return block


def _asserting_functions(program: ast.Module) -> frozenset[str]:
    """Return the helpers of the tests that may fail on purpose, directly or through each other."""
    found: set[str] = set()
    helpers = [node for node in program.body if isinstance(node, ast.FunctionDef) and node.name != "check"]
    for _ in helpers:
        found |= {helper.name for helper in helpers if any(_may_fail(node, frozenset(found)) for node in helper.body)}
    return frozenset(found)


def _may_fail(statement: ast.stmt, asserting: frozenset[str]) -> bool:
    """Return whether there is an assertion in it. `assert True` is none: it tests nothing."""
    for node in ast.walk(statement):
        match node:
            case ast.Assert(test=ast.Constant(value=value)) if value:
                continue
            case ast.Assert() | ast.Raise() | ast.Call(func=ast.Attribute(attr="assert_" | "fail")):
                return True
            case ast.Call(func=ast.Name(id=name)) if name in asserting:
                return True
            case ast.Call(func=ast.Attribute(attr=name)) if name.startswith("assert"):
                return True
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

"""Reference solutions of public data sets pass their own tests, and what has been broken on purpose does not."""

from __future__ import annotations

import ast
import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from priml.data.code_rows import code_tests
from priml.graders.code import CodeVerifier
from priml.graders.pool import fan_out
from priml.sandbox import Limits
from priml.types import CodeTests

DATA = Path(__file__).parents[4] / "shared" / "data" / "code"
SEVERAL_RIGHT_OUTPUTS = "several outputs are right, the tests know one"
WRONG_REFERENCES = {
    "HumanEval+/32": "its test calls the checking polynomial with the arguments in the wrong order",
    "mbppplus-255": "one expected value has 1.6 million tuples of 77 items: more than a gibibyte",
    "lcd-word-ladder-ii": f"{SEVERAL_RIGHT_OUTPUTS}; the reference's order is that of a set of texts",
}
FILES = [
    "humaneval.jsonl",
    "humanevalplus.jsonl.gz",
    "mbpp_1_510.jsonl",
    "mbppplus_le510.jsonl.gz",
    "leetcode_train.jsonl.gz",
]


def rows(name, *, share=1):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name} in {DATA.parent}")
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        return [json.loads(line) for line in file][::share]


def name_of(row):
    return row["id"].replace("HumanEval/", "HumanEval+/") if row["source"].startswith("HumanEval+") else row["id"]


def fenced(program):
    return f"```python\n{program}\n```"


def rejected(verifier, some):
    verdicts = fan_out(lambda row: verifier.judge(fenced(row["canonical_solution"]), code_tests(row)), some)
    return {name_of(row): verdict for row, verdict in zip(some, verdicts, strict=True) if verdict.correct is not True}


@pytest.fixture(scope="module")
def patient(sandbox):
    """For a machine that others use, too."""
    return CodeVerifier(sandbox, limits=Limits(wall_s=60, cpu_s=60))


@pytest.mark.parametrize("name", FILES)
def test_some_reference_solutions_are_accepted(patient, name):
    share = {"leetcode_train.jsonl.gz": 120, "humanevalplus.jsonl.gz": 33}.get(name, 25)
    assert rejected(patient, rows(name, share=share)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_reference_solutions_are_accepted_but_those_known_to_be_wrong(patient, name):
    assert rejected(patient, rows(name)).keys() <= WRONG_REFERENCES.keys()


def test_known_right_programs_for_other_forms_of_tests_are_accepted(patient):
    for row in rows("apps_sample_5.jsonl"):
        tests = code_tests(row)
        verdicts = [patient.judge(fenced(program), tests) for program in row["meta"]["all_solutions"]]
        assert verdicts[0].correct is True, row["id"]
        if row["id"] != "apps-train-2287":  # several outputs are right, and one program returns outside of a function
            assert [verdict.correct for verdict in verdicts] == [True] * len(verdicts), row["id"]


@pytest.mark.parametrize(
    "name", ["codeforces_stdin.jsonl.gz", "code_contests_stdin_a.jsonl.gz", "leetcode_test_180.jsonl.gz"]
)
def test_sets_without_solutions_are_graded_end_to_end(patient, name):
    some = rows(name, share=20)
    for row in some:
        tests = code_tests(row)
        verdict = patient.judge(fenced("import sys\nsys.stdin.read()\nprint(0)\nclass Solution: pass"), tests)
        assert (verdict.correct, verdict.reason) in {(False, "wrong answer"), (False, "exception: AttributeError")}
        if tests.kind == "stdin":
            assert patient.judge(fenced(printer(tests)), tests).correct is True


def printer(tests):
    """A program that knows the answers by heart."""
    return f"import sys\nsys.stdout.write({dict(zip(tests.inputs, tests.outputs, strict=True))!r}[sys.stdin.read()])"


# Mutants


def mutants(stub: str, solution: str, entry: str) -> Iterator[str]:
    """The program with its function emptied, made the identity, and with one operator, comparison or number changed."""
    tree = ast.parse(stub + solution)
    for body in ("return None", "return args[0] if args else None"):
        yield f"{stub}{solution}\n\ndef {entry}(*args, **kwargs):\n    {body}\n"
    first = stub.count("\n") + 1  # the stub belongs to the tests
    places = [n for n, node in enumerate(ast.walk(tree)) if is_mutable(node) and node.lineno >= first]
    for place in places[:: max(1, len(places) // 4)]:
        changed = copy.deepcopy(tree)
        mutate([*ast.walk(changed)][place])
        yield ast.unparse(changed)


SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def is_mutable(node):
    match node:
        case ast.Compare():
            return type(node.ops[0]) in SWAPS
        case ast.BinOp() | ast.BoolOp():
            return type(node.op) in SWAPS
        case ast.Constant():
            return type(node.value) is int
    return False


def mutate(node):
    match node:
        case ast.Compare():
            node.ops[0] = SWAPS[type(node.ops[0])]()
        case ast.BinOp() | ast.BoolOp():
            node.op = SWAPS[type(node.op)]()
        case ast.Constant():
            node.value += 1


def passes_in_one_process(sandbox, program: str, tests: CodeTests) -> bool | None:
    """The same tests run plainly, as an independent opinion: mutants do not cheat. None: it took too long."""
    parts = [program, tests.setup, *tests.asserts, tests.test]  # a setup may use the program
    if tests.kind == "check":
        parts.append(f"check({tests.entry_point})")
    result = sandbox.run("\n".join(parts), limits=HASTY)
    return None if result.status == "time limit" else (result.status, result.exit_code) == ("finished", 0)


HASTY = Limits(wall_s=6, cpu_s=3)


def check_mutants(sandbox, some):
    """Mutants judged otherwise than by a plain run; how many there were; how many of them pass their tests."""
    verifier = CodeVerifier(sandbox, limits=HASTY, stop_early=True)
    items = []
    for row in some:
        tests = code_tests(row)
        items += [
            (row, program, tests) for program in mutants(tests.stub, row["canonical_solution"], row["entry_point"])
        ]
    ours = fan_out(lambda item: verifier.judge(fenced(item[1]), item[2]), items)
    plain = fan_out(lambda item: passes_in_one_process(sandbox, item[1], item[2]), items)
    differing = [
        (name_of(row), program, verdict.reason)
        for (row, program, _), verdict, passes in zip(items, ours, plain, strict=True)
        if (verdict.correct is True) != passes and verdict.reason != "time limit" and passes is not None
    ]
    return differing, len(items), sum(verdict.correct is True for verdict in ours)


@pytest.mark.parametrize("name", ["humaneval.jsonl", "mbpp_1_510.jsonl"])
def test_some_mutants_are_judged_as_by_a_plain_run(sandbox, name):
    differing, count, alive = check_mutants(sandbox, rows(name, share=40))
    assert differing == []
    assert alive < 0.2 * count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval.jsonl", "mbpp_1_510.jsonl", "mbppplus_le510.jsonl.gz"])
def test_all_mutants_are_judged_as_by_a_plain_run(sandbox, name):
    differing, count, alive = check_mutants(sandbox, rows(name))
    print(f"{name}: {count} mutants, {alive} of them pass their tests")  # noqa: T201 (for the record: pytest -rP)
    assert differing == []
    assert alive < 0.2 * count

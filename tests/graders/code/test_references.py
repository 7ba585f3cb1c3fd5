"""Reference solutions pass their own tests, and what has been broken on purpose does not.

A small set of our own is in the repository. Public data sets add cases where they lie beside it.
"""

from __future__ import annotations

import ast
import copy
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from priml.data.code_rows import code_tests
from priml.graders.code import CodeVerifier
from priml.graders.code.extract import MAX_PROGRAM
from priml.graders.pool import fan_out
from priml.sandbox import Limits
from priml.types import CodeTests
from sampling import SEED

OWN = Path(__file__).parent / "fixtures" / "references.json"
PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "code"
SEVERAL_RIGHT_OUTPUTS = "several outputs are right, the tests know one"
WRONG_REFERENCES = {
    "HumanEval+/32": "its test calls the checking polynomial with the arguments in the wrong order",
    "mbppplus-255": "one expected value has 1.6 million tuples of 77 items: more than a gibibyte",
    "lcd-word-ladder-ii": f"{SEVERAL_RIGHT_OUTPUTS}; the reference's order is that of a set of texts",
}


def public(*names: str) -> list[str]:
    return [name for name in names if (PUBLIC / name).is_file()]


REFERENCES = public(
    "humaneval.jsonl",
    "humanevalplus.jsonl.gz",
    "mbpp_1_510.jsonl",
    "mbppplus_le510.jsonl.gz",
    "leetcode_train.jsonl.gz",
)
MUTATED = public("humaneval.jsonl", "mbpp_1_510.jsonl", "mbppplus_le510.jsonl.gz")


@dataclass(frozen=True)
class Reference:
    """A solution, and the tests that it passes."""

    id: str
    solution: str
    tests: CodeTests


def own() -> list[Reference]:
    return [own_reference(**row) for row in json.loads(OWN.read_text())]


def own_reference(id: str, canonical_solution: str, **tests) -> Reference:
    for name in ("inputs", "outputs", "asserts"):
        tests[name] = tuple(tests.get(name, ()))
    return Reference(id, canonical_solution, CodeTests(**tests))


def rows(name: str) -> list[dict]:
    path = PUBLIC / name
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        return [json.loads(line) for line in file]


def references(name: str) -> list[Reference]:
    return [Reference(read_name(row), row["canonical_solution"], code_tests(row)) for row in rows(name)]


def read_name(row: dict) -> str:
    return row["id"].replace("HumanEval/", "HumanEval+/") if row["source"].startswith("HumanEval+") else row["id"]


def sampled(some: list, count: int) -> list:
    """Another sample in each run; the test ids show the seed."""
    return random.Random(SEED).sample(some, count)


def of_sample(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [pytest.param(name, id=f"{name} of sample {SEED}") for name in names])


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def rejected(verifier: CodeVerifier, some: list[Reference]) -> dict:
    verdicts = fan_out(lambda one: verifier.judge(fenced(one.solution), one.tests), some)
    return {one.id: verdict for one, verdict in zip(some, verdicts, strict=True) if verdict.correct is not True}


@pytest.fixture(scope="module")
def patient(sandbox):
    """For a machine that others use, too."""
    return CodeVerifier(sandbox, limits=Limits(wall_s=60, cpu_s=60))


def test_our_reference_solutions_are_of_all_kinds_and_accepted(patient):
    assert {one.tests.kind for one in own()} == {"stdin", "call", "assert_list", "check", "script"}
    assert rejected(patient, own()) == {}


@of_sample(REFERENCES)
def test_some_reference_solutions_are_accepted(patient, name):
    assert rejected(patient, sampled(references(name), 5)).keys() <= WRONG_REFERENCES.keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", REFERENCES)
def test_all_reference_solutions_are_accepted_but_those_known_to_be_wrong(patient, name):
    assert rejected(patient, references(name)).keys() <= WRONG_REFERENCES.keys()


@pytest.mark.parametrize("name", public("apps_sample_5.jsonl"))
def test_known_right_programs_for_other_forms_of_tests_are_accepted(patient, name):
    for row in rows(name):
        tests = code_tests(row)
        verdicts = [patient.judge(fenced(program), tests) for program in row["meta"]["all_solutions"]]
        assert verdicts[0].correct is True, row["id"]
        if row["id"] != "apps-train-2287":  # several outputs are right, and one program returns outside of a function
            assert [verdict.correct for verdict in verdicts] == [True] * len(verdicts), row["id"]


@of_sample(public("codeforces_stdin.jsonl.gz", "code_contests_stdin_a.jsonl.gz", "leetcode_test_180.jsonl.gz"))
def test_sets_without_solutions_are_graded_end_to_end(patient, name):
    for row in sampled(rows(name), 8):
        tests = code_tests(row)
        verdict = patient.judge(fenced("import sys\nsys.stdin.read()\nprint(0)\nclass Solution: pass"), tests)
        assert (verdict.correct, verdict.reason) in {(False, "wrong answer"), (False, "exception: AttributeError")}
        if tests.kind == "stdin" and len(printer(tests)) <= MAX_PROGRAM:
            assert patient.judge(fenced(printer(tests)), tests).correct is True


def printer(tests):
    """A program that knows the answers by heart."""
    return f"import sys\nsys.stdout.write({dict(zip(tests.inputs, tests.outputs, strict=True))!r}[sys.stdin.read()])"


# Mutants


def mutants(reference: Reference) -> Iterator[str]:
    """The program with its function emptied, made the identity, and with one operator, comparison or number changed."""
    stub, solution, entry = reference.tests.stub, reference.solution, reference.tests.entry_point or ""
    tree = ast.parse(stub + solution)
    for body in ("return None", "return args[0] if args else None") if entry.isidentifier() else ():
        yield f"{stub}{solution}\n\ndef {entry}(*args, **kwargs):\n    {body}\n"
    first = stub.count("\n") + 1  # the stub belongs to the tests
    targets = [n for n, node in enumerate(ast.walk(tree)) if is_mutable(node) and node.lineno >= first]
    for target in targets[:: max(1, len(targets) // 4)]:
        changed = copy.deepcopy(tree)
        mutate([*ast.walk(changed)][target])
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
    if tests.kind == "stdin":
        results = [sandbox.run(program, stdin=given, limits=HASTY) for given in tests.inputs]
        is_right = all(map(str.__eq__, [result.stdout for result in results], tests.outputs))
    else:
        results = [sandbox.run(plain_script(program, tests), limits=HASTY)]
        is_right = True
    if any(result.status == "time limit" for result in results):
        return None
    return is_right and all((result.status, result.exit_code) == ("finished", 0) for result in results)


def plain_script(program: str, tests: CodeTests) -> str:
    parts = [program, tests.setup, *tests.asserts, tests.test]  # a setup may use the program
    if tests.kind == "check":
        parts.append(f"check({tests.entry_point})")
    if tests.kind == "call":
        parts.append(f"f = globals().get({tests.entry_point!r}) or Solution().{tests.entry_point}")
        pairs = zip(tests.inputs, tests.outputs, strict=True)
        parts += [f"assert f(*{given!r}) == {expected!r}" for given, expected in pairs]
    return "\n".join(parts)


HASTY = Limits(wall_s=4, cpu_s=3)


def check_mutants(sandbox, some: list[Reference]) -> int:
    """Assert that mutants are judged as by a plain run, and most are wrong; how many there were."""
    verifier = CodeVerifier(sandbox, limits=HASTY, stop_early=True)
    items = [(one, program) for one in some for program in mutants(one)]
    ours = fan_out(lambda item: verifier.judge(fenced(item[1]), item[0].tests), items)
    plain = fan_out(lambda item: passes_in_one_process(sandbox, item[1], item[0].tests), items)
    differing = [
        (one.id, program, verdict.reason)
        for (one, program), verdict, passes in zip(items, ours, plain, strict=True)
        if (verdict.correct is True) != passes and verdict.reason != "time limit" and passes is not None
    ]
    assert differing == []
    assert sum(verdict.correct is True for verdict in ours) < 0.2 * len(items)
    return len(items)


@pytest.mark.slow
def test_mutants_of_our_references_are_judged_as_by_a_plain_run(sandbox):
    assert check_mutants(sandbox, own()) > 60


@of_sample(MUTATED)
def test_some_mutants_are_judged_as_by_a_plain_run(sandbox, name):
    check_mutants(sandbox, sampled(references(name), 10))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MUTATED)
def test_all_mutants_are_judged_as_by_a_plain_run(sandbox, name):
    check_mutants(sandbox, references(name))

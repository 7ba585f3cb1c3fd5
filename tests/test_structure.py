"""The tests mirror the sources, so that what proves a module is found without searching."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "priml"
TESTS = ROOT / "tests"

TESTED_ELSEWHERE = {
    "types.py": "frozen values without behaviour beyond a property; used by every test",
    "errors.py": "exception classes without behaviour; their exit codes are tested in cli/test_main.py",
    "config/base.py": "a pydantic base class and bounded numbers: tested through config/test_load.py",
    **{
        f"config/{name}.py": "a schema: its keys, defaults and rules are tested in config/test_load.py"
        for name in (
            "algorithm",
            "backend",
            "data",
            "eval",
            "graders",
            "models",
            "rollout",
            "schedule",
            "sft",
            "train",
            "verify",
        )
    },
    "graders/math/worker.py": "runs in worker processes only: tested through graders/math/test_verifier.py",
    "graders/math/answer_types.py": "frozen values: tested through graders/math/test_read.py",
    **{
        f"graders/code/{name}.py": "runs inside a sandbox only: tested through graders/code/test_grading.py"
        for name in ("collect", "guest_program", "guest_tests", "instrument", "stand_ins")
    },
    "sandbox/base.py": "interfaces and values: tested in sandbox/test_running.py",
    "sandbox/guest/alone.py": "runs inside: tested through sandbox/test_child.py and test_gvisor.py",
    **{
        f"sandbox/guest/{name}.py": "runs inside: attacked by the programs of sandbox/test_hostile.py"
        for name in ("landlock", "limits", "namespaces", "zygote")
    },
    "rollout/base.py": "interfaces only",
    "rollout/vllm_worker.py": "runs in the workers of vLLM only: tested through rollout/test_vllm.py",
    "evaluate/tables.py": "tested as output in commands/test_prm_evaluate.py, test_prm_rank.py and test_eval.py",
    "training/run.py": "tested in training/test_supervised.py and test_online_run.py",
    "runs/schemas.py": "tested as files in training/test_records.py and evaluate/test_scored.py",
    "learners/base.py": "interfaces and report values: their metrics are tested in end_to_end/test_training.py",
    "graders/base.py": "interfaces only",
    "distributed/ray/failures.py": "tested with the ranks in distributed/ray/test_ranks.py",
    "distributed/ray/graders.py": "tested with the samplers in distributed/ray/test_pools.py",
    "distributed/ray/roles.py": "hands on: tested in distributed/ray/test_refs.py and end_to_end/test_cluster.py",
    "distributed/ray/samplers.py": "tested with the graders in distributed/ray/test_pools.py",
    "models/sharded.py": "needs several processes: tested through distributed/test_fsdp.py",
    "factories/components.py": "puts together: tested in end_to_end/test_training.py",
    "factories/trackers.py": "puts together: tested in trackers/test_services.py",
    "factories/ray.py": "puts together: tested in end_to_end/test_cluster.py and distributed/ray/test_pools.py",
    "commands/train.py": "puts all together: tested in end_to_end/test_training.py and test_commands.py",
}


def modules() -> list[str]:
    return sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if path.name != "__init__.py")


def mirror_path(module: str) -> Path:
    path = Path(module)
    return TESTS / path.parent / f"test_{path.name}"


def test_every_module_has_a_test_file_in_the_same_place():
    missing = [module for module in modules() if module not in TESTED_ELSEWHERE and not mirror_path(module).is_file()]
    assert missing == [], f"no test file for {missing}: write it, or say in TESTED_ELSEWHERE where they are tested"


def test_the_exceptions_exist_and_are_still_needed():
    stale = [module for module in TESTED_ELSEWHERE if module not in modules() or mirror_path(module).exists()]
    assert stale == [], f"remove from TESTED_ELSEWHERE: {stale}"


MOST_UNTYPED = 0.005
"""Share of the parameters that may be annotated `Any`."""


def test_few_parameters_take_anything():
    parameters = [
        (module, node.name, argument)
        for module in modules()
        for node in ast.walk(ast.parse((SOURCES / module).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in ast.walk(node.args)
        if isinstance(argument, ast.arg) and argument.arg not in ("self", "cls")
    ]
    untyped = [
        f"{module}: {function}({argument.arg})"
        for module, function, argument in parameters
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Any"
    ]
    assert len(untyped) <= MOST_UNTYPED * len(parameters), f"name a type or a Protocol: {untyped}"


LONGEST_FUNCTION = 60
"""Lines, with signature and docstring."""


def test_no_function_is_longer_than_a_screen():
    found = [
        f"{module}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module in modules()
        for node in ast.walk(ast.parse((SOURCES / module).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert found == [], f"an altitude is missing: {found}"

"""The tests mirror the sources, so that what proves a module is found without searching."""

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
        for name in ("data", "eval", "parts", "sft", "train", "verify")
    },
    "cli/commands.py": "parses and calls: tested as commands in cli/test_main.py and cli/test_bad_input.py",
    "verify/math_worker.py": "runs in worker processes only: tested through verify/test_math.py",
    "verify/values.py": "frozen values without behaviour beyond a property: tested through verify/test_reading.py",
    **{
        f"verify/code/{name}.py": "runs inside a sandbox only: tested through verify/code/test_grading.py"
        for name in ("guest_program", "guest_tests", "instrument", "stand_ins")
    },
    "verify/sandbox/base.py": "interfaces and values: tested in verify/sandbox/test_running.py",
    "verify/sandbox/process.py": "tested through verify/sandbox/test_unsafe.py, test_running.py and test_docker.py",
    "verify/sandbox/worker.py": "tested through verify/sandbox/test_pool.py",
    "verify/sandbox/guest/alone.py": "runs inside: tested through verify/sandbox/test_unsafe.py and test_docker.py",
    **{
        f"verify/sandbox/guest/{name}.py": "runs inside: attacked by the programs of verify/sandbox/test_hostile.py"
        for name in ("landlock", "limits", "namespaces", "seccomp", "zygote")
    },
    "rollout/base.py": "interfaces only",
    "rollout/vllm_worker.py": "runs in the workers of vLLM only: tested through rollout/test_vllm.py",
    "roles/base.py": "interfaces and report values: their metrics are tested in end_to_end/test_training.py",
    "telemetry/base.py": "interfaces only",
    "verify/base.py": "interfaces only",
    "backends/ray/records.py": "hands on: tested in backends/ray/test_held.py and end_to_end/test_cluster.py",
    "backends/team.py": "needs several processes: tested through backends/test_fsdp.py",
    "models/sharded.py": "needs several processes: tested through backends/test_fsdp.py",
    "build/cast.py": "puts together: tested in end_to_end/test_training.py and test_cluster.py",
    "build/cluster.py": "puts together: tested in end_to_end/test_cluster.py and backends/ray/test_pools.py",
    "build/train.py": "puts the whole together: tested as a whole in end_to_end/test_training.py and test_commands.py",
}


def modules() -> list[str]:
    return sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if path.name != "__init__.py")


def mirror_of(module: str) -> Path:
    path = Path(module)
    return TESTS / path.parent / f"test_{path.name}"


def test_every_module_has_a_test_file_in_the_same_place():
    missing = [module for module in modules() if module not in TESTED_ELSEWHERE and not mirror_of(module).is_file()]
    assert missing == [], f"no test file for {missing}: write it, or say in TESTED_ELSEWHERE where they are tested"


def test_the_exceptions_exist_and_are_still_needed():
    stale = [module for module in TESTED_ELSEWHERE if module not in modules() or mirror_of(module).exists()]
    assert stale == [], f"remove from TESTED_ELSEWHERE: {stale}"

"""No text is evaluated in a process of ours: the places where it could be are known, and each has a reason."""

import ast
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "src" / "priml"

INSIDE = {  # runs inside the sandbox, as part of the program that is tried
    "graders/code/guest_program.py",
    "graders/code/guest_tests.py",
    "rollout/python_tool.py",
    "sandbox/guest/program.py",
}
KNOWN = {
    "graders/code/grading.py": {"marshal"},  # our own guest code, compiled here for the sandbox
    "graders/custom.py": {"pickle"},  # problems for the process of the user's function
    "graders/custom_worker.py": {"pickle"},  # that process; what it answers is JSON
}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
CALLS = {"eval", "exec", "__import__"}


def risky_names(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names} & MODULES
            case ast.ImportFrom(module=str(module)):
                found |= {module} & MODULES
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                found.add("torch.load")
            case ast.keyword(arg="shell" | "trust_remote_code", value=ast.Constant(value=True)):
                found.add(f"{node.arg}=True")
            case _:
                pass
    return found


def test_what_could_run_a_text_is_inside_the_sandbox_or_known():
    found = {path.relative_to(SOURCES).as_posix(): risky_names(path) for path in SOURCES.rglob("*.py")}
    assert {name: risky for name, risky in found.items() if risky and name not in INSIDE} == KNOWN


def test_the_search_sees_what_it_looks_for(tmp_path: Path):
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle\nfrom dill import loads\neval('1')\ntorch.load('x')\nrun('ls', shell=True)\nmodule.eval()\n"
    )
    assert risky_names(path) == {"pickle", "dill", "eval", "torch.load", "shell=True"}

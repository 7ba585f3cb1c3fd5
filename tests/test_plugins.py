import sys

import pytest

from priml.errors import UsageError
from priml.plugins import load, naming_failures


def test_a_function_is_loaded_from_a_file_or_a_module(tmp_path, monkeypatch):
    source = """
from dataclasses import dataclass

@dataclass
class Rule:
    answer: str

def double(number):
    return 2 * number
"""
    (tmp_path / "my_code.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_code.py:double", f"{tmp_path}/my_code.py:double", "my_code:double"):
        assert load(name, setting="a.b", takes=("number",))(21) == 42
    assert load("my_code.py:Rule", setting="a.b", takes=("answer",))("7").answer == "7"


def test_a_file_is_run_once_and_files_of_one_name_are_separate_modules(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(
            f"state = []\ndef push(x): state.append(x); return state, {folder!r}"
        )
    push = load(f"{tmp_path}/one/same.py:push", setting="a", takes=("x",))
    push(1)
    assert load(f"{tmp_path}/one/../one/same.py:push", setting="b", takes=("x",))(2) == ([1, 2], "one")
    assert load(f"{tmp_path}/two/same.py:push", setting="a", takes=("x",))(3) == ([3], "two")


def test_a_file_that_fails_is_run_again(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('first')")
    with pytest.raises(UsageError, match="first"):
        load(f"{path}:f", setting="a", takes=())
    path.write_text("def f(): return 'mended, and of another length'")
    assert load(f"{path}:f", setting="a", takes=())().startswith("mended")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_code.py", "does not name a function"),
        ("my_code.py:", "does not name a function"),
        ("nowhere.py:grade", "no file nowhere.py"),
        ("no_such_package.rewards:grade", "no module named 'no_such_package'"),
        ("json.no_such_module:grade", "no module named 'json.no_such_module'"),
        ("my_code.py:grdae", r"no function 'grdae' \(it defines: grade\)"),
        ("my_code.py:limit", "no function 'limit'"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_code.py").write_text(
        "from json import loads\nlimit = 3\ndef grade(problem, response): return True\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"^verify\.function.*{message}"):
        load(name, setting="verify.function", takes=("problem", "response"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import a_module_nobody_has", "ModuleNotFoundError: No module named 'a_module_nobody_has' (PATH, line 1)"),
        ("x = 1\ndef grade(problem, response)\n    pass", "SyntaxError: expected ':' (PATH, line 2)"),
        ("import json\n\njson.loads('{')", "JSONDecodeError: Expecting property name"),
        ("import json\n\njson.loads('{')", "(PATH, line 3)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (PATH, line 2)"),
    ],
)
@pytest.mark.parametrize("spec", ["{path}:grade", "{path.stem}:grade"])
def test_a_module_that_cannot_be_imported_is_named_with_its_line(tmp_path, monkeypatch, source, message, spec):
    path = tmp_path / f"needy_{abs(hash((source, message, spec)))}.py"
    path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        load(spec.format(path=path), setting="verify.function", takes=())
    assert str(caught.value).startswith("verify.function: importing ")
    assert message.replace("PATH", str(path)) in str(caught.value)
    assert caught.value.__cause__, "--debug shows where it came from"


def test_a_file_imports_the_files_beside_it_and_hides_no_module_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "beside_it.py").write_text("def score(): return 0.5")
    (tmp_path / "json.py").write_text("raise RuntimeError('this is not the json that others import')")
    (tmp_path / "my_code.py").write_text("import json\nfrom beside_it import score\ndef grade(): return score()")
    assert load(f"{tmp_path}/my_code.py:grade", setting="a", takes=())() == 0.5


@pytest.mark.parametrize(
    ("signature", "fits"),
    [
        ("problem, response", True),
        ("*anything", True),
        ("problem, response, strict=False", True),
        ("response", False),
        ("data_source, solution_str, ground_truth, extra_info=None", False),
        ("prompts, completions, *, answer", False),
    ],
)
def test_a_function_that_takes_other_arguments_is_refused_before_the_run(tmp_path, signature, fits):
    path = tmp_path / "my_code.py"
    path.write_text(f"def grade({signature}): return True")
    if fits:
        assert load(f"{path}:grade", setting="verify.function", takes=("problem", "response"))(None, None)
    else:
        with pytest.raises(UsageError, match=r"my_code.py:grade\(.*cannot be called with \(problem, response\)"):
            load(f"{path}:grade", setting="verify.function", takes=("problem", "response"))


def test_what_a_users_function_raises_is_named_with_the_line_in_their_code(tmp_path):
    path = tmp_path / "my_code.py"
    path.write_text("import json\n\n\ndef rows():\n    yield {}\n    json.loads('')")
    expected = r"^my rows fails: JSONDecodeError: .*my_code\.py, line 6\)$"
    with pytest.raises(UsageError, match=expected), naming_failures("my rows"):
        list(load(f"{path}:rows", setting="a", takes=())())


def test_our_own_errors_pass_as_they_are():
    error = UsageError("already one sentence")
    with pytest.raises(UsageError) as caught, naming_failures("f"):
        raise error
    assert caught.value is error

import pytest

from priml.errors import UsageError
from priml.plugins import load


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
        assert load(name, setting="a.b")(21) == 42
    assert load("my_code.py:Rule", setting="a.b")("7").answer == "7"


def test_a_file_is_run_once_and_files_of_one_name_are_separate_modules(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(
            f"state = []\ndef push(x): state.append(x); return state, {folder!r}"
        )
    push = load(f"{tmp_path}/one/same.py:push", setting="a")
    push(1)
    assert load(f"{tmp_path}/one/../one/same.py:push", setting="b")(2) == ([1, 2], "one")
    assert load(f"{tmp_path}/two/same.py:push", setting="a")(3) == ([3], "two")


def test_a_file_that_fails_is_run_again(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('first')")
    with pytest.raises(RuntimeError, match="first"):
        load(f"{path}:f", setting="a")
    path.write_text("def f(): return 'mended, and of another length'")
    assert load(f"{path}:f", setting="a")().startswith("mended")


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
        load(name, setting="verify.function")


def test_an_import_error_inside_the_users_module_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "needy_code.py").write_text("import a_module_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_nobody_has"):
        load("needy_code:grade", setting="a")

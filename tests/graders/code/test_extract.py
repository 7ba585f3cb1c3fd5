import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.graders.code.extract import extract_like_authors, extract_program


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("text\n```py\nx = 1\n```\nmore", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("```python\nfirst\n```\n```python\nlast\n```", "last\n"),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nRun it:\n```bash\npython x.py\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
        ("```python\n    return x\n```", "    return x\n"),
        ("1. so\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\r\nx = 1\r\n```", "x = 1\r\n"),
        ("<think>```python\nx = 1\n```</think>\n```python\nx = 2\n```", "x = 2\n"),
        ("Here: ```python\nx = 1\n```", "x = 1\n"),
        ("Here it is:```py\nx = 1\n``` ", "x = 1\n"),
        ("```python\nx = 1```", "x = 1"),
        ("```python\nx = 1``` \nSo it is.", "x = 1"),
        ("Here: ```python\nx = 1```\nand\n```python\nx = 2```", "x = 2"),
        ("I use ```python\nas ever:\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nprint('```')\n```", "print('```')\n"),
        ("```python\nprint('<think>')\n```", "print('<think>')\n"),
        ('```python\nt = "</think>"\n```', 't = "</think>"\n'),
        ('<think>no</think>\n```python\nt = s.split("</think>")\n```', 't = s.split("</think>")\n'),
        ("I don't know. </think>\n```python\nx = 1\n```\nThat's it.", "x = 1\n"),
        ("```python\n\ufeffx = 1\n```", "x = 1\n"),
        ("```{python}\nx = 1\n```", "x = 1\n"),
        ("```{.python .numberLines}\nx = 1\n```", "x = 1\n"),
        ("```python:main.py\nx = 1\n```", "x = 1\n"),
        ("```pypy3\nx = 1\n```", "x = 1\n"),
        ("```Python 3\nx = 1\n```", "x = 1\n"),
        ("```python3.11\nx = 1\n```", "x = 1\n"),
        ("```python title=a.py\nx = 1\n```\n```pycon\n>>> 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python-repl\n>>> 1\n```", "x = 1\n"),
    ],
)
def test_the_last_complete_block_is_the_program(response, program):
    assert extract_program(response) == program


@pytest.mark.parametrize(
    "response",
    [
        "",
        "x = 1",
        "```python\nx = 1",
        "```python\n```",
        "```cpp\nint x;\n```",
        "<think>\n```python\nx = 1\n```\n</think> done",
        "```python\nx = 1\n```</think>",
        "<think>\n```python\nx = 1\n```\n",
        "in a line ```x = 1``` only",
        "text ```\nx = 1\n```",
        "<think>'```python\nx = 1\n```",
        "```pythonic\nx = 1\n```",
    ],
)
def test_without_a_complete_block_there_is_no_program(response):
    assert extract_program(response) is None


def test_a_bare_program_counts_only_where_it_is_allowed():
    assert extract_program("    return x\n") is None
    assert extract_program("    return x\n", bare=True) == "    return x\n"
    assert extract_program("```python\nx = 1", bare=True) is None
    assert extract_program("    return x\n```", bare=True) == "    return x\n"
    assert extract_program("    return x\n```\nIt returns x.", bare=True) == "    return x\n"
    assert extract_program("    return x\n```") is None


def test_the_authors_take_what_follows_the_last_python_fence():
    assert extract_like_authors("a ```python\nx = 1\n``` b ```python\nx = 2") == "\nx = 2"
    assert extract_like_authors("x = 1") == "x = 1"
    assert extract_like_authors(" ") is None


@given(st.text(alphabet="`~ \n\tpython<think>/x", max_size=200))
def test_any_response_is_read(response):
    for program in (extract_program(response), extract_program(response, bare=True)):
        assert program is None or program.strip()


@given(st.lists(st.sampled_from(["x = 1", "    y", "", "print('`')", "# é"]), min_size=1).map("\n".join))
def test_a_fenced_program_is_found_as_it_was_written(program):
    expected = f"{program}\n" if program.strip() else None
    assert extract_program(f"thinking... </think> Here:\n```python\n{program}\n```\nDone.") == expected

"""The pages can be followed: links, files, tests, commands and settings that they name exist."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from priml.cli import commands, plan
from priml.cli.main import main
from priml.config.document import COMMANDS, keys
from priml.config.load import load_config
from priml.config.peers import VERL

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/*/*.md")),
    *sorted(ROOT.glob("benchmarks/**/*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
ACTIONS = [
    "quickstart",
    "verify",
    "sft",
    "train",
    "eval",
    "report",
    "view",
    "doctor",
    "data_prepare",
    "prm_train",
    "prm_score",
    "prm_rank",
    "prm_evaluate",
    "runs_list",
    "runs_show",
    "try_run",
]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def blocks_in(text: str) -> list[str]:
    return FENCED.findall(text) + INDENTED.findall(FENCED.sub("", text))


def spans_in(text: str) -> list[str]:
    """Code inside of sentences. One may begin on one line and end on the next."""
    return [" ".join(span.split()) for span in SPAN.findall(INDENTED.sub("", FENCED.sub("", text)))]


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every `priml ...`, comments left out."""
    lines = [line for block in blocks_in(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + spans_in(text):
        if found := re.search(r"(?:^|\s)(?<!from )priml [a-z].*", line):
            if "priml " not in line.partition("#")[0]:
                continue
            yield shlex.split(re.sub(r"\bN\b", "1", found[0]), comments=True)[1:]


def anchors_in(page: Path) -> list[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@each_page
def test_links_lead_somewhere(page: Path):
    lost: list[str] = []
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^):\s]+)\)", page.read_text())):
        path = page.parent / target if target else page
        if not path.exists() or (anchor and anchor not in anchors_in(path)):
            lost.append(f"{target}#{anchor}")
    assert lost == []


@each_page
def test_headings_are_there_once(page: Path):
    assert len(anchors_in(page)) == len(set(anchors_in(page)))


@each_page
def test_files_and_tests_that_are_named_exist(page: Path):
    text = page.read_text()
    paths = re.findall(r"(?<![\w/.])(?:src|tests|benchmarks|examples|docs)/[\w./-]*\w", text)
    written = {path for path in paths if re.search(r"--(?:out|picture) " + re.escape(path), text)}
    lost = [path for path in paths if not (ROOT / path).exists() and path not in written and "NAME" not in path]
    assert lost == []
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tests = re.findall(r"`(?:[\w/]+\.py: )?(test_\w+)`", text)
    assert [name for name in tests if f"def {name}(" not in sources] == []


@each_page
def test_commands_and_their_settings_exist(page: Path, monkeypatch: pytest.MonkeyPatch):
    parsed: list[Namespace] = []

    def keep(args: Namespace) -> int:
        parsed.append(args)
        return 0

    monkeypatch.setattr(plan, "run", keep)
    for action in ACTIONS:
        monkeypatch.setattr(commands, action, keep)
    for words in commands_in(page.read_text()):
        name = " ".join(words[: 2 if words[0] in ("prm", "runs", "data") else 1])
        if words == name.split():  # a command that is mentioned, not typed
            with pytest.raises(SystemExit, match="0"):
                main([*words, "--help"])
            continue
        assert main(words) == 0, words
        check_overrides("train" if name == "plan" else name, parsed[-1])


def check_overrides(name: str, args: Namespace) -> None:
    """Every key exists. Where the settings file is one of ours, the values are accepted, placeholders left out."""
    overrides = getattr(args, "overrides", [])
    if not overrides or getattr(args, "config", "") == "compare":  # two folders stand behind it
        return
    known = {"from"} | {parent for key in keys(COMMANDS[name]) for parent in parents(key.partition(" = ")[0])}
    assert [text for text in overrides if text.partition("=")[0] not in known] == []
    if (ROOT / getattr(args, "config", "")).is_file():
        real = [text for text in overrides if not re.fullmatch(r"\.\.\.|[A-Z_]+", text.partition("=")[2])]
        load_config(COMMANDS[name], ROOT / args.config, real)


def parents(key: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a[kind].b.c`."""
    parts = re.sub(r"\[\w+\]", "", key).split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


@each_page
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = blocks_in(page.read_text()) + spans_in(page.read_text())
    named = [target for text in code for target in re.findall(r"(?:^|\n) *(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text)]
    assert [target for target in named if target not in targets] == []


@each_page
def test_settings_that_are_mentioned_exist(page: Path):
    known = {
        parent for schema in COMMANDS.values() for key in keys(schema) for parent in parents(key.partition(" = ")[0])
    }
    first = {key.partition(".")[0] for key in known}
    named = {
        found[0]
        for span in spans_in(page.read_text())
        for found in re.finditer(r"(?<![\w./{-])[a-z_]+(?:\.[a-z_]+)+(?=$|[=: ,])", span)
    }
    lost = {
        name
        for name in named
        if name.partition(".")[0] in first and not name.endswith((".yaml", ".json", ".parquet", ".py"))
    }
    assert sorted(lost - known - set(VERL)) == []

"""Names and pages use the field's words (docs/glossary.md): those of a private dialect do not come back."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BANNED = {
    r"told|brought|fetched|on_driver": "store, fetch, message",
    r"[Hh]eld(_(?!out|param)\w+|(?!Out)[A-Z]\w*)?": "a reference (TensorRef), or what is held: cache, weights, ...",
    r"the_ray|door|[Pp]arcel|[Cc]rew|[Cc]ompany": "import_ray, cluster, serialize, ClusterTopology",
    r"Cast|cast_of|[Ss]peaker|\w+_there|\w+There": "Components, SamplerActor, make_rank_roles",
    r"[Ll]eash|last_words|_bury": "ProcessHandle, stderr_tail, _reap",
    r"[Ff]ates?|_fate": "filter_status",
    r"rehears\w*|halved|apart|pushed|push_of|Push": "verify_weight_sync, separate, sync_bytes, WeightUpdate",
    r"place_of|Place|looked_over|look_over": "resolve_device, DeviceSpec, annotate",
    r"recalled|[Ss]tepper|keeping_evidence|Evidence": "scored, optimizer, attach_batch_on_error, AdvantageInputs",
    r"[Cc]ourse|[Ee]xamined?|examination|claim(ed)?|how_to_go_on|_?surviving": "DataSchedule, evaluate, create_run_dir",
    r"[Ss]ay|silent": "logging",
    r"(?!kind_of)\w+_of": "build_x, load_x, x_from_y",
}
"""Patterns of whole identifiers, and what to write instead."""
PYTHON = [
    path for folder in ("src", "tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]


@cache
def identifiers(path: Path) -> list[tuple[int, str]]:
    """Names of functions, classes, parameters, variables and attributes that a file defines, tests excepted."""

    def names(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
            "test_"
        ):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr

    return [name for node in ast.walk(ast.parse(path.read_text())) for name in names(node)]


@pytest.mark.parametrize("pattern", BANNED)
def test_names_are_the_fields(pattern: str):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in PYTHON
        for line, name in identifiers(path)
        if re.fullmatch(pattern, name)
    ]
    assert found == [], f"instead: {BANNED[pattern]}\n" + "\n".join(found)


PROSE = {
    r"told|brought|handed|whoever|anew|afresh|hence|learnt": "plain words: given, sent, again, so, learned",
    r"doors?|parcels?|crew|company|speakers?|speaks?|leash|fates?": "cluster, message, actors, sampler, filter status",
    r"push(es|ed|ing)?|rehears\w*|proves? that|proved": "weight sync, verify, check",
    r"apart|drew|drawn|judged?s?|arms?|claims?": "separate, sampled, verifier or grade, variant, statement",
}
"""Patterns of whole words in sentences, and what to write instead."""
PAGES = [path for pattern in ("*.md", "docs/*.md", "examples/*/*.md") for path in sorted(ROOT.glob(pattern))]
RENAMED = re.compile(r"^Changed\n.*?^Removed\n", re.DOTALL | re.MULTILINE)
"""In CHANGELOG.md: the list of old names and new ones."""
BLOCK = re.compile(r"^```.*?^```|(?:^ {4}.*\n)+", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`[^`]+`")
ALLOWED = {"best_of"}
"""A way to rank responses, under the field's own name."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_use_the_words_of_the_field(page: Path):
    text = BLOCK.sub(" ", RENAMED.sub("", page.read_text()))
    found = [
        f"{word[0]}: instead: {instead}"
        for pattern, instead in PROSE.items()
        for word in re.finditer(rf"\b({pattern})\b", SPAN.sub(" ", text), re.IGNORECASE)
    ]
    names = {name for span in SPAN.findall(text) for name in re.findall(r"\b(?!test_)[a-zA-Z_]\w*", span)} - ALLOWED
    found += [
        f"{name}: instead: {instead}"
        for pattern, instead in BANNED.items()
        for name in sorted(names)
        if re.fullmatch(pattern, name)
    ]
    assert found == []

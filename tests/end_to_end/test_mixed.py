"""Mathematics and programs in one run, told apart by the rows of their data and graded while sampling goes on."""

import json
from pathlib import Path

import pytest

from fakes import make_trajectory, read_metrics, read_rollouts, tiny_config
from priml.commands.train import run_training
from priml.config.data import FileSource
from priml.data.sources import read_problems
from priml.errors import DataError
from priml.graders.code import CodeVerifier
from priml.graders.math.verifier import MathVerifier
from priml.graders.mixed import MixedVerifier
from priml.graders.pool import VerifierPool
from priml.sandbox import SandboxUnavailable, open_sandbox
from priml.types import Group, Prompt

REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "rl" / "eurus_schema_sample.parquet"
needs_real_rows = pytest.mark.skipif(not REAL_ROWS.is_file(), reason="the sample of real rows is not on this machine")

LABELS = ("correct", "wrong", "undecided")
SOURCES = ("sums", "taco", "walk")
MIXED = "verify={kind: mixed, kinds: {math: {kind: math}, code: {kind: code, bare_programs: true, time_limit: 5}}%s}"


@pytest.fixture(scope="module")
def isolation():
    """The level that holds here; without any, no program is run."""
    try:
        sandbox = open_sandbox("auto")
    except SandboxUnavailable as error:
        pytest.skip(f"no isolation holds here, so no program is run: {error}")
    yield sandbox.level
    sandbox.close()


def eurus_row(source, ability, truth, question):
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question}],
        "ability": ability,
        "reward_model": {"ground_truth": truth, "style": "rule"},
    }


def write_rows(path, *, walks, sums, programs):
    """Rows in the schema of Eurus, of three sources: the tiny model was warmed up on questions like the first."""
    doubling = json.dumps({"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]})
    rows = [
        *(eurus_row(f"walk/{i}", "math", "1", f"{i % 4}{'ABCDE'[i % 5]}{'ABCDE'[i // 5 % 5]}=") for i in range(walks)),
        *(eurus_row("sums", "math", "1001", f"1000+{i}=") for i in range(sums)),
        *(eurus_row(f"taco/{i}", "code", doubling, f"Double it, {i}.") for i in range(programs)),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_mixed_run_grades_each_row_by_its_kind_and_counts_by_source(tmp_path, warm_model, isolation, said):
    data = write_rows(tmp_path / "rows.jsonl", walks=20, sums=10, programs=10)
    held_out = write_rows(tmp_path / "held_out.jsonl", walks=2, sums=2, programs=2)
    (tmp_path / "even.py").write_text("def grade(problem, response):\n    return response[:1] in ('0', '2')\n")
    even = f", sources: {{walk: {{kind: custom, function: '{tmp_path / 'even.py'}:grade'}}}}"
    cfg = tiny_config(
        tmp_path,
        warm_model,
        f"data={{train: {{kind: file, path: {data}}}}}",
        f"evaluate={{data: {{kind: file, path: {held_out}}}, samples: 2}}",
        MIXED % even,
        "filter=null",
        "batch={prompts: 40}",  # all of them in each step
        "policy.mini_batch=null",
        "prm.mini_batch=null",
    )
    summary = run_training(cfg)

    assert f"verify: programs run in a sandbox: {isolation}" in said
    assert json.loads((cfg.run_dir / "manifest.json").read_text())["isolation"] == [isolation]
    before, first, second = read_metrics(cfg.run_dir)
    assert {"eval/greedy", "eval/greedy/sums", "eval/greedy/taco", "eval/greedy/walk"} <= set(before)
    assert set(summary["accuracy"]["after"]["by_source"]) == {"sums", "taco", "walk"}
    for metrics in (first, second):
        assert sum(metrics[f"verdict/{label}/{source}"] for label in LABELS for source in SOURCES) == 160
        assert [metrics[f"verdict/{label}/walk"] for label in LABELS][2] == 0
        assert 0 < metrics["outcome/mean/walk"] < 1
        assert metrics["outcome/mean/taco"] == metrics["outcome/mean/sums"] == 0
        assert metrics["verdict/wrong/taco"] == 40
    rows = read_rollouts(cfg.run_dir, 1)
    reasons = {source: {r["reason"] for r in rows if r["source"].startswith(source)} for source in SOURCES}
    assert reasons["walk"] == {"custom"}
    assert reasons["sums"] <= {"no answer", "different value"}
    assert any(reason.startswith("exception: ") for reason in reasons["taco"]), "programs were run"


def test_a_kind_that_nobody_judges_stops_the_run_before_it_claims_its_folder(tmp_path, warm_model):
    data = write_rows(tmp_path / "rows.jsonl", walks=2, sums=0, programs=1)
    cfg = tiny_config(
        tmp_path, warm_model, f"data={{train: {{kind: file, path: {data}}}}}", "verify={kind: math}", "prm=null"
    )
    with pytest.raises(DataError, match=r"'rows:3' \(source 'taco/0'\) is of kind 'code', for which there is no"):
        run_training(cfg)
    assert not (cfg.run_dir / "manifest.json").exists()


def answered(problem, text):
    prompt = Prompt(problem, "", ())
    return Group(prompt, (make_trajectory(text),))


@needs_real_rows
@pytest.mark.slow
def test_all_real_rows_are_graded_in_one_pool(isolation):
    problems = read_problems(FileSource(path=REAL_ROWS)).problems
    sandbox = open_sandbox("auto")
    pool = VerifierPool(MixedVerifier({"math": MathVerifier(), "code": CodeVerifier(sandbox)}))
    junk = [answered(p, "\\boxed{\\text{junk}}\n```python\nprint('junk')\n```") for p in problems]
    right = [answered(p, f"\\boxed{{{p.answer}}}") for p in problems if p.kind == "math"]
    for group in (*junk, *right):
        pool.submit(group.prompt, group.trajectories[0])
    verdicts = [group.verdicts[0] for group in pool([*junk, *right])]
    sandbox.close()
    assert all(verdict.correct is not None for verdict in verdicts)
    assert not any(verdict.correct for verdict in verdicts[: len(junk)])
    assert {v.reason for v, p in zip(verdicts, problems, strict=False) if p.kind == "code"}.isdisjoint({"no answer"})
    assert sum(bool(verdict.correct) for verdict in verdicts[len(junk) :]) == len(right)


@needs_real_rows
@pytest.mark.slow
def test_a_tiny_model_that_writes_junk_trains_on_real_rows(tmp_path, warm_model, isolation):
    cfg = tiny_config(
        tmp_path,
        warm_model,
        f"data={{train: {{kind: file, path: {REAL_ROWS}}}, prompt: {{max_prompt_tokens: 4096}}}}",
        MIXED % "",
        "filter=null",
        "batch={prompts: 12}",
        "sampling={group_size: 2, max_new_tokens: 8}",
        "policy.mini_batch=null",
        "prm.mini_batch=null",
    )
    run_training(cfg)
    records = read_metrics(cfg.run_dir)
    assert [record["verdict/undecided"] for record in records] == [0, 0]
    sources = {key.rpartition("/")[2] for record in records for key in record if key.startswith("outcome/mean/")}
    assert {"MATH_train", "leetcode_train"} <= sources <= {"MATH_train", "leetcode_train", "codeforces"}

import json
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.config.algorithm import Advantage, Ramp
from priml.config.backend import RayBackend
from priml.config.data import ChainSource, FileSource
from priml.config.eval import EvalConfig
from priml.config.load import dump_config, load_config, parse_config, parse_overrides
from priml.config.models import Optimizer, Policy, Prm
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.errors import ConfigError

MINIMAL = {"run_dir": "r", "policy": {"model": "m"}, "data": {"train": {"kind": "chain"}}}


def complaint(path: Path, text: str, schema: type = TrainConfig, *overrides: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(schema, path, overrides)
    return str(caught.value).removeprefix(f"{path}: ")


def complaint_about(**settings: object) -> str:
    """What is said of a minimal training file with these settings added or replaced."""
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, MINIMAL | settings, where="x.yaml")
    return str(caught.value).removeprefix("x.yaml: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_defaults_of_the_sizes_are_those_of_the_papers_main_run():
    cfg = parse_config(TrainConfig, MINIMAL, where="")
    assert cfg.steps == 592
    assert cfg.sampling.group_size == 4
    assert cfg.batch.prompts == 256
    assert cfg.policy.optimizer.lr == 5e-7
    assert cfg.prm is not None
    assert (cfg.prm.optimizer.lr, cfg.prm.beta) == (1e-6, 0.05)
    assert cfg.filter is not None
    assert (cfg.filter.low, cfg.filter.high) == (0.2, 0.8)


OURS = ("priml", "likelihood", "policy", True, True)
PAPERS = ("ce", "initial", False, False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OURS),
        ({"prm": {"optimizer": {"lr": 1e-3}}}, OURS),
        ({"sampling": {"temperature": 0.7}}, OURS),
        ({"advantage": {"preset": "paper"}}, ("paper", *PAPERS)),
        ({"advantage": {"preset": "authors"}, "prm": {}}, ("authors", *PAPERS)),
        ({"advantage": {"preset": "verl", "gate": {}}, "prm": {"replay": {}}}, ("verl", "ce", "initial", True, True)),
        ({"advantage": {"preset": "verl"}, "prm": {"loss": "likelihood"}}, ("verl", "likelihood", *PAPERS[1:])),
        ({"advantage": {"estimator": "prime_value"}}, ("authors", *PAPERS)),
        ({"advantage": {"estimator": "ppo"}, "critic": {}}, ("authors", *PAPERS)),
        ({"prm": {"granularity": "step"}}, ("authors", *PAPERS)),
        ({"prm": {"loss": "ce"}}, ("priml", "ce", *OURS[2:])),
        ({"prm": {"forward": "frozen"}}, ("priml", "likelihood", "policy", False, True)),
        ({"prm": {"init": "another"}}, ("priml", "likelihood", "initial", True, True)),
    ],
)
def test_a_preset_brings_the_prm_that_goes_with_it(given: dict[str, object], expected: tuple[object, ...]):
    def found(cfg: TrainConfig) -> tuple[object, ...]:
        assert cfg.implicit_prm
        prm, advantage = cfg.implicit_prm, cfg.advantage
        return advantage.preset, prm.loss.kind, prm.reference, prm.replay is not None, advantage.gate is not None

    cfg = parse_config(TrainConfig, MINIMAL | given, where="")
    assert found(cfg) == expected
    assert parse_config(TrainConfig, yaml.safe_load(dump_config(cfg)), where="") == cfg, "what is recorded is resolved"
    assert found(parse_config(TrainConfig, MINIMAL, where="")) == OURS, "the defaults of others stay as they are"


def test_a_custom_prm_is_paid_out_as_the_authors_do():
    cfg = parse_config(TrainConfig, MINIMAL | {"prm": {"kind": "custom", "function": "a.py:b"}}, where="")
    assert (cfg.advantage.preset, cfg.advantage.gate) == ("authors", None)


def test_a_learning_rate_alone_keeps_the_other_defaults_of_its_place():
    given = {"policy": {"model": "m", "optimizer": {"lr": 1e-3}}, "prm": {"optimizer": {"lr": 1e-3}}}
    cfg = parse_config(TrainConfig, MINIMAL | given, where="")
    assert cfg.policy.optimizer.weight_decay == Policy(model="m").optimizer.weight_decay == 0.01
    assert cfg.prm is not None
    assert cfg.prm.optimizer.max_grad_norm == Prm().optimizer.max_grad_norm == 10.0


def test_a_backend_is_the_local_one_unless_its_kind_says_otherwise():
    assert parse_config(TrainConfig, MINIMAL | {"backend": {"device": "cpu"}}, where="").backend.kind == "local"
    cfg = parse_config(TrainConfig, MINIMAL | {"backend": {"kind": "ray", "ranks": 8, "replicas": 2}}, where="")
    assert isinstance(cfg.backend, RayBackend)
    assert (cfg.backend.ranks, cfg.backend.replicas, cfg.backend.restarts) == (8, 2, 2)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"kind": "rey"}, "backend.kind: found 'rey', need one of local, ray; did you mean 'ray'?"),
        ({"ranks": 2}, "backend.ranks: not a key of this kind; it is one with backend.kind=ray"),
        ({"kind": "ray", "rank": 2}, "backend.rank: unknown key; did you mean 'ranks'?"),
        (
            {"kind": "ray", "ranks": 3, "replicas": 2},
            "backend: need ranks to be a multiple of replicas, got ranks=3, replicas=2; change one",
        ),
        (
            {"kind": "ray", "device": "cpu", "cpu_offload": True},
            "backend: cpu_offload: there is nothing to offload from with device: cpu; set cpu_offload: false",
        ),
    ],
)
def test_a_backend_that_cannot_be_is_refused(backend: dict[str, object], said: str):
    assert complaint_about(backend=backend) == said


def test_overrides_reach_any_depth_and_the_later_wins(path: Path):
    path.write_text("run_dir: r\npolicy: {model: m}\ndata: {train: {kind: chain}}\nprm: null\n")
    cfg = load_config(TrainConfig, path, ["steps=1", "steps=2", "data.train.length=7", "prm.beta=auto", "filter=null"])
    assert cfg.steps == 2
    assert isinstance(cfg.data.train, ChainSource)
    assert cfg.data.train.length == 7
    assert cfg.prm is not None
    assert cfg.prm.beta == "auto"
    assert cfg.filter is None


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", ".1e-5", "0.000001"])
def test_numbers_with_exponents_are_numbers(path: Path, text: str):
    path.write_text(f"run_dir: r\npolicy: {{model: m, optimizer: {{lr: {text}}}}}\ndata: {{train: {{kind: chain}}}}\n")
    assert load_config(TrainConfig, path).policy.optimizer.lr == 1e-6


def test_what_is_dumped_is_read_back_equal(path: Path):
    given = {"evaluate": {"data": {"kind": "file", "path": "a/b.jsonl"}}, "seed": 3, "prm": {"beta": "auto"}}
    cfg = parse_config(TrainConfig, MINIMAL | given, where="")
    path.write_text(dump_config(cfg))
    assert load_config(TrainConfig, path) == cfg


def test_a_date_is_text_where_text_is_wanted(path: Path):
    path.write_text("run_dir: r\nmodel: m\ndata: {a: {kind: hub, dataset: d, revision: 2024-01-01}}\n")
    assert "revision: '2024-01-01'" in dump_config(load_config(EvalConfig, path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found nothing (null), need a mapping of settings at the top"),
        ("- 1", "found [1] (a list), need a mapping of settings at the top"),
        ("a: [", "not valid YAML: line 1: expected the node content, but found '<stream end>'"),
        (
            "steps: 1\nseed: 2\nsteps: 3",
            "not valid YAML: line 3: 'steps' was given already in line 1; keep one of the two",
        ),
        ("prm: {beta: 1, beta: 2}", "not valid YAML: line 1: 'beta' was given already in line 1; keep one of the two"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_refused(path: Path, text: str, said: str):
    assert complaint(path, text) == said


def test_merge_keys_are_not_duplicates(path: Path):
    path.write_text(
        "run_dir: r\npolicy: {model: m}\ndata: {train: &task {kind: chain, count: 9}}\n"
        "evaluate: {data: {<<: *task, split: held_out, count: 3}}\n"
    )
    cfg = load_config(TrainConfig, path)
    assert cfg.evaluate is not None
    assert cfg.evaluate.data == ChainSource(kind="chain", split="held_out", count=3)


def test_a_missing_file_a_folder_and_a_binary_file_are_told_apart(tmp_path: Path):
    for place, reason in (("none.yaml", "no such file or directory"), (".", "is a directory")):
        with pytest.raises(ConfigError, match=f"cannot be read \\({reason}\\); give the path of a YAML file"):
            load_config(TrainConfig, tmp_path / place)
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(TrainConfig, tmp_path / "x.bin")


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".=3"])
def test_an_override_without_key_and_value_is_refused(path: Path, text: str):
    assert complaint(path, "steps: 1", TrainConfig, text).startswith(f"override {text!r}: need key=value")


def test_an_override_that_is_no_yaml_is_refused(path: Path):
    assert complaint(path, "steps: 1", TrainConfig, "steps=[").startswith("override 'steps=[': not valid YAML")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stepz": 3}, "stepz: unknown key; did you mean 'steps'?"),
        ({"policy": {"model": "m", "optimizer": {"rl": 1}}}, "policy.optimizer.rl: unknown key; did you mean 'lr'?"),
        ({"batch": {"zzz": 1}}, "batch.zzz: unknown key; valid names: draw, prompts"),
        ({"data": {"train": {"kind": "chain", "lenght": 3}}}, "data.train.lenght: unknown key; did you mean 'length'?"),
        (
            {"verify": {"kind": "math", "math": 1}},
            "verify.math: unknown key; valid names: bare_answers, digits, kind, rules, time_limit, tolerance, units, "
            "workers",
        ),
        ({"steps": "x"}, "steps: found 'x' (text), need an integer"),
        ({"steps": "3"}, "steps: found '3' (text), need an integer"),
        ({"steps": True}, "steps: found true, need an integer"),
        ({"steps": 3.5}, "steps: found 3.5 (a number), need an integer"),
        ({"steps": 0}, "steps: found 0 (an integer), need a number greater than 0"),
        ({"seed": None}, "seed: found nothing (null), need an integer"),
        ({"policy": {"model": 7}}, "policy.model: found 7 (an integer), need text"),
        ({"policy": None}, "policy: found nothing (null), need a mapping of settings"),
        (
            {"policy": {}},
            "policy.model: required, but not given; add it to the file, or policy.model=VALUE to the command",
        ),
        ({"prm": 3}, "prm: found 3 (an integer), need a mapping of settings"),
        ({"prm": {"beta": "x"}}, "prm.beta: found 'x' (text), need a number or 'auto'"),
        ({"prm": {"beta": -1}}, "prm.beta: found -1 (an integer), need a number greater than 0 or 'auto'"),
        (
            {"prm": {"loss": "pair"}},
            "prm.loss.kind: found 'pair', need one of ce, pairwise, detached, likelihood; did you mean 'pairwise'?",
        ),
        (
            {"prm": {"step_pattern": "["}},
            "prm.step_pattern: not a regular expression: unterminated character set at position 0",
        ),
        (
            {"verify": {"kind": "maths"}},
            "verify.kind: found 'maths', need one of math, code, choice, exact, custom, mixed; did you mean 'math'?",
        ),
        (
            {"data": {"train": "chian"}},
            "data.train.kind: found 'chian', need one of file, hub, custom, chain, walk, tiny_code; "
            "did you mean 'chain'?",
        ),
        ({"data": {"train": 3}}, "data.train: found 3 (an integer), need a mapping of settings"),
        (
            {"data": {"train": {"kind": "chain", "wrong": "x"}}},
            "data.train.wrong: found 'x' (text), need a number or a list",
        ),
        (
            {"data": {"train": {"kind": "chain", "wrong": [0.5, 3]}}},
            "data.train.wrong.1: found 3 (an integer), need a number less than or equal to 1",
        ),
        (
            {"policy": {"model": "m", "optimizer": {"betas": [0.9]}}},
            "policy.optimizer.betas: found [0.9] (a list), need 2 items or more",
        ),
        (
            {"policy": {"model": "m", "optimizer": {"lr": float("nan")}}},
            "policy.optimizer.lr: found nan (a number), need a finite number",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_path_what_was_found_and_what_is_needed(settings: dict[str, object], said: str):
    assert complaint_about(**settings) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"sampling": {"group_size": 1}},
            "sampling.group_size: rloo compares the responses of a group, got group_size=1; "
            "set sampling.group_size >= 2 or advantage.estimator: reinforce",
        ),
        ({"filter": {"low": 0.9, "high": 0.1}}, "filter: need low <= high, got low=0.9, high=0.1; swap them"),
        (
            {"filter": {"low": 0.3, "high": 0.4}},
            "filter: no share of correct answers out of group_size=4 lies in [0.3, 0.4]; widen the band, "
            "raise sampling.group_size, or set filter: null",
        ),
        (
            {
                "sampling": {"group_size": 1},
                "advantage": {"estimator": "reinforce"},
                "filter": None,
                "prm": {"loss": "pairwise"},
            },
            "prm.loss.kind: pairwise compares the responses of a group, got group_size=1; "
            "set sampling.group_size >= 2 or prm.loss.kind: ce",
        ),
        (
            {"sampling": {"group_size": 1}, "advantage": {"estimator": "dr_grpo"}, "filter": None},
            "sampling.group_size: dr_grpo compares the responses of a group, got group_size=1; "
            "set sampling.group_size >= 2 or advantage.estimator: reinforce",
        ),
        (
            {
                "sampling": {"group_size": 1},
                "advantage": {"estimator": "reinforce"},
                "filter": None,
                "prm": {"loss": "detached"},
            },
            "prm.loss.kind: detached compares the responses of a group, got group_size=1; "
            "set sampling.group_size >= 2 or prm.loss.kind: ce",
        ),
        (
            {"advantage": {"estimator": "ppo"}},
            "advantage.estimator: ppo needs a critic, got critic: null; add critic: {} for its defaults",
        ),
        (
            {"critic": {}},
            "critic: only the estimator ppo has one, got advantage.estimator: rloo; set critic: null",
        ),
        (
            {"critic": {}, "advantage": {"estimator": "ppo", "gamma_process": 0.9}},
            "advantage: ppo has one discount, since its critic values process rewards and outcome together; "
            "got gamma_process=0.9, gamma_outcome=null: give both the same",
        ),
        (
            {"prm": None, "advantage": {"estimator": "prime_value"}},
            "advantage.estimator: prime_value takes the process rewards before each token as its baseline, and with "
            "prm: null there are none; set prm.granularity: token or advantage.estimator: reinforce",
        ),
        (
            {"prm": {"granularity": "whole"}, "advantage": {"estimator": "prime_value"}},
            "advantage.estimator: prime_value takes the process rewards before each token as its baseline, and with "
            "prm.granularity: whole there are none; set prm.granularity: token or advantage.estimator: reinforce",
        ),
        (
            {"advantage": {"estimator": "prime_value", "gamma_process": 0.9}},
            "advantage: prime_value sums the process rewards before a token without discount, got gamma_process=0.9; "
            "set gamma_process: null",
        ),
        (
            {"sampler": {"kind": "vllm", "adapters": "separate"}},
            "sampler.adapters: separate: the policy has no adapters, with policy.lora: null; set "
            "sampler.adapters: merged, or policy.lora: {}",
        ),
        (
            {"sampling": {"max_staleness": 1}},
            "sampling.max_staleness: 1 samples while training goes on, and this sampler reads the weights that are "
            "trained; set sampler.copy_weights: true (two copies of the weights), or sampling.max_staleness: 0",
        ),
        (
            {"sampling": {"max_staleness": 2}, "sampler": {"kind": "vllm", "sleep": True}},
            "sampling.max_staleness: 2 samples while training goes on, and with sampler.sleep: true the sampler gives "
            "its memory back for that time; set sampler.sleep: false, or sampling.max_staleness: 0",
        ),
        (
            {"sampling": {"max_staleness": 1}, "backend": {"kind": "ray"}},
            "sampling.max_staleness: 1 samples while training goes on, and with backend.colocate: true samplers and "
            "ranks take turns on the same devices; set backend.colocate: false, or sampling.max_staleness: 0",
        ),
        (
            {"prm": None, "advantage": {"process_ramp": {"start": 0, "steps": 3}}},
            "advantage.process_ramp: there is no process reward to weigh with prm: null; set process_ramp: null",
        ),
        (
            {"prm": {"forward": "frozen", "replay": {}}},
            "prm: replay: a PRM with forward: frozen never learns; set replay: null, or forward: single",
        ),
        (
            {"loss": {"surrogate": "cispo", "dual_clip": 3}},
            "loss: cispo bounds every ratio already and has no dual clip; set dual_clip: null",
        ),
        (
            {"loss": {"clip_high": 0.5, "dual_clip": 1.4}},
            "loss: dual_clip is a bound beyond the clip, got dual_clip=1.4 with 1 + clip_high = 1.5; "
            "raise dual_clip (3 is usual)",
        ),
        (
            {"sampling": {"max_new_tokens": 100}, "overlong": {"kind": "penalty", "window": 101}},
            "overlong.window: the slope of 101 tokens is longer than a response may be "
            "(sampling.max_new_tokens=100); make it shorter",
        ),
        (
            {"data": {"train": {"kind": "chain"}, "prompt": {"text": "Answer:"}}},
            "data.prompt.text: found 'Answer:', need {problem} in it once, where the question goes",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_way_out(settings: dict[str, object], said: str):
    assert complaint_about(**settings) == said


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_pp", "ppo", "prime_value"])
def test_one_response_per_prompt_is_enough_for_what_does_not_compare(estimator: str):
    critic = {} if estimator == "ppo" else None
    given = {"sampling": {"group_size": 1}, "advantage": {"estimator": estimator}, "filter": None, "critic": critic}
    assert parse_config(TrainConfig, MINIMAL | given, where="").sampling.group_size == 1


def test_the_process_weight_is_constant_or_moves_linearly():
    assert {Advantage(process_weight=0.7).process_weight_at(step) for step in (1, 9, 500)} == {0.7}
    rising = Advantage(process_weight=1.0, process_ramp=Ramp(start=0.0, after=2, steps=4))
    assert [rising.process_weight_at(step) for step in range(1, 9)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    falling = Advantage(process_weight=0.5, process_ramp=Ramp(start=1.0, steps=2))
    assert [falling.process_weight_at(step) for step in range(1, 5)] == [1.0, 0.75, 0.5, 0.5]


def test_all_mistakes_are_told_at_once_one_per_line(path: Path):
    said = complaint(path, "run_dir: r\nsteps: x\nprm: {beta: x}\npolicy: {model: m}\nseeds: 1\n")
    assert said.splitlines() == [
        f"{path}:",
        "  steps: found 'x' (text), need an integer",
        "  prm.beta: found 'x' (text), need a number or 'auto'",
        "  data: required, but not given; add it to the file, or data=VALUE to the command",
        "  seeds: unknown key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run_dir: r\nmodel: m\ndata: {}", "found neither data nor suites, need one of them"),
        ("run_dir: r\nmodel: m\ndata: {a: 3}", "data.a: found 3 (an integer), need a mapping of settings"),
        (
            "run_dir: r\nmodel: m\ndata: {file: {kind: file, path: x, limits: 3}}",
            "data.file.limits: unknown key; did you mean 'limit'?",
        ),
        (
            "run_dir: r\nmodel: m\ndata: {a: {kind: fiel}}",
            "data.a.kind: found 'fiel', need one of file, hub, custom, chain, walk, tiny_code; did you mean 'file'?",
        ),
    ],
)
def test_names_that_users_choose_are_part_of_the_path(path: Path, text: str, said: str):
    assert complaint(path, text, EvalConfig) == said


def test_settings_of_a_model_made_on_the_spot_must_fit(path: Path):
    text = "run_dir: r\nmodel: {kind: tiny, width: 10, heads: 4}\ndata: {kind: chain}"
    assert complaint(path, text, SftConfig) == "model: width must be a multiple of 2 * heads, got width=10, heads=4"


def test_settings_cannot_be_changed_after_construction():
    with pytest.raises(ValueError, match="frozen"):
        FileSource(path=Path("x")).path = Path("y")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="frozen"):
        Optimizer(lr=1.0).lr = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_function_of_ones_own_has_a_file_or_a_module_and_a_name():
    cfg = parse_config(TrainConfig, MINIMAL | {"advantage": {"estimator": "my.py:estimate"}, "critic": {}}, where="")
    assert cfg.advantage.estimator == "my.py:estimate"
    found = complaint_about(verify={"kind": "custom", "function": "grade"})
    assert found == (
        "verify.function: found 'grade', need the name of a function: 'file.py:name' or 'package.module:name'"
    )
    found = complaint_about(trackers=[{"kind": "custom", "functio": "my.py:Tracker"}])
    assert "trackers.0.functio: unknown key; did you mean 'function'?" in found


def test_a_misspelt_estimator_is_given_the_nearest_name():
    assert complaint_about(advantage={"estimator": "rlo"}).endswith("did you mean 'rloo'?")


def test_a_custom_process_reward_model_is_no_implicit_one():
    cfg = parse_config(TrainConfig, MINIMAL | {"prm": {"kind": "custom", "function": "my.py:rewards"}}, where="")
    assert cfg.prm is not None
    assert cfg.implicit_prm is None


def nested_aliases(levels: int) -> str:
    """A few lines that mean 9 ** levels values."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested_aliases(20), r"found more than 10,000 values, need fewer; are there aliases \(\*name\) in it"),
        ("a: &a [*a]", "a.0.0.0.*found values nested too deeply"),
        ("policy: &p {model: m, prm: *p}", "policy.prm.prm.*found values nested too deeply"),
        ("seed: " + "x" * 10**6, "found more than 262,144 characters"),
        ("seed: " + "[" * 600 + "]" * 600, "found values nested too deeply"),
        ("2001-01-01: 3", r"top: found the key datetime.date\(2001, 1, 1\).*need text as keys"),
        ("1: 3", "top: found the key 1 .an integer., need text as keys"),
        ("policy: {!!binary aGVsbG8=: 3}", "policy: found the key b'hello'"),
        ("seed: !!binary aGVsbG8=", "seed: found b'hello'.*need text, a number"),
        ("seed: 2001-99-99", "found a value that its YAML type cannot hold .month must be"),
        ("seed: !!int abc", "found a value that its YAML type cannot hold .*'abc'"),
        ("seed: " + "9" * 5000, "found a value that its YAML type cannot hold"),
        ('run_dir: "a\\0b"', r"run_dir: found 'a\\x00b' .text., need text without half characters or NUL"),
        ('seed: "\\ud800"', "seed: found .*need text without half characters"),
        ('"\\ud800": 3', "top: found the key .*need text as keys"),
    ],
)
def test_yaml_that_is_no_settings_is_refused_soon_and_in_one_line(path: Path, text: str, said: str):
    found = complaint(path, text)
    assert re.search(said, found)
    assert len(found) < 500


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 10**30}, "steps: found 1e+30, need at most 1e+09"),
        ({"batch": {"prompts": 10**10}}, "batch: prompts: found 1e+10, need at most 1e+09"),
        ({"sampling": {"group_size": 10**9}}, "sampling.group_size: found 1000000000 (an integer), need a number less"),
        ({"sampling": {"temperature": 1e-320}}, "sampling.temperature: found 1e-320 (a number), need a number greater"),
        ({"policy": {"model": "m", "optimizer": {"lr": 1e40}}}, "lr: found 1e+40 (a number), need a number less"),
        (
            {"policy": {"model": "m", "lora": {"targets": []}}},
            "policy.lora.targets: found [] (a list), need 'all-linear' ",
        ),
        ({"advantage": {"process_weight": 1e-40}}, "process_weight: found 1e-40, need 0 or a number between 1e-30 and"),
        (
            {"run_dir": "~nobody-of-this-name/x"},
            "run_dir: found '~nobody-of-this-name/x', need a folder whose ~ is known",
        ),
    ],
)
def test_numbers_and_lists_that_cannot_be_meant_are_refused(settings: dict[str, object], said: str):
    assert said in complaint_about(**settings)


def test_a_seed_may_be_large_and_the_home_of_the_user_is_found(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    path.write_text("run_dir: ~/runs/a\nmodel: m\ndata: {train: {kind: chain}}\nseed: 1000000000000\n")
    cfg = load_config(EvalConfig, path)
    assert (cfg.run_dir, cfg.seed) == (Path("/home/me/runs/a"), 10**12)


def test_a_pipe_is_refused_and_not_waited_for(path: Path):
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="found no regular file"):
        load_config(TrainConfig, path)


def every_key(tree: object, key: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for name, part in tree.items():
            yield from every_key(part, f"{key}.{name}" if key else name)
    if key:
        yield key


WHOLE = {
    "run_dir": "r",
    "policy": {"model": "m", "lora": {}},
    "critic": {},
    "advantage": {"estimator": "ppo"},
    "data": {"train": {"kind": "chain"}},
    "evaluate": {"data": {"kind": "file", "path": "f"}},
    "verify": {"kind": "mixed", "kinds": {"math": {"kind": "math"}, "own": {"kind": "custom", "function": "a.py:f"}}},
    "trackers": [{"kind": "custom", "function": "a.py:f"}],
}
KEYS = list(every_key(parse_config(TrainConfig, WHOLE, where="all").model_dump(mode="json")))
ODD = st.one_of(
    st.text(max_size=20),
    st.floats().map(repr),
    st.integers().map(str),
    st.integers(10**9).map(str),
    st.sampled_from(["1e30", "-1", "0", "[]", "{}", "[1]", "{a: 1}", "~", "true", "2001-01-01", "&a [*a]"]),
    st.recursive(st.none() | st.booleans() | st.text(max_size=5), st.lists, max_leaves=5).map(json.dumps),
)


@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(KEYS), ODD), min_size=1, max_size=3))
def test_any_value_of_any_key_is_taken_or_refused_in_short(overrides: list[tuple[str, str]]):
    typed = [f"{key}={value}" for key, value in overrides]
    try:
        cfg = parse_overrides(TrainConfig, deepcopy(WHOLE), typed, where="all")
    except ConfigError as refusal:
        said = len(str(refusal))
        assert said < 5000
    else:
        assert parse_config(TrainConfig, yaml.safe_load(dump_config(cfg)), where="again") == cfg


def test_of_many_complaints_the_first_are_shown_and_the_rest_counted():
    found = complaint_about(data={"train": {"kind": "chain", "wrong": ["x"] * 500}}, **{f"no{i}": 1 for i in range(50)})
    assert len(found.splitlines()) <= 12
    assert re.search(r"and \d+ more$", found)


EVALUATION = "run_dir: r\nmodel: m\ndata:\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  a/b: {kind: chain}\n  a-b: {kind: chain}\n", "'a/b' and 'a-b' would share a file"),
        ("  Mine: {kind: chain}\n  mine: {kind: chain}\n", "'Mine' and 'mine' would share a file"),
        (f"  {'x' * 300}: {{kind: chain}}\n", "need one that can name a file"),
        ("  ../up: {kind: chain}\n", "need one that can name a file"),
        ('  "a\\tb": {kind: chain}\n', "need one that can name a file"),
    ],
)
def test_names_of_evaluation_sets_can_name_files_of_their_own(tmp_path: Path, text: str, said: str):
    assert said in complaint(tmp_path / "c.yaml", EVALUATION + text, EvalConfig)


@pytest.mark.parametrize("override", ["policy.optimizer.lr=1e30", "verify.workers=100000"])
def test_numbers_that_cannot_be_meant_are_refused(tmp_path: Path, override: str):
    assert "less than or equal to" in complaint(tmp_path / "c.yaml", yaml.dump(MINIMAL), TrainConfig, override)

"""The plan of real settings, and its memory against that of a real step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from priml.batch import Batch, Row, collate
from priml.commands.plan import PlanOptions, build_machine, expected_lengths, model_source, run_plan
from priml.config.load import load_config, parse_config
from priml.config.train import TrainConfig
from priml.errors import ModelError, UsageError
from priml.factories.device import resolve_device
from priml.factories.learners import build_policy, build_prm
from priml.factories.rollout import build_sampler
from priml.learners.reference import FrozenReference
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.planner.facts import ModelFacts, Shape
from priml.planner.plan import Plan
from priml.planner.trace import model_facts, read_config
from priml.rollout.base import SamplingSpec
from priml.types import Problem, Prompt
from ranks import run_ranks

ROOT = Path(__file__).parents[2]
PROMPT, RESPONSE, GROUP, PROMPTS = 32, 96, 4, 8


# --- measured ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Bytes of a real step on this machine: what stands before it, and the most that each phase adds."""

    standing: int
    added: dict[str, int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, width=128, layers=2, heads=4, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(model: object, **changes: Any) -> TrainConfig:
    tree: dict[str, Any] = {
        "run_dir": "run",
        "policy": {"model": str(model), "mini_batch": 16},
        "prm": {"mini_batch": 32},
        "advantage": {"preset": "authors"},
        "sampling": {"group_size": GROUP, "max_new_tokens": RESPONSE},
        "batch": {"prompts": PROMPTS},
        "filter": None,
        "data": {"train": {"kind": "file", "path": "problems.jsonl"}, "prompt": {"max_prompt_tokens": PROMPT}},
        "backend": {"device": "cpu", "micro_batch_tokens": 1024},
    }
    for key, value in changes.items():
        tree[key] = (tree.get(key) or {}) | value
    return parse_config(TrainConfig, tree, where="test")


def added_by(phase: Callable[[], Any]) -> int:
    """The most bytes beyond those at the start, as the allocator of torch reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        phase()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def long_rows() -> tuple[Batch, list[Prompt]]:
    """Every prompt and response at the limits: what memory is planned for."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 200, (count,), generator=generator).tolist()

    rows = [
        Row(ids(PROMPT), ids(RESPONSE), outcome=float(i % 2), group=i // GROUP, step_ends=[RESPONSE - 1])
        for i in range(PROMPTS * GROUP)
    ]
    prompts = [Prompt(Problem(id=str(i), prompt="", answer=""), "", tuple(ids(PROMPT))) for i in range(PROMPTS)]
    return collate(rows, step=1), prompts


def measure(cfg: TrainConfig) -> Measured:
    device, tokenizer = resolve_device(cfg.backend), load_tokenizer(cfg.policy.model)
    endless = SimpleNamespace(eos_token_id=10_000, decode=tokenizer.decode)  # nobody draws it: rows run to the limit
    module: Any = load_model(cfg.policy.model, device=device.device)
    module.generation_config.eos_token_id = None
    assert cfg.prm
    prm = build_prm(cfg, cfg.prm, module, tokenizer, device)
    policy = build_policy(cfg, module, tokenizer, device, prm=prm)
    sampler = build_sampler(cfg.sampler, module, endless, device, longest=PROMPT + cfg.sampling.max_new_tokens)
    batch, prompts = long_rows()
    policy.scores_in_update = False
    batch = policy.score(batch)
    advantages_BT = torch.randn(batch.mask_BT.shape)
    prm.update(batch)  # from here on the optimizers have their state
    policy.update(batch, advantages_BT)
    compared = [prm.reference.model.module] if isinstance(prm.reference, FrozenReference) else []
    modules = [module, prm.engine.model.module, *compared]
    optimizers = [policy.engine.optimizer.adamw, prm.engine.optimizer.adamw]
    assert all(p.grad is None for module in modules for p in module.parameters())
    spec = SamplingSpec(group_size=GROUP, temperature=1.0, max_new_tokens=RESPONSE, seed=0, step=1)
    return Measured(
        standing=sum(p.nbytes for p in {id(p): p for module in modules for p in module.parameters()}.values())
        + sum(t.nbytes for optimizer in optimizers for state in optimizer.state.values() for t in state.values()),
        added={
            "sample: write": added_by(lambda: sampler.sample(prompts, spec)),
            "policy: score": added_by(lambda: policy.score(batch)),
            "PRM: learn": added_by(lambda: prm.update(batch)),
            "policy: learn": added_by(lambda: policy.update(batch, advantages_BT)),
        },
    )


@pytest.mark.parametrize(
    ("precision", "checkpointing", "preset"),
    [
        ("fp32", True, "authors"),
        *(pytest.param(*arm, marks=pytest.mark.slow) for arm in (("fp32", False, "priml"), ("bf16", True, "authors"))),
    ],
)
def test_the_memory_planned_is_that_of_a_real_step_within_15_percent(
    model: Path, precision: str, checkpointing: bool, preset: str
):
    """Weights and optimizer state exactly; for every phase, the bytes that torch's own allocator counts beyond them, in
    the real sampler, the real policy update and the real PRM update, with rows at the limits."""
    cfg = settings(
        model,
        policy={"gradient_checkpointing": checkpointing},
        backend={"precision": precision},
        advantage={"preset": preset},
    )
    planned = make_small_plan(cfg).memory
    measured = measure(cfg)
    assert planned.phases[0].standing == pytest.approx(measured.standing, rel=1e-3)  # AdamW counts its steps, too
    phases = {phase.name: phase for phase in planned.phases}
    for name, added in measured.added.items():
        assert phases[name].total - phases[name].standing == pytest.approx(added, rel=0.15), name
    most = measured.standing + max(measured.added.values())
    assert planned.peak.total == pytest.approx(most, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", False), ("bf16", True)])
def test_the_memory_planned_with_adapters_is_that_of_a_real_step_within_15_percent(
    model: Path, precision: str, checkpointing: bool
):
    """The weights beneath both roles and the reference stand once; peft's own layers do the work."""
    pytest.importorskip("peft")
    pytest.importorskip("priml.models.lora")
    cfg = settings(
        model,
        policy={"gradient_checkpointing": checkpointing, "lora": {"rank": 8}},
        prm={"lora": {"rank": 8}},
        backend={"precision": precision},
    )
    planned = make_small_plan(cfg).memory
    measured = measure(cfg)
    assert planned.phases[0].standing == pytest.approx(measured.standing, rel=0.01)
    phases = {phase.name: phase for phase in planned.phases}
    for name, added in measured.added.items():
        assert phases[name].total - phases[name].standing == pytest.approx(added, rel=0.15), name


@pytest.mark.slow
def test_each_of_two_ranks_holds_the_shards_that_are_planned(model: Path, tmp_path: Path):
    """Weights and moments as real ranks hold them: a rank writes into its files what is its own."""
    run_ranks(2, {"model": str(model), "out": str(tmp_path), "arms": {"paper": {"steps": [1]}}})
    cfg = settings(model, backend={"kind": "ray", "ranks": 2, "device": "cpu", "precision": "fp32"})
    planned = {role.role: role for role in make_small_plan(cfg).memory.roles}
    for name, role in (("policy", "policy"), ("prm", "PRM")):
        for rank in ("rank-00000", "rank-00001"):
            weights, moments = (
                (tmp_path / "paper" / "checkpoint" / name / part / f"{rank}.safetensors").stat().st_size
                for part in ("weights", "optimizer")
            )
            assert planned[role].weights == pytest.approx(weights, rel=0.01)  # a file has a header, too
            assert planned[role].moments == pytest.approx(moments, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_planned_is_that_of_a_gpu_within_15_percent(tmp_path: Path, checkpointing: bool):
    """The same on CUDA, at the width of a half-billion model with fewer layers."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, width=896, layers=8, heads=14, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cfg = settings(
        tmp_path,
        policy={"gradient_checkpointing": checkpointing},
        backend={"device": "cuda", "precision": "bf16", "micro_batch_tokens": 4096},
    )
    planned = make_small_plan(cfg, PlanOptions(gpus=1)).memory
    device = resolve_device(cfg.backend)
    module = load_model(cfg.policy.model, device=device.device)
    assert cfg.prm
    prm = build_prm(cfg, cfg.prm, module, tokenizer, device)
    policy = build_policy(cfg, module, tokenizer, device, prm=prm)
    batch = policy.score(long_rows()[0])
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        prm.update(batch)
        policy.update(batch, torch.randn(batch.mask_BT.shape))
    learning = max(phase.total for phase in planned.phases if phase.name.endswith("learn"))
    assert learning == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)


# --- settings, flags, sources ------------------------------------------------------------------------------------


def make_small_plan(
    cfg: TrainConfig, options: PlanOptions | None = None, beside: Path = Path("nowhere/train.yaml")
) -> Plan:
    return run_plan(cfg, options or PlanOptions(), settings=beside)[0]


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Most plans here are of one model and one micro-batch."""

    @cache
    def traced(name: str, shape: Shape) -> ModelFacts:
        return model_facts(name, read_config(name), shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("priml.commands.plan.model_facts", lambda name, config, shape, **_: traced(name, shape))
        yield


@pytest.fixture(scope="module")
def small(model: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: settings(model, **changes)


def test_models_are_in_the_roles_that_the_settings_give_them(small: Callable[..., TrainConfig], model: Path):
    def roles(**changes: Any) -> list[tuple[str, bool]]:
        return [(m.role, m.is_trained) for m in make_small_plan(small(**changes)).job.models]

    assert roles() == [("policy", True), ("PRM", True), ("reference", False)]
    assert roles(advantage={"preset": "priml"}) == [("policy", True), ("PRM", True)]
    assert roles(advantage={"estimator": "ppo"}, critic={})[-1] == ("critic", True)
    frozen = roles(prm={"forward": "frozen", "reference": str(model)})
    assert frozen == [("policy", True), ("PRM", False), ("reference", False)]


@pytest.mark.slow
def test_frozen_weights_from_one_place_are_held_once_on_one_device(small: Callable[..., TrainConfig], model: Path):
    def shares(gpus: int = 1, **changes: Any) -> list[bool]:
        return [m.shares_weights for m in make_small_plan(small(**changes), PlanOptions(gpus=gpus)).job.models]

    both = {"policy": {"lora": {}}, "prm": {"lora": {}}}
    assert shares() == [False, False, False]
    assert shares(**both) == [False, True, True]
    assert shares(gpus=2, **both) == [False, False, False]  # each has shards of its own
    assert shares(policy={"lora": {}}) == [False, False, True]
    assert shares(prm={"lora": {}}) == [False, False, True]
    assert shares(prm=both["prm"] | {"reference": str(model)}, policy={"lora": {}}) == [False, True, True]
    trained = [m.trainable for m in make_small_plan(small(**both)).job.models]
    assert trained[0] == trained[1] < make_small_plan(small()).job.policy.parameters
    assert trained[2] == 0


def test_without_flags_there_are_as_many_devices_as_the_settings_ask_for(small: Callable[..., TrainConfig]):
    def machine(**backend: Any) -> tuple[int, int, str]:
        found = build_machine(small(backend={"kind": "ray", "device": "auto", **backend}), PlanOptions(device="h100"))
        return found.per_node, found.nodes, found.device.name

    assert machine(ranks=4) == (4, 1, "h100")
    assert machine(ranks=32) == (8, 4, "h100")
    assert machine(ranks=12, samplers=4, colocate=False) == (8, 2, "h100")
    spread = build_machine(small(backend={"kind": "ray", "device": "auto", "ranks": 24}), PlanOptions(nodes=4))
    assert (spread.per_node, spread.nodes, spread.device.name) == (6, 4, "h100")


def test_ranks_on_this_processor_share_its_memory_and_its_cores(small: Callable[..., TrainConfig]):
    whole, half = (
        build_machine(small(backend={"kind": "ray", "ranks": ranks}), PlanOptions()).device for ranks in (1, 2)
    )
    assert half.memory_gib == pytest.approx(whole.memory_gib / 2, abs=0.1)
    assert half.fp32_tflops == whole.fp32_tflops / 2


def test_the_shape_comes_from_the_flag_the_folder_or_a_file_beside_the_settings(
    small: Callable[..., TrainConfig], model: Path, tmp_path: Path
):
    here, beside = tmp_path / "train.yaml", tmp_path / "config.json"
    beside.write_text((model / "config.json").read_text())
    absent = settings("nobody/nothing")
    assert model_source(small(), PlanOptions(), here) == str(model)
    assert model_source(absent, PlanOptions(), here) == str(beside)
    assert model_source(absent, PlanOptions(model_config=beside), Path("x.yaml")) == str(beside)
    assert model_source(absent, PlanOptions(), Path("elsewhere/train.yaml")) == "nobody/nothing"
    plan, answer = run_plan(absent, PlanOptions(), settings=here)
    assert plan.job.policy.layers == 2
    assert answer == f"{here}, the model's shape from {beside}"


def test_without_a_shape_it_says_how_to_give_one():
    with pytest.raises(ModelError, match="--model-config FILE"):
        make_small_plan(settings("runs/not/made/yet"))


def test_flags_describe_the_machine(small: Callable[..., TrainConfig]):
    cfg = small()
    machine = build_machine(cfg, PlanOptions(gpus=8, nodes=4, gpu_memory=80.0, tflops=500.0, network=12.5))
    assert (machine.devices, machine.device.name, machine.device.memory_gib) == (32, "h100", 80.0)
    assert (machine.device.bf16_tflops, machine.device.network) == (500.0, 12.5)
    assert build_machine(cfg, PlanOptions(device="a800")).device.link == 200.0
    assert build_machine(cfg, PlanOptions()).device.name == "cpu"
    assert build_machine(cfg, PlanOptions()).device.memory_gib > 0.5
    with pytest.raises(UsageError, match=r"--device: found 'h10', need one of h100, h200"):
        build_machine(cfg, PlanOptions(device="h10"))


def test_lengths_are_told_known_or_assumed(small: Callable[..., TrainConfig]):
    cfg = small()
    assumed = expected_lengths(cfg, PlanOptions())
    assert (assumed.prompt, assumed.response, assumed.longest) == (PROMPT / 4, RESPONSE / 2, PROMPT + RESPONSE)
    answer = expected_lengths(cfg, PlanOptions(prompt_tokens=30.0, response_tokens=90.0))
    assert (answer.prompt, answer.response) == (30.0, 90.0)
    with pytest.raises(UsageError, match=r"--response-tokens: found 97, need a mean of at most the limit .*, 96"):
        expected_lengths(cfg, PlanOptions(response_tokens=97.0))
    chain_file = ROOT / "examples" / "laptop-math" / "train.yaml"
    chain = load_config(TrainConfig, chain_file)
    assert expected_lengths(chain, PlanOptions()).response == 19.0
    wordy = load_config(
        TrainConfig, chain_file, ["data.train.boxed=5", "data.train.fillers=2", "sampling.max_new_tokens=99"]
    )
    assert expected_lengths(wordy, PlanOptions()).response == 15 + 2 + 5 + 3


def test_a_filterless_run_keeps_everything_whatever_was_assumed(small: Callable[..., TrainConfig]):
    assert make_small_plan(small(), PlanOptions(pass_rate=0.5)).job.batch.collection.rounds == (PROMPTS,)
    banded = make_small_plan(small(filter={}), PlanOptions(pass_rate=0.5))
    assert banded.job.batch.collection.share == 0.5


# --- every example -----------------------------------------------------------------------------------------------


# Recipes for other machines are planned for those by `make example` (`plan_and_train` in examples/toys.py).
HERE = [
    path
    for path in sorted((ROOT / "examples").glob("*/train.yaml"))
    if "plan=" not in (path.parent / "toy.py").read_text()
]


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.parent.name)
def test_an_example_for_this_machine_is_planned_without_a_network(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    plan, _ = run_plan(load_config(TrainConfig, path), PlanOptions(), settings=path)
    assert plan.memory.fits
    assert plan.refusals == ()
    assert plan.time.seconds > 0


@pytest.mark.parametrize("name", ["laptop-math", "tiny-code"])
def test_the_shape_beside_a_laptop_example_is_that_of_its_warm_start(name: str, tmp_path: Path):
    import yaml

    made = yaml.safe_load((ROOT / "examples" / name / "sft.yaml").read_text())["model"]
    del made["kind"]
    tokenizer = character_tokenizer()
    module = tiny_model(tokenizer, **made, seed=0)
    example = ROOT / "examples" / name / "train.yaml"
    plan, _ = run_plan(load_config(TrainConfig, example), PlanOptions(), settings=example)
    assert plan.job.policy.parameters == sum(p.numel() for p in module.parameters())
    assert plan.job.policy.vocabulary == len(tokenizer)

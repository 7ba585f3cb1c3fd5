from dataclasses import replace

import pytest
import torch

from fakes import tiny_config
from priml.batch import Row, collate
from priml.config.backend import LocalBackend
from priml.config.models import CrossEntropyLoss, Prm
from priml.errors import ModelError
from priml.factories.device import resolve_device
from priml.factories.learners import build_critic, build_objective, build_policy, build_prm
from priml.learners.critic import LocalCritic
from priml.maths.policy_loss import SURROGATES
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model, load_tokenizer
from priml.models.lora import has_adapters
from priml.models.prm_card import read_card
from priml.models.tiny import character_tokenizer, tiny_model

CPU = LocalBackend(device="cpu")
PUBLISHED = "advantage.preset=authors"
PAPERS = {"loss": CrossEntropyLoss(), "reference": "initial", "replay": None}
"""The PRM of the paper, with a third model to be compared with."""


def make_prm(folder, model, **settings):
    device = resolve_device(CPU)
    cfg = tiny_config(folder, model)
    tokenizer = load_tokenizer(str(model))
    module = load_model(str(model), device=device.device)
    return module, build_prm(cfg, Prm(**PAPERS | settings), module, tokenizer, device)


def test_the_prm_has_weights_of_its_own(tmp_path, warm_model):
    module, prm = make_prm(tmp_path, warm_model)
    before = prm.digest()
    with torch.no_grad():
        module.model.norm.weight.mul_(2)
    assert prm.digest() == before


def save_other(folder, *, rows=None, width=32, layers=2, seed=5):
    """A model of another size with the same tokenizer, its embeddings padded to `rows`."""
    tokenizer = character_tokenizer()
    other = tiny_model(tokenizer, width=width, layers=layers, heads=2, seed=seed)
    if rows is not None:
        other.resize_token_embeddings(rows)
    other.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("rows", [None, 320], ids=["as many rows", "padded"])
def test_a_prm_of_another_size_is_welcome_however_its_embeddings_are_padded(tmp_path, warm_model, rows):
    other = save_other(tmp_path / "other", rows=rows)
    _, prm = make_prm(tmp_path, warm_model, init=other, mini_batch=None)
    assert prm.digest() != make_prm(tmp_path, warm_model)[1].digest()
    rows = [Row((5, 6), (7, 8, 9), outcome=float(i % 2), group=0, step_ends=(2,)) for i in range(2)]
    before = prm.digest()
    prm.update(collate(rows, step=1))
    assert prm.digest() != before, "it learns from the policy's tokens"


def test_the_reference_of_a_prm_trained_before_is_the_model_it_was_trained_against(tmp_path, warm_model):
    trained = save_other(tmp_path / "trained", seed=1)
    base = save_other(tmp_path / "base", seed=2)
    for reference, expected in (("initial", trained), (base, base), (str(warm_model), str(warm_model))):
        _, prm = make_prm(tmp_path, warm_model, init=trained, reference=reference)
        expected_digest = weights_digest(load_model(expected, device=torch.device("cpu")))
        assert weights_digest(prm.reference.model.module) == expected_digest
        assert prm.digest() == weights_digest(load_model(trained, device=torch.device("cpu")))


def test_a_reference_with_another_vocabulary_is_refused_by_its_own_key(tmp_path, warm_model):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"prm.reference: .* different vocabularies .* use prm.reference: initial"):
        make_prm(tmp_path, warm_model, reference=str(tmp_path / "other"))


def test_a_prm_with_another_vocabulary_is_refused_by_a_token_that_differs(tmp_path, warm_model):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"different vocabularies \(\d+ and \d+ tokens; '<\|new\|>' is \d+ and None\)"):
        make_prm(tmp_path, warm_model, init=str(tmp_path / "other"))


def test_a_prm_with_too_few_output_tokens_is_refused(tmp_path, warm_model):
    model = load_model(str(warm_model), device=torch.device("cpu"))
    model.resize_token_embeddings(200)
    model.save_pretrained(tmp_path / "wide")
    load_tokenizer(str(warm_model)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match=r"prm.init: .*wide has 200 output tokens, the policy \d+"):
        make_prm(tmp_path, warm_model, init=str(tmp_path / "wide"))


# --- the initial policy of a KL term -----------------------------------------------------------------------------


def make_policy(folder, model, *overrides):
    device = resolve_device(CPU)
    cfg = tiny_config(folder, model, PUBLISHED, *overrides)
    tokenizer = load_tokenizer(str(model))
    module = load_model(str(model), device=device.device)
    prm = build_prm(cfg, cfg.prm, module, tokenizer, device) if cfg.prm else None
    return module, prm, build_policy(cfg, module, tokenizer, device, prm=prm)


def test_without_a_kl_term_no_initial_policy_is_kept(tmp_path, warm_model):
    assert make_policy(tmp_path, warm_model)[2].initial is None


def test_the_kl_term_shares_the_frozen_reference_of_the_prm(tmp_path, warm_model):
    _, prm, policy = make_policy(tmp_path, warm_model, "loss.kl={weight: 0.1}")
    assert policy.initial is prm.reference.model
    _, prm, policy = make_policy(tmp_path, warm_model, "loss.kl={weight: 0.1}", f"prm.reference={warm_model}")
    assert policy.initial is prm.reference.model


@pytest.mark.parametrize("other", ["prm=null", "prm.reference=policy", "prm.init=OTHER"])
def test_where_the_reference_is_another_model_the_kl_term_has_a_copy_of_its_own(tmp_path, warm_model, other):
    override = other.replace("OTHER", save_other(tmp_path / "other"))
    module, _, policy = make_policy(tmp_path, warm_model, "loss.kl={weight: 0.1}", override)
    kept = policy.initial.module
    assert weights_digest(kept) == weights_digest(module)
    assert kept is not module
    assert not any(parameter.requires_grad for parameter in kept.parameters())


def test_every_setting_of_the_loss_reaches_the_objective(tmp_path, warm_model):
    loss = (
        "loss={surrogate: gspo, clip_low: 0.1, clip_high: 0.3, dual_clip: 4, aggregate: constant_length, "
        "kl: {weight: 0.2, estimator: k3}, entropy_bonus: 0.01}"
    )
    objective = build_objective(tiny_config(tmp_path, warm_model, loss))
    found = {name: getattr(objective, name) for name in objective.__slots__}
    assert found == {
        "surrogate": SURROGATES["gspo"],
        "clip_low": 0.1,
        "clip_high": 0.3,
        "dual_clip": 4.0,
        "aggregate": "constant_length",
        "constant_length": 6,
        "kl_weight": 0.2,
        "kl_estimator": "k3",
        "entropy_bonus": 0.01,
        "importance_level": None,
        "importance_cap": 2.0,
    }


def test_only_what_another_engine_samples_is_corrected(tmp_path, warm_model):
    def objective(*overrides):
        return build_objective(tiny_config(tmp_path, warm_model, *overrides))

    assert objective("loss.importance={level: sequence}").importance_level is None
    elsewhere = objective("sampler={kind: vllm}")
    assert (elsewhere.importance_level, elsewhere.importance_cap) == ("token", 2.0)
    chosen = objective("sampler={kind: vllm}", "loss.importance={level: sequence, cap: 3}")
    assert (chosen.importance_level, chosen.importance_cap) == ("sequence", 3.0)
    assert objective("sampler={kind: vllm}", "loss.importance=null").importance_level is None


# --- adapters ----------------------------------------------------------------------------------------------------

POLICY_LORA, PRM_LORA = "policy.lora={rank: 4}", "prm.lora={rank: 4}"


def weight_addresses(module):
    """Where the weights beside the adapters lie, by their plain names."""
    return {
        name.replace(".base_layer.", "."): parameter.data_ptr()
        for name, parameter in module.named_parameters()
        if ".lora_" not in name
    }


def groups():
    rows = [Row((5, 6), (7, 8, 9 + i), outcome=float(i % 2), group=0, step_ends=(2,)) for i in range(4)]
    return collate(rows, step=1)


def test_policy_prm_reference_and_initial_policy_share_one_copy_of_the_frozen_weights(tmp_path, warm_model):
    module, prm, policy = make_policy(tmp_path, warm_model, POLICY_LORA, PRM_LORA, "loss.kl={weight: 0.1}")
    reference, trained = prm.reference.model.module, prm.engine.model.module
    assert (
        weight_addresses(module)
        == weight_addresses(trained)
        == weight_addresses(reference)
        == weight_addresses(policy.initial.module)
    )
    adapters = [{p.data_ptr() for p in m.parameters() if p.requires_grad} for m in (module, trained)]
    assert all(adapters)
    assert not adapters[0] & adapters[1]
    assert not has_adapters(reference)
    bytes_held = {p.data_ptr(): p.numel() for m in (module, trained, reference) for p in m.parameters()}
    assert sum(bytes_held.values()) < 1.5 * sum(p.numel() for p in reference.parameters()), "three models, one copy"


@pytest.mark.parametrize(
    ("prm", "reads"),
    [
        ("null", False),
        ("{reference: initial}", False),
        ("{reference: policy}", True),
        ("{kind: custom, function: prm.py:rewards}", True),
    ],
)
def test_the_update_takes_the_old_scores_unless_the_prm_reads_them_first(tmp_path, warm_model, prm, reads):
    cfg = tiny_config(tmp_path, warm_model, f"prm={prm}")
    device = resolve_device(CPU)
    module, tokenizer = load_model(str(warm_model), device=device.device), load_tokenizer(str(warm_model))
    policy = build_policy(cfg, module, tokenizer, device)
    assert policy.scores_in_update != reads
    assert (policy.score(groups()).old is not None) == reads


def test_training_one_of_those_that_share_weights_moves_no_other(tmp_path, warm_model):
    module, prm, policy = make_policy(tmp_path, warm_model, POLICY_LORA, PRM_LORA)
    reference = prm.reference.model.module
    frozen = weights_digest(reference)
    batch = policy.score(groups())
    assert torch.equal(prm.engine.model.scores(batch).logprobs_BT, prm.reference.model.scores(batch).logprobs_BT)
    before = policy.digest(), prm.digest()
    prm.update(batch)
    assert (policy.digest(), prm.digest() != before[1]) == (before[0], True)
    moved = prm.digest()
    policy.update(batch, torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(0)))
    assert (policy.digest() != before[0], prm.digest()) == (True, moved)
    assert weights_digest(reference) == frozen
    assert weight_addresses(module) == weight_addresses(reference)


def test_adapters_learn(tmp_path):
    """The same batch again and again: its right responses become likelier, and the PRM tells them from the wrong."""
    tokenizer = character_tokenizer()
    other = tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0)
    other.model.embed_tokens.weight.data.mul_(10)  # as those of a trained model: frozen and alike they tell nothing
    other.save_pretrained(tmp_path / "apart")
    tokenizer.save_pretrained(tmp_path / "apart")
    lr = [f"{role}.optimizer.lr=1.0e-2" for role in ("policy", "prm")]
    _, prm, policy = make_policy(tmp_path, tmp_path / "apart", POLICY_LORA, PRM_LORA, "prm.beta=1", *lr)
    policy.scores_in_update = False
    batch = policy.score(groups())
    advantages_BT = (2 * batch.outcomes_B.unsqueeze(1) - 1).expand(batch.mask_BT.shape)
    reports = [(prm.update(batch), policy.update(policy.score(batch), advantages_BT)) for _ in range(30)]
    (first, _), (last, _) = reports[0], reports[-1]
    assert last.loss < 0.5 * first.loss
    assert (last.accuracy, last.pair_accuracy) == (1.0, 1.0)
    gained_B = (policy.score(batch).old_logprobs_BT - batch.old_logprobs_BT).sum(1)
    assert gained_B[1::2].min() > 1.0
    assert gained_B[1::2].min() > gained_B[::2].max() + 0.5


def test_a_policy_with_adapters_shares_its_weights_with_the_reference_of_a_prm_without(tmp_path, warm_model):
    module, prm, _ = make_policy(tmp_path, warm_model, POLICY_LORA)
    assert weight_addresses(module) == weight_addresses(prm.reference.model.module)
    own = weight_addresses(prm.engine.model.module)
    assert not set(own.values()) & set(weight_addresses(module).values())
    assert all(parameter.requires_grad for parameter in prm.engine.model.module.parameters())
    assert {name for name, p in module.named_parameters() if p.requires_grad and ".lora_" not in name} == set()


def test_a_prm_with_adapters_shares_its_weights_with_its_reference_and_not_with_a_policy_without(tmp_path, warm_model):
    module, prm, policy = make_policy(tmp_path, warm_model, PRM_LORA, "loss.kl={weight: 0.1}")
    assert weight_addresses(prm.engine.model.module) == weight_addresses(prm.reference.model.module)
    assert policy.initial is prm.reference.model
    assert not set(weight_addresses(module).values()) & set(weight_addresses(prm.engine.model.module).values())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_prm_of_another_model_shares_that_with_its_reference(tmp_path, warm_model):
    module, prm, _ = make_policy(tmp_path, warm_model, PRM_LORA, POLICY_LORA, f"prm.init={save_other(tmp_path / 'o')}")
    assert weight_addresses(prm.engine.model.module) == weight_addresses(prm.reference.model.module)
    assert not set(weight_addresses(module).values()) & set(weight_addresses(prm.engine.model.module).values())


@pytest.mark.parametrize("other", ["prm=null", "prm.reference=policy", "prm.init=OTHER"])
def test_without_a_reference_to_share_the_kl_term_shares_the_weights_of_a_policy_with_adapters(
    tmp_path, warm_model, other
):
    override = other.replace("OTHER", save_other(tmp_path / "other"))
    module, _, policy = make_policy(tmp_path, warm_model, POLICY_LORA, "loss.kl={weight: 0.1}", override)
    assert weight_addresses(module) == weight_addresses(policy.initial.module)
    assert not has_adapters(policy.initial.module)


def test_where_models_are_sharded_each_has_weights_of_its_own(tmp_path, warm_model):
    seen = []
    device = replace(resolve_device(CPU), shard=lambda model: seen.append(model.module))
    cfg = tiny_config(tmp_path, warm_model, PUBLISHED, POLICY_LORA, PRM_LORA)
    tokenizer, module = load_tokenizer(str(warm_model)), load_model(str(warm_model), device=device.device)
    prm = build_prm(cfg, cfg.prm, module, tokenizer, device)
    build_policy(cfg, module, tokenizer, device, prm=prm)
    assert len(seen) == 3
    assert len({address for each in seen for address in weight_addresses(each).values()}) == 3 * len(
        weight_addresses(module)
    )


@pytest.mark.parametrize(
    ("export", "file"), [("merged", "model.safetensors"), ("adapter", "adapter_model.safetensors")]
)
def test_policy_and_prm_are_exported_as_the_settings_say(tmp_path, warm_model, export, file):
    settings = [f"{role}.lora={{rank: 4, export: {export}}}" for role in ("policy", "prm")]
    _, prm, policy = make_policy(tmp_path, warm_model, "prm.beta=0.05", *settings)
    for name, role in (("policy", policy), ("prm", prm)):
        role.export(tmp_path / name)
        assert (tmp_path / name / file).is_file()
        assert weights_digest(load_model(str(tmp_path / name), device=torch.device("cpu"))) == weights_digest(
            load_model(str(warm_model), device=torch.device("cpu"))
        ), "nothing was learnt"
    assert read_card(str(tmp_path / "prm")).reference == str(warm_model)


# --- the critic --------------------------------------------------------------------------------------------------


def make_critic(folder, model, *overrides):
    device = resolve_device(CPU)
    cfg = tiny_config(folder, model, *overrides)
    return build_critic(cfg, load_model(str(model), device=device.device), load_tokenizer(str(model)), device)


def test_only_ppo_has_a_critic(tmp_path, warm_model):
    assert make_critic(tmp_path, warm_model) is None
    assert isinstance(make_critic(tmp_path, warm_model, "critic={}", "advantage.estimator=ppo"), LocalCritic)


def test_a_critic_may_start_from_another_model_with_the_policys_tokenizer(tmp_path, warm_model):
    own = make_critic(tmp_path, warm_model, "critic={}", "advantage.estimator=ppo")
    other = save_other(tmp_path / "other")
    theirs = make_critic(tmp_path, warm_model, f"critic={{init: {other}}}", "advantage.estimator=ppo")
    assert own.digest() != theirs.digest()
    theirs.export(tmp_path / "critic")
    again = make_critic(tmp_path, warm_model, f"critic={{init: {tmp_path / 'critic'}}}", "advantage.estimator=ppo")
    assert again.digest() == theirs.digest()

from dataclasses import replace

import pytest
import torch

from fakes import make_prompt, tiny_config
from priml.batch import Row, collate
from priml.build.roles import critic_of, longest_of, objective_of, place_of, policy_of, prm_of, sampler_of
from priml.config.parts import LocalBackend, Prm, TransformersSampler, VllmSampler
from priml.errors import ConfigError, ModelError
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.roles.base import NoCritic
from priml.roles.critic import LocalCritic
from priml.roles.prm import NoPrm

CPU = LocalBackend(device="cpu")


def test_auto_means_fp32_on_a_cpu():
    place = place_of(CPU)
    assert (place.device.type, place.precision) == ("cpu", "fp32")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert place_of(LocalBackend()).device.type == expected


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_a_mistake_in_the_settings(device):
    with pytest.raises(ConfigError, match=f"backend.device: found '{device}', which does not work here"):
        place_of(LocalBackend(device=device))


def build_prm(folder, model, **settings):
    place = place_of(CPU)
    cfg = tiny_config(folder, model)
    tokenizer = load_tokenizer(str(model))
    module = load_model(str(model), device=place.device)
    return module, prm_of(cfg, Prm(**settings), module, tokenizer, place)


def test_the_prm_has_weights_of_its_own(tmp_path, warm_model):
    module, prm = build_prm(tmp_path, warm_model)
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
    _, prm = build_prm(tmp_path, warm_model, init=other, mini_batch=None)
    assert prm.digest() != build_prm(tmp_path, warm_model)[1].digest()
    rows = [Row((5, 6), (7, 8, 9), outcome=float(i % 2), group=0, step_ends=(2,)) for i in range(2)]
    before = prm.digest()
    prm.update(collate(rows, step=1))
    assert prm.digest() != before, "it learns from the policy's tokens"


def test_the_reference_of_a_prm_trained_before_is_the_model_it_was_trained_against(tmp_path, warm_model):
    trained = save_other(tmp_path / "trained", seed=1)
    base = save_other(tmp_path / "base", seed=2)
    for reference, expected in (("initial", trained), (base, base), (str(warm_model), str(warm_model))):
        _, prm = build_prm(tmp_path, warm_model, init=trained, reference=reference)
        expected_digest = weights_digest(load_model(expected, device=torch.device("cpu")))
        assert weights_digest(prm.reference.model.module) == expected_digest
        assert prm.digest() == weights_digest(load_model(trained, device=torch.device("cpu")))


def test_a_reference_with_another_vocabulary_is_refused_by_its_own_key(tmp_path, warm_model):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"prm.reference: .* different vocabularies .* use prm.reference: initial"):
        build_prm(tmp_path, warm_model, reference=str(tmp_path / "other"))


def test_a_prm_with_another_vocabulary_is_refused_by_a_token_that_differs(tmp_path, warm_model):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"different vocabularies \(\d+ and \d+ tokens; '<\|new\|>' is \d+ and None\)"):
        build_prm(tmp_path, warm_model, init=str(tmp_path / "other"))


def test_a_prm_with_too_few_output_tokens_is_refused(tmp_path, warm_model):
    model = load_model(str(warm_model), device=torch.device("cpu"))
    model.resize_token_embeddings(200)
    model.save_pretrained(tmp_path / "wide")
    load_tokenizer(str(warm_model)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match=r"prm.init: .*wide has 200 output tokens, the policy \d+"):
        build_prm(tmp_path, warm_model, init=str(tmp_path / "wide"))


def test_the_sampler_speaks_with_the_live_weights_of_the_policy(tmp_path, warm_model):
    place = place_of(CPU)
    cfg = tiny_config(tmp_path, warm_model)
    tokenizer = load_tokenizer(str(warm_model))
    module = load_model(str(warm_model), device=place.device)
    policy = policy_of(cfg, module, tokenizer, place)
    sampler = sampler_of(TransformersSampler(), module, tokenizer, place, longest=8)
    sampler.load(policy.weights(), version=3)
    assert policy.weights().module() is module


# --- the initial policy of a KL term -----------------------------------------------------------------------------


def build_policy(folder, model, *overrides):
    place = place_of(CPU)
    cfg = tiny_config(folder, model, *overrides)
    tokenizer = load_tokenizer(str(model))
    module = load_model(str(model), device=place.device)
    prm = prm_of(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else NoPrm()
    return module, prm, policy_of(cfg, module, tokenizer, place, prm=prm)


def test_without_a_kl_term_no_initial_policy_is_kept(tmp_path, warm_model):
    assert build_policy(tmp_path, warm_model)[2].initial is None


def test_the_kl_term_shares_the_frozen_reference_of_the_prm(tmp_path, warm_model):
    _, prm, policy = build_policy(tmp_path, warm_model, "loss.kl={weight: 0.1}")
    assert policy.initial is prm.reference.model
    _, prm, policy = build_policy(tmp_path, warm_model, "loss.kl={weight: 0.1}", f"prm.reference={warm_model}")
    assert policy.initial is prm.reference.model


@pytest.mark.parametrize("other", ["prm=null", "prm.reference=policy", "prm.init=OTHER"])
def test_where_the_reference_is_another_model_the_kl_term_has_a_copy_of_its_own(tmp_path, warm_model, other):
    override = other.replace("OTHER", save_other(tmp_path / "other"))
    module, _, policy = build_policy(tmp_path, warm_model, "loss.kl={weight: 0.1}", override)
    kept = policy.initial.module
    assert weights_digest(kept) == weights_digest(module)
    assert kept is not module
    assert not any(parameter.requires_grad for parameter in kept.parameters())


def test_every_setting_of_the_loss_reaches_the_objective(tmp_path, warm_model):
    loss = (
        "loss={surrogate: gspo, clip_low: 0.1, clip_high: 0.3, dual_clip: 4, aggregate: constant_length, "
        "kl: {weight: 0.2, estimator: k3}, entropy_bonus: 0.01}"
    )
    objective = objective_of(tiny_config(tmp_path, warm_model, loss))
    found = {name: getattr(objective, name) for name in objective.__slots__}
    assert found == {
        "surrogate": "gspo",
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
        return objective_of(tiny_config(tmp_path, warm_model, *overrides))

    assert objective("loss.importance={level: sequence}").importance_level is None
    elsewhere = objective("sampler={kind: vllm}")
    assert (elsewhere.importance_level, elsewhere.importance_cap) == ("token", 2.0)
    chosen = objective("sampler={kind: vllm}", "loss.importance={level: sequence, cap: 3}")
    assert (chosen.importance_level, chosen.importance_cap) == ("sequence", 3.0)
    assert objective("sampler={kind: vllm}", "loss.importance=null").importance_level is None


def test_vllm_and_a_second_gpu_do_not_go_together(warm_model):
    second = replace(place_of(CPU), device=torch.device("cuda", 1))
    with pytest.raises(ConfigError, match="start with CUDA_VISIBLE_DEVICES=1"):
        sampler_of(VllmSampler(kind="vllm"), None, None, second, longest=8)


def test_a_sampler_is_made_for_the_longest_prompt_and_response():
    prompts = [replace(make_prompt(), token_ids=tuple(range(n))) for n in (3, 9, 5)]
    assert longest_of(iter(prompts), 20) == 29


# --- the critic --------------------------------------------------------------------------------------------------


def build_critic(folder, model, *overrides):
    place = place_of(CPU)
    cfg = tiny_config(folder, model, *overrides)
    return critic_of(cfg, load_model(str(model), device=place.device), load_tokenizer(str(model)), place)


def test_only_ppo_has_a_critic(tmp_path, warm_model):
    assert isinstance(build_critic(tmp_path, warm_model), NoCritic)
    assert isinstance(build_critic(tmp_path, warm_model, "critic={}", "advantage.estimator=ppo"), LocalCritic)


def test_a_critic_may_start_from_another_model_with_the_policys_tokenizer(tmp_path, warm_model):
    own = build_critic(tmp_path, warm_model, "critic={}", "advantage.estimator=ppo")
    other = save_other(tmp_path / "other")
    theirs = build_critic(tmp_path, warm_model, f"critic={{init: {other}}}", "advantage.estimator=ppo")
    assert own.digest() != theirs.digest()
    theirs.export(tmp_path / "critic")
    again = build_critic(tmp_path, warm_model, f"critic={{init: {tmp_path / 'critic'}}}", "advantage.estimator=ppo")
    assert again.digest() == theirs.digest()

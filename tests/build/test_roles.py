import pytest
import torch

from fakes import tiny_config
from priml.build.roles import place_of, policy_of, prm_of, sampler_of, verifier_of
from priml.config.parts import LocalBackend, MathVerifier, Prm, TransformersSampler
from priml.errors import ConfigError, DataError, ModelError
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.types import Completion, Group, Problem, Prompt

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


def test_a_prm_of_the_same_family_is_welcome(tmp_path, warm_model):
    tokenizer = character_tokenizer()
    other = tiny_model(tokenizer, width=32, layers=2, heads=2, seed=5)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    _, prm = build_prm(tmp_path, warm_model, init=str(tmp_path / "other"))
    assert prm.digest() != build_prm(tmp_path, warm_model)[1].digest()


def test_a_prm_with_another_vocabulary_is_refused_by_a_token_that_differs(tmp_path, warm_model):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"different vocabularies \(\d+ and \d+ tokens; '<\|new\|>' is \d+ and None\)"):
        build_prm(tmp_path, warm_model, init=str(tmp_path / "other"))


def test_a_prm_with_more_output_tokens_is_refused(tmp_path, warm_model):
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
    sampler = sampler_of(TransformersSampler(), module, tokenizer, place)
    sampler.load(policy.weights(), version=3)
    assert policy.weights().module() is module


def judged(verify, kind, text):
    prompt = Prompt(Problem("p", "?", "2", kind=kind), "?", (1,))
    return verify([Group(prompt, (Completion((1,), text, "stop", (0.0,), 0, 0),))])[0].verdicts[0]


def test_mathematics_is_judged_and_other_kinds_are_refused_by_name():
    verify = verifier_of(MathVerifier())
    assert judged(verify, "math", "\\boxed{2}").correct is True
    with pytest.raises(DataError, match="'code'"):
        judged(verify, "code", "print(2)")


def test_a_users_own_function_is_called(tmp_path, warm_model):
    verify = verifier_of(tiny_config(tmp_path, warm_model).verify)
    assert judged(verify, "anything", "0").correct is True
    assert judged(verify, "anything", "1").correct is False

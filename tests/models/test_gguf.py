"""A GGUF file is never taken for a model folder, and becomes one with the same weights, tokens and end."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from priml.config.data import PromptFormat
from priml.data.chat import render_prompt, response_end
from priml.errors import ModelError
from priml.models.gguf import convert
from priml.models.load import load_model, load_tokenizer
from priml.planner.trace import read_config
from priml.types import Problem

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(bytes_to_unicode().values()), "ĊĊ"]


@pytest.fixture
def module() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": len(TOKENS)}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    ).eval()


def write_gguf(module: LlamaForCausalLM, path: Path) -> None:
    """As llama.cpp's converter writes a Llama: rows of queries and keys in another order, biggest tensors rounded."""
    config = module.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in module.model.named_parameters(prefix="model"):
        short = names.get_name(name, try_suffixes=(".weight",))
        assert short is not None
        writer.add_tensor(short, _reordered(name, weight.detach().numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _reordered(name: str, weight: np.ndarray, config: LlamaConfig) -> np.ndarray:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    rows, columns = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)).reshape(rows, -1)


def test_a_converted_file_computes_the_same_and_ends_where_the_chat_template_does(
    module: LlamaForCausalLM, tmp_path: Path
) -> None:
    write_gguf(module, tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "tiny")

    found, tokenizer = load_model(str(tmp_path / "tiny"), device=CPU), load_tokenizer(str(tmp_path / "tiny"))
    tokens_bl = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(found(input_ids=tokens_bl).logits, module(input_ids=tokens_bl).logits)
    assert found.generation_config is not None
    ends = {tokenizer.eos_token_id, response_end(tokenizer, PromptFormat()), found.generation_config.eos_token_id}
    assert ends == {2}
    prompt = render_prompt(Problem(id="1", prompt="1+1?", answer="2"), tokenizer, PromptFormat())
    assert prompt.text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.token_ids[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.gguf"]


def test_a_number_behind_an_empty_line_keeps_its_tokens(module: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(module, tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "tiny")
    tokenizer = load_tokenizer(str(tmp_path / "tiny"))
    token_ids = tokenizer.encode("a\n\n12", add_special_tokens=False)
    assert [TOKENS[i] for i in token_ids] == ["a", "ĊĊ", "1", "2"]


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("name", ["", "model-Q4_1.gguf"])
def test_a_folder_or_file_of_gguf_weights_is_refused_with_the_commands_that_convert_it(
    config: bool, name: str, tmp_path: Path
) -> None:
    (tmp_path / "model-Q4_1.gguf").touch()
    if config:  # as repositories of GGUF files have them
        (tmp_path / "config.json").write_text("{}")
    command = f"python -m priml.models.gguf {tmp_path}/model-Q4_1.gguf {tmp_path}/model-Q4_1"
    said = re.escape(f"`pip install 'priml[gguf]'` and `{command}`")
    for load in (lambda source: load_model(source, device=CPU), load_tokenizer, read_config):
        with pytest.raises(ModelError, match=said):
            load(str(tmp_path / name))


def test_gguf_files_beside_ordinary_weights_are_no_matter(tmp_path: Path) -> None:
    for name in ("model.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"config\.json") as refused:  # what is missing is said, and no more
        load_model(str(tmp_path), device=CPU)
    assert "GGUF" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"", "not a GGUF file"), (b"GGUF\x03", "not all of it"), (b"x" * 99, "not a GGUF file")],
)
def test_what_is_no_gguf_file_is_said(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        convert(tmp_path / "a.gguf", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_half_a_file_and_an_unknown_architecture_leave_nothing(module: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(module, tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for content in (whole[: len(whole) // 2], whole.replace(b"llama", b"lemma")):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.gguf"):
            convert(tmp_path / "bad.gguf", tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.gguf", "tiny.gguf"]


def test_a_folder_that_exists_is_kept(module: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(module, tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match="exists already"):
        convert(tmp_path / "tiny.gguf", tmp_path)

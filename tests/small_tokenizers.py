"""Small tokenizers of every kind that matters, made on the spot; and where Qwen's may be."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

QWEN = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers" / "qwen2.5"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SOLUTIONS = (
    "We add 2 and 3.\n\nThe sum is $5$, so the answer is \\boxed{5}.",
    "Let $x$ be the number of apples. Then\n\\[\n2x + 3 = 11,\n\\]\nand so $x = 4$.\n\nThe answer is \\boxed{4}.",
    "Step 1: The triangle has the angles \u2220A, \u2220B and \u2220C.\nStep 2: Their sum is 180\u00b0.  Done.",
    "\u56e0\u6b64\uff0c\u7b54\u6848\u662f\u4e09\u3002\n\nThat is, \\frac{6}{2} = 3. \U0001f600",
)


def byte_tokenizer(
    *,
    adds_bos: bool = False,
    adds_eos: bool = False,
    template: str | None = None,
    merge: tuple[str, str] | None = None,
    **special: str,
):
    """Byte-level BPE with one merge at most: mostly one token a byte, so a character may take four."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(["".join(merge)] if merge else [])]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[merge] if merge else []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if adds_bos or adds_eos:
        shape = f"{'<s> ' * adds_bos}$A{' </s>' * adds_eos}"
        ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=shape, special_tokens=ids)
    special = special or {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_tokenizer():
    """Llama's way: spaces belong to words, unknown characters fall back on bytes, the first space is dropped."""
    words = ["\u2581", "\u2581one", "\u2581two", "one", "two", ".", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -1.0) for word in words)], 0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)


def bpe_tokenizer():
    """As those of published models: trained byte-level BPE, NFC, words split by a pattern, chat template, no BOS."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*SOLUTIONS, "One.\n\nTwo.\n\nThree.\n\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer

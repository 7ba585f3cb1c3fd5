import pytest
from transformers import AutoTokenizer

from small_tokenizers import QWEN, bpe_tokenizer


@pytest.fixture(
    scope="session",
    params=["own", pytest.param("qwen", marks=pytest.mark.skipif(not QWEN.is_dir(), reason="not on this machine"))],
)
def published_tokenizer(request):
    """Our own of that kind, and Qwen2.5's if it is here."""
    return bpe_tokenizer() if request.param == "own" else AutoTokenizer.from_pretrained(QWEN)

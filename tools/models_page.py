"""Write docs/models.md: what priml does with each architecture, found out with tiny random models of all of them.

    python tools/models_page.py docs/models.md [NAME ...]

With names, only these are tried again; the others keep their rows. It takes about ten minutes.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from architectures import CONFIGS, MORE_CONFIGS, VOCABULARY, save_random  # noqa: E402
from priml.batch import Row, collate  # noqa: E402
from priml.config.models import SftOptimizer  # noqa: E402
from priml.errors import PrimlError, RunError  # noqa: E402
from priml.factories.learners import build_optimizer  # noqa: E402
from priml.learners.engine import TorchEngine  # noqa: E402
from priml.models.checkpoint import save_model  # noqa: E402
from priml.models.export import export  # noqa: E402
from priml.models.forward import LanguageModel, ValueModel  # noqa: E402
from priml.models.load import load_critic, load_model, position_limit  # noqa: E402
from priml.models.lora import add_adapters, save_adapter  # noqa: E402
from priml.models.packing import packing_obstacle  # noqa: E402
from priml.models.tiny import character_tokenizer  # noqa: E402
from priml.planner.facts import Shape  # noqa: E402
from priml.planner.trace import model_facts  # noqa: E402
from priml.rollout.decoding import choose_decoding  # noqa: E402

CPU = torch.device("cpu")
COLUMNS = {
    "sample": "*yes*: rows of any length side by side, with the architecture's own cache. *by length*: a batch has "
    "prompts of one length. *slow*: without a cache, each token computes its row again",
    "train": "scores, gradient, a step of the optimizer, export, and the export loaded back and compared. A PRM is the "
    "same work",
    "LoRA": "the same with adapters on all linear layers, exported merged and alone. Experts of a mixture stay frozen",
    "critic": "a value head on the model's base, which scores",
    "pack": "[rows without padding](performance.md#rows-without-padding)",
    "plan": "[`priml plan`](planning.md) traces it",
    "positions": "*hard*: a table of positions, and nothing beyond. *soft*: a warning beyond what the model was made "
    "for. *free*: no limit",
}
NAMES = sorted(CONFIGS | MORE_CONFIGS)
INTRODUCTION = """\
# Models

What priml does with each architecture of transformers that was tried. `tools/models_page.py` writes this page from tiny
random models: two layers, {vocabulary} tokens, transformers {transformers}, torch {torch}, peft {peft}. A tiny model
says nothing about memory, speed or quality.

| column | what was done |
|---|---|
{columns}

*refused*: one sentence before anything is spent. *fails*: an error that we know of and have not mended. For each
architecture that is sampled here, a test compares sampler, trainer and transformers token by token
(`tests/end_to_end/test_architectures.py`). Sampling with vLLM, GPUs and sharded models were not tried for all of them.

GGUF files are not trained. `pip install 'priml[gguf]'` and `python -m priml.models.gguf FILE.gguf NEW_FOLDER` make a
model folder of one, with the rounded weights in float32 ([example](../examples/smollm2-words/README.md)).

"""


def row(name: str) -> dict[str, str]:
    """What each column says of one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(save_random(name, Path(folder) / "model"))
        out = Path(folder) / "out"
        return {
            "sample": _said(lambda: _sampled(source)),
            "train": _said(lambda: _trained(source, out)),
            "LoRA": _said(lambda: _adapted(source, out)),
            "critic": _said(lambda: _criticised(source)),
            "pack": _said(lambda: _packed(source)),
            "plan": _said(lambda: _planned(name)),
            "positions": _said(lambda: _positions(source)),
        }


def _said(work: Callable[[], str]) -> str:
    try:
        return work()
    except RunError:
        return "fails (export)"
    except PrimlError:
        return "refused"
    except Exception as error:  # that is what the page is for
        return f"fails ({type(error).__name__})"


def _sampled(source: str) -> str:
    way = choose_decoding(load_model(source, device=CPU), CPU)
    if not way.cached:
        return "slow"
    return "by length" if way.equal_lengths else "yes"


def _trained(source: str, out: Path) -> str:
    return _step(load_model(source, device=CPU), out, save_model)


def _adapted(source: str, out: Path) -> str:
    for write in (save_model, save_adapter):
        module = load_model(source, device=CPU)
        add_adapters(module, key="policy.lora", base=source, rank=2, alpha=4.0, targets="all-linear", seed=0)
        _step(module, out / write.__name__, write)
    return "yes"


def _step(module: PreTrainedModel, out: Path, write: Callable[..., None]) -> str:
    model = LanguageModel(module, CPU, "fp32", 1000)
    engine = TorchEngine(
        model, character_tokenizer(), build_optimizer(module, "policy", SftOptimizer(lr=1e-3)), write=write
    )
    batch = collate([Row((3, 5, 8), (4, 6, 9, 2), 1.0, 0, ()), Row((7, 3), (5, 5), 0.0, 1, ())], step=1)
    loss = engine.accumulate(batch, [0, 1], lambda micro, scores: -(scores[0] * micro.mask_bt).sum())
    engine.step(loss)
    export(model, engine.tokenizer, out, write)
    return "yes"


def _criticised(source: str) -> str:
    batch = collate([Row((3, 5, 8), (4, 6, 9, 2), 1.0, 0, ())], step=1)
    values_BT = ValueModel(load_critic(source, device=CPU), CPU, "fp32", 1000).scores(batch)
    return "yes" if bool(values_BT.isfinite().all()) else "fails (not finite)"


def _packed(source: str) -> str:
    model = LanguageModel(load_model(source, device=CPU), CPU, "fp32", 1000)
    return "yes" if packing_obstacle(model.module) is None else "no"


def _planned(name: str) -> str:
    config = AutoConfig.for_model(name.split()[0], **(CONFIGS | MORE_CONFIGS)[name])
    model_facts(name, config, Shape(rows=2, length=12, predicted=6, precision="fp32", checkpointing=False))
    return "yes"


def _positions(source: str) -> str:
    limit = position_limit(load_model(source, device=torch.device("meta")))
    if limit is None:
        return "free"
    return "hard" if limit.is_hard else "soft"


def rows_in(page: str) -> dict[str, dict[str, str]]:
    """The rows of a page by architecture."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name.strip("`"): dict(zip(COLUMNS, found, strict=True)) for name, *found in cells}


def page_of(rows: dict[str, dict[str, str]]) -> str:
    """The whole page."""
    versions = {name: version(name).partition("+")[0] for name in ("transformers", "torch", "peft")}
    table = [f"| architecture | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    table += [f"| `{name}` | {' | '.join(rows[name][column] for column in COLUMNS)} |" for name in sorted(rows)]
    columns = "\n".join(f"| {name} | {meaning} |" for name, meaning in COLUMNS.items())
    return INTRODUCTION.format(vocabulary=VOCABULARY, columns=columns, **versions) + "\n".join(table) + "\n"


def main(path: Path, names: Iterable[str]) -> None:
    """Try the architectures, and write the page."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("priml").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    chosen = list(names) or NAMES
    rows = rows_in(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in chosen:
        rows[name] = row(name)
        print(name, *rows[name].values(), sep=" | ", flush=True)
    path.write_text(page_of({name: rows[name] for name in NAMES if name in rows}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""The composition root: settings become objects here and nowhere else. One function per command."""

from priml.build.eval import run_eval
from priml.build.sft import resume_sft, run_sft
from priml.build.train import resume_training, run_training

__all__ = ["resume_sft", "resume_training", "run_eval", "run_sft", "run_training"]

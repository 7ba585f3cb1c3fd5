"""`priml prm evaluate`: ProcessBench and PRMBench, with what is known of their problems' way into training data."""

from __future__ import annotations

from dataclasses import replace

from priml.commands.prm_score import prepare
from priml.commands.session import output_folder
from priml.config.prm import BestThreshold, LineSteps, PrmEvaluateConfig, ProcessBenchFile, ProcessFile
from priml.data.labelled import read_prompts
from priml.data.process_files import LabelledSteps, read_prm_bench, read_process_bench
from priml.evaluate.process import ProcessSet, contamination_notes, measure_sets
from priml.evaluate.scored import ScoredResponse, write_scores
from priml.evaluate.tables import process_tables
from priml.files import write_json
from priml.runs.folder import RunFolder


def run_prm_evaluate(cfg: PrmEvaluateConfig) -> str:
    """Write `evaluation.json` and the scores of each set; returns the tables and the notes."""
    folder = RunFolder(cfg.run_dir)
    folder.check_unused()
    sets = [_read(name, source) for name, source in cfg.data.items()]
    training = {name: read_prompts(path) for name, path in (cfg.training or {}).items()}
    solutions = {f"{one.name}/{i}": (one.name, s) for one in sets for i, s in enumerate(one.solutions)}
    responses = [replace(s.response, problem=replace(s.response.problem, id=id)) for id, (_, s) in solutions.items()]
    scoring = prepare(cfg, cfg.prm, responses, steps=LineSteps())
    begun_with = scoring.origin("prm evaluate", seed=0, data={one.name: one.digest for one in sets})
    with output_folder(cfg, folder, scoring.tokenizer, begun_with):
        scored = scoring.run()
        by_set: dict[str, list[tuple[LabelledSteps, ScoredResponse]]] = {one.name: [] for one in sets}
        for one in scored:
            name, solution = solutions[one.response.problem.id]
            by_set[name].append((solution, one))
        best = cfg.threshold if isinstance(cfg.threshold, BestThreshold) else None
        results = measure_sets(
            sets,
            by_set,
            step_score=cfg.step_score,
            threshold=None if isinstance(cfg.threshold, BestThreshold) else cfg.threshold.value,
            chosen_on=(best and best.data) or sets[0].name,
        ) | {"notes": contamination_notes(sets, training)}
        write_json(folder.evaluation, results)
        for name, found in by_set.items():
            write_scores([one for _, one in found], folder.responses(name))
        write_json(folder.summary, scoring.summary(scored))
    return process_tables(results)


def _read(name: str, source: ProcessFile) -> ProcessSet:
    read = read_process_bench if isinstance(source, ProcessBenchFile) else read_prm_bench
    solutions, digest = read(source.path, limit=source.limit)
    return ProcessSet(name, source.kind, solutions, digest)

import yaml

from priml.data.prepare.card import StageSummary, write_card


def test_the_card_has_a_head_that_the_hub_reads_and_the_counts_of_each_stage():
    stages = [
        StageSummary("read", 1200, 1199, {"unreadable": 1}, {}, {}),
        StageSummary("rules", 1199, 1100, {"choice": 90, "figure": 9}, {"a note": 2}, {"policy": "m"}),
    ]
    card = write_card(stages, {"mine": (1200, 1100, "ab" * 32)}, {"math": 1100}, "rules: paper\n")
    _, head, body = card.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["size_categories"] == ["1K<n<10K"]
    assert found["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]
    assert "| mine | 1,200 | 1,100 | `abababababababab` |" in body
    assert "| rules | 1,199 | 1,100 | 90 choice, 9 figure | 2 a note |" in body
    assert "Policy: m." in body
    assert "Not done: dedup, decontaminate, programs, difficulty." in body
    assert "rules: paper" in body

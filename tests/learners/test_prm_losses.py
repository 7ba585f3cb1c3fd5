from priml.batch import Row, collate
from priml.learners.prm_losses import mismatched


def test_mismatched_gives_every_prompt_the_response_of_another_one():
    rows = [Row([n], [10 + n] * (n + 1), outcome=1.0, group=n // 2, step_ends=()) for n in range(4)]
    batch = mismatched(collate(rows, step=3))
    found = [
        row[prompt : prompt + length].tolist()
        for row, prompt, length in zip(
            batch.tokens_BL, batch.prompt_lengths_B.tolist(), batch.response_lengths_B.tolist(), strict=True
        )
    ]
    assert found == [[12] * 3, [12] * 3, [10], [10]]
    assert batch.tokens_BL[:, 0].tolist() == [0, 1, 2, 3]


def test_a_batch_of_one_prompt_shifts_its_responses():
    rows = [Row([1], [10 + n], outcome=1.0, group=0, step_ends=()) for n in range(3)]
    assert mismatched(collate(rows, step=1)).tokens_BL[:, 1].tolist() == [11, 12, 10]

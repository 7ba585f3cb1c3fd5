from priml.training.sft import Example, collate_examples

EXAMPLES = [Example(prompt_ids=(1,) * (i + 1), response_ids=(10 + i, 3)) for i in range(3)]


def test_a_batch_holds_the_chosen_examples_each_a_group_of_its_own():
    batch = collate_examples(EXAMPLES, [2, 0], step=7)
    assert batch.step == 7
    assert batch.tokens_BL.tolist() == [[1, 1, 1, 12, 3], [1, 10, 3, 0, 0]]
    assert batch.prompt_lengths_B.tolist() == [3, 1]
    assert batch.groups_B.tolist() == [0, 1]
    assert batch.outcomes_B.tolist() == [0.0, 0.0]

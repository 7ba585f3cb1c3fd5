import random

import pytest

from priml.data.prepare.fingerprints import fingerprint, jaccard, near_pairs


def words(seed, count=40):
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=4)) for _ in range(count)]


def test_white_space_signs_and_capitals_do_not_count():
    one, other = fingerprint("Find  $x+3$,\nif x = 4!"), fingerprint("find x 3 IF x 4")
    assert (one.text, one.template, one.numbers) == (other.text, other.template, other.numbers)
    assert (one.text, one.template, one.numbers) == ("findx3ifx4", "find x # if x #", ("3", "4"))
    assert one.shingles.tolist() == other.shingles.tolist()


def test_runs_of_words_are_counted_once_and_in_their_order():
    one = fingerprint("a b c d e a b c d e")
    assert (one.shingles.size, one.grams.size) == (5, 3)  # abcde comes twice
    assert jaccard(one, fingerprint("a b c d e a b c d e")) == 1.0
    assert jaccard(one, fingerprint("e d c b a e d c b a")) == 0.0


@pytest.mark.parametrize("text", ["", "?!", "one", "one two three four"])
def test_short_texts_have_no_grams_and_are_like_themselves_alone(text: str):
    one = fingerprint(text)
    assert one.grams.size == 0
    assert one.shingles.size == (1 if one.text else 0)
    assert jaccard(one, fingerprint("another text")) == 0.0


def test_near_pairs_are_those_of_a_comparison_of_all_with_all():
    texts = []
    for seed in range(60):
        base = words(seed)
        texts.append(" ".join(base))
        for changes in range(1, 5):  # similarities from 0.95 to 0.4
            changed = base.copy()
            for at in range(changes):
                changed[at * 9 + 2] = "new"
            texts.append(" ".join(changed))
    prints = [fingerprint(text) for text in texts]
    expected = {
        (i, j) for i in range(len(prints)) for j in range(i + 1, len(prints)) if jaccard(prints[i], prints[j]) >= 0.7
    }
    found = near_pairs(prints, 0.7)
    assert {(i, j) for i, j, _ in found} == expected
    assert len(expected) > 60
    assert all(similarity == jaccard(prints[i], prints[j]) for i, j, similarity in found)


def test_a_crowd_of_equal_texts_is_compared_with_its_first():
    prints = [fingerprint(" ".join(words(1)))] * 60
    assert {(i, j) for i, j, _ in near_pairs(prints, 0.8)} == {(0, j) for j in range(1, 60)}


def test_no_texts_have_no_pairs():
    assert near_pairs([], 0.8) == near_pairs([fingerprint("")] * 2, 0.8) == []

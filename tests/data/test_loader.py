"""Batches: the same for any number of ranks and workers, never an item twice, broken files replaced and named."""

import pytest
import torch
from number_files import TOKENIZER, Numbers, listed, steps_of

from multicoca.data.loader import Steps, evaluation_batches, training_batches
from multicoca.data.mixture import MixtureConfig
from multicoca.data.sample import Item
from multicoca.data.together import Joined, Stream

EVERY_FIFTH = {str(number) for number in range(0, 1000, 5)}
EVERY_TWENTIETH = {str(number) for number in range(0, 1000, 20)}


def whole(steps_of_ranks: list[Steps], step: int) -> list[tuple]:
    """The micro-batches of a step, joined over ranks: (modality, keys, values, ids)."""
    joined = []
    for parts in zip(*(steps[step] for steps in steps_of_ranks), strict=True):
        keys = tuple(key for part in parts for key in part.keys)
        ids = [row[:length].tolist() for p in parts for row, length in zip(p.ids, p.lengths, strict=True)]
        joined.append((parts[0].modality, keys, torch.cat([part.inputs["x"] for part in parts]).tolist(), ids))
    return joined


def sets() -> dict:
    streams = [Stream("one", listed(61)), Stream("two", listed(37), 2.0)]
    return {"numbers": Joined(streams), "letters": listed(30)}


@pytest.mark.parametrize("broken", [set(), EVERY_TWENTIETH, EVERY_FIFTH])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_is_the_same_for_any_number_of_ranks(broken, micro_batches):
    options = {"micro_batches": micro_batches, "batches_per_step": 3, "weights": {"numbers": 2.0, "letters": 1.0}}
    alone = [steps_of(sets(), 24, broken, **options)]
    for world_size in (2, 3, 4):
        ranks = [steps_of(sets(), 24, broken, rank, world_size, **options) for rank in range(world_size)]
        for step in range(4):
            assert whole(alone, step) == whole(ranks, step)


def test_micro_batches_are_the_batch_in_order():
    one, three = steps_of(sets(), 12), steps_of(sets(), 12, micro_batches=3)
    for step in range(3):
        batches, parts = one[step], three[step]
        assert [part.number for part in parts] == [0, 0, 0, 1, 1, 1]
        for batch in batches:
            own = [part for part in parts if part.number == batch.number]
            assert [len(part.keys) for part in own] == [4, 4, 4]
            assert batch.keys == tuple(key for part in own for key in part.keys)


@pytest.mark.parametrize("batch_size", [5, 16, 33])
@pytest.mark.parametrize("broken", [EVERY_TWENTIETH, EVERY_FIFTH])
def test_no_batch_holds_an_item_twice_whatever_is_broken(broken, batch_size):
    steps = steps_of(listed(66), batch_size, broken)
    named = set()
    for step in range(4 * 66 // batch_size):
        (batch,) = steps[step]
        assert len(set(batch.keys)) == batch_size
        assert not set(batch.keys) & broken
        named |= {problem.key for problem in batch.problems}
        assert {problem.reason for problem in batch.problems} <= {"it holds no number"}
    assert named == broken & {str(number) for number in range(66)}


def test_a_small_set_is_used_to_its_last_item_and_then_an_error_says_so():
    broken = {str(number) for number in range(13)}
    for rank in range(2):
        assert len(set(steps_of(listed(20), 6, broken, rank, 2)[0][0].keys)) == 3
    both = [steps_of(listed(20), 6, broken, rank, 2) for rank in range(2)]
    assert {len(set(whole(both, step)[0][1])) for step in range(9)} == {6}
    with pytest.raises(ValueError, match=r"of the 20 numbers training items so many.*The last: \d+.num: it holds no"):
        [steps_of(listed(20), 8, broken)[step] for step in range(2)]


def test_a_hundred_broken_files_in_a_row_are_an_error():
    with pytest.raises(ValueError, match="100 numbers files in a row cannot be read; the last: it holds no number"):
        steps_of(listed(1000), 2, {str(number) for number in range(1000)})[0]


def test_a_broken_file_is_replaced_by_a_fixed_other_one_and_named():
    intact, steps = steps_of(listed(40), 4)[0][0], steps_of(listed(40), 4, {intact_key(2)})
    batch, again = steps[0][0], steps[0][0]
    assert batch.keys == again.keys
    assert [one == other for one, other in zip(batch.keys, intact.keys, strict=True)] == [True, True, False, True]
    assert [(p.key, p.file, p.split) for p in batch.problems] == [(intact_key(2), f"{intact_key(2)}.num", "train")]


def intact_key(slot: int) -> str:
    return steps_of(listed(40), 4)[0][0].keys[slot]


def test_samples_are_drawn_anew_in_each_epoch_but_not_by_their_place():
    one, other = steps_of(listed(12), 4), steps_of(listed(12), 6)
    first, second = ({}, {}), ({}, {})
    for found, steps, per_epoch in ((first, one, 3), (second, other, 2)):
        for step in range(2 * per_epoch):
            (batch,) = steps[step]
            for key, value in zip(batch.keys, batch.inputs["x"].tolist(), strict=True):
                found[step // per_epoch][key] = value
    assert first == second
    assert all(first[0][key] != first[1][key] for key in first[0])


def test_workers_change_nothing(tmp_path):
    items = []
    for index in range(20):
        file = tmp_path / f"{index}.num"
        file.write_text("no" if index == 7 else str(index))
        items.append(Item(str(index), file, "numbers", (f"number {index}", f"the {index}")))
    steps = Steps({"numbers": items}, {"numbers": Numbers()}, TOKENIZER, 8, 1, mixture=MixtureConfig(micro_batches=2))
    for step, from_worker in zip(range(5), training_batches(steps, 0, 5, 2), strict=True):
        for here, there in zip(steps[step], from_worker, strict=True):
            assert (here.keys, here.problems) == (there.keys, there.problems)
            torch.testing.assert_close(here.inputs["x"], there.inputs["x"], rtol=0, atol=0)
            assert here.ids.equal(there.ids)


class Counted(list):
    """A lazy sequence that counts how many items were made."""

    made = 0

    def __getitem__(self, index):
        type(self).made += 1
        return super().__getitem__(index)


def test_only_the_items_of_a_step_are_made():
    steps = steps_of(Counted(listed(500)), 4)
    steps[100]
    assert 0 < Counted.made <= 30  # checks of types look at some, too


def test_evaluation_replaces_nothing(tmp_path):
    items = []
    for index, content in enumerate(["1", "no", "3"]):
        (tmp_path / f"{index}.num").write_text(content)
        items.append(Item(str(index), tmp_path / f"{index}.num", "numbers", ("a number",)))
    ((read, inputs, problems),) = evaluation_batches(items, Numbers(), 8)
    assert [item.key for item in read] == ["0", "2"]
    assert len(inputs["x"]) == 2
    assert [problem.key for problem in problems] == ["1"]


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "options", "message"),
    [
        (9, 8, 3, {}, "is 8, which 3 processes cannot share equally"),
        (9, 8, 2, {"micro_batches": 3}, "data.micro_batches=3 equal parts for each of 2 processes"),
        (7, 8, 1, {}, "'numbers' has 7 training items, but a batch of 8"),
        (9, 8, 1, {"batch_sizes": {"numbers": 10}}, "a batch of 10"),
        (0, 8, 1, {}, "there are no training items for the modality 'numbers'"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_is_an_error(count, batch_size, world_size, options, message):
    with pytest.raises(ValueError, match=message):
        steps_of(listed(count), batch_size, world_size=world_size, **options)

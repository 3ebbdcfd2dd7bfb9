"""Order: a bijection that depends on its key, without repetition inside a batch."""

import pytest

from multicoca.data.order import keyed_number, permuted, sample_at


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 1000, 4097])
def test_the_permutation_is_a_bijection(size):
    assert sorted(permuted(position, size, 3, "x") for position in range(size)) == list(range(size))


def test_the_key_changes_the_permutation():
    orders = {tuple(permuted(p, 50, seed) for p in range(50)) for seed in range(20)}
    assert len(orders) == 20


def test_the_order_is_the_same_in_every_version():
    assert [permuted(p, 10, 0, "image", 0) for p in range(10)] == [permuted(p, 10, 0, "image", 0) for p in range(10)]
    assert keyed_number(1, "a") == keyed_number(1, "a") != keyed_number(1, "b")


def test_the_permutation_looks_random():
    fixed = sum(permuted(p, 1000, 5) == p for p in range(1000))
    rising = sum(permuted(p, 1000, 5) < permuted(p + 1, 1000, 5) for p in range(999))
    assert fixed < 10
    assert 430 < rising < 570


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (64, 64), (101, 7)])
def test_no_batch_holds_a_sample_twice_and_each_epoch_is_whole(size, batch):
    per_epoch = size // batch
    for step in range(3 * per_epoch):
        drawn = [sample_at(step * batch + i, size, batch, 1, "m") for i in range(batch)]
        assert len({index for _, index in drawn}) == batch
        assert {epoch for epoch, _ in drawn} == {step // per_epoch}


def test_a_position_outside_the_set_is_an_error():
    with pytest.raises(ValueError, match="outside"):
        permuted(5, 5, 0)

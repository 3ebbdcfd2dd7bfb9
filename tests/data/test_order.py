"""Order: a bijection that depends on its key."""

import pytest

from multicoca.data.order import keyed_number, permuted


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


def test_a_position_outside_the_set_is_an_error():
    with pytest.raises(ValueError, match="outside"):
        permuted(5, 5, 0)

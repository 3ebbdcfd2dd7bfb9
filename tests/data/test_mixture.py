"""What a step holds: exact quotas, streams with epochs of their own, and errors that say what to change."""

from collections import Counter
from itertools import pairwise

import pytest
from number_files import listed, steps_of

from multicoca.cli.compose import compose_config
from multicoca.data.mixture import MixtureConfig, Order, Schedule, interleaved, shares
from multicoca.data.together import Joined, Stream

SETS = {"a": 1000.0, "b": 100.0, "c": 10.0}


@pytest.mark.parametrize("quotas", [[5], [1, 1], [7, 2, 1], [997, 2, 1], [3, 3, 3, 1], [333, 333, 334], [0, 4, 1]])
def test_every_beginning_of_a_table_is_less_than_one_from_its_share(quotas):
    table = interleaved(quotas)
    assert Counter(table) == {number: quota for number, quota in enumerate(quotas) if quota}
    counts = [0] * len(quotas)
    for place, number in enumerate(table, start=1):
        counts[number] += 1
        for quota, count in zip(quotas, counts, strict=True):
            assert abs(count - place * quota / sum(quotas)) < 1


def test_shares_are_largest_remainders():
    assert shares([1.0, 1.0, 1.0], 10) == [4, 3, 3]
    assert shares([47e3, 16e3, 15.9e3, 12e3, 6e3, 3.1e3], 10) == [5, 2, 1, 1, 1, 0]
    assert shares([0.1, 0.2, 0.7], 1000) == [100, 200, 700]


def drawn(config: MixtureConfig, steps: int, sets=SETS) -> Counter:
    schedule = Schedule(sets, config)
    found = [one for step in range(steps) for one in schedule.batches(step)]
    for modality in sets:  # numbers follow one another without a gap
        numbers = [number for name, number in found if name == modality]
        assert numbers == list(range(len(numbers)))
    return Counter(name for name, _ in found)


def test_without_a_number_of_batches_each_step_has_one_of_every_modality():
    schedule = Schedule(SETS, MixtureConfig())
    assert list(schedule.batches(7)) == [("a", 7), ("b", 7), ("c", 7)]


def test_weights_are_met_exactly():
    weights = {"a": 5.0, "b": 3.0, "c": 2.0}
    assert drawn(MixtureConfig(batches_per_step=4, weights=weights), 5) == {"a": 10, "b": 6, "c": 4}


@pytest.mark.parametrize(
    ("temperature", "share"),
    [(1.0, [901, 90, 9]), (2.0, [706, 223, 71]), (1e9, [334, 333, 333])],  # n, sqrt(n), the same: of 1110, 44.7, 3
)
def test_temperature_evens_out(temperature, share):
    found = drawn(MixtureConfig(batches_per_step=8, temperature=temperature), 125)
    assert [found[name] for name in SETS] == share


def test_each_epoch_of_a_stream_holds_whole_batches_of_different_items():
    small, large = Stream("small", listed(13), 2.0), Stream("large", listed(101))
    order = Order("x", Joined([small, large]), 12, 3)
    assert order.quotas == [2, 10]  # 12 * 26 / 127 = 2.46
    epochs: dict[tuple[int, int], list[int]] = {}
    for batch in range(60):
        places = [next(order.places(batch, slot)) for slot in range(12)]
        assert len({(place.stream, place.index) for place in places}) == 12
        assert [place.stream for place in places] == interleaved([2, 10])
        for place in places:
            epochs.setdefault((place.stream, place.epoch), []).append(place.index)
    for (stream, epoch), indexes in epochs.items():
        assert len(set(indexes)) == len(indexes), (stream, epoch)
    assert [len(epochs[0, epoch]) for epoch in range(10)] == [12] * 10
    assert [len(epochs[1, epoch]) for epoch in range(6)] == [100] * 6
    assert len({tuple(epochs[0, epoch]) for epoch in range(10)}) == 10
    left_over = [set(range(13)) - set(epochs[0, epoch]) for epoch in range(10)]
    assert len(set(map(frozenset, left_over))) > 3


def test_replacements_of_a_slot_are_its_own():
    order = Order("x", listed(23), 5, 0)
    for batch in (0, 3, 6):
        candidates = [list(order.places(batch, slot)) for slot in range(5)]
        assert [len(own) for own in candidates] == [5, 5, 5, 4, 4]  # 23 = 4 * 5 + 3
        flat = [place.index for own in candidates for place in own]
        assert sorted(flat) == list(range(23))
    for one, other in pairwise(list(order.places(batch, 0)) for batch in range(3)):
        assert one != other


def test_ends_of_epochs_are_told():
    streams = [Stream("cc3m", listed(41)), Stream("own", listed(10), 2.0)]
    steps = steps_of({"image": Joined(streams), "sound": listed(9)}, 6)  # quotas of 6: 4 and 2
    told = {step: steps.epochs_ended(step) for step in range(20)}
    assert told[9] == ["epoch 1 of image from cc3m: 40 of 41 items, 1 left over",
                       "epoch 2 of image from own: 10 of 10 items, 0 left over",
                       "epoch 10 of sound: 6 of 9 items, 3 left over"]  # fmt: skip
    assert told[10] == ["epoch 11 of sound: 6 of 9 items, 3 left over"]
    assert sum(len(lines) for lines in told.values()) == 2 + 4 + 20
    drawn_steps = steps_of({"image": listed(12)}, 6, batches_per_step=3)
    assert [len(drawn_steps.epochs_ended(step)) for step in range(4)] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"batches_per_step": 0}, "data.batches_per_step is 0"),
        ({"micro_batches": 0}, "data.micro_batches is 0"),
        ({"batches_per_step": 2, "temperature": 0.0}, "data.temperature is 0.0"),
        ({"temperature": 2.0}, "data.temperature says how batches are drawn, but without data.batches_per_step"),
        ({"weights": {"a": 1.0}}, "data.weights.a says how batches are drawn"),
        ({"batch_sizes": {"d": 4}}, "data.batch_sizes names d"),
        ({"batches_per_step": 2, "weights": {"d": 1.0}}, "data.weights names d; the modalities are a, b, c"),
        ({"batches_per_step": 2, "weights": {"a": -0.1}}, "data.weights.a is -0.1"),
        ({"batches_per_step": 2, "weights": {"a": 1.0}}, "but b, c has none"),
        ({"batches_per_step": 2, "temperature": 2.0, "weights": dict.fromkeys("abc", 1.0)}, "remove it"),
        ({"batches_per_step": 2, "weights": {"a": 1.0, "b": 1.0, "c": 1e5}}, "'a' would get less than one"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_met_is_an_error_that_names_it(mixture, message):
    with pytest.raises(ValueError, match=message):
        Schedule(SETS, MixtureConfig(**mixture))


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ([Stream("tiny", listed(3)), Stream("huge", listed(3000))], "'x' from tiny has so few.*repeats.tiny"),
        (
            [Stream("tiny", listed(3), 1000.0), Stream("huge", listed(3000))],
            "takes 5 different ones; lower",
        ),
        (
            [Stream("", listed(9))],
            "'x' has 9 training items, but a batch of 10 takes 10 different ones; set",
        ),
    ],
)
def test_a_source_without_a_place_or_without_enough_items_is_an_error(streams, message):
    with pytest.raises(ValueError, match=message):
        Order("x", Joined(streams) if streams[0].name else streams[0].items, 10, 0)


def test_all_of_it_can_be_set_from_the_command_line():
    overrides = ["data.batches_per_step=3", "data.micro_batches=2", "data.weights.image=2",
                 "data.batch_sizes={image:8,video:12}", "data.root=a/{00..12}.tar"]  # fmt: skip
    config = compose_config("train_shapes", overrides).data
    assert (config.batches_per_step, config.micro_batches, config.batch_size) == (3, 2, 32)
    assert (config.weights, config.batch_sizes) == ({"image": 2.0}, {"image": 8, "video": 12})
    assert config.root == "a/{00..12}.tar"
    assert config.common_size() == 2
    with pytest.raises(ValueError, match="heavy"):
        compose_config("train_shapes", ["data.weights.image=heavy"])

"""Which batches a step holds and which item stands in which place of them: pure functions of the step.

A step holds one batch of every modality, or a number of batches drawn by weight. The draws follow a periodic table in
which every modality has its exact quota and is never more than one batch away from its share (R. Tijdeman, "The
chairman assignment problem", Discrete Mathematics 32, 1980), so that the number of earlier batches is known at once.

Within a modality each source is a stream with a constant quota of every batch and epochs of its own: as many whole
batches as it has items for; the few left over are others in each epoch. No batch spans two epochs of a stream, so no
batch holds an item twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from multicoca.data.order import permuted
from multicoca.data.sample import Item
from multicoca.data.together import Joined, Stream

_PERIOD = 1000  # slots of the table of modalities: weights are met to a thousandth


@dataclass(frozen=True)
class MixtureConfig:
    """Which batches a step holds.

    Attributes:
        batches_per_step: number of batches of a step, drawn by weight; None gives one of every modality.
        weights: by modality, the shares of the batches when `batches_per_step` is set, in proportion to one another;
            all modalities have one or none.
        temperature: without weights, a modality of n items gets a share in proportion to n ** (1 / temperature): 1 is
            in proportion, more evens out.
        micro_batches: parts in which each batch is computed, one after the other.
        batch_sizes: by modality, instead of `data.batch_size`.
    """

    batches_per_step: int | None = None
    weights: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    micro_batches: int = 1
    batch_sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("batches_per_step", self.batches_per_step), ("micro_batches", self.micro_batches)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name} is {value}; it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"data.temperature is {self.temperature}; it must be above 0")
        given = self.weights
        for name, weight in given.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"data.weights.{name} is {weight}; it must be above 0. Leave the modality out instead")
        if self.batches_per_step is None and (given or self.temperature != 1.0):
            which = f"data.weights.{next(iter(given))}" if given else "data.temperature"
            raise ValueError(
                f"{which} says how batches are drawn, but without data.batches_per_step each step has one of every "
                "modality"
            )
        if given and self.temperature != 1.0:
            raise ValueError("data.temperature makes weights of the numbers of items; remove it, or data.weights")


class Schedule:
    """Which modality the batches of a step belong to, and which number each has among its modality's batches.

    Args:
        sizes: training items by modality, repeats included.
        config: the mixture.

    Raises:
        ValueError: a setting cannot be met; the message says which.
    """

    def __init__(self, sizes: Mapping[str, float], config: MixtureConfig):
        self.modalities = tuple(sizes)
        weights = _weights(sizes, config)
        if config.batches_per_step is None:
            self.per_step, self._table = len(sizes), list(range(len(sizes)))
        else:
            self.per_step = config.batches_per_step
            quotas = shares(list(weights.values()), _PERIOD)
            for modality, quota in zip(sizes, quotas, strict=True):
                if quota == 0:
                    raise ValueError(
                        f"'{modality}' would get less than one of {_PERIOD} batches; raise its weight "
                        f"(data.weights.{modality}) or data.temperature, or leave it out"
                    )
            self._table = interleaved([quota // math.gcd(*quotas) for quota in quotas])
        self._before = []  # how often the modality of a slot stands earlier in the table
        counts = [0] * len(sizes)
        for modality in self._table:
            self._before.append(counts[modality])
            counts[modality] += 1
        self._counts = counts

    def batches(self, step: int) -> Iterator[tuple[str, int]]:
        """Yields (modality, number among all batches of that modality) of a step, in order."""
        for slot in range(step * self.per_step, (step + 1) * self.per_step):
            period, place = divmod(slot, len(self._table))
            modality = self._table[place]
            yield self.modalities[modality], period * self._counts[modality] + self._before[place]


@dataclass(frozen=True)
class Place:
    """What stands in a slot of a batch: an item of a stream in one of its epochs."""

    stream: int
    epoch: int
    index: int


class Order:
    """The order of one modality's items.

    Args:
        modality: its name, which keeps orders apart.
        items: its training items.
        batch_size: global size of its batches.
        seed: the run's seed.

    Attributes:
        streams: the sources.
        quotas: how many items of each source a batch holds.
        size: number of items, repeats included.

    Raises:
        ValueError: a source has no place in a batch, or fewer items than a batch takes.
    """

    def __init__(self, modality: str, items: Sequence[Item], batch_size: int, seed: int):
        self.modality, self.items, self.batch_size, self.seed = modality, items, batch_size, seed
        self.streams = items.streams if isinstance(items, Joined) else (Stream("", items),)
        sizes = [len(stream.items) * stream.repeats for stream in self.streams]
        self.size = sum(sizes)
        self.quotas = shares(sizes, batch_size)
        for stream, quota in zip(self.streams, self.quotas, strict=True):
            of = f"'{modality}' from {stream.name}" if stream.name else f"'{modality}'"
            size = len(stream.items)
            if quota == 0:
                raise ValueError(
                    f"{of} has so few of all training items ({size}, repeated {stream.repeats:g} times) that a batch "
                    f"of {batch_size} holds none; raise data.source.repeats.{stream.name} or the batch size"
                )
            if quota > size:
                less = f"lower data.source.repeats.{stream.name}, or " if stream.name else ""
                raise ValueError(
                    f"{of} has {size} training items, but a batch of {batch_size} takes {quota} different ones; "
                    f"{less}set data.batch_size or data.batch_sizes.{modality} lower"
                )
        columns = [count() for _ in self.streams]
        self._slots = [(stream, next(columns[stream])) for stream in interleaved(self.quotas)]

    def item(self, place: Place) -> Item:
        """Returns the item of a place."""
        index = place.index
        return self.items.item(place.stream, index) if isinstance(self.items, Joined) else self.items[index]

    def places(self, batch: int, slot: int) -> Iterator[Place]:
        """Yields what may stand in a slot of a batch: first what does, then its replacements, each once.

        A replacement stands in the same slot of another batch of the same epoch, the left over items being a batch of
        which only the first slots are filled. So no two slots of a batch have one in common.
        """
        stream, column = self._slots[slot]
        epoch, own = divmod(batch, self.epoch_batches(stream))
        quota, size = self.quotas[stream], len(self.streams[stream].items)
        rows = size // quota + (column < size % quota)
        yield self._place(stream, epoch, own * quota + column)
        for attempt in range(rows - 1):
            row = permuted(attempt, rows - 1, *self._key(stream, epoch), "replacement", own, column)
            yield self._place(stream, epoch, (row + (row >= own)) * quota + column)

    def spares(self, batch: int, stream: int) -> Iterator[Place]:
        """Yields all places of a stream in the epoch of a batch, in an order of that batch."""
        epoch, own = divmod(batch, self.epoch_batches(stream))
        size = len(self.streams[stream].items)
        for position in range(size):
            yield self._place(stream, epoch, permuted(position, size, *self._key(stream, epoch), "spare", own))

    def slots_of(self, slot: int) -> tuple[int, list[int]]:
        """Returns (the stream of a slot, all slots of that stream)."""
        stream = self._slots[slot][0]
        return stream, [other for other, (own, _) in enumerate(self._slots) if own == stream]

    def epoch_batches(self, stream: int) -> int:
        """Returns the number of batches in an epoch of a stream."""
        return len(self.streams[stream].items) // self.quotas[stream]

    def ended(self, batch: int) -> Iterator[str]:
        """Yields a sentence for each stream whose epoch ends with a batch."""
        for number, (stream, quota) in enumerate(zip(self.streams, self.quotas, strict=True)):
            epoch, place = divmod(batch + 1, self.epoch_batches(number))
            if place == 0:
                of = f"{self.modality} from {stream.name}" if stream.name else self.modality
                size = len(stream.items)
                used = size // quota * quota
                yield f"epoch {epoch} of {of}: {used:,} of {size:,} items, {size - used:,} left over"

    def _place(self, stream: int, epoch: int, position: int) -> Place:
        size = len(self.streams[stream].items)
        return Place(stream, epoch, permuted(position, size, *self._key(stream, epoch)))

    def _key(self, stream: int, epoch: int) -> tuple[int | str, ...]:
        return self.seed, self.modality, self.streams[stream].name, epoch


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Divides a number in proportion to weights, by largest remainders (Hamilton's method); ties go to the first."""
    exact = [weight * total / sum(weights) for weight in weights]
    whole = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: whole[number] - exact[number])
    for number in by_remainder[: total - sum(whole)]:
        whole[number] += 1
    return whole


def interleaved(quotas: Sequence[int]) -> list[int]:
    """Returns each number as often as its quota says, so that no beginning is off by one or more from its share.

    Source: Tijdeman 1980, section 2, the algorithm with bound 1 - 1 / (2n - 2).
    """
    total, n = sum(quotas), len(quotas)
    if n == 1:
        return [0] * total
    counts, table = [0] * n, []
    for place in range(1, total + 1):
        # whole numbers, times total * (2n - 2): what is owed, and how long until it is too much
        owed = [quota * place - count * total for quota, count in zip(quotas, counts, strict=True)]
        ready = [number for number in range(n) if quotas[number] and owed[number] * (2 * n - 2) >= total]
        chosen = min(ready, key=lambda number: (total * (2 * n - 3) / (2 * n - 2) - owed[number]) / quotas[number])
        counts[chosen] += 1
        table.append(chosen)
    return table


def _weights(sizes: Mapping[str, float], config: MixtureConfig) -> dict[str, float]:
    """Returns the modalities' shares of the batches, after a look at all settings."""
    for key, named in (("weights", config.weights), ("batch_sizes", config.batch_sizes)):
        unknown = sorted(set(named) - set(sizes))
        if unknown:
            raise ValueError(f"data.{key} names {', '.join(unknown)}; the modalities are {', '.join(sizes)}")
    given = config.weights
    if given and set(given) != set(sizes):
        missing = ", ".join(name for name in sizes if name not in given)
        raise ValueError(f"some modalities have a weight, but {missing} has none; give one to all or to none")
    return (
        dict.fromkeys(sizes, 0.0) | given
        if given
        else {n: size ** (1 / config.temperature) for n, size in sizes.items()}
    )

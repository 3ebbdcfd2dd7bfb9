"""Batches by step number. Workers hold no state: what a step reads follows from (config, step, rank).

`multicoca.data.mixture` says which items a step takes. A broken file is replaced by another one, chosen by a key so
that no batch holds an item twice, and reported with the batch; evaluation replaces nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset

from multicoca.data.mixture import MixtureConfig, Order, Place, Schedule
from multicoca.data.order import keyed_number
from multicoca.data.sample import Batch, Item, Problem, UnfilledBatchError
from multicoca.data.shared_memory import PREFETCHED, bytes_of, fitting_workers
from multicoca.distributed.launch import STOP_SIGNALS
from multicoca.isolated import decode_timeout, set_decode_timeout
from multicoca.modality import Processor, UnreadableFileError
from multicoca.text.tokenizer import TextTokenizer

_ATTEMPTS = 100  # broken files in a row, as in Megatron-Energon
_SIZE_ATTEMPTS = 8  # files that are tried to learn how large a sample is
_TIMEOUT_S = 3600  # a worker that hands over nothing for so long has been lost


class Steps(Dataset):
    """Maps a step to its batches.

    Args:
        items: training items by modality; a sequence may make its items only when they are asked for.
        processors: who reads them.
        tokenizer: encodes the captions.
        batch_size: pairs of a batch, over all ranks, where the mixture gives no other.
        seed: the run's seed.
        rank: number of this process.
        world_size: number of processes.
        mixture: which batches a step holds.

    Raises:
        ValueError: a modality has no items or too few, or a batch cannot be split over the ranks.
    """

    def __init__(
        self,
        items: Mapping[str, Sequence[Item]],
        processors: Mapping[str, Processor],
        tokenizer: TextTokenizer,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        mixture: MixtureConfig | None = None,
    ):
        mixture = mixture or MixtureConfig()
        for modality in processors:
            if not items.get(modality):
                raise ValueError(f"there are no training items for the modality '{modality}'; add some or leave it out")
        self.orders: dict[str, Order] = {}
        for modality in processors:
            own = mixture.batch_sizes.get(modality, batch_size)
            _check_batch_size(modality, own, world_size, mixture.micro_batches)
            self.orders[modality] = Order(modality, items[modality], own, seed)
        sizes = {modality: order.size for modality, order in self.orders.items()}
        self.schedule = Schedule(sizes, mixture)
        self.processors = dict(processors)
        self.tokenizer = tokenizer
        self.micro_batches = mixture.micro_batches
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def __getitem__(self, step: int) -> list[Batch]:
        """Returns this rank's batches of a step; the micro-batches of a batch follow one another."""
        batches = []
        for number, (modality, batch) in enumerate(self.schedule.batches(step)):
            micro = self.orders[modality].batch_size // self.micro_batches
            local = micro // self.world_size
            for part in range(self.micro_batches):
                first = part * micro + self.rank * local
                batches.append(self._batch(modality, batch, range(first, first + local), number))
        return batches

    def step_bytes(self) -> int:
        """Returns about how many bytes this rank's batches of a step take, by a sample of each modality."""
        total, sizes = 0, {}
        for modality, _ in self.schedule.batches(0):
            if modality not in sizes:
                order = self.orders[modality]
                items = (order.item(place) for place in islice(order.places(0, 0), _SIZE_ATTEMPTS))
                sizes[modality] = sample_bytes(items, self.processors[modality]) * order.batch_size // self.world_size
            total += sizes[modality]
        return total

    def epochs_ended(self, step: int) -> list[str]:
        """Returns a sentence for the log for every epoch that ends with a step."""
        return [line for modality, batch in self.schedule.batches(step) for line in self.orders[modality].ended(batch)]

    def _batch(self, modality: str, batch: int, slots: Iterable[int], number: int) -> Batch:
        """Reads some slots of a batch."""
        order, processor = self.orders[modality], self.processors[modality]
        samples, texts, keys, problems = [], [], [], []
        for slot in slots:
            place, sample = self._filled(order, processor, batch, slot, problems)
            item = order.item(place)
            assert item.texts, f"item {item.key} has no caption; `training_items` leaves such items out"
            keys.append(item.key)
            samples.append(sample)
            chosen = keyed_number(self.seed, place.epoch, modality, item.key, "text") % len(item.texts)
            texts.append(item.texts[chosen])
        ids, lengths = self.tokenizer(texts)
        return Batch(modality, processor.collate(samples), ids, lengths, tuple(keys), tuple(problems), number)

    def _filled(
        self, order: Order, processor: Processor, batch: int, slot: int, problems: list[Problem]
    ) -> tuple[Place, dict[str, torch.Tensor]]:
        """Returns what stands in a slot with its sample: the first of its candidates that can be read."""
        before = len(problems)
        found = self._first_readable(order, processor, islice(order.places(batch, slot), _ATTEMPTS), problems)
        if found is not None:
            return found
        if len(problems) - before == _ATTEMPTS:
            raise UnfilledBatchError(
                f"{_ATTEMPTS} {order.modality} files in a row cannot be read; the last: {problems[-1].reason}", problems
            )
        return self._spare(order, processor, batch, slot, problems)

    def _spare(
        self, order: Order, processor: Processor, batch: int, slot: int, problems: list[Problem]
    ) -> tuple[Place, dict[str, torch.Tensor]]:
        """Fills a slot all of whose few candidates are broken, as it happens in small sets.

        What other slots hold must be known, so all of the stream's slots are read; every rank comes to the same.
        """
        stream, slots = order.slots_of(slot)
        taken, waiting = set(), []
        for other in slots:
            found = self._first_readable(order, processor, islice(order.places(batch, other), _ATTEMPTS), [])
            if found is None:
                waiting.append(other)
            else:
                taken.add(found[0])
        free = (place for place in order.spares(batch, stream) if place not in taken)
        for other in waiting:
            found = self._first_readable(order, processor, free, problems)
            if found is None:
                size = len(order.streams[stream].items)
                raise UnfilledBatchError(
                    f"of the {size} {order.modality} training items so many cannot be read that a batch is not full; "
                    f"set data.batch_size or data.batch_sizes.{order.modality} lower. "
                    f"The last: {problems[-1].file}: {problems[-1].reason}",
                    problems,
                )
            if other == slot:
                return found
        raise AssertionError(f"slot {slot} of batch {batch} waits for nothing")

    def _first_readable(
        self, order: Order, processor: Processor, places: Iterable[Place], problems: list[Problem]
    ) -> tuple[Place, dict[str, torch.Tensor]] | None:
        """Returns the first place whose item can be read, with its sample; adds a problem for each that cannot."""
        for place in places:
            item = order.item(place)
            key = keyed_number(self.seed, place.epoch, order.modality, item.key) >> 1
            generator = torch.Generator().manual_seed(key)
            try:
                return place, item.sample(processor, True, generator)
            except UnreadableFileError as error:
                problems.append(Problem(item.key, str(item.file), str(error), "train", order.modality))
        return None


def _check_batch_size(modality: str, batch_size: int, world_size: int, micro_batches: int) -> None:
    name = f"the batch size of '{modality}' (data.batch_size or data.batch_sizes.{modality})"
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"{name} is {batch_size}, which {world_size} processes cannot share equally")
    if micro_batches > 1 and batch_size % (world_size * micro_batches):
        raise ValueError(
            f"{name} is {batch_size}, which cannot be divided into data.micro_batches={micro_batches} equal parts "
            f"for each of {world_size} processes; make it a multiple of {world_size * micro_batches}"
        )


def training_batches(steps: Steps, first: int, last: int, num_workers: int) -> Iterator[list[Batch]]:
    """Yields the batches of the steps first, ..., last - 1, in order.

    Raises:
        UnfilledBatchError: too much cannot be read.
    """
    num_workers = fitting_workers(num_workers, steps.step_bytes() if num_workers else 0)
    loader = DataLoader(
        _Caught(steps),
        batch_size=None,
        sampler=range(first, last),
        num_workers=num_workers,
        prefetch_factor=PREFETCHED if num_workers else None,
        timeout=_TIMEOUT_S if num_workers else 0,
        worker_init_fn=partial(begin_worker, decode_timeout()),
        pin_memory=torch.cuda.is_available(),
    )
    for batches in loader:
        if isinstance(batches, UnfilledBatchError):
            raise batches
        yield batches


class Reader(Dataset):
    """Reads items for evaluation, one sample or one problem each. Nothing is replaced."""

    def __init__(self, items: Sequence[Item], processor: Processor):
        self.items, self.processor = items, processor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, dict[str, torch.Tensor] | Problem]:
        """Returns (item, its sample, or the problem with it)."""
        item = self.items[index]
        try:
            return item, item.sample(self.processor, False)
        except UnreadableFileError as error:
            return item, Problem(item.key, str(item.file), str(error), modality=item.modality)


def evaluation_batches(
    items: Sequence[Item], processor: Processor, batch_size: int, num_workers: int = 0
) -> Iterator[tuple[list[Item], dict[str, torch.Tensor] | None, list[Problem]]]:
    """Yields (items that were read, their collated inputs or None if there is none, problems), in order."""
    if num_workers:
        batch_bytes = sample_bytes(items[:_SIZE_ATTEMPTS], processor) * min(batch_size, len(items))
        num_workers = fitting_workers(num_workers, batch_bytes)
    loader = DataLoader(
        Reader(items, processor),
        batch_size=batch_size,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED if num_workers else None,
        timeout=_TIMEOUT_S if num_workers else 0,
        collate_fn=list,
        worker_init_fn=partial(begin_worker, decode_timeout()),
    )
    for rows in loader:
        read = [(item, sample) for item, sample in rows if not isinstance(sample, Problem)]
        problems = [sample for _, sample in rows if isinstance(sample, Problem)]
        inputs = processor.collate([sample for _, sample in read]) if read else None
        yield [item for item, _ in read], inputs, problems


def sample_bytes(items: Iterable[Item], processor: Processor) -> int:
    """Returns the size of the first sample that can be read, 0 if none can."""
    for item in items:
        try:
            return bytes_of(item.sample(processor, False))
        except UnreadableFileError:
            continue
    return 0


def usable_workers(requested: int | None, spare_cores: int) -> int:
    """Returns the number of data workers: what was asked for, or one for each spare core, at most 8."""
    return requested if requested is not None else max(0, min(spare_cores, 8))


def begin_worker(decode_timeout_s: float, worker: int) -> None:
    """Keeps torch's threads of a worker from fighting those of the others, and leaves signals to the main process.

    They often go to all processes of a group, and training still needs its workers to save in order.
    """
    del worker
    torch.set_num_threads(1)
    set_decode_timeout(decode_timeout_s)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Caught(Dataset):
    """Hands a batch that is not full to the main process as an error without the trace of a worker."""

    def __init__(self, steps: Steps):
        self.steps = steps

    def __getitem__(self, step: int) -> list[Batch] | UnfilledBatchError:
        try:
            return self.steps[step]
        except UnfilledBatchError as error:
            return error

"""Batches by step number. Workers hold no state: what a step reads follows from (config, step, rank).

Each optimizer step takes one batch of every modality. A broken file is replaced by another one, chosen by a
key, and reported with the batch; evaluation replaces nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from multicoca.data.order import keyed_number, sample_at
from multicoca.data.sample import Batch, Item, Problem
from multicoca.modality import Processor, UnreadableFileError
from multicoca.text.tokenizer import TextTokenizer

_ATTEMPTS = 100  # broken files in a row, as in Megatron-Energon


class Steps(Dataset):
    """Maps a step to one batch of each modality.

    Args:
        items: training items by modality.
        processors: who reads them.
        tokenizer: encodes the captions.
        batch_size: pairs of each modality in a step, over all ranks.
        seed: the run's seed.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: a modality has no items, or the batch cannot be split over the ranks.
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
    ):
        if batch_size < world_size or batch_size % world_size:
            raise ValueError(f"data.batch_size is {batch_size}, which {world_size} processes cannot share equally")
        for modality in processors:
            if len(items.get(modality, ())) < world_size:
                raise ValueError(f"there are no training items for the modality '{modality}'; add some or leave it out")
        self.items = {modality: tuple(items[modality]) for modality in processors}
        self.processors = dict(processors)
        self.tokenizer = tokenizer
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.batch_sizes = {
            modality: min(batch_size, len(own) // world_size * world_size) for modality, own in self.items.items()
        }

    def __getitem__(self, step: int) -> list[Batch]:
        """Returns this rank's batches of a step, one of each modality."""
        return [self._batch(modality, step) for modality in self.items]

    def epochs_ended(self, step: int) -> list[str]:
        """Returns a line for the log for every epoch that ends with a step."""
        del step
        return []

    def _batch(self, modality: str, step: int) -> Batch:
        items, processor = self.items[modality], self.processors[modality]
        batch_size = self.batch_sizes[modality]
        local = batch_size // self.world_size
        start = step * batch_size + self.rank * local
        samples, texts, keys, problems = [], [], [], []
        for position in range(start, start + local):
            epoch, index = sample_at(position, len(items), batch_size, self.seed, modality)
            for attempt in range(_ATTEMPTS):
                item = items[index]
                generator = torch.Generator().manual_seed(keyed_number(self.seed, epoch, modality, item.key) >> 1)
                try:
                    samples.append(processor.preprocess(processor.decode(item.file), True, generator))
                except UnreadableFileError as error:
                    problems.append(Problem(item.key, str(item.file), str(error), "train", modality))
                    index = keyed_number(self.seed, modality, position, attempt) % len(items)
                    continue
                keys.append(item.key)
                texts.append(item.texts[keyed_number(self.seed, epoch, modality, item.key, "text") % len(item.texts)])
                break
            else:
                raise ValueError(
                    f"{_ATTEMPTS} {modality} files in a row cannot be read; the last: {problems[-1].reason}"
                )
        ids, lengths = self.tokenizer(texts)
        return Batch(modality, processor.collate(samples), ids, lengths, tuple(keys), tuple(problems))


def training_batches(steps: Steps, first: int, last: int, num_workers: int) -> Iterable[list[Batch]]:
    """Yields the batches of the steps first, ..., last - 1, in order."""
    return DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, last),
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
    )


class Reader(Dataset):
    """Reads items for evaluation, one sample or one problem each. Nothing is replaced."""

    def __init__(self, items: Sequence[Item], processor: Processor):
        self.items, self.processor = tuple(items), processor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, dict[str, torch.Tensor] | Problem]:
        """Returns (item, its sample, or the problem with it)."""
        item = self.items[index]
        try:
            return item, self.processor.preprocess(self.processor.decode(item.file), False, torch.Generator())
        except UnreadableFileError as error:
            return item, Problem(item.key, str(item.file), str(error), modality=item.modality)


def evaluation_batches(
    items: Sequence[Item], processor: Processor, batch_size: int, num_workers: int = 0
) -> Iterator[tuple[list[Item], dict[str, torch.Tensor] | None, list[Problem]]]:
    """Yields (items that were read, their collated inputs or None if there is none, problems), in order."""
    loader = DataLoader(
        Reader(items, processor),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_one_thread,
    )
    for rows in loader:
        read = [(item, sample) for item, sample in rows if not isinstance(sample, Problem)]
        problems = [sample for _, sample in rows if isinstance(sample, Problem)]
        inputs = processor.collate([sample for _, sample in read]) if read else None
        yield [item for item, _ in read], inputs, problems


def usable_workers(requested: int | None, spare_cores: int) -> int:
    """Returns the number of data workers: what was asked for, or one for each spare core, at most 8."""
    return requested if requested is not None else max(0, min(spare_cores, 8))


def _one_thread(worker: int) -> None:
    """Keeps torch's threads of a worker from fighting those of the others."""
    del worker
    torch.set_num_threads(1)

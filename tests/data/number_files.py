"""Files of one number each, and processors that read them: the smallest data there can be."""

from pathlib import Path

import torch

from multicoca.data.loader import Steps
from multicoca.data.mixture import MixtureConfig
from multicoca.data.sample import Item
from multicoca.modality import UnreadableFileError
from multicoca.text.tokenizer import TextTokenizer


class Numbers:
    """Reads files that hold one number."""

    suffixes = (".num",)

    def decode(self, file, suffix=""):
        try:
            return float(file if isinstance(file, bytes) else file.read_text())
        except ValueError as error:
            raise UnreadableFileError("it holds no number") from error

    def preprocess(self, raw, train, generator):
        jitter = torch.rand((), generator=generator) if train else torch.zeros(())
        return {"x": torch.tensor(raw) + jitter / 10}

    def collate(self, samples):
        return {"x": torch.stack([sample["x"] for sample in samples])}

    def thumbnail(self, raw):
        raise NotImplementedError


class Letters(Numbers):
    """Another modality with another suffix."""

    suffixes = (".let",)


class Remembered(Numbers):
    """Reads nothing: a file's name is its number, and some are broken."""

    def __init__(self, broken=()):
        self.broken = frozenset(broken)

    def decode(self, file, suffix=""):
        if file.stem in self.broken:
            raise UnreadableFileError("it holds no number")
        return float(file.stem)


PROCESSORS = {"numbers": Numbers(), "letters": Letters()}
TOKENIZER = TextTokenizer.learn(["number 0 1 2 3 4 5 6 7 8 9"], 300, 8)


def listed(count: int, modality: str = "numbers") -> list[Item]:
    """Items without files, for `Remembered`."""
    return [Item(str(index), Path(f"{index}.num"), modality, (f"number {index}",)) for index in range(count)]


def steps_of(items, batch_size: int, broken=(), rank: int = 0, world_size: int = 1, **mixture) -> Steps:
    """Steps over items of one or, in a dict, several modalities."""
    items = items if isinstance(items, dict) else {"numbers": items}
    processors = {name: Remembered(broken) for name in items}
    return Steps(items, processors, TOKENIZER, batch_size, 1, rank, world_size, MixtureConfig(**mixture))

"""Batches from tar shards, by webdataset's own pipeline and by ours: the same tars, the same decoding, in turns.

python benchmarks/loader.py [ROUNDS]      needs webdataset; 0 to 2 data workers

4,096 pictures of 256 px in img2dataset's layout, 512 to a shard, in batches of 128. Decoding is that of training:
JPEG, random crop to 224 px, token ids. webdataset shuffles shards and, in a buffer, 1,000 samples, as is
usual with it; "resampled" draws shards with replacement, its maintainers' advice for many nodes. "bytes alone" decodes
nothing and so shows what reading costs by itself. "twice in a batch" counts pictures that a batch holds already.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from measuring import medians, print_about
from multicoca_image import ImageProcessor
from PIL import Image
from torch import Tensor

from multicoca.data.loader import Steps, training_batches
from multicoca.data.sample import Batch
from multicoca.data.webdataset import WebDataset
from multicoca.text.tokenizer import TextTokenizer

SHARDS, SAMPLES, BATCH, SIDE_PX, BUFFER = 8, 512, 128, 256, 1000
WORKERS = (0, 1, 2)
WORDS = ("a", "photo", "of", "one", "red", "blue", "cat", "dog", "house", "on", "the", "left", "right", "behind")


class Bytes:
    """A processor that decodes nothing."""

    suffixes = (".jpg",)

    def decode(self, file: bytes, suffix: str = "") -> int:
        """Returns the size."""
        return len(file)

    def preprocess(self, raw: int, train: bool, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns it as a tensor."""
        return {"size": torch.tensor(raw)}

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stacks the sizes."""
        return {"size": torch.stack([sample["size"] for sample in samples])}


def write_shards(folder: Path) -> None:
    """Writes the shards, with pictures that compress like photographs."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * SAMPLES, (shard + 1) * SAMPLES):
                coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture = np.asarray(coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC), np.int16)
                grain = rng.integers(-12, 13, picture.shape, dtype=np.int16)
                stream = io.BytesIO()
                Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
                caption, key = " ".join(rng.choice(WORDS, 10)), f"{number:09d}"
                about = {"key": key, "caption": caption, "width": SIDE_PX, "height": SIDE_PX, "status": "success"}
                texts = ((".txt", caption.encode()), (".json", json.dumps(about).encode()))
                for suffix, content in ((".jpg", stream.getvalue()), *texts):
                    header = tarfile.TarInfo(key + suffix)
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))


def ours(folder: Path, processor: Any, tokenizer: TextTokenizer, workers: int) -> Iterable[Batch]:
    """Returns an epoch of ours; the index is there."""
    items = WebDataset(str(folder), test_share=0.0).list_items({"image": processor}, 0).of("train")
    steps = Steps(items, {"image": processor}, tokenizer, BATCH, seed=0)
    return (batch for (batch,) in training_batches(steps, 0, SHARDS * SAMPLES // BATCH, workers))


def theirs(
    folder: Path, processor: Any, tokenizer: TextTokenizer, workers: int, resampled: bool = False
) -> Iterable[Batch]:
    """Returns an epoch of webdataset's."""

    def prepared(sample: dict[str, Any]) -> tuple[str, dict[str, Tensor], str]:
        raw = processor.decode(sample["jpg"], ".jpg")
        about = json.loads(sample["json"])
        generator = torch.Generator().manual_seed(torch.randint(2**62, ()).item())
        return about["key"], processor.preprocess(raw, True, generator), about["caption"]

    def joined(rows: list[tuple[str, dict[str, Tensor], str]]) -> Batch:
        keys, samples, texts = zip(*rows, strict=True)
        ids, lengths = tokenizer(list(texts))
        return Batch("image", processor.collate(samples), ids, lengths, keys)

    shards = sorted(map(str, folder.glob("*.tar")))
    drawing = {"resampled": True, "shardshuffle": False} if resampled else {"shardshuffle": len(shards)}
    data = webdataset.WebDataset(shards, empty_check=False, **drawing).shuffle(BUFFER)
    data = data.map(prepared).batched(BATCH, collation_fn=joined, partial=False)
    options = {"prefetch_factor": 2} if workers else {}
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=workers, **options)
    return islice(loader, SHARDS * SAMPLES // BATCH)


LOADERS = {"webdataset": theirs, "webdataset, resampled": partial(theirs, resampled=True), "ours": ours}


def main(rounds: int = 3) -> None:
    """Measures all and prints a table."""
    print_about()
    print(f"webdataset {webdataset.__version__}; {os.cpu_count()} cores\n")
    torch.set_num_threads(1)
    tokenizer = TextTokenizer.learn([" ".join(WORDS)], 1000, 32)
    with tempfile.TemporaryDirectory(prefix="loader_") as name:
        folder = Path(name)
        write_shards(folder)
        print("| decoding | workers | loader | samples/s | / webdataset | twice in a batch |")
        print("|---|---|---|---|---|---|")
        for what, processor in (("bytes alone", Bytes()), ("as in training", ImageProcessor(size_px=224))):
            for workers in WORKERS:
                seen: dict[str, list[tuple[str, ...]]] = {}

                def epoch(loader: str, processor: Any = processor, workers: int = workers, seen: Any = seen) -> None:
                    batches = LOADERS[loader](folder, processor, tokenizer, workers)
                    seen[loader] = [batch.keys for batch in batches]

                seconds = medians({loader: lambda loader=loader: epoch(loader) for loader in LOADERS}, rounds)
                rates = {loader: BATCH * len(seen[loader]) / own for loader, own in seconds.items()}
                for loader, batches in seen.items():
                    twice = sum(len(keys) - len(set(keys)) for keys in batches)
                    row = f"{rates[loader]:.0f} | {rates[loader] / rates['webdataset']:.2f} | {twice} |"
                    print(f"| {what} | {workers} | {loader} | {row}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

"""What `multicoca check` tries of training on the mesh: gradients, and a checkpoint in the folder of runs."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from multicoca.cli.check_ranks import Finding
from multicoca.data.sample import Batch
from multicoca.distributed.collectives import gather_objects, rank, rank_0_first, wait_for_all, world_size
from multicoca.distributed.parallelize import Engine, ParallelConfig, parallelize
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.terminal import printable
from multicoca.tokens import Tokens
from multicoca.train.checkpoint import Checkpoints, newest_step
from multicoca.train.step import LossConfig, accumulate_gradients

_CPU = torch.device("cpu")  # objects are gathered over gloo, which works where NCCL does not
_WORST_ERROR = 1e-4  # fp32 sums in another order differ by about 1e-6; a wrong factor by far more
_WIDTH, _VOCAB_SIZE, _PAIRS = 32, 97, 4  # of the small model; pairs of a rank in its batch
_BYTES_PER_TOKEN = 4 * 3 * 2 * _WIDTH  # fp32 and AdamW's two moments of it, in the embedding and in the head


class _Vectors(nn.Module):
    """An encoder from vectors to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.width = _WIDTH
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, _WIDTH), nn.GELU())])

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        return Tokens(self.blocks[0](inputs["vectors"]))


def small_coca(vocab_size: int = _VOCAB_SIZE, seed: int = 0) -> CoCa:
    """Returns a CoCa of a few narrow layers; its vocabulary decides about its size."""
    config = ModelConfig(
        width=_WIDTH, num_heads=2, mlp_width=64, unimodal_layers=2, multimodal_layers=2, embedding_width=16,
        num_queries=4, context_length=12,
    )  # fmt: skip
    torch.manual_seed(seed)  # of the encoder's weights; the generator is for those of the core
    return CoCa(config, {"vectors": _Vectors()}, vocab_size, torch.Generator().manual_seed(seed))


def pairs(ranks: Sequence[int]) -> Batch:
    """Returns the parts of some ranks of one batch, with texts of unequal length."""
    parts = []
    for number in ranks:
        generator = torch.Generator().manual_seed(number)
        vectors = torch.randn(_PAIRS, 5, 6, generator=generator)
        ids = torch.randint(3, _VOCAB_SIZE, (_PAIRS, 9), generator=generator)
        parts.append((vectors, ids, torch.randint(2, 10, (_PAIRS,), generator=generator)))
    vectors, ids, lengths = map(torch.cat, zip(*parts, strict=True))
    return Batch("vectors", {"vectors": vectors}, ids, lengths, ())


def gradients(engine: Engine, batch: Batch) -> dict[str, Tensor]:
    """Returns the whole gradients of a step, by parameter."""
    accumulate_gradients(engine, [batch], LossConfig())
    found = {name: parameter.grad for name, parameter in engine.model.named_parameters()}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def check_gradients(config: ParallelConfig, expected: Mapping[str, Tensor], device: torch.device) -> Finding:
    """Each rank's gradients of a step that all share are those of the whole batch in one process."""
    engine = parallelize(small_coca().to(device), config, device, uses_all=True)
    found = gradients(engine, pairs([rank()]))
    errors = [(found[name] - value).abs().max() / value.abs().max() for name, value in expected.items()]
    error = torch.stack(errors).max().item()
    worst = torch.tensor(gather_objects([error], _CPU)).max()
    problem = f"gradients are not those of one process with the whole batch; expected an error below {_WORST_ERROR:g}"
    return Finding(f"worst relative error {worst:.1e}", "" if error < _WORST_ERROR else problem)


def check_checkpoint(folder: Path, mib: int, config: ParallelConfig, device: torch.device) -> Finding:
    """A checkpoint of a model on the mesh is written and read by all ranks, and equal to the bit."""
    place = printable(folder.absolute())
    with _own_folder(folder) as own:
        sees = own.is_dir()
        if not all(gather_objects([sees], _CPU)):
            problem = (
                f"{place} is not shared: {socket.gethostname()} cannot see what rank 0 has written there; "
                "give --folder, and output= of the run, a folder that all machines share under one name"
            )
            return Finding("not tried", "" if sees else problem)
        vocab_size = max(_VOCAB_SIZE, mib * 2**20 // _BYTES_PER_TOKEN)
        saved, read = (_stepped(small_coca(vocab_size, seed), config, device) for seed in (0, 1))
        wait_for_all()
        started = time.perf_counter()
        checkpoints = Checkpoints(own, saved[0], [saved[1]])
        checkpoints.save(1, 0.0)
        checkpoints.finish()
        wait_for_all()
        write_s = time.perf_counter() - started
        sees = newest_step(own) == 1
        if not all(gather_objects([sees], _CPU)):
            return Finding("not read", "" if sees else f"cannot see the checkpoint that is in {place}")
        size = sum(path.stat().st_size for path in own.rglob("*") if path.is_file()) / 1e6
        wait_for_all()
        started = time.perf_counter()
        Checkpoints(own, read[0], [read[1]]).load_latest()
        wait_for_all()
        read_s = time.perf_counter() - started
    numbers = f"{size:.0f} MB in {place}: written in {write_s:.1f} s ({size / write_s:.0f} MB/s), "
    numbers += f"read in {read_s:.1f} s ({size / read_s:.0f} MB/s)"
    is_same = all(map(torch.equal, _shards(*saved), _shards(*read)))
    return Finding(numbers, "" if is_same else "it has read other values than were written")


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """Context with a new folder that rank 0 makes in one, and at the end removes, with that one if it was not there."""
    name, is_new = "", False
    with rank_0_first():
        if rank() == 0:
            is_new = not folder.exists()
            folder.mkdir(exist_ok=True)
            name = Path(tempfile.mkdtemp(prefix="check_", dir=folder)).name
    (name,) = gather_objects([name] if rank() == 0 else [], _CPU)
    try:
        yield folder / name
        wait_for_all()
    finally:
        if rank() == 0:
            shutil.rmtree(folder / name, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # somebody else has written there, too
                    folder.rmdir()


def _stepped(model: CoCa, config: ParallelConfig, device: torch.device) -> tuple[CoCa, torch.optim.Optimizer]:
    """Returns a model on the mesh with an optimizer that has a state."""
    parallelize(model.to(device), config if world_size() > 1 else ParallelConfig(), device)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return model, optimizer


def _shards(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns this rank's part of all parameters and of the optimizer's state."""
    moments = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    values = [*model.state_dict().values(), *moments]
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]

"""The checks of `gpu.py`: a GPU must compute what the CPU does, and every fast way what the plain one does.

Each check returns its figures, or raises AssertionError with those that are out of bounds. Deviations are relative to
the largest value of what is compared.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import steps
import torch
import torch.distributed as dist
import torch.nn.functional as F
from multicoca_points.grouping import farthest_point_sample, nearest_neighbors
from torch import Tensor, nn
from torch._dynamo.utils import counters

from multicoca.cli.compose import compose_config
from multicoca.data.sample import Batch
from multicoca.distributed.parallelize import Engine, ParallelConfig, parallelize
from multicoca.model.bundle import Bundle
from multicoca.model.generate import DecodingConfig, generate
from multicoca.nn.contrastive import summed_contrastive, summed_sigmoid
from multicoca.nn.cross_entropy import NO_TARGET, summed_cross_entropy
from multicoca.nn.precision import exact_products
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.checkpoint import Checkpoints
from multicoca.train.optim import Average, OptimConfig, build_optimizers
from multicoca.train.precision import deterministic
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

PAIRS = 16  # of each modality
OUTPUTS, GRADIENTS, ROUNDED = 1e-5, 1e-4, 3e-2  # the bounds in fp32, of gradients, and in bf16
Gradients = dict[str, Tensor]


def run_checks(device: str) -> bool:
    """Prints a line for each check as it ends; returns whether all hold. An error of one does not stop the others."""
    print("| correctness | | |\n|---|---|---|", flush=True)
    holds = True
    for name, check in CHECKS.items():
        torch.compiler.reset()
        try:
            with exact_products():
                said, verdict = check(torch.device(device)), "ok"
        except Exception as error:  # whatever is wrong is said, and the next check runs
            said, verdict, holds = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "WRONG", False
        print(f"| {name} | {verdict} | {said} |", flush=True)
    print(flush=True)
    return holds


def check_outputs(device: torch.device) -> str:
    """Embeddings, contexts and caption logits of each modality in fp32 are those of fp64 on the CPU."""
    bundle, batches = joint()
    plain, own = copy.deepcopy(bundle.network).double().eval(), copy.deepcopy(bundle.network).to(device).eval()
    found = {}
    for batch in batches:
        wide, here = doubled(batch), batch.to(device)
        with torch.no_grad():
            pairs = zip((*outputs_of(own, here),), (*outputs_of(plain, wide),), strict=True)
            found[batch.modality] = max(deviation(got, expected) for got, expected in pairs)
    return bounded(found, OUTPUTS)


def check_gradients(device: torch.device) -> str:
    """Gradients of a joint step in fp32 are those of fp64 on the CPU."""
    bundle, batches = joint()
    expected = gradients(copy.deepcopy(bundle.network).double(), [doubled(batch) for batch in batches])
    return bounded({"worst": worst(gradients(on(bundle, device), batches), expected)}, GRADIENTS)


def check_contrastive(device: torch.device) -> str:
    """Both contrastive losses and their gradients are those of naive fp64, in tiles that do and do not fit."""
    found = {}
    for pairs, rows in ((97, 97), (97, 10), (64, 16), (300, None)):
        values = [F.normalize(torch.randn(pairs, 32, dtype=torch.float64), dim=1) for _ in range(2)]
        values += [torch.tensor([20.0], dtype=torch.float64), torch.tensor([-5.0], dtype=torch.float64)]
        more = {} if rows is None else {"tile_elements": rows * pairs}
        for name, count, naive, tiled in (
            ("softmax", 3, naive_softmax, lambda s, t, x: summed_contrastive(s, t, s, t, x, **more)),  # noqa: B023
            ("sigmoid", 4, naive_sigmoid, lambda s, t, x, b: summed_sigmoid(s, t, x, b, **more)),  # noqa: B023
        ):
            expected = loss_and_gradients(naive, values[:count])
            got = loss_and_gradients(tiled, [value.float().to(device) for value in values[:count]])
            own = max(deviation(one, other) for one, other in zip(got, expected, strict=True))
            found[name] = max(found.get(name, 0.0), own)
    return bounded(found, OUTPUTS)


def check_caption_loss(device: torch.device) -> str:
    """The captioning loss and its gradients are those of naive fp64, in chunks that do and do not fit, and in bf16."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(101, 64, dtype=torch.float64), torch.randn(997, 64, dtype=torch.float64) / 8
    targets = torch.randint(0, 997, (101,))
    targets[::7] = NO_TARGET
    found = {}
    narrow = torch.bfloat16
    cases = [("fp32", rows, None) for rows in (101, 10, None)] + [("bf16", rows, narrow) for rows in (10, None)]
    for name, rows, dtype in cases:
        used = [value if dtype is None else value.to(dtype).double() for value in (hidden, weight)]
        expected = loss_and_gradients(lambda h, w: F.cross_entropy(h @ w.T, targets, reduction="sum"), used)
        elements = None if rows is None else rows * 997

        def chunked(h: Tensor, w: Tensor, elements: int | None = elements, dtype: torch.dtype | None = dtype) -> Tensor:
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                return summed_cross_entropy(h, w, targets.to(device), chunk_elements=elements)[0]

        got = loss_and_gradients(chunked, [value.float().to(device) for value in used])
        own = max(deviation(one, other) for one, other in zip(got, expected, strict=True))
        found[name] = max(found.get(name, 0.0), own)
    return bounded(found, {"fp32": OUTPUTS, "bf16": ROUNDED})


def check_micro_batches(device: torch.device) -> str:
    """A batch in four micro-batches has the gradients of the whole, plainly and compiled."""
    bundle, batches = joint()
    parts = [part for batch in batches for part in quarters(batch)]
    found = {}
    for name, parallel in (("eager", ParallelConfig()), ("compiled", ParallelConfig(compile=True))):
        whole = gradients(on(bundle, device), batches, parallel)
        found[name] = worst(gradients(on(bundle, device), parts, parallel), whole)
    return bounded(found, GRADIENTS)


def check_dropout(device: torch.device) -> str:
    """The pass without gradients and the one with them drop the same, plainly and compiled."""
    bundle, (batch, *_) = joint(["modalities.image.encoder.timm_options.proj_drop_rate=0.2"])
    batch, found = batch.to(device), {}
    for name, parallel in (("eager", ParallelConfig()), ("compiled", ParallelConfig(compile=True))):
        engine = parallelize(on(bundle, device).train(), parallel, device)
        embedded = {}
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.no_grad():
                embedded[seed] = engine.model.embed_pairs(batch.modality, batch.inputs, batch.ids, batch.lengths).source
        torch.manual_seed(1)
        again = engine.forward(batch.modality, batch.inputs, batch.ids, batch.lengths).source
        assert deviation(embedded[2], embedded[1]) > 1e-3, f"{name}: nothing is dropped"
        found[name] = deviation(again, embedded[1])
    return bounded(found, OUTPUTS)


def check_compiled(device: torch.device) -> str:
    """Compiled blocks give the gradients of plain ones at three lengths of text, without graph breaks."""
    bundle, batches = joint()
    plain, compiled = (
        parallelize(on(bundle, device).train(), ParallelConfig(compile=c), device) for c in (False, True)
    )
    counters.clear()
    found, graphs = {}, []
    for length in (0, 2, 5):
        longer = [replace(batch, ids=F.pad(batch.ids, (0, length))) for batch in batches]
        found[f"+{length}"] = worst(*(gradients_of(engine, longer) for engine in (compiled, plain)))
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"], f"graph breaks: {dict(counters['graph_break'])}"
    return f"{bounded(found, GRADIENTS)}; 0 graph breaks; graphs after each length: {', '.join(map(str, graphs))}"


def check_checkpointed(device: torch.device) -> str:
    """Activation checkpointing changes no gradient."""
    bundle, batches = joint()
    plain = gradients(on(bundle, device), batches)
    again = gradients(on(bundle, device), batches, ParallelConfig(checkpoint_activations=True))
    return bounded({"worst": worst(again, plain)}, OUTPUTS)


def check_points(device: torch.device) -> str:
    """Farthest points and nearest neighbours are those of the CPU, padding and equal points included."""
    generator = torch.Generator().manual_seed(0)
    for points, num, k in ((1, 1, 1), (1000, 64, 16), (5001, 128, 32), (9000, 200, 8)):
        xyz = torch.randn(3, points, 3, generator=generator)
        xyz[1, points // 2 :] = xyz[1, : points - points // 2].clone()
        mask = torch.arange(points) < torch.tensor([points, points, max(1, points // 3)])[:, None]
        here = (xyz.to(device), mask.to(device))
        chosen, new = farthest_point_sample(xyz, num, mask)
        got, got_new = (value.cpu() for value in farthest_point_sample(here[0], num, here[1]))
        assert torch.equal(got, chosen), f"of {points} points others are farthest"
        assert torch.equal(got_new, new), f"of {points} points others are new"
        centers = xyz.gather(1, chosen[..., None].expand(-1, -1, 3))
        near = nearest_neighbors(centers, xyz, k, mask)
        found = nearest_neighbors(centers.to(device), here[0], k, here[1]).cpu()
        assert torch.equal(found, near), f"of {points} points others are nearest"
    return "the same indices for 1 to 9000 points"


def check_decoding(device: torch.device) -> str:
    """Greedy, beam and sampled captions are those of the CPU, item by item as in a batch of 64."""
    bundle, batches = joint(pairs=64)
    network = copy.deepcopy(bundle.network).eval()
    network.heads["image"].caption_head.weight.data *= 8
    tokens = bundle.tokenizer
    for decoding in (
        DecodingConfig(),
        DecodingConfig("beam", captions=2, num_beams=3),
        DecodingConfig("sample", captions=2),
    ):
        ids = {}
        for name, place, size in (("cpu", torch.device("cpu"), 64), ("whole", device, 64), ("single", device, 1)):
            own, batch = copy.deepcopy(network).to(place), batches[0].to(place)
            with torch.no_grad():
                rows = []
                for start in range(0, 64 if size == 64 else 8, size):
                    inputs = {key: value[start : start + size] for key, value in batch.inputs.items()}
                    context = own.encode("image", inputs)[0]
                    made = generate(
                        own, "image", context, tokens.begin_id, tokens.end_id, decoding, tokens.never_written
                    )
                    rows += [texts.tolist() for texts in made.ids.cpu()]
            ids[name] = [[strip(text, tokens.end_id) for text in texts] for texts in rows]
        assert ids["whole"] == ids["cpu"], f"{decoding.strategy}: the GPU writes other captions"
        assert ids["single"] == ids["whole"][:8], f"{decoding.strategy}: an item alone has another caption"
    return "greedy, beam, sample"


def check_resume(device: torch.device) -> str:
    """Three steps, a checkpoint and three more are six steps, beside what two equal runs differ by."""
    bundle, batches = joint()
    found = {}
    for name, bound in (("free", False), ("deterministic", True)):
        with deterministic(bound), tempfile.TemporaryDirectory() as folder:
            one, other = (trained(on(bundle, device), batches, range(6)) for _ in range(2))
            noise = worst(one, other)
            half = Path(folder)
            trained(on(bundle, device), batches, range(3), half)
            resumed = trained(on(bundle, device), batches, range(3, 6), half)
            found[name] = worst(resumed, one)
        limit = 0.0 if bound or device.type == "cpu" else 10 * noise
        assert found[name] <= limit, f"{name}: resumed differs by {found[name]:.1e}, two equal runs by {noise:.1e}"
        found[f"{name}, two equal runs"] = noise
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())


def check_waits(device: torch.device) -> str:
    """In a steady step the CPU never waits for the GPU."""
    if device.type != "cuda":
        return "only on a GPU"
    bundle, batches = joint()
    batches = [batch.pin_memory() for batch in batches]
    network = on(bundle, device).train()
    engine, optim = parallelize(network, ParallelConfig(), device), OptimConfig(ema_decay=0.9, muon_lr=0.02)
    optimizers, average = build_optimizers(network, optim), Average(network, 0.9)
    for step in range(4):
        torch.cuda.set_sync_debug_mode("warn" if step == 3 else "default")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            accumulate_gradients(engine, batches, LossConfig(), torch.bfloat16, (step,))
            _, used = optimizer_step(list(network.parameters()), optimizers, [1e-4, 1e-4], 1.0)
            average.update(step, used)
    torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(each.filename).name}:{each.lineno}" for each in seen if "synchroniz" in str(each.message)]
    assert not waits, f"{len(waits)} waits: {', '.join(sorted(set(waits)))}"
    return "0 waits, with Muon and an average"


def check_shards(device: torch.device) -> str:
    """A model in shards, in bf16 on a GPU, is used outside of autocast as the whole one within."""
    bundle, batches = joint()
    batch = batches[0].to(device)
    whole = on(bundle, device).eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        expected = whole.encode(batch.modality, batch.inputs)[1]
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = on(bundle, device)
        parallelize(sharded, ParallelConfig("fsdp", bf16_parameters=True), device, torch.bfloat16)
        with torch.no_grad():
            got = sharded.eval().encode(batch.modality, batch.inputs)[1]
    finally:
        dist.destroy_process_group()
    return bounded({"embeddings": deviation(got, expected)}, ROUNDED if device.type == "cuda" else OUTPUTS)


CHECKS: Mapping[str, Callable[[torch.device], str]] = {
    "outputs, fp32 against fp64 on the CPU": check_outputs,
    "gradients, fp32 against fp64 on the CPU": check_gradients,
    "contrastive losses against naive fp64": check_contrastive,
    "captioning loss against naive fp64": check_caption_loss,
    "four micro-batches against one batch": check_micro_batches,
    "dropout replayed": check_dropout,
    "compiled against plain": check_compiled,
    "checkpointed against plain": check_checkpointed,
    "farthest points and neighbours against the CPU": check_points,
    "captions against the CPU": check_decoding,
    "3 steps + resume + 3 steps against 6": check_resume,
    "waits for the GPU in a step": check_waits,
    "shards against the whole": check_shards,
}


def joint(changes: Sequence[str] = (), pairs: int = PAIRS) -> tuple[Bundle, list[Batch]]:
    """Returns a small untrained model of three modalities on the CPU, and a batch of each."""
    config = compose_config("train_shapes", ["modality=[image,video,points]", *changes])
    texts = steps.captions({"depth", "motion"}, 500)
    tokenizer = TextTokenizer.learn(texts, config.text.vocab_size, config.model.context_length)
    bundle = build_bundle(config.spec, tokenizer)
    return bundle, [steps.shapes_batch(modality, bundle, config, pairs) for modality in bundle.processors]


def on(bundle: Bundle, device: torch.device) -> nn.Module:
    """Returns a copy of the model on a device."""
    return copy.deepcopy(bundle.network).to(device)


def outputs_of(network: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Returns (context, embedding, caption logits) of a batch."""
    context, embedding = network.encode(batch.modality, batch.inputs)
    logits, _ = network.caption_logits(batch.modality, batch.inputs, batch.ids, batch.lengths)
    return context.values, embedding, logits


def gradients(network: nn.Module, batches: Sequence[Batch], parallel: ParallelConfig | None = None) -> Gradients:
    """Returns a step's gradients by parameter, of a model that has none yet."""
    device = next(network.parameters()).device
    return gradients_of(parallelize(network.train(), parallel or ParallelConfig(), device), batches)


def gradients_of(engine: Engine, batches: Sequence[Batch]) -> Gradients:
    """Returns a step's gradients by parameter and clears them."""
    accumulate_gradients(engine, batches, LossConfig())
    found = {name: value.grad.clone() for name, value in engine.model.named_parameters() if value.grad is not None}
    engine.model.zero_grad(set_to_none=True)
    return found


def trained(
    network: nn.Module, batches: Sequence[Batch], numbers: range, folder: Path | None = None
) -> dict[str, Tensor]:
    """Takes some steps, from the checkpoint in a folder if it has one, and writes one there; returns the weights."""
    engine = parallelize(network.train(), ParallelConfig(), next(network.parameters()).device)
    optimizers = build_optimizers(network, OptimConfig(lr=1e-3, muon_lr=0.02))
    checkpoints = None if folder is None else Checkpoints(folder, network, optimizers)
    if checkpoints is not None:
        checkpoints.load_latest()
    for step in numbers:
        accumulate_gradients(engine, batches, LossConfig(), key=(step,))
        optimizer_step(list(network.parameters()), optimizers, [1e-3, 0.02], 1.0)
    if checkpoints is not None:
        checkpoints.save(numbers[-1] + 1, 0.0)
        checkpoints.finish()
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def quarters(batch: Batch) -> Iterator[Batch]:
    """Yields four micro-batches of a batch."""
    size = len(batch.ids) // 4
    for start in range(0, len(batch.ids), size):
        rows = slice(start, start + size)
        inputs = {name: value[rows] for name, value in batch.inputs.items()}
        yield replace(batch, inputs=inputs, ids=batch.ids[rows], lengths=batch.lengths[rows])


def doubled(batch: Batch) -> Batch:
    """Returns a batch with its floating inputs in fp64."""
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs)


def strip(ids: Sequence[int], end: int) -> list[int]:
    """Returns a text up to its end."""
    return ids[: ids.index(end)] if end in ids else list(ids)


def naive_softmax(source: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """The softmax loss by the whole matrix, summed over both directions."""
    logits, own = scale * source @ text.T, torch.arange(len(source), device=source.device)
    return sum(F.cross_entropy(each, own, reduction="sum") for each in (logits, logits.T))


def naive_sigmoid(source: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid loss by the whole matrix, summed."""
    signs = 2 * torch.eye(len(source), dtype=source.dtype, device=source.device) - 1
    return -F.logsigmoid(signs * (scale * source @ text.T + bias)).sum()


def loss_and_gradients(loss_of: Callable[..., Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns a loss and its gradients by all of its arguments."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    loss = loss_of(*leaves)
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


def deviation(got: Tensor, expected: Tensor) -> float:
    """Returns the largest difference relative to the largest value."""
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def worst(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Returns the largest deviation of any entry; those that are zero but for rounding count by the largest of all."""
    assert got.keys() == expected.keys(), f"other parameters have gradients: {sorted(got.keys() ^ expected.keys())[:3]}"
    largest = max(float(value.abs().max()) for value in expected.values())
    found = 0.0
    for name, value in expected.items():
        difference = (got[name].double().cpu() - value.double().cpu()).abs().max()
        found = max(found, float(difference / max(float(value.abs().max()), 1e-3 * largest)))
    return found


def bounded(found: Mapping[str, float], limit: float | Mapping[str, float]) -> str:
    """Returns deviations as text.

    Raises:
        AssertionError: one is above its limit, or not a number.
    """
    said = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    for name, value in found.items():
        own = limit if isinstance(limit, float) else limit[name]
        assert value <= own, f"{said}; {name} is above {own:.0e}"  # a NaN is not below
    return said

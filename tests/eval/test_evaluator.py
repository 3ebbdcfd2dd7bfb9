"""Evaluation on items that break in every way: each is one problem, named, and the others are evaluated."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from multicoca.data.sample import Item
from multicoca.eval.evaluator import EvaluationConfig, answer, evaluate_modality
from multicoca.model.bundle import Bundle, Caption
from multicoca.model.coca import CoCa
from multicoca.text.tokenizer import TextTokenizer
from multicoca.tokens import Tokens

TOKENIZER = TextTokenizer.learn(["a number"], 300, 8)
CONFIG = EvaluationConfig(gallery=4, draws=2, meteor=False, batch_size=4)


class Broken:
    """Reads the number in a file's name; what breaks, and how, is given by name."""

    suffixes = (".num",)

    def __init__(self, broken: dict):
        self.broken = broken

    def decode(self, file, suffix=""):
        error = self.broken.get(file.stem)
        if isinstance(error, BaseException):
            raise error
        return float(self.broken.get(file.stem, file.stem))

    def preprocess(self, raw, train, generator):
        return {"x": torch.tensor([raw, 1.0])}

    def collate(self, samples):
        return {"x": torch.stack([sample["x"] for sample in samples])}

    def thumbnail(self, raw):
        raise NotImplementedError


class Squares(Bundle):
    """A model whose encoding of a number is its square, which overflows above 1e19."""

    def encode(self, modality, inputs):
        values = inputs["x"] * inputs["x"]
        return Tokens(values[:, None]), functional.normalize(values, dim=-1)

    def write(self, modality, context, embeddings, decoding=None):
        assert context.values.isfinite().all()
        return [(Caption("a number", 0.0, ()),) for _ in embeddings]

    def embed_text(self, texts, batch_size=1):
        return functional.normalize(torch.ones(len(texts), 2).cumsum(0), dim=-1)


def bundle(broken: dict) -> Squares:
    network = CoCa.__new__(CoCa)
    torch.nn.Module.__init__(network)
    network.config = SimpleNamespace(embedding_width=2)
    return Squares(network, TOKENIZER, {"numbers": Broken(broken)})


def items(tmp_path, count: int = 9) -> list[Item]:
    return [Item(str(n), tmp_path / f"{n}.num", "numbers", (f"number {n}",), str(n % 2)) for n in range(count)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (RuntimeError("CUDA says no"), "RuntimeError: CUDA says no"),
        (KeyError("x"), "KeyError: 'x'"),
        (float("nan"), "1 of the 2 numbers of its 'x' are NaN or infinite"),
        (float("inf"), "1 of the 2 numbers of its 'x' are NaN or infinite"),
        (3e38, "the model's encoding of it is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("broken", [("3",), ("0", "8"), ("4", "5", "6", "7"), tuple(map(str, range(9)))])
def test_an_item_that_breaks_is_one_problem_and_the_others_are_evaluated(tmp_path, value, reason, broken):
    model = bundle(dict.fromkeys(broken, value))
    found = answer(model, "numbers", items(tmp_path), CONFIG.batch_size)
    assert [(p.key, p.file, p.reason) for p in found.problems] == [
        (key, str(tmp_path / f"{key}.num"), reason) for key in broken
    ]
    assert [item.key for item in found.items] == [str(n) for n in range(9) if str(n) not in broken]
    assert len(found.embeddings) == len(found.captions) == 9 - len(broken)
    result = evaluate_modality(model, found, 9, CONFIG, 0)
    assert (result["used"], result["listed"]) == (9 - len(broken), 9)
    assert ("retrieval" in result) == (len(broken) < 9)

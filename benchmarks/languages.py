"""One small model for each language: captions of coloured shapes whose words were never seen together.

The pictures, the number of steps and the model's size are the same for all languages; only the captions differ. A
quarter of the combinations of size, colour, shape and place occur in the test pictures alone, so no test caption is a
training caption, but each pair of words is in one: python benchmarks/languages.py [--seeds 0 1 2] [--steps 240]
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from measuring import print_about
from PIL import Image, ImageDraw

from multicoca.build import build_processors
from multicoca.cli.compose import compose_config
from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps
from multicoca.data.order import keyed_number
from multicoca.data.sources import Folder
from multicoca.eval.captioning import caption_metrics
from multicoca.eval.evaluator import answer
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.loop import train

SIZE_PX = 64
RADII = {"small": 6, "medium": 10, "large": 15}
COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 50),
          "purple": (150, 60, 180), "white": (245, 245, 245)}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"left": (17, 32), "right": (47, 32), "top": (32, 17), "bottom": (32, 47)}


@dataclass(frozen=True)
class Language:
    """How a language says it.

    Attributes:
        form: a caption with {size}, {color}, {shape} and {place}.
        words: the words for them, in the order of the tables above.
    """

    name: str
    form: str
    words: str

    def caption(self, size: str, color: str, shape: str, place: str) -> str:
        """Returns the caption of a picture."""
        names = dict(zip([*RADII, *COLORS, *SHAPES, *PLACES], self.words.split(), strict=True))
        return self.form.format(size=names[size], color=names[color], shape=names[shape], place=names[place])


LANGUAGES = {
    "en": Language(
        "English",
        "a {size} {color} {shape} on the {place}",
        "small medium large red green blue yellow purple white circle square triangle cross left right top bottom",
    ),
    "zh": Language(
        "Chinese",
        "{place}有一个{size}的{color}{shape}",
        "小 中等 大 红色 绿色 蓝色 黄色 紫色 白色 圆形 正方形 三角形 十字形 左边 右边 上面 下面",
    ),
    "ko": Language(
        "Korean",
        "{place}에 있는 {size} {color} {shape}",
        "작은 중간 큰 빨간색 초록색 파란색 노란색 보라색 하얀색 원 정사각형 삼각형 십자가 왼쪽 오른쪽 위쪽 아래쪽",
    ),
    "ja": Language(
        "Japanese",
        "{place}にある{size}{color}{shape}",
        "小さな 中くらいの 大きな 赤い 緑色の 青い 黄色い 紫色の 白い 円 正方形 三角形 十字 左 右 上 下",
    ),
    "th": Language(
        "Thai",
        "{shape}{color}{size}อยู่{place}",
        "ขนาดเล็ก ขนาดกลาง ขนาดใหญ่ สีแดง สีเขียว สีน้ำเงิน สีเหลือง สีม่วง สีขาว "
        "วงกลม สี่เหลี่ยม สามเหลี่ยม กากบาท ทางซ้าย ทางขวา ด้านบน ด้านล่าง",
    ),
}


def main() -> None:
    """Trains a model for each language and seed, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=["en", "zh", "ko"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=240)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_about()
    print("| language | seed | exactly right | BLEU-4 | tokens of a caption | seconds |\n|---|---|---|---|---|---|")
    for seed, language in itertools.product(options.seeds, options.languages):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            scores = train_language(Path(folder), LANGUAGES[language], seed, options.steps)
        cells = (f"{scores['exact_match']:.3f}", f"{scores['bleu4']:.3f}", f"{scores['tokens']:.1f}")
        seconds = time.perf_counter() - start
        print(f"| {LANGUAGES[language].name} | {seed} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def train_language(folder: Path, language: Language, seed: int, steps: int) -> dict[str, float]:
    """Trains a model on the pictures and scores its captions of the held-out combinations.

    Returns:
        The scores of `caption_metrics` and "tokens", the mean number of tokens of a test caption.
    """
    write_pictures(folder / "pictures", language)
    config = compose_config("train_shapes", ["modality=[image]", f"seed={seed}", "data.batch_size=64"])
    processors = build_processors(config.modalities)
    listing = Folder(folder / "pictures").list_items(processors, seed)
    items = {split: listing.of(split)["image"] for split in ("train", "test")}
    texts = (text for item in items["train"] for text in item.texts)
    tokenizer = TextTokenizer.learn(texts, config.text.vocab_size, config.model.context_length)
    bundle = build_bundle(config.spec, tokenizer)
    ledger = Ledger(folder / "ledger.jsonl")
    outcome = train(
        bundle.network,
        Steps({"image": items["train"]}, bundle.processors, tokenizer, config.data.batch_size, seed),
        folder,
        replace(config.train, steps=steps, evaluate_every=0, checkpoint_every=steps, precision="fp32"),
        config.optim,
        config.loss,
        ledger,
        BrokenShare(listing.listed["train"], 0.0, ledger.file),
    )
    if outcome.signal_number is not None:
        raise SystemExit(128 + outcome.signal_number)
    bundle.network.eval()
    answers = answer(bundle, "image", items["test"], batch_size=64)
    references = [item.texts for item in answers.items]
    _, lengths = tokenizer([texts[0] for texts in references])
    return caption_metrics(answers.captions, references) | {"tokens": float(lengths.float().mean()) - 2}


def write_pictures(folder: Path, language: Language, copies: int = 4) -> None:
    """Writes pictures of all combinations, `copies` of each, with their captions in metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    tables = [*map(enumerate, (RADII, COLORS, SHAPES, PLACES)), [(0, copy) for copy in range(copies)]]
    for combination in itertools.product(*tables):
        numbers, (size, color, shape, place, copy) = zip(*combination, strict=True)
        name = f"{size}_{color}_{shape}_{place}_{copy}.png"
        _picture(size, color, shape, place, copy).save(folder / name)
        text = language.caption(size, color, shape, place)
        split = "test" if sum(numbers) % len(SHAPES) == 0 else "train"
        lines.append(json.dumps({"file_name": name, "text": text, "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _picture(size: str, color: str, shape: str, place: str, copy: int) -> Image.Image:
    """Draws a shape a few pixels beside its place."""
    x, y = (at + keyed_number(size, color, shape, place, copy, axis) % 5 - 2 for axis, at in enumerate(PLACES[place]))
    radius, third = RADII[size], RADII[size] / 3
    image = Image.new("RGB", (SIZE_PX, SIZE_PX), (70, 70, 70))
    draw, fill = ImageDraw.Draw(image), COLORS[color]
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    else:
        draw.rectangle((x - radius, y - third, x + radius, y + third), fill=fill)
        draw.rectangle((x - third, y - radius, x + third, y + radius), fill=fill)
    return image


if __name__ == "__main__":
    main()

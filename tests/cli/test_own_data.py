"""Your own table through the real commands: its columns, splits and labels end where they should, and all is said."""

import json
from pathlib import Path

import pytest
from command import multicoca

from multicoca.build import build_processors
from multicoca.cli.compose import compose_config
from multicoca.cli.data import run_data
from multicoca.data.shapes.scene import draw_scene
from multicoca.data.sources import Folder
from multicoca.data.together import Together
from multicoca.data.webdataset import WebDataset
from multicoca.eval.shapes import scene_judge

PROCESSORS = build_processors(compose_config("train_shapes", ["modality=[image]"]).modalities)
CASES = Path(__file__).parent.parent / "cases"


def pictures(folder: Path, count: int = 24) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(PROCESSORS["image"].render(draw_scene(0, "train", number)))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Pictures with a table as people write it: only train and validation, some rows with labels alone."""
    folder = pictures(tmp_path_factory.mktemp("own") / "own")
    kinds = [("train", "a picture", "")] * 10 + [("Train", "", "cube")] * 2 + [(" Val ", "a thing", "cube")] * 4
    kinds += [("dev", "", "ball")] * 3 + [("holdout", "a picture", "")] * 2
    rows = [
        f"{number:03d}.jpg,{text and f'{text} of number {number}'},{label},{split},kitchen"
        for number, (split, text, label) in enumerate(kinds)
    ]
    (folder / "metadata.csv").write_text("\n".join(["\ufeffImage,Caption,Label,Split,scene", *rows]), "utf-8")
    return folder


def test_a_run_says_what_it_leaves_aside_and_evaluates_each_figure_on_what_has_it(own):
    output = multicoca(
        own.parent, "train", "data=folder", f"data.root={own}", "modality=[image]", "name=own", "train.steps=2",
        "model=tiny", "data.batch_size=8", "train.precision=fp32", "train.cpu_processes=1", "train.evaluate_every=1",
        "evaluation.gallery=8", "evaluation.draws=2",
    )  # fmt: skip
    assert "training items: 10 image; validation items: 7 image" in output
    assert "2 image items of the split train have labels but no captions; no objective of this version uses" in output
    assert "the split 'holdout' is not used: 2 image items" in output
    assert "evaluated on the split validation for image, which has no test split" in output
    results = json.loads((own.parent / "runs" / "own" / "results.json").read_text())
    found = results["modalities"]["image"]
    assert results["protocol"]["split"] == "validation for image, which has no test split"
    assert (found["split"], found["used"], found["listed"]) == ("validation", 7, 7)
    for figure, used in (("retrieval", 4), ("captioning", 4)):
        assert (found[figure]["used"], found[figure]["listed"]) == (used, 7)
    assert set(found["zero_shot"]) == {"label"}
    label = found["zero_shot"]["label"]
    assert (label["used"], label["listed"], label["chance"]) == (7, 7, 0.5)
    assert results["broken_items"] == 0
    report = (own.parent / "runs" / "own" / "report.html").read_text("utf-8")
    assert "Only 4 of the 7 items have captions; finding and writing captions use these alone." in report
    assert "validation for image, which has no test split" in report


def test_a_modality_with_labels_alone_is_refused_with_the_reason(tmp_path):
    folder = pictures(tmp_path / "labels", 8)
    rows = [json.dumps({"image": f"{number:03d}.jpg", "label": "cube", "split": "train"}) for number in range(8)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    output = multicoca(
        tmp_path, "train", "data=folder", "model=tiny", f"data.root={folder}", "modality=[image]", status=2
    )
    assert "the 8 image items of the split train have labels but no captions; no objective of this version" in output


def test_verify_names_the_lines_of_a_table(tmp_path, capsys):
    folder = pictures(tmp_path / "own")
    (folder / "metadata.csv").write_bytes((CASES / "meta_csv_comma.csv").read_bytes())
    status = run_data(["verify", "data=folder", f"data.root={folder}", "modality=[image]", "--workers", "0"])
    shown = capsys.readouterr().out
    assert status == 1
    assert "24 broken: the row has ... columns, the header ...; put the caption into double quotes" in shown
    assert "(metadata.csv, line 2)" in shown
    (folder / "metadata.csv").write_bytes((CASES / "meta_csv_list_literal.csv").read_bytes())
    assert run_data(["verify", "data=folder", f"data.root={folder}", "modality=[image]", "--workers", "0"]) == 0
    assert "captions: 48; least/median/most: of an item 2/2/2" in capsys.readouterr().out


def test_a_column_called_scene_is_no_scene_of_the_shapes_world(own):
    items = Folder(own).list_items(PROCESSORS, 0).of("train")["image"]
    assert items[0].extra == {"scene": "kitchen"}
    for value in ("kitchen", [1, "train", 2], ["multicoca.shapes"], None, {"a": 1}):
        changed = type(items[0])("k", items[0].file, "image", ("a",), None, {"scene": value})
        assert scene_judge((changed,), PROCESSORS["image"]) is None


def test_items_without_captions_go_through_shards_and_several_sources(own, capsys):
    folder = own.parent / "shards"
    assert run_data(["shard", str(folder), "data=folder", f"data.root={own}", "modality=[image]"]) == 0
    before, after = (source.list_items(PROCESSORS, 0) for source in (Folder(own), WebDataset(str(folder))))
    together = Together({"a": Folder(own), "b": WebDataset(str(folder))}).list_items(PROCESSORS, 0)
    assert after.problems == together.problems == []
    for split in ("train", "validation", "holdout"):
        items = [(item.key, item.texts, item.label) for item in before.of(split)["image"]]
        assert [(item.key, item.texts, item.label) for item in after.of(split)["image"]] == items
        captioned = [key for key, texts, _ in items if texts]
        assert [item.key for item in after.with_captions(split)["image"]] == captioned
        both = [f"{name}/{key}" for name in ("a", "b") for key in captioned]
        assert [item.key for item in together.with_captions(split)["image"]] == both
        assert len(together.of(split)["image"]) == 2 * len(items)

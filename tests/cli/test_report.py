import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from multicoca.cli import report as report_module
from multicoca.cli.report import CaptionExample, Report, RetrievalExample, page, write_report
from multicoca.cli.report_charts import charts, nice_ticks, smoothed
from multicoca.cli.report_examples import marked
from multicoca.cli.report_tables import results_table

VOID = {"meta", "img", "br", "path", "circle", "polyline"}
PICTURE = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))


class Checker(HTMLParser):
    """Asserts that every element is closed in order, and collects what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def ways(first):
    return {"recall@1": first, "recall@5": 0.9, "recall@10": 1.0, "median_rank": 1.5}


def full_report(name="smell"):
    found = {
        "retrieval": {
            "source_to_text": ways(0.5),
            "text_to_source": ways(0.25),
            "gallery": 50,
            "protocol": "a gallery of 50",
        },
        "captioning": {"exact_match": 0.125, "cider_d": 1.25, "own_figure": 3.0, "notes": ["METEOR is missing"]},
        "composition": {"exact_match": 0.0625},
        "zero_shot": {"kind": {"top1": 0.75, "top5": 1.0, "per_class_mean": 0.7, "chance": 1 / 7}},
        "used": 9,
        "listed": 10,
    }
    wrong = [
        CaptionExample(PICTURE, ["a red ball"], f"a wrong {i}", False, score) for i, score in enumerate((0.8, 0.2))
    ]
    right = [CaptionExample(PICTURE, ["a red ball"], "a right one", True, 1.0)]
    answers = [(PICTURE, f"answer {i}", i == 2) for i in range(5)]
    return Report(
        title="run & <title>",
        command="multicoca train name='a b'",
        results={
            "modalities": {name: found},
            "across": {f"{name}_to_taste": {"recall@1": 0.375, "gallery": 50}},
            "seconds": {"train": 125.0},
            "peak_memory_gib": 1.5,
        },
        curves={
            f"loss/contrastive/{name}": (list(range(50)), [50 / (i + 1) for i in range(50)]),
            "speed": ([1], [2.0]),
        },
        captions={name: [*right, *wrong]},
        retrievals={
            name: [
                RetrievalExample(query, answers, rank) for query, rank in (("found", 1), ("missed", 3), ("far", 40))
            ],
            f"{name} -> taste": [RetrievalExample("asked", answers, 17, PICTURE)],
        },
        config_yaml="a: <b>\n",
        environment={"torch": "2 & 3"},
    )


def words_of(text):
    return " ".join(" ".join(Checker(text).words).split())


def test_the_page_is_well_formed_and_refers_to_nothing_outside():
    text = page(full_report())
    checker = Checker(text)
    assert "script" not in checker.tags
    assert checker.references
    assert all(one.startswith(("data:image/", "#")) for one in checker.references)
    assert "url(" not in text
    assert "@import" not in text


def test_all_parts_are_shown_for_a_modality_of_any_name():
    words = words_of(page(full_report("smell")))
    for expected in ("25.0%", "12.5%", "6.2%", "75.0%", "1.25", "own figure", "METEOR is missing", "9 of 10"):
        assert expected in words
    assert "smell \u2192 taste" in words
    assert "2.0%" in words  # chance of finding one among 50 first
    assert "2 min 5 s" in words
    assert "image" not in words


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x>', "a & b"])
def test_text_from_outside_is_escaped_everywhere(evil):
    answers = [(PICTURE, evil, True)]
    report = Report(
        title=evil,
        command=evil,
        results={
            "modalities": {evil: {"captioning": {evil: 1.0, "notes": [evil]}, "retrieval": {"protocol": evil}}},
            "across": {evil: {"recall@1": 0.5}},
            "seconds": {evil: 1.0},
            "protocol": {evil: evil},
        },
        curves={f"{evil}/{evil}": ([0, 1], [0.0, 1.0])},
        captions={
            evil: [CaptionExample(PICTURE, [evil, "other"], evil + " x", False), CaptionExample(PICTURE, [], evil)]
        },
        retrievals={evil: [RetrievalExample(evil, answers, 1)], "b": [RetrievalExample(evil, answers, 2, PICTURE)]},
        config_yaml=evil,
        environment={evil: evil, "hardware": evil},
    )
    checker = Checker(page(report))
    assert "script" not in checker.tags
    assert all(one.startswith(("data:image/", "#")) for one in checker.references)
    assert page(report).count(evil) == 0


def test_failures_come_first_and_the_worst_on_top():
    words = words_of(page(full_report()))
    places = [words.index(text) for text in ("20% of facts right", "80% of facts right", "\u2713 right")]
    assert places == sorted(places)
    places = [words.index(f"\u201c{query}\u201d") for query in ("far", "missed", "found")]
    assert places == sorted(places)
    assert "right one at rank 3" in words


def test_a_page_without_anything_is_still_a_page():
    words = words_of(page(Report("empty")))
    assert "empty" in words
    assert "Captions" not in words
    empty = Report(
        "e", captions={"a": []}, retrievals={"a": []}, curves={"c": ([], [])}, results={"modalities": {"a": {}}}
    )
    assert "Training curves" not in words_of(page(empty))


def test_figures_that_are_not_numbers_or_absent_become_dashes():
    table = results_table({"a": {"captioning": {"exact_match": math.nan}}, "b": {"captioning": {"bleu4": 0.5}}})
    assert words_of(table).count("\u2013") == 3
    assert "50.0%" in table


def test_chance_is_a_range_where_galleries_differ():
    sizes = {
        name: {"retrieval": {"text_to_source": ways(0.5), "gallery": size}} for name, size in (("a", 50), ("b", 20))
    }
    words = words_of(results_table(sizes))
    assert "2.0% to 5.0%" in words
    assert "10.5 to 25.5" in words
    stated = {
        "a": {"retrieval": {"text_to_source": ways(0.5), "gallery": 50, "chance": {"text_to_source": ways(0.03)}}}
    }
    assert "3.0%" in words_of(results_table(stated))


def test_wrong_words_are_marked_and_moved_ones_only_if_nothing_else_differs():
    assert marked("a red ball, moving left", "a blue ball moving left") == (
        "a <mark>red</mark> ball, moving left",
        "a <ins>blue</ins> ball moving left",
    )
    written, right = marked("at the top is a small red ball", "a small blue ball at the top")
    assert re.findall("<mark>(.*?)</mark>", written) == ["is", "red"]
    assert re.findall("<ins>(.*?)</ins>", right) == ["blue"]
    assert "<mark>" in marked("a ball left of a cube", "a cube left of a ball")[0]
    assert marked("", "a") == ("", "<ins>a</ins>")


def test_curves_are_grouped_by_kind_with_a_line_for_each_name():
    steps = list(range(100))
    curves = {f"loss/captioning/{name}": (steps, [100 - i + i % 2 for i in steps]) for name in ("x", "y")}
    drawn = charts({**curves, "learning_rate": (steps, [1e-4 * i for i in steps])})
    assert drawn.count("<svg") == 2
    assert drawn.count('class="line"') == 3
    assert "Captioning loss" in drawn
    assert len(set(re.findall(r'class="line" stroke="(#\w+)"', drawn))) == 3


def test_curves_survive_constants_single_points_and_values_that_are_not_finite():
    assert charts({"a": ([1, 2], [math.nan, math.inf])}) == ""
    drawn = charts({"a": ([5], [2.0]), "b": ([1, 2, 3], [0.0, math.nan, 0.0]), "c": (list(range(40)), [7.0] * 40)})
    assert drawn.count("<svg") == 3
    assert not re.search(r"\bnan\b|\binf\b", drawn)


def test_all_points_lie_inside_the_drawing():
    values = np.random.default_rng(0).normal(size=1000) ** 3
    drawn = charts({"noise/a": (list(range(1000)), values.tolist())})
    for points in re.findall(r'points="([^"]+)"', drawn):
        across, down = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
        assert min(across) >= 58
        assert max(across) <= 546
        assert min(down) >= 22
        assert max(down) <= 258


def test_smoothing_keeps_constants_and_schedules_and_does_not_lag():
    steps = np.arange(200.0)
    assert np.allclose(smoothed(np.full(200, 3.0)), 3)
    assert np.array_equal(smoothed(steps), steps)
    noisy = steps + np.random.default_rng(0).normal(size=200) * 5
    assert np.abs(smoothed(noisy)[20:-20] - steps[20:-20]).mean() < 2


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(3, 97, 5) == [20, 40, 60, 80]
    assert nice_ticks(0, 5e-4, 5) == pytest.approx([0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4])


def test_pictures_of_any_mode_and_size_are_embedded_small():
    pictures = [Image.new(mode, (2000, 1000)) for mode in ("RGB", "RGBA", "L", "P", "LA", "I;16")]
    text = page(Report("p", captions={"a": [CaptionExample(picture, ["x"], "y") for picture in pictures]}))
    assert text.count("data:image/jpeg") == len(pictures)
    assert len(text) < 200_000


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "report.html"
    write_report(full_report(), path)
    before = path.read_text(encoding="utf-8")
    assert before.endswith("</html>\n")

    def fail(report):
        raise RuntimeError("no page")

    monkeypatch.setattr(report_module, "page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(full_report(), path)
    assert path.read_text(encoding="utf-8") == before
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_results_read_back_from_json_give_the_same_page():
    report = full_report()
    again = Report(**{**vars(report), "results": json.loads(json.dumps(report.results))})
    assert page(again) == page(report)

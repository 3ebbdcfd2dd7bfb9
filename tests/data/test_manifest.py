"""Manifests: a line is read whole or refused with its number, whatever names, encodings and quotes people use."""

import gzip
import json
import random
from pathlib import Path

import pytest
from number_files import Numbers

from multicoca.data.ledger import Ledger
from multicoca.data.manifest import FILE_COLUMNS, TEXT_COLUMNS
from multicoca.data.sources import Folder, Listing
from multicoca.modality import UnreadableFileError

CASES = Path(__file__).parent.parent / "cases"
NAMES = tuple(f"{number:03d}.jpg" for number in range(24))


class Pictures(Numbers):
    suffixes = (".jpg", ".png")


def listed(folder: Path, content: bytes | str, name: str = "metadata.csv", share: float = 0.0) -> Listing:
    """Lists a manifest beside 24 files."""
    if not (folder / NAMES[-1]).exists():
        for file in NAMES:
            (folder / file).write_text("1")
    (folder / name).write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    return Folder(folder / name, share).list_items({"image": Pictures()}, 0)


def texts(listing: Listing, split: str = "train") -> dict[str, tuple[str, ...]]:
    return {item.key: item.texts for item in listing.of(split).get("image", ())}


def case(folder: Path, name: str) -> Listing:
    return listed(folder, (CASES / name).read_bytes(), f"metadata{Path(name).suffix}")


def test_captions_with_unquoted_commas_are_refused_with_their_lines(tmp_path):
    listing = case(tmp_path, "meta_csv_comma.csv")
    assert listing.splits == {}
    assert [problem.key for problem in listing.problems] == list(NAMES)
    for number, problem in enumerate(listing.problems, start=2):
        assert problem.reason.startswith("the row has 4 columns, the header 2; put the caption into double quotes")
        assert problem.reason.endswith(f"(metadata.csv, line {number})")
    assert listing.listed == {"train": {"image": 24}}


def test_a_quote_that_swallows_rows_is_refused_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.csv, line 5: a quote opens in this line .* close it"):
        case(tmp_path, "meta_csv_quote.csv")


def test_lists_in_cells_are_lists_of_captions(tmp_path):
    listing = case(tmp_path, "meta_csv_list_literal.csv")
    assert texts(listing) == dict.fromkeys(NAMES, ("a red cube", "a cube that is red"))
    assert listing.problems == []


def test_the_mark_before_the_first_line_is_taken_off(tmp_path):
    listing = case(tmp_path, "meta_bom_jsonl.jsonl")
    assert texts(listing) == dict.fromkeys(NAMES, ("a cube",))


def test_validation_is_a_split_and_no_tenth_is_taken_off_the_others(tmp_path):
    listing = case(tmp_path, "meta_split_val.jsonl")
    assert {split: len(found["image"]) for split, found in listing.splits.items()} == {"validation": 6, "train": 18}
    assert listing.listed == {"validation": {"image": 6}, "train": {"image": 18}}


def test_five_lines_of_a_file_are_five_captions_of_one_item(tmp_path):
    listing = case(tmp_path, "meta_five_rows.jsonl")
    assert texts(listing) == {name: tuple(f"caption {number} of {name}" for number in range(5)) for name in NAMES}
    assert (listing.problems, listing.listed) == ([], {"train": {"image": 24}})


def test_an_image_column_names_files(tmp_path):
    assert texts(case(tmp_path, "meta_image_key.jsonl")) == dict.fromkeys(NAMES, ("a cube",))


@pytest.mark.parametrize("file", FILE_COLUMNS)
@pytest.mark.parametrize("text", TEXT_COLUMNS)
def test_the_usual_names_of_columns(tmp_path, file, text):
    for name, sign in (("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "\t")):
        content = f" {file.upper()}{sign}{text.title()} \r\n000.jpg{sign}a cube\r\n"
        assert texts(listed(tmp_path, content, name)) == {"000.jpg": ("a cube",)}, (name, sign)
    line = json.dumps({f"{file.title()} ": "000.jpg", text.upper(): ["a cube", "", None]})
    assert texts(listed(tmp_path, line, "a.jsonl")) == {"000.jpg": ("a cube",)}


def test_of_several_names_the_first_that_is_not_empty_counts_and_the_rest_is_kept(tmp_path):
    content = "path,file_name,title,text\nwhere,000.jpg,a title,\nwhere,001.jpg,a title,a text\n"
    listing = listed(tmp_path, content)
    assert texts(listing) == {"000.jpg": ("a title",), "001.jpg": ("a text",)}
    one, other = listing.of("train")["image"]
    assert (one.extra, other.extra) == ({"path": "where"}, {"path": "where", "title": "a title"})
    listing = listed(tmp_path, '{"image": "000.jpg", "video": "a.mp4", "text": "a"}', "a.jsonl")
    assert [p.reason.split(" (")[0] for p in listing.problems] == [
        "it names two files, image '000.jpg' and video 'a.mp4'; give each its own line"
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('file_name,text\n000.jpg,"one, two"\n', "one, two"),
        ('file_name,text\n000.jpg,"first line\nsecond line"\n', "first line\nsecond line"),
        ('file_name,text\n000.jpg,"first, a line\r\n\r\nthird, of three"\r\n', "first, a line\r\n\r\nthird, of three"),
        ('file_name,text\n000.jpg,"a ""b"" c"\n', 'a "b" c'),
        ('file_name, text\n000.jpg, "one, two"\n', "one, two"),
        ('file_name,text\n000.jpg,a "b" c\n', 'a "b" c'),
        ("\n\nfile_name,text\n\n000.jpg,a\n,\n", "a"),
        (",file_name,text\n0,000.jpg,a\n", "a"),
        ("file_name,text,,\n000.jpg,a,,\n", "a"),
        ("text,file_name\ra,000.jpg\r", "a"),
        ("\ufefffile_name,text\n000.jpg,a\n", "a"),
        ("file_name,text\n000.jpg,[not a list]\n", "[not a list]"),
        ("file_name,text\n000.jpg,\"[1, 'a']\"\n", "[1, 'a']"),
        ('file_name,text\n000.jpg,"(""a"" she said)"\n', '("a" she said)'),
        ('file_name,text\n000.jpg,"' + "[" * 9000 + "]" * 9000 + '"\n', "[" * 9000 + "]" * 9000),
    ],
)
def test_what_a_table_may_hold(tmp_path, content, expected):
    listing = listed(tmp_path, content)
    assert listing.problems == []
    assert texts(listing) == {"000.jpg": (expected,)}


@pytest.mark.parametrize(
    "cell", ["['a', 'b']", '[""a"", ""b""]', "['a' 'b']", "['a'\n 'b']", "['a', 'b', 'a', ]", "('a', 'b')"]
)
def test_lists_as_python_json_and_numpy_write_them(tmp_path, cell):
    assert texts(listed(tmp_path, f'file_name,text\n000.jpg,"{cell}"\n')) == {"000.jpg": ("a", "b")}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("001.jpg,a,b", "the row has 3 columns, the header 2; put the caption into double quotes"),
        ("001.jpg", "the row has 1 columns, the header 2; add what is missing"),
        ('001.jpg,"a" b', "the row is broken: ',' expected after '\"'; inside of quotes write a quote twice"),
        ("001.jpg," + "a" * 200_000, "the row is broken: field larger than field limit"),
        (",a", "it names no file"),
        ("001.jpg,a\0b", "its text holds a null byte"),
        ("001.jpg,", "it has no caption and no label"),
        ("001.jpg,\"['a', f(1)]\"", "its text is \"['a', f(1)]\", which begins like a list of captions but is no list"),
        ("001.jpg,\"['a', None]\"", "its text is \"['a', None]\", which begins like a list"),
        ("001.jpg,\"['a' 'b' ... 'c']\"", "its text is \"['a' 'b' ... 'c']\", which begins like a list"),
        ("001.jpg,\"{'en': 'a'}\"", "its text is \"{'en': 'a'}\", which begins like a list"),
        ("001.jpg,\"['a cube', 'b\"", "its text is \"['a cube', 'b\", which begins like a list"),
    ],
)
def test_a_bad_row_is_one_problem_and_the_rest_is_read(tmp_path, row, reason):
    listing = listed(tmp_path, f"file_name,text\n000.jpg,a\n{row}\n002.jpg,c\n")
    assert texts(listing) == {"000.jpg": ("a",), "002.jpg": ("c",)}
    (problem,) = listing.problems
    assert problem.reason.startswith(reason)
    assert problem.reason.endswith("(metadata.csv, line 3)")
    assert sum(listing.listed["train"].values()) == 3


@pytest.mark.parametrize(
    "rows",
    [
        ['001.jpg,"Hello', "002.jpg,b", '003.jpg,he said "bye'],
        ['001.jpg,"Hello', "002.jpg,b", '003.jpg,he said bye"'],
        ['001.jpg,"Hello', "002.jpg,b", '003.jpg,"c"'],
        ['"001.jpg,a', "002.jpg,b", '003.jpg,c"'],
        ["001.jpg,a", "002.jpg,b", '003.jpg,"c'],
        ['001.jpg,"a', '002.png,b"', "003.jpg,c"],
    ],
)
def test_no_open_quote_swallows_a_row(tmp_path, rows):
    first = next(number for number, row in enumerate(rows, start=2) if '"' in row)
    with pytest.raises(ValueError, match=rf"metadata\.csv, line {first}: a quote opens in this line"):
        listed(tmp_path, "\n".join(["file_name,text", *rows, ""]))


def test_surplus_cells_of_unnamed_columns_are_refused(tmp_path):
    (problem,) = listed(tmp_path, "file_name,text,\n000.jpg,a red cube, left\n").problems
    assert "the row has 3 columns" in problem.reason


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "content",
    [
        '[\n {"file_name": "000.jpg"}\n]',
        '[{"file_name": "000.jpg", "text": "a"}]',
        '[{"file_name": "000.jpg"},\n{"file_name": "001.jpg"}]',
        '\n{\n"file_name": 1\n}',
    ],
)
def test_a_json_document_is_no_manifest(tmp_path, content, end):
    with pytest.raises(ValueError, match=r"a\.jsonl is one JSON document, line \d begins .* write one object a line"):
        listed(tmp_path, content.replace("\n", end), "a.jsonl")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_packed_manifest_is_refused_as_such(tmp_path, name):
    with pytest.raises(ValueError, match="is no text, it is packed by gzip"):
        listed(tmp_path, gzip.compress(b"file_name,text\n000.jpg,a\n"), name)


def test_a_list_in_a_string_of_json_is_a_list_too(tmp_path):
    line = json.dumps({"file_name": "000.jpg", "text": "['a red cube', \"a cube that's red\"]"})
    assert texts(listed(tmp_path, line, "a.jsonl")) == {"000.jpg": ("a red cube", "a cube that's red")}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub\\a.jpg", "the file does not exist; names of folders end with /, as in sub/a.jpg"),
        ("https://example.org/a.jpg", "it is a URL; download the file and name it"),
        ("cafe\u0301.jpg", "the file does not exist, but one whose name has the same letters in another Unicode form"),
        ("caf\u00e9.jpg", None),
        ("none.jpg", "the file does not exist"),
    ],
)
def test_a_file_that_is_named_in_another_way_gets_a_hint(tmp_path, name, reason):
    (tmp_path / "sub").mkdir()
    for file in ("sub/a.jpg", "caf\u00e9.jpg"):
        (tmp_path / file).write_text("1")
    problems = listed(tmp_path, json.dumps({"file_name": name, "text": "a"}), "a.jsonl").problems
    assert [problem.reason.split(" (")[0].startswith(reason or "") for problem in problems] == [True] * bool(reason)


def test_an_absolute_name_is_the_same_file(tmp_path):
    names = ["000.jpg", str(tmp_path / "000.jpg"), "./000.jpg", "sub/../000.jpg", f"../{tmp_path.name}/000.jpg"]
    lines = [json.dumps({"file_name": name, "text": f"text {n}"}) for n, name in enumerate(names)]
    assert texts(listed(tmp_path, "\n".join(lines), "a.jsonl")) == {"000.jpg": tuple(f"text {n}" for n in range(5))}


def test_a_tsv_is_read_with_its_quotes(tmp_path):
    content = '\ufefffile_name\ttext\n000.jpg\ta cube, red\n001.jpg\t"a\ttab"\n002.jpg\tthe "b" cube\n'
    expected = {"000.jpg": ("a cube, red",), "001.jpg": ("a\ttab",), "002.jpg": ('the "b" cube',)}
    assert texts(listed(tmp_path, content, "metadata.tsv")) == expected
    (tmp_path / "metadata.csv").unlink(missing_ok=True)
    assert texts(Folder(tmp_path, 0.0).list_items({"image": Pictures()}, 0)) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "file_name,text\n000.jpg,café\n"), ("a.jsonl", '{"file_name": "000.jpg", "text": "café"}\n')],
)
def test_byte_order_marks_say_the_encoding(tmp_path, encoding, name, content):
    assert texts(listed(tmp_path, content.encode(encoding), name)) == {"000.jpg": ("café",)}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_utf_16_without_a_mark_or_cut_short_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="it looks like UTF-16; save it as UTF-8"):
        listed(tmp_path, "file_name,text\n000.jpg,a\n".encode("utf-16-le"), name)
    with pytest.raises(ValueError, match="is not in UTF-16"):
        listed(tmp_path, "file_name,text\n000.jpg,a\n".encode("utf-16")[:-1], name)


def test_another_encoding_of_a_table_is_refused_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.csv is not a CSV file in UTF-8: line 3: .*0xe9"):
        listed(tmp_path, "file_name,text\n000.jpg,a\n001.jpg,café\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": "001.jpg", "text": ' + "[" * 100_000 + "]" * 100_000 + "}", "RecursionError"),
        ('{"file_name": "001.jpg", "text": "a", "x": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 levels"),
        ('{"file_name": "001.jpg", "text": "a", "label": ' + "7" * 5000 + "}", "Exceeds the limit"),
        ('{"file_name": "001.jpg", "text": "a", "key": "\\ud800"}', "its key holds half a character.* \\\\ud800;"),
        ('{"file_name": "001.jpg", "text": "a", "label": "\\ud800"}', "its label holds half a character"),
        ('{"file_name": "001.jpg", "text": "a", "split": "\\ud800"}', "its split holds half a character"),
        ('{"file_name": "001.jpg", "text": "a", "modality": "\\ud800"}', "its modality holds half a character"),
        ('{"file_name": "001.jpg", "text": "a\\ud83d"}', "its text holds half a character"),
        ('{"file_name": "\\udce9.jpg", "text": "a"}', "its file_name holds half a character"),
        ('{"file_name": "001.jpg", "text": "a\\u0000"}', "its text holds a null byte"),
        ('{"file_name": "001.jpg", "text": "a", "label": "\\u0000"}', "its label holds a null byte"),
        ('{"file_name": 5, "text": "a"}', "its file_name is 5; expected a string"),
        ('{"file_name": ["001.jpg"], "text": "a"}', r"its file_name is \['001.jpg'\]; expected a string"),
        ('{"file_name": true, "text": "a"}', "its file_name is True"),
        ('{"file_name": "001.jpg", "text": {"en": "a"}}', "no caption that can be used: text holds {'en': 'a'}"),
        ('{"file_name": "001.jpg", "text": ["a", 5]}', "no caption that can be used: text holds 5"),
        ('{"file_name": "001.jpg", "text": "a", "label": ["x"]}', "its label is a list"),
        ('["001.jpg", "a"]', r"not a JSON object with a file_name, but \['001.jpg', 'a'\]"),
        ('{"img": "001.jpg", "text": "a"}', r"it names no file; its fields are \['img', 'text'\], expected"),
        ("\ud800", "the line is not UTF-8"),
        ("\0", "not a JSON object"),
    ],
)  # fmt: skip
def test_a_bad_line_is_one_problem_in_the_ledger_and_the_rest_is_read(tmp_path, line, reason, capsys):
    good = ['{"file_name": "000.jpg", "text": "a"}', '{"file_name": "002.jpg", "text": "c"}']
    listing = listed(tmp_path, "\n".join([good[0], line, good[1]]), "a.jsonl")
    assert texts(listing) == {"000.jpg": ("a",), "002.jpg": ("c",)}
    (problem,) = listing.problems
    with pytest.raises(UnreadableFileError, match=reason):
        raise UnreadableFileError(problem.reason)
    assert problem.reason.endswith("(a.jsonl, line 2)")
    assert sum(sum(found.values()) for found in listing.listed.values()) == 3
    Ledger(tmp_path / "ledger.jsonl").add([problem])
    (written,) = (tmp_path / "ledger.jsonl").read_text("utf-8").splitlines()
    assert json.loads(written)["reason"] == problem.reason
    str(problem).encode()  # as print does


def test_two_bad_lines_of_a_file_are_two_problems(tmp_path):
    bad = '{"file_name": "000.jpg", "text": 5}'
    listing = listed(tmp_path, "\n".join([bad, '{"file_name": "000.jpg", "text": "a"}', bad, bad]), "a.jsonl")
    assert texts(listing) == {"000.jpg": ("a",)}
    assert len(Ledger(tmp_path / "ledger.jsonl").add(listing.problems)) == 3
    assert listing.listed == {"train": {"image": 4}}


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "DEV", " Val ", "eval"])
def test_names_of_the_validation_split(tmp_path, name):
    listing = listed(
        tmp_path, f"file_name,text,split\n000.jpg,a,{name}\n001.jpg,a,TRAIN \n002.jpg,a,Testing\n", share=0.9
    )
    assert {split: list(texts(listing, split)) for split in listing.splits} == {
        "validation": ["000.jpg"], "train": ["001.jpg"], "test": ["002.jpg"],
    }  # fmt: skip


def test_another_split_is_kept_by_its_name(tmp_path):
    listing = listed(tmp_path, "file_name,text,split\n000.jpg,a, Holdout\n")
    assert listing.listed == {"Holdout": {"image": 1}}
    assert list(texts(listing, "Holdout")) == ["000.jpg"]


def test_lines_of_a_file_are_merged_in_order_with_what_any_of_them_says(tmp_path):
    rows = [
        "file_name,text,label,split,id",
        "000.jpg,b,,,1",
        "001.jpg,x,y,test,2",
        "./000.jpg,a,cube,val,3",
        "000.jpg,b,cube,,4",
    ]
    listing = listed(tmp_path, "\n".join(rows))
    (item,) = listing.of("validation")["image"]
    assert (item.key, item.texts, item.label, item.extra) == ("000.jpg", ("b", "a"), "cube", {"id": "1"})
    assert (len(listing.of("test")["image"]), listing.problems) == (1, [])


@pytest.mark.parametrize(
    ("name", "values"), [("label", ("a", "b")), ("split", ("train", "test")), ("modality", ("image", "x"))]
)
def test_lines_of_a_file_that_disagree_are_a_problem_that_names_both(tmp_path, name, values):
    listing = listed(tmp_path, f"file_name,text,{name}\n000.jpg,a,{values[0]}\n001.jpg,b,\n000.jpg,c,{values[1]}\n")
    (problem,) = listing.problems
    assert problem.reason.startswith(
        f"lines 2 and 4 give this file the {name} '{values[0]}' and '{values[1]}'; give one"
    )
    assert list(texts(listing)) == ["001.jpg"]
    assert sum(listing.listed["train"].values()) == 2


def test_a_missing_file_of_several_lines_is_one_problem_that_names_them(tmp_path):
    listing = listed(tmp_path, "file_name,text\n" + "gone.jpg,a\n" * 7)
    (problem,) = listing.problems
    assert problem.reason == "the file does not exist (metadata.csv, lines 2, 3, 4, 5, 6 and 2 more)"
    assert listing.listed == {"train": {"image": 1}}


def test_labels_without_captions_are_items_that_only_training_leaves_out(tmp_path):
    listing = listed(tmp_path, "file_name,text,label\n000.jpg,,cube\n001.jpg,a,ball\n002.jpg,,\n")
    assert texts(listing) == {"000.jpg": (), "001.jpg": ("a",)}
    assert [item.label for item in listing.of("train")["image"]] == ["cube", "ball"]
    assert [item.key for item in listing.with_captions("train")["image"]] == ["001.jpg"]
    assert [problem.key for problem in listing.problems] == ["002.jpg"]
    assert len(listed(tmp_path, "image,label\n000.jpg,cube\n").of("train")["image"]) == 1


@pytest.mark.parametrize("name", ["meta_csv_list_literal.csv", "meta_split_val.jsonl"])
def test_a_changed_manifest_gives_items_and_problems_or_is_refused(tmp_path, name):
    content, draw, refused = (CASES / name).read_bytes(), random.Random(0), []
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 3, 30))):
            changed[draw.randrange(len(content))] = draw.choice((0, 10, 34, 39, 44, 92, 255, draw.randrange(256)))
        try:
            listing = listed(
                tmp_path, bytes(changed[: draw.choice((len(content), draw.randrange(len(content))))]), name
            )
        except ValueError as error:
            refused.append(str(error))
            continue
        found = sum(len(items) for by_modality in listing.splits.values() for items in by_modality.values())
        assert found + len(listing.problems) == sum(sum(counts.values()) for counts in listing.listed.values())
        assert len({(problem.file, problem.key) for problem in listing.problems}) == len(listing.problems)
    assert all(name in message for message in refused)
    assert (len(refused) > 0) == name.endswith("csv")

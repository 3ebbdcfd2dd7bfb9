"""Tars as they are found: whatever names, orders, links and encodings they have, a sample is read or is one problem."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from number_files import Letters, Numbers
from tars import tar_bytes, write_tar

from multicoca.data.sources import Listing
from multicoca.data.webdataset import WebDataset

CASES = Path(__file__).parent.parent / "cases"


class Pictures(Numbers):
    suffixes = (".jpg", ".png")

    def decode(self, file, suffix=""):
        assert suffix in self.suffixes
        return file


PROCESSORS = {"image": Pictures(), "numbers": Numbers(), "letters": Letters()}


def listed(folder: Path, content: bytes) -> Listing:
    (folder / "a.tar").write_bytes(content)
    (folder / "a.tar.index").unlink(missing_ok=True)
    return WebDataset(str(folder / "a.tar"), 0.0).list_items(PROCESSORS, 0)


def found(listing: Listing, modality: str = "image") -> dict[str, tuple[str, ...]]:
    return {item.key: item.texts for item in listing.of("train").get(modality, ())}


@pytest.mark.parametrize(
    ("name", "keys", "text"),
    [
        ("tar_latin1_names.tar", [f"a/caf\\xe9_{number}" for number in range(8)], "picture"),
        ("tar_unsorted.tar", [f"a/{number:03d}" for number in range(8)], "picture {}"),
        ("tar_upper.tar", [f"a/{number:03d}" for number in range(8)], "picture {}"),
        ("tar_bom_txt.tar", [f"a/{number:03d}" for number in range(8)], "a red cube {}"),
    ],
)
def test_the_cases_are_read(tmp_path, name, keys, text):
    content = (CASES / name).read_bytes()
    listing = listed(tmp_path, content)
    assert listing.problems == []
    assert found(listing) == {key: (text.format(number),) for number, key in enumerate(keys)}
    with tarfile.open(fileobj=io.BytesIO(content), encoding="latin-1") as tar:
        pictures = [tar.extractfile(member).read() for member in tar if member.name.lower().endswith("jpg")]
    assert [item.decode(Pictures()) for item in listing.of("train")["image"]] == pictures
    for item in listing.of("train")["image"]:
        str(item.file).encode()  # as print does


def test_half_a_character_in_a_label_is_a_problem_of_its_sample(tmp_path):
    bad = (CASES / "hostile" / "label_surrogate.tar").read_bytes()
    with pytest.raises(
        ValueError, match=r"no usable sample in 1 shards .*a\.tar::a\.png: its \.json cannot be read: its label"
    ):
        listed(tmp_path, bad)
    (tmp_path / "b.tar").write_bytes(bad)
    good = write_tar(tmp_path / "c.tar", {"b.png": "1", "b.txt": "b"})
    listing = WebDataset([str(tmp_path / "b.tar"), str(good)], 0.0).list_items(PROCESSORS, 0)
    assert found(listing) == {"c/b": ("b",)}
    assert [(p.key, p.file) for p in listing.problems] == [("b/a", f"{tmp_path}/b.tar::a.png")]


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"caption": "x\ud83d"}, "its caption holds half a character"),
        ({"caption": "x", "split": "\ud800"}, "its split holds half a character"),
        ({"caption": "x", "modality": "\ud800"}, "its modality holds half a character"),
        ({"caption": "x", "key": "\udce9"}, "its key holds half a character"),
        ({"caption": "x", "label": [1]}, "its label is a list"),
        ({"caption": "x\0"}, "its caption holds a null byte"),
        ("[" * 100_000 + "]" * 100_000, "RecursionError"),
        ('{"caption": "x", "y": ' + "[" * 500 + "]" * 500 + "}", "it is nested more than 100 levels deep"),
        ('{"caption": "x", "label": ' + "7" * 5000 + "}", "Exceeds the limit"),
        ("\0", "Expecting value"),
        ({"caption": ["x", 5]}, "it has no caption that can be used: caption holds 5"),
    ],
)  # fmt: skip
def test_a_bad_description_is_one_problem_and_the_rest_is_read(tmp_path, about, reason):
    content = tar_bytes({"1.png": "1", "1.txt": "one", "2.png": "2", "2.txt": "two", "2.json": about,
                         "3.png": "3", "3.txt": "three"})  # fmt: skip
    listing = listed(tmp_path, content)
    assert found(listing) == {"a/1": ("one",), "a/3": ("three",)}
    (problem,) = listing.problems
    assert (problem.key, problem.file) == ("a/2", f"{tmp_path}/a.tar::2.png")
    assert problem.reason.startswith(f"its .json cannot be read: {reason}")


def test_marks_and_upper_case_in_all_descriptions(tmp_path):
    mark = b"\xef\xbb\xbf"
    listing = listed(tmp_path, tar_bytes([
        ("1.PNG", b"1"), ("1.TXT", mark + b"one"), ("1.Json", mark + b'{"text": "uno"}'), ("1.CLS", mark + b"cube"),
        ("2.png", b"2"), ("2.txt", "zwölf".encode("utf-16")),
    ]))  # fmt: skip
    one, two = listing.of("train")["image"]
    assert (one.texts, one.label, one.file.name, two.texts) == (("one", "uno"), "cube", "1.PNG", ("zwölf",))
    assert dict(one.extra) == {}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x.image.jpg", "x.txt"], {"a/x": ("x.image.jpg", "x.txt")}),
        (["clip.v2.png", "clip.v2.txt"], {"a/clip": ("clip.v2.png", "clip.v2.txt")}),
        (["a.seg.png", "a.jpg", "a.txt"], {"a/a": ("a.jpg", "a.txt")}),
        (["a.jpg", "a.txt", "a.ocr.txt"], {"a/a": ("a.jpg", "a.txt")}),
        (["a.jpg", "a.caption.txt"], {"a/a": ("a.jpg", "a.caption.txt")}),
        (["c.1.jpg", "c.2.jpg", "c.1.txt", "c.2.txt"],
         {"a/c.1": ("c.1.jpg", "c.1.txt"), "a/c.2": ("c.2.jpg", "c.2.txt")}),
    ],
)  # fmt: skip
def test_names_with_several_dots(tmp_path, names, expected):
    listing = listed(tmp_path, tar_bytes([(name, name.encode()) for name in names]))
    items = listing.of("train")["image"]
    assert {item.key: (item.decode(Pictures()).decode(), *item.texts) for item in items} == expected
    assert [item.file.name for item in items] == [file for file, _ in expected.values()]
    assert listing.problems == []


def test_a_text_about_something_else_is_named_and_not_taken_for_a_caption(tmp_path):
    listing = listed(tmp_path, tar_bytes([("a.jpg", b"1"), ("a.ocr.txt", b"STOP"), ("b.jpg", b"2"), ("b.txt", b"b")]))
    (problem,) = listing.problems
    assert problem.reason.startswith("it has no caption")
    assert problem.reason.endswith("; its .ocr.txt may belong to something else")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.txt": " \n"}, "its .txt is empty"),
        ({"a.json": {"caption": {"en": "a"}}}, "caption in its .json is {'en': 'a'}, expected a string or a list"),
        ({"a.json": {"Caption": "a"}}, "its .json has the fields ['Caption']"),
        ({"a.json": [{"caption": "a"}]}, "captions in its .json is [{'caption': 'a'}], expected a string or a list"),
    ],
)
def test_a_sample_without_a_caption_says_what_it_has_instead(tmp_path, members, reason):
    listing = listed(tmp_path, tar_bytes({"a.jpg": "1", "b.jpg": "2", "b.txt": "b"} | members))
    (problem,) = listing.problems
    assert problem.reason.startswith("it has no caption")
    assert f"; {reason}" in problem.reason


def test_tars_joined_by_cat_are_read_to_the_end(tmp_path):
    one, other = (tar_bytes({f"{name}.jpg": name, f"{name}.txt": name}) for name in "ab")
    listing = listed(tmp_path, one + other + bytes(5120))
    assert found(listing) == {"a/a": ("a",), "a/b": ("b",)}
    assert [item.file.read() for item in listing.of("train")["image"]] == [b"a", b"b"]
    assert listing.problems == []
    (problem,) = listed(tmp_path, one + b"no header".ljust(512, b"?") + other).problems
    assert "the header behind a.txt" in problem.reason


def test_a_packed_tar_is_named_as_such(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tar: it cannot be read as an uncompressed tar: it is packed by gzip"):
        listed(tmp_path, gzip.compress(tar_bytes({"a.jpg": "1", "a.txt": "a"})))


def test_an_ending_that_comes_again_begins_another_sample_of_the_same_key(tmp_path):
    listing = listed(tmp_path, tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"one"), ("b.txt", b"two"),
                                          ("a.JPG", b"3"), ("a.TXT", b"other")]))  # fmt: skip
    assert found(listing) == {"a/a": ("one",), "a/b": ("two",)}
    assert [p.reason for p in listing.problems] == ["its key 'a' occurs twice in the shard; keys must be unique"]


def links(members: list[tuple[str, bytes, str, str]]) -> bytes:
    """A tar of (type, content, name, name of the target)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for kind, content, name, target in members:
            header = tarfile.TarInfo(name)
            header.type, header.linkname, header.size = kind, target, len(content)
            tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def test_links_stand_for_what_they_lead_to(tmp_path):
    file, hard, soft = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
    listing = listed(tmp_path, links([
        (soft, b"", "x/early.jpg", "../store/one"), (file, b"early", "x/early.txt", ""),
        (file, b"picture", "store/one", ""), (file, b"words", "store/words", ""),
        (hard, b"", "hard.jpg", "store/one"), (hard, b"", "hard.txt", "store/words"),
        (soft, b"", "twice.jpg", "hard.jpg"), (soft, b"", "twice.json", "about.json"),
        (file, b'{"text": "told", "w": 3}', "about.json", ""),
        (soft, b"", "out.jpg", "../../etc/passwd"), (file, b"out", "out.txt", ""),
        (soft, b"", "loop.jpg", "pool.jpg"), (soft, b"", "pool.jpg", "loop.jpg"), (file, b"loop", "loop.txt", ""),
        (tarfile.FIFOTYPE, b"", "pipe.jpg", ""), (file, b"pipe", "pipe.txt", ""),
    ]))  # fmt: skip
    assert found(listing) == {"a/x/early": ("early",), "a/hard": ("words",), "a/twice": ("told",)}
    items = listing.of("train")["image"]
    assert [item.decode(Pictures()) for item in items] == [b"picture"] * 3
    assert dict(items[2].extra) == {"w": 3}
    reasons = {problem.key: problem.reason for problem in listing.problems}
    assert reasons["a/out"] == "out.jpg is a link to ../../etc/passwd, which is not in the shard"
    assert reasons["a/loop"] == "loop.jpg is a link to pool.jpg, which leads back to itself"
    assert reasons["a/pipe"] == "pipe.jpg is not a file, but a device or a pipe"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_latin_1_names_in_both_forms(tmp_path, form):
    stream, long = io.BytesIO(), "folder/" * 30 + "y" * 150
    with tarfile.open(fileobj=stream, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for base, text in ((long, "long"), ("caf\udce9", "latin"), ("café", "utf")):
            for name, content in ((f"{base}.jpg", text), (f"{base}.txt", text)):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content.encode()))
    listing = listed(tmp_path, stream.getvalue())
    assert found(listing) == {f"a/{long}": ("long",), "a/caf\\xe9": ("latin",), "a/café": ("utf",)}
    assert listing.problems == []


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_are_read_with_their_holes(tmp_path, version):
    stretches, size = [(0, b"a" * 512), (4096, b"b" * 512)], 10_000
    stored = b"".join(content for _, content in stretches)
    whole = bytearray(size)
    for place, content in stretches:
        whole[place : place + len(content)] = content
    pairs = [number for place, content in stretches for number in (place, len(content))]
    content = sparse_tar(version, pairs, size, stored) + tar_bytes({"s.txt": "sparse", "t.jpg": "1", "t.txt": "t"})
    listing = listed(tmp_path, content)
    assert found(listing) == {"a/s": ("sparse",), "a/t": ("t",)}
    assert listing.of("train")["image"][0].content() == bytes(whole)
    with pytest.raises(ValueError, match="sparse file with .* bytes of holes; pack it without --sparse|map is broken"):
        listed(tmp_path, sparse_tar(version, [0, 512, 1 << 32, 512], 1 << 33, stored) + bytes(1024))


def sparse_tar(version: str, pairs: list[int], size: int, stored: bytes) -> bytes:
    """The member s.jpg as GNU tar --sparse writes it."""
    if version == "gnu":
        header = bytearray(tarfile.TarInfo("s.jpg").tobuf(tarfile.GNU_FORMAT))
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[124:136] = b"%011o\0" % len(stored)
        for number, value in enumerate(pairs):
            header[386 + 12 * number : 398 + 12 * number] = tarfile.itn(value, 12, tarfile.GNU_FORMAT)
        header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + stored
    headers = {"GNU.sparse.size": str(size)}
    if version == "0.1":
        headers |= {"GNU.sparse.numblocks": "2", "GNU.sparse.map": ",".join(map(str, pairs))}
    elif version == "1.0":
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
        headers["GNU.sparse.name"] = "s.jpg"
        mapped = "\n".join(map(str, [2, *pairs, ""])).encode()
        stored = mapped + bytes(512 - len(mapped)) + stored
    header = tarfile.TarInfo("s.jpg")
    header.size = len(stored)
    if version == "0.0":
        records = b"".join(
            _record(name, value)
            for name, value in [("GNU.sparse.size", size), ("GNU.sparse.numblocks", 2)]
            + [(f"GNU.sparse.{('offset', 'numbytes')[n % 2]}", value) for n, value in enumerate(pairs)]
        )
        pax = tarfile.TarInfo("pax")
        pax.type, pax.size = tarfile.XHDTYPE, len(records)
        return pax.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + header.tobuf() + stored
    header.pax_headers = headers
    return header.tobuf(tarfile.PAX_FORMAT) + stored


def _record(name: str, value: int) -> bytes:
    text = f" {name}={value}\n"
    length = len(text) + 2
    return f"{length if len(str(length)) == 2 else length + 1}{text}".encode()


def test_labels_without_captions_are_items_that_only_training_leaves_out(tmp_path):
    listing = listed(tmp_path, tar_bytes({"1.png": "1", "1.cls": "cube", "2.png": "2", "2.txt": "two", "3.png": "3",
                                          "4.png": "4", "4.json": {"label": "ball"}}))  # fmt: skip
    assert found(listing) == {"a/1": (), "a/2": ("two",), "a/4": ()}
    assert [item.label for item in listing.of("train")["image"]] == ["cube", None, "ball"]
    assert [item.key for item in listing.with_captions("train")["image"]] == ["a/2"]
    assert [problem.key for problem in listing.problems] == ["a/3"]


def test_names_of_splits(tmp_path):
    members = {f"{name}.{end}": content for name in ("val", "Dev", "TRAINING", "holdout")
               for end, content in (("png", "1"), ("json", {"text": "a", "split": f" {name}"}))}  # fmt: skip
    assert listed(tmp_path, tar_bytes(members)).listed == {
        "validation": {"image": 2}, "train": {"image": 1}, "holdout": {"image": 1},
    }  # fmt: skip
    listing = WebDataset(str(tmp_path / "a.tar"), split="Val").list_items(PROCESSORS, 0)
    assert set(listing.splits) == {"validation"}


def test_a_changed_tar_gives_items_and_problems_and_never_another_error(tmp_path):
    good = {
        "1.png": "1",
        "1.txt": "one",
        "1.json": {"label": "a"},
        "2.png": "2",
        "2.txt": "two",
        "é" * 90 + ".png": "3",
    }
    content = _pax(good)
    listed(tmp_path, content)
    draw, errors = random.Random(0), []
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 3, 30))):
            block = draw.randrange(len(content) // 512) * 512
            changed[
                draw.choice(
                    (block + draw.choice((0, 100, 124, 130, 148, 156, 157, 257, 345)), draw.randrange(len(content)))
                )
            ] = draw.randrange(256)
        changed = _checked_headers(changed) if draw.random() < 0.7 else changed
        try:
            listing = listed(tmp_path, bytes(changed[: draw.choice((len(content), draw.randrange(len(content))))]))
        except ValueError as error:
            errors.append(str(error))
            continue
        for item in listing.of("train").get("image", ()):
            assert len(item.content()) == item.file.size
        json.dumps([str(problem) for problem in listing.problems]).encode()
    assert 0 < len(errors) < 300
    assert all("there is no usable sample in 1 shards" in error and "a.tar" in error for error in errors)


def _pax(members: dict) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            data = json.dumps(content).encode() if isinstance(content, dict) else content.encode()
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def _checked_headers(content: bytearray) -> bytearray:
    """Gives blocks that look like headers a right checksum, so that what was changed in them is read."""
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return content

"""Shards: every sample is an item or a problem with a reason; the index fits its shard or is built anew."""

import gzip
import io
import os
import pickle
import stat
import tarfile
import warnings
from dataclasses import replace

import fsspec
import pytest
from number_files import PROCESSORS, TOKENIZER, Numbers
from tars import tar_bytes, write_tar

from multicoca.data.loader import Steps, evaluation_batches, training_batches
from multicoca.data.shard_index import index_shards
from multicoca.data.splits import training_items
from multicoca.data.storage import expand_braces, find_files
from multicoca.data.together import Together
from multicoca.data.webdataset import WebDataset
from multicoca.modality import UnreadableFileError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTICOCA_CACHE", str(tmp_path / "cache"))


def shard(folder, name: str, keys, extra: dict | None = None):
    members = {}
    for key in keys:
        members |= {f"{key}.num": str(int(key)), f"{key}.txt": f"number {key}", f"{key}.json": {"key": key, "w": 5}}
    return write_tar(folder / name, members | (extra or {}))


def listing_of(root, test_share=0.0, **options):
    return WebDataset(root, test_share, **options).list_items(PROCESSORS, 0)


def reasons(listing) -> dict[str, str]:
    return {problem.key: problem.reason for problem in listing.problems}


def test_captions_labels_and_keys_of_all_known_forms(tmp_path):
    write_tar(tmp_path / "a.tar", {
        "x/1.num": "1", "x/1.txt": " one \n", "x/1.json": {"caption": "one", "text": ["uno", "one"], "w": 640},
        "2.num": "2", "2.json": {"captions": ["two", "", "deux"], "label": 3, "key": "my/2"},
        "3.num": "3", "3.json": ["three", "drei"], "3.cls": "7\n",
        "4.num": "4", "4.let": "5", "4.txt": "four é 四",
    })  # fmt: skip
    listing = listing_of(tmp_path / "a.tar")
    assert listing.problems == []
    one, two, three, four = listing.of("train")["numbers"]
    assert (one.key, one.texts, one.label, dict(one.extra)) == ("a/x/1", ("one", "uno"), None, {"w": 640})
    assert (two.key, two.texts, two.label, dict(two.extra)) == ("my/2", ("two", "deux"), "3", {})
    assert (three.texts, three.label) == (("three", "drei"), "7")
    assert (four.texts, str(four.file)) == (("four é 四",), f"{tmp_path}/a.tar::4.num")
    assert four.decode(Numbers()) == 4.0
    (letter,) = listing.of("train")["letters"]
    assert (letter.key, letter.content()) == (four.key, b"5")
    assert listing.listed == {"train": {"numbers": 4, "letters": 1}}


def test_every_unusable_sample_is_a_problem_with_its_reason(tmp_path):
    write_tar(tmp_path / "a.tar", [
        ("good.num", "1"), ("good.txt", "good"), ("silent.num", "1"), ("blank.num", "1"), ("blank.txt", " "),
        ("pure.txt", "only text"), ("odd.xyz", "1"), ("odd.txt", "odd"), ("torn.num", "1"), ("torn.txt", "t"),
        ("torn.json", "{"), ("latin.num", "1"), ("latin.txt", b"caf\xe9"), ("good.num", "2"), ("good.txt", "again"),
        ("twice.num", "1"), ("twice.num", "2"), ("twice.txt", "twice"), ("._good.num", b"hidden"),
    ])  # fmt: skip
    listing = listing_of(str(tmp_path / "a.tar"))
    assert [item.key for item in listing.of("train")["numbers"]] == ["a/good"]
    found = [(p.key, p.modality, p.reason) for p in listing.problems]
    expected = [
        ("a/silent", "numbers", "it has no caption"), ("a/blank", "numbers", "it has no caption"),
        ("a/torn", "numbers", "its .json cannot be read"), ("a/latin", "numbers", "its .txt cannot be read"),
        ("a/good", "numbers", "its key 'good' occurs twice in the shard"),
        ("a/twice", "numbers", "it has no caption"), ("a/twice", "numbers", "its key 'twice' occurs twice"),
        ("a/pure", "", "it has no media file; its files: none"),
        ("a/odd", "", "it has no media file; its files: .xyz; readable suffixes: .let, .num"),
    ]  # fmt: skip
    assert [(key, modality) for key, modality, _ in found] == [(key, modality) for key, modality, _ in expected]
    for (*_, reason), (*_, start) in zip(found, expected, strict=True):
        assert reason.startswith(start)
    assert listing.listed == {"train": {"numbers": 8, "unknown": 2}}
    assert f"{tmp_path}/a.tar::silent.num" in {problem.file for problem in listing.problems}


def test_a_key_that_occurs_in_two_shards_counts_once(tmp_path):
    shard(tmp_path, "a.tar", ["01", "02"])
    shard(tmp_path, "b.tar", ["02", "03"])
    listing = listing_of(str(tmp_path))
    assert [item.key for item in listing.of("train")["numbers"]] == ["01", "02", "03"]
    assert reasons(listing) == {
        "02": f"its key '02' occurs twice, first in {tmp_path}/a.tar::02.num; keys must be unique"
    }
    assert listing.listed == {"train": {"numbers": 4}}


class OtherNumbers(Numbers):
    """A second modality that reads the same files."""


def test_of_two_modalities_that_read_a_suffix_the_sample_names_one_or_is_a_problem(tmp_path):
    members = {}
    for key, modality in (("1", "others"), ("2", "numbers"), ("3", ""), ("4", "")):
        members |= {f"{key}.num": key, f"{key}.txt": "text", f"{key}.json": {"modality": modality}}
    members |= {"4.let": "d", "4.about.num": "4"}
    write_tar(tmp_path / "a.tar", members)
    processors = {**PROCESSORS, "others": OtherNumbers()}
    listing = WebDataset(tmp_path, 0.0).list_items(processors, 0)
    keys = {modality: [item.key for item in items] for modality, items in listing.of("train").items()}
    assert keys == {"others": ["a/1"], "numbers": ["a/2"], "letters": ["a/4"]}
    assert [(problem.key, problem.file[-5:]) for problem in listing.problems] == [("a/3", "3.num"), ("a/4", "4.num")]
    assert all("is read by numbers and others; say which by" in problem.reason for problem in listing.problems)
    for listed in (listing, Together({"shards": WebDataset(tmp_path, 0.0)}).list_items(processors, 0)):
        with pytest.raises(ValueError, match=r"2 items can be read by several.*3\.num: its suffix"):
            training_items(listed, list(processors))


def test_a_sample_with_two_files_of_a_modality_gives_the_first(tmp_path):
    class Both(Numbers):
        suffixes = (".num", ".dec")

    write_tar(tmp_path / "a.tar", {"1.dec": "1", "1.num": "2", "1.left.num": "3", "1.txt": "one"})
    listing = WebDataset(str(tmp_path), 0.0).list_items({"both": Both()}, 0)
    assert [item.decode(Both()) for item in listing.of("train")["both"]] == [1.0]
    assert reasons(listing) == {"a/1": "its sample has more than one file of the modality both; the first is used"}


def test_of_a_shard_cut_short_all_whole_samples_are_used(tmp_path):
    texts = {"1": "short", "2": "a long text " * 99, "3": "x"}
    content = tar_bytes([(f"{key}{end}", text) for key in texts for end, text in ((".num", key), (".txt", texts[key]))])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = {member.name: member.offset_data + member.size for member in tar}
    end_of_last = -(-ends["3.txt"] // 512) * 512
    for size in [*range(256, end_of_last + 1024, 256), *ends.values(), *(end - 1 for end in ends.values())]:
        (tmp_path / "a.tar").write_bytes(content[:size])
        (tmp_path / "a.tar.index").unlink(missing_ok=True)
        whole = [key for key in texts if ends[f"{key}.txt"] <= size]
        if not whole:
            with pytest.raises(ValueError, match="cut short|uncompressed tar|no caption"):
                listing_of(str(tmp_path))
            continue
        listing = listing_of(str(tmp_path))
        items = listing.of("train")["numbers"]
        assert [item.key for item in items] == [f"a/{key}" for key in whole], size
        assert [item.decode(Numbers()) for item in items] == [float(key) for key in whole]
        has_problem = any("is cut short" in p.reason for p in listing.problems if p.key == "a.tar")
        assert has_problem == (size < end_of_last + 512), size
        cut = [name for name, end in ends.items() if end - len(texts[name[0]] if "txt" in name else "1") <= size < end]
        assert len(cut) <= 1
        for name in cut:
            assert f"cut short inside of {name}" in reasons(listing)[f"a/{name[0]}"], size


def test_a_header_overwritten_in_the_middle_is_told(tmp_path):
    file = shard(tmp_path, "a.tar", ["1", "2", "3"])
    content = bytearray(file.read_bytes())
    at = content.index(b"2.num\0")
    content[at : at + 512] = b"x" * 512
    file.write_bytes(content)
    listing = listing_of(str(file))
    assert [item.key for item in listing.of("train")["numbers"]] == ["1"]
    assert f"the header behind 1.json, at byte {at}, is broken; what follows is lost" in reasons(listing)["a.tar"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot be read as an uncompressed tar"), (b"no tar at all" * 99, "cannot be read as an uncompressed tar"),
     (gzip.compress(tar_bytes({"1.num": "1"})), "cannot be read as an uncompressed tar")],
)  # fmt: skip
def test_what_is_no_tar_is_a_problem_of_the_shard(tmp_path, content, reason):
    shard(tmp_path, "a.tar", ["1"])
    (tmp_path / "b.tar").write_bytes(content)
    listing = listing_of(f"{tmp_path}/{{a,b}}.tar")
    assert len(listing.of("train")["numbers"]) == 1
    assert [(p.key, p.file) for p in listing.problems] == [("b.tar", f"{tmp_path}/b.tar")]
    assert reason in listing.problems[0].reason
    with pytest.raises(ValueError, match="no usable sample in 1 shards.*the first problem"):
        listing_of(f"{tmp_path}/b.tar")


def test_shards_that_do_not_exist_are_an_error(tmp_path):
    shard(tmp_path, "a.tar", ["1"])
    with pytest.raises(ValueError, match=r"2 of 3 shards do not exist: \S+b.tar, \S+c.tar \.\.\.; take them out"):
        listing_of(f"{tmp_path}/{{a,b,c}}.tar")
    memory = fsspec.filesystem("memory")
    memory.pipe("/few/a.tar", (tmp_path / "a.tar").read_bytes())
    with pytest.raises(ValueError, match=r"1 of 2 shards do not exist: memory://\S*few/b.tar"):
        listing_of("memory://few/{a,b}.tar")
    memory.rm("/few", recursive=True)


def test_splits_by_key_by_json_or_by_source(tmp_path):
    keys = [f"{number:03d}" for number in range(200)]
    shard(tmp_path, "a.tar", keys[:100])
    before = {item.key for item in listing_of(f"{tmp_path}/*.tar", 0.2).of("test")["numbers"]}
    shard(tmp_path, "b.tar", keys[100:], {"x.num": "1", "x.json": {"text": "a", "split": "extra", "key": "x"}})
    after = listing_of(f"{tmp_path}/*.tar", 0.2)
    tests = {item.key for item in after.of("test")["numbers"]}
    assert before == tests & set(keys[:100])
    assert 20 < len(tests) < 60
    assert [item.key for item in after.of("extra")["numbers"]] == ["x"]
    assert set(listing_of(f"{tmp_path}/*.tar", split="test").splits) == {"test"}


def test_an_index_is_read_again_and_built_anew_when_its_shard_changes(tmp_path):
    file = shard(tmp_path, "a.tar", ["1", "2"])
    (index,) = index_shards([str(file)])
    assert index == tmp_path / "a.tar.index"
    built = index.stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(listing_of(str(file)).of("train")["numbers"]) == 2
    assert index.stat().st_mtime_ns == built
    shard(tmp_path, "a.tar", ["1", "2", "3"])
    os.utime(file, ns=(built, built + 10**9))
    with pytest.warns(UserWarning, match=r"1 shards were changed since they were indexed.*a\.tar"):
        listing = listing_of(str(file))
    assert [item.decode(Numbers()) for item in listing.of("train")["numbers"]] == [1.0, 2.0, 3.0]
    index.write_bytes(index.read_bytes()[:100])
    with pytest.warns(UserWarning, match="indexed anew"):
        assert len(listing_of(str(file)).of("train")["numbers"]) == 3


def test_beside_a_shard_that_cannot_be_written_the_cache_is_used(tmp_path, monkeypatch):
    folder = tmp_path / "readonly"
    folder.mkdir()
    file = shard(folder, "a.tar", ["1"])
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):  # the superuser may write anywhere: a file in the way does the same
        (folder / f".a.tar.index.{os.getpid()}.part").mkdir()
    (index,) = index_shards([str(file)])
    assert index.parent == tmp_path / "cache" / "indexes"
    built = index.stat().st_mtime_ns
    assert index_shards([str(file)]) == [index]
    assert index.stat().st_mtime_ns == built


def test_shards_behind_a_url_are_like_local_ones(tmp_path):
    shard(tmp_path, "a.tar", ["1", "2"])
    shard(tmp_path, "b.tar", ["3"])
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/shards/{name}": (tmp_path / name).read_bytes() for name in ("a.tar", "b.tar")})
    try:
        for root in ("memory://shards", "memory://shards/{a,b}.tar", "memory://shards/*.tar", f"file://{tmp_path}"):
            items = listing_of(root).of("train")["numbers"]
            assert [item.decode(Numbers()) for item in items] == [1.0, 2.0, 3.0]
            assert str(items[2].file).endswith(
                "shards/b.tar::3.num" if "memory" in root else f"{tmp_path}/b.tar::3.num"
            )
        assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 2
        memory.pipe("/shards/b.tar", (tmp_path / "a.tar").read_bytes()[:4096])
        with pytest.raises(UnreadableFileError, match="the shard ends before|cannot be read"):
            replace(items[2], file=replace(items[2].file, offset=10**6)).decode(Numbers())
        with pytest.warns(UserWarning, match="indexed anew"):
            listing_of("memory://shards")
    finally:
        memory.rm("/shards", recursive=True)


def test_training_and_evaluation_read_from_shards(tmp_path):
    shard(tmp_path, "a.tar", [f"{number:02d}" for number in range(10)], {"x.num": "no", "x.txt": "broken"})
    shard(tmp_path, "b.tar", [f"{number:02d}" for number in range(10, 20)])
    items = pickle.loads(pickle.dumps(listing_of(str(tmp_path)).of("train")["numbers"]))
    assert (len(items), len(items[:3]), items[-1].key) == (21, 3, "19")
    steps = Steps({"numbers": items}, {"numbers": Numbers()}, TOKENIZER, 7, 0)
    keys = []
    for (batch,) in training_batches(steps, 0, 3, 2):
        keys += batch.keys
        assert batch.inputs["x"].tolist() == pytest.approx([float(key) for key in batch.keys], abs=0.11)
        for problem in batch.problems:
            assert (problem.key, problem.file) == ("a/x", f"{tmp_path}/a.tar::x.num")
    assert len(set(keys)) >= 19
    read, problems = [], []
    for own, _, broken in evaluation_batches(items, Numbers(), 8):
        read += own
        problems += broken
    assert (len(read), [problem.file for problem in problems]) == (20, [f"{tmp_path}/a.tar::x.num"])


def test_patterns_of_shards(tmp_path):
    assert expand_braces("s{08..11}{a,b}.tar")[:3] == ["s08a.tar", "s08b.tar", "s09a.tar"]
    assert expand_braces("{8..10}") == ["8", "9", "10"]
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    both = [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert find_files(str(tmp_path), ".tar") == both
    assert find_files([f"{tmp_path}/a.tar", f"{tmp_path}/*.tar"], ".tar") == both
    with pytest.raises(ValueError, match="names no file; expected a file, a folder with .tar files, or a pattern"):
        find_files(f"{tmp_path}/x*.tar", ".tar")

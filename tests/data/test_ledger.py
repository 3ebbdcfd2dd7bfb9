"""The ledger survives what kills and full disks leave of it."""

import json

import pytest

from multicoca.data.ledger import Ledger
from multicoca.data.sample import Problem

FIRST, SECOND, THIRD = (Problem(str(n), f"{n}.jpg", "broken", "train", "image") for n in range(3))


def test_each_problem_is_written_once_also_over_restarts(tmp_path):
    file = tmp_path / "ledger.jsonl"
    assert Ledger(file).add([FIRST, SECOND, FIRST]) == [FIRST, SECOND]
    again = Ledger(file)
    assert again.problems == [FIRST, SECOND]
    assert again.add([SECOND, THIRD]) == [THIRD]
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "torn",
    [
        b'{"key": "9", "file": "9.j',
        b'{"key": "9"}',
        b'{"key": "9", "file": "9.jpg", "reason": "x", "unknown": 1}\n',
        b"\xff\xfe\n",
        b"[" * 5000 + b"\n",
        b"null\n",
        b'{"key": "0", "fi\n',
    ],
)
def test_a_torn_line_blocks_nothing_and_goes_with_the_next_problem(tmp_path, torn):
    file = tmp_path / "ledger.jsonl"
    Ledger(file).add([FIRST])
    file.write_bytes(file.read_bytes() + torn)
    ledger = Ledger(file)
    assert ledger.problems == [FIRST]
    ledger.add([SECOND])
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["0", "1"]


def test_a_last_line_without_its_end_is_kept_whole(tmp_path):
    file = tmp_path / "ledger.jsonl"
    Ledger(file).add([FIRST, SECOND])
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    ledger = Ledger(file)
    ledger.add([THIRD])
    assert Ledger(file).problems == [FIRST, SECOND, THIRD]

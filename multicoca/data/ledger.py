"""The ledger: every item that could not be used, by name and reason, a JSON line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from multicoca.data.sample import Problem
from multicoca.files import naming, write_text


class Ledger:
    """Collects problems of a run; each file is named once, also over restarts and ranks.

    Args:
        file: where the lines go; it is made with the first problem.

    Attributes:
        problems: all of them, those of earlier starts included.
    """

    def __init__(self, file: Path):
        self.file = file
        self.problems: list[Problem] = []
        self._has_torn_lines = False  # of a kill or a full disk; they go with the next problem
        for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
            try:
                self.problems.append(Problem(**json.loads(line)))
                self._has_torn_lines |= not line.endswith(b"\n")
            except (ValueError, TypeError, RecursionError):
                self._has_torn_lines = True
        self._known = {(problem.file, problem.key) for problem in self.problems}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, problems: Iterable[Problem]) -> list[Problem]:
        """Appends the problems that are new and returns them."""
        new = []
        for problem in problems:
            if (problem.file, problem.key) not in self._known:
                self._known.add((problem.file, problem.key))
                new.append(problem)
        if new and self._has_torn_lines:
            write_text(self.file, "".join(map(_line, self.problems)))
            self._has_torn_lines = False
        self.problems.extend(new)
        if new:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with naming(self.file), self.file.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, new)))
        return new


def _line(problem: Problem) -> str:
    return json.dumps(asdict(problem)) + "\n"


class BrokenShare:
    """Stops a run when too large a share of a modality's training items is broken.

    Args:
        listed: training items by modality, the unusable ones included.
        limit: the largest share that is put up with.
        ledger: the file to point to.
    """

    def __init__(self, listed: Mapping[str, int], limit: float, ledger: Path):
        self.listed, self.limit, self.ledger = dict(listed), limit, ledger
        self._broken: dict[str, set[str]] = {modality: set() for modality in listed}

    def add(self, modality: str, keys: Iterable[str]) -> None:
        """Counts broken items.

        Raises:
            ValueError: the share is above the limit.
        """
        broken = self._broken.setdefault(modality, set())
        broken.update(keys)
        total = self.listed.get(modality, 0)
        if len(broken) > self.limit * total:
            raise ValueError(
                f"{len(broken)} of {total} {modality} training items cannot be used, more than the share of "
                f"{self.limit:g} that data.max_broken_share allows; {self.ledger} names each with its reason. "
                "Raise the share, or mend the files and delete the ledger"
            )

"""`multicoca check` in real processes: a set-up that is right, and what is found where it is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import multicoca
from patience import DEADLINE_S

from multicoca.cli.check_ranks import differences, ranks_by

WORKER = Path(__file__).with_name("check_worker.py")


def torchrun(*arguments: object, status: int) -> str:
    """Runs two ranks; returns what rank 0 printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += map(str, arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == status, f"{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def states(output: str) -> dict[str, str]:
    """Returns ok or WRONG by the name of each check."""
    return dict(re.findall(r"^(\S.*?) {2,}(ok|WRONG)\b", output, re.MULTILINE))


def problem_of(name: str, output: str) -> str:
    return re.search(rf"^{name} +WRONG.*\n((?:  .*\n)*)", output, re.MULTILINE)[1]


def test_all_is_right_where_two_ranks_share_a_folder(tmp_path):
    output = torchrun("-m", "multicoca.cli.check", "--mib", 2, "--folder", tmp_path / "runs", status=0)
    assert states(output) == dict.fromkeys(
        ("machines", "all-reduce", "gradients, ddp", "gradients, fsdp 1 x 2", "time-out", "checkpoint"), "ok"
    )
    assert re.search(r"ranks 0-1  \S+ .* GiB ", output), output
    assert float(re.search(r"bus (\S+) GB/s", output)[1]) > 0
    assert float(re.search(r"rank 0 has an error after (\S+) s", output)[1]) >= 5
    assert 2 < float(re.search(r"checkpoint .* (\S+) MB in", output)[1]) < 6
    assert not list(tmp_path.iterdir())


def test_a_folder_that_ranks_do_not_share_is_found(tmp_path):
    output = torchrun(WORKER, "unshared", tmp_path, status=1)
    found = states(output)
    assert found.pop("checkpoint") == "WRONG"
    assert set(found.values()) == {"ok"}
    problem = problem_of("checkpoint", output)
    assert problem.startswith(f"  rank 1: {tmp_path / '1' / 'runs'} is not shared"), problem
    assert "rank 0:" not in problem
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0", "1"]


def test_each_check_finds_what_is_broken_for_it_and_the_others_go_on_while_ranks_are_in_step(tmp_path):
    output = torchrun(WORKER, "broken", tmp_path, status=1)
    assert states(output) == {
        "averaged": "WRONG",
        "wrong sum": "WRONG",
        "changed on disk": "WRONG",
        "not named": "WRONG",
        "waits longer": "WRONG",
        "fails on all": "WRONG",
        "fine": "ok",
        "fails on one": "WRONG",
    }
    assert "ranks 0-1: gradients are not those of one process" in problem_of("averaged", output)
    assert problem_of("wrong sum", output) == "  rank 1: the sum over ranks is wrong\n"
    assert problem_of("changed on disk", output) == "  rank 1: it has read other values than were written\n"
    assert "rank 0: the error does not name the late rank 1" in problem_of("not named", output)
    assert "rank 0: expected an error after 1 s" in problem_of("waits longer", output)
    assert problem_of("fails on all", output) == "  ranks 0-1: every rank says so\n"
    assert "  rank 1: rank 1 alone says so\n" in problem_of("fails on one", output)
    assert "no longer in step" in output
    assert not list(tmp_path.iterdir())


def test_one_process_says_so_and_checks_what_it_can(tmp_path):
    output = multicoca(tmp_path, "check", "--mib", 1)
    assert output.startswith("one process")
    assert states(output) == {"machines": "ok", "checkpoint": "ok"}
    assert not (tmp_path / "runs").exists()


def test_sizes_that_do_not_fit_the_ranks_are_refused_before_they_meet(tmp_path):
    assert "parallel.shard 3 do not multiply" in multicoca(tmp_path, "check", "--shard", 3, status=2)
    assert "--mib is 0" in multicoca(tmp_path, "check", "--mib", 0, status=2)


def test_versions_that_differ_are_named_with_their_ranks():
    machines = [{"torch": "2.14", "NCCL": nccl, "host": host} for host in "ab" for nccl in ("2.27", "2.27", "2.21")]
    assert differences(machines, ["torch", "NCCL"]) == "NCCL is 2.27 on ranks 0-1, 3-4, 2.21 on ranks 2, 5"
    assert differences(machines, ["torch"]) == ""


@pytest.mark.parametrize(("values", "said"), [("aaa", {"a": "ranks 0-2"}), ("aba", {"a": "ranks 0, 2", "b": "rank 1"})])
def test_ranks_with_the_same_value_are_told_together(values, said):
    assert ranks_by(values) == said

"""The contrastive losses compile without graph breaks, collectives included; compiled blocks change no gradient."""

import shutil
from pathlib import Path

import pytest
from ranks import run_ranks


@pytest.mark.parametrize("world_size", [1, 2])
def test_contrastive_losses_compile_into_one_graph(world_size):
    run_ranks(Path(__file__).with_name("compile_worker.py"), world_size)


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch compiles for CPUs with a C++ compiler"
)
def test_compiled_blocks_give_the_gradients_of_plain_ones():
    run_ranks(Path(__file__).with_name("compiled_blocks_worker.py"), 2)

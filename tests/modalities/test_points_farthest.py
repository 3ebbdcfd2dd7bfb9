"""The CUDA kernel of farthest point sampling: interpreted on a CPU, compiled without a GPU, run where there is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import multicoca_points
import pytest
import torch
from multicoca_points import farthest_point_sample, grouping

DEADLINE_S = 300


def cases() -> dict[str, tuple[torch.Tensor, int, torch.Tensor | None]]:
    """Clouds, how many points to choose of each, and a mask; 4096 points are what the kernel handles at a time."""
    generator = torch.Generator().manual_seed(0)
    found = {f"{size} points": (torch.randn(2, size, 3, generator=generator), 24, None) for size in (1, 2, 37, 1000)}
    found |= {f"{size} points": (torch.randn(2, size, 3, generator=generator), 12, None) for size in (4096, 4097, 9001)}
    lattice = torch.randint(0, 4, (3, 6000, 3), generator=generator).float()
    found["ties"] = (lattice, 80, None)  # 64 places
    far = torch.randn(5, 300, 3, generator=generator) + 1000  # large coordinates: many distances are equal
    found["far from the origin"] = (far, 60, None)
    found["ties but for rounding"] = (torch.cartesian_prod(*[torch.arange(12) * 0.1] * 3)[None], 60, None)
    mask = torch.rand(2, 500, generator=generator) < 0.5
    padded = torch.randn(2, 500, 3, generator=generator).masked_fill(~mask[..., None], torch.nan)
    found["padding anywhere"] = (padded, 30, mask)
    start = torch.arange(9000).expand(2, -1) >= torch.tensor([[4096], [8999]])
    found["blocks of padding"] = (torch.randn(2, 9000, 3, generator=generator), 10, start)
    return found


def fill_by_kernel_and_compare() -> None:
    """Prints the cases in which the kernel does not choose as the loop does; for an interpreter of its own."""
    from multicoca_points import farthest_cuda

    loop = grouping.fill_farthest
    for name, case in cases().items():
        grouping.fill_farthest = loop
        expected = farthest_point_sample(*case)
        grouping.fill_farthest = farthest_cuda.fill_farthest
        for got, wanted in zip(farthest_point_sample(*case), expected, strict=True):
            if not torch.equal(got, wanted):
                print(name, got.tolist(), wanted.tolist())
    print("compared", len(cases()))


def test_the_kernel_chooses_as_the_loop_does():
    pytest.importorskip("triton")
    code = f"import {Path(__file__).stem} as this; this.fill_by_kernel_and_compare()"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when the kernel is defined
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (ran.stdout, ran.returncode) == (f"compared {len(cases())}\n", 0), ran.stdout + ran.stderr


@pytest.mark.parametrize(("points", "lanes", "num_warps"), [(1, 1, 1), (None, 512, 4), (None, 4096, 16)])
def test_the_kernel_compiles_with_every_product_rounded(points, lanes, num_warps, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    from multicoca_points import farthest_cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    floats, integers = dict.fromkeys(("axes", "nearest"), "*fp32"), dict.fromkeys(("first", "indices"), "*i64")
    sizes = {"points": "constexpr" if points else "i32", "num": "i32", "LANES": "constexpr"}
    constants = {"LANES": lanes} | ({"points": points} if points else {})
    source = triton.compiler.ASTSource(
        fn=farthest_cuda._fill_kernel, signature=floats | integers | {"new": "*i1"} | sizes, constexprs=constants
    )
    options = {"num_warps": num_warps, **farthest_cuda.OPTIONS}
    code = triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert not re.search(r"\bfma\b|\bmad\.\w*\.?f32", code)
    assert re.search(r"\bbar(rier)?\.", code)  # at the end of each step
    assert not re.search(r"ld\.global\.nc", code)  # such loads would not see what the kernel writes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_chooses_as_a_cpu_does():
    for name, (xyz, num, mask) in cases().items():
        expected = farthest_point_sample(xyz, num, mask)
        chosen = farthest_point_sample(xyz.cuda(), num, None if mask is None else mask.cuda())
        for got, wanted in zip(chosen, expected, strict=True):
            assert torch.equal(got.cpu(), wanted), name


@pytest.mark.parametrize("missing", ["triton", "compiler"])
def test_where_the_kernel_cannot_run_the_loop_does_and_a_warning_says_so(missing, monkeypatch):
    if missing == "triton":
        monkeypatch.delitem(sys.modules, "multicoca_points.farthest_cuda", raising=False)
        monkeypatch.delattr(multicoca_points, "farthest_cuda", raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        pytest.importorskip("triton")
        from multicoca_points import farthest_cuda

        def fail() -> None:
            raise subprocess.CalledProcessError(1, ["gcc"])

        monkeypatch.setattr(farthest_cuda, "check_compiler", fail)
    grouping._cuda_kernel.cache_clear()
    with pytest.warns(UserWarning, match="farthest point sampling cannot run .*(triton|gcc).*slower"):
        assert grouping._cuda_kernel() is grouping.fill_farthest
    grouping._cuda_kernel.cache_clear()

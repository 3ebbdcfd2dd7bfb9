"""Fused attention against plain matrix products on a CPU, forward and backward: why `nn.attention.attend` switches.

python benchmarks/attention_cpu.py
"""

import platform
import time

import torch
import torch.nn.functional as F

from multicoca.nn.attention import attend_by_products


def milliseconds(function, *tensors: torch.Tensor) -> float:
    """Returns the best time of forward and backward over several runs."""
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        function(*tensors).float().sum().backward()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def main() -> None:
    """Prints a table of times and their ratio."""
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    print("batch x heads x queries x keys   dtype      fused ms  products ms  fused / products")
    for queries, keys in ((64, 64), (24, 24), (24, 64), (24, 256)):
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(64, 4, n, 32, dtype=dtype, requires_grad=True) for n in (queries, keys, keys))
            fused = milliseconds(F.scaled_dot_product_attention, q, k, v)
            products = milliseconds(attend_by_products, q, k, v)
            shape = f"64 x 4 x {queries} x {keys}"
            print(f"{shape:<33}{str(dtype)[6:]:<11}{fused:8.2f}{products:13.2f}{fused / products:18.2f}")


if __name__ == "__main__":
    main()

"""The same profile twice in a row: the difference of two rows of the cost table.

python benchmarks/profile_twice.py --device cuda
"""

from rows import Row, chosen_device, finish, parser_of

from fusionbench.harness.profile import Bench
from fusionbench.records.cost import ProfileOptions
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods


def main() -> None:
    """Print and write a row for each method, and the one that is furthest apart."""
    parser = parser_of(__doc__)
    parser.add_argument("--encoder", default="shape:clip-vit-l-14-336")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--methods", nargs="+", default=["scalar_mix", "mmfuser", "mema"])
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    bench = Bench(
        ProfileOptions(encoder=asked.encoder, device=str(device), batch=asked.batch,
                       dtype=asked.dtype, width=asked.width, blocks=asked.blocks)
    )  # fmt: skip
    rows = []
    for chosen in select_methods(read_catalog(), tuple(asked.methods), {}):
        first, second = (bench.profile(chosen).latency_ms.median for _ in range(2))
        rows.append(Row(target=f"method={chosen.label}", plain=first, ours=second, unit="ms"))
    worst = max(rows, key=lambda row: abs(row.ratio - 1))
    rows.append(Row(target="profile-twice", plain=worst.plain, ours=worst.ours, unit="ms",
                    note=f"the furthest apart, {worst.target}"))  # fmt: skip
    finish("profile_twice", rows, device)


if __name__ == "__main__":
    main()

"""Where the time of one of our training steps goes: PyTorch's profiler on 32 chunks, 12 x 768, bf16 where it pays."""

import argparse

from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Results, chunk_lengths, random_chunks
from benchmarks.training_step import OURS, make_way


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_step", description=__doc__)
    parser.add_argument("--chunks", type=int, default=32, help="of one step")
    parser.add_argument("--way", choices=list(OURS), default="paper: ours")
    parser.add_argument("--top", type=int, default=12, help="rows of the table")
    arguments = parser.parse_args()
    step = make_way(arguments.way, random_chunks(chunk_lengths(arguments.chunks)), arguments.chunks)
    step()  # the first call of a kernel is slow
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    operations = sorted(profiler.key_averages(), key=lambda operation: -operation.self_cpu_time_total)
    total = sum(operation.self_cpu_time_total for operation in operations)
    results = Results("profile_step", chunks=arguments.chunks, way=arguments.way)
    results["rows"] = [
        {
            "operation": operation.key,
            "calls": operation.count,
            "milliseconds": round(operation.self_cpu_time_total / 1e3, 1),
            "share": round(operation.self_cpu_time_total / total, 4),
        }
        for operation in operations[: arguments.top]
    ]
    results.save()
    print(f"{total / 1e6:.2f} s in all; python -m benchmarks.draw prints the table")


if __name__ == "__main__":
    main()

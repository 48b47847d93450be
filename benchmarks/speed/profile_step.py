"""Where the time of one of our training steps goes: PyTorch's profiler on 32 chunks, 12 x 768, bf16 where it pays."""

from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Results, chunk_lengths, random_chunks
from benchmarks.speed.training_step import make_way

WAY, CHUNKS, TOP = "paper: ours", 32, 12


def main() -> None:
    step = make_way(WAY, random_chunks(chunk_lengths(CHUNKS)), CHUNKS)
    step()  # the first call of a kernel is slow
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    operations = sorted(profiler.key_averages(), key=lambda operation: -operation.self_cpu_time_total)
    total, rows = sum(operation.self_cpu_time_total for operation in operations), []
    for operation in operations[:TOP]:
        time = operation.self_cpu_time_total
        row = {"operation": operation.key, "calls": operation.count, "milliseconds": round(time / 1e3, 1)}
        rows.append(row | {"share": round(time / total, 4)})
    Results("profile_step", chunks=CHUNKS, way=WAY).finish(rows)


if __name__ == "__main__":
    main()

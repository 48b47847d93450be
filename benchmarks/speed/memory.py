"""Peak memory of a process; a module of its own, so that a measured process imports nothing else."""

import resource
from pathlib import Path


def peak_memory() -> float:
    """Largest resident memory that this process has had, MiB."""
    status = Path("/proc/self/status")  # ru_maxrss would count the parent's memory too: Linux hands it on
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes

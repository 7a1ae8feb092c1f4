"""Fuzzing of every decoder: python -m benchmarks.faults.fuzzing --seconds 3600

Needs atheris, which is no dependency: pip install atheris. What it finds that is new goes into
tests/fuzzing/corpus, which `make test` tries again; an input on which a decoder crashes, hangs or
allocates too much goes there too, and the run exits with 1.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console

from benchmarks.bars import Number, table
from tests.fuzzing.targets import CORPUS, INPUT_BYTES, SECONDS, TARGETS, corpus

RSS_MIB = 512
"""What a whole process may hold; it starts with a tenth of that."""
_TRIES = "stat::number_of_executed_units:"


def fuzz(target: str, seconds: int) -> tuple[int, list[Path]]:
    """Return how many inputs were tried, and files of those that a decoder did not survive."""
    kept = CORPUS / target
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tried, found = Path(folder, "tried"), Path(folder, "found")
        for each in tried, found:
            each.mkdir()
        held = corpus(target)
        for name, data in held.items():
            (tried / name).write_bytes(data)
        bounds = [f"-rss_limit_mb={RSS_MIB}", f"-timeout={SECONDS:.0f}", f"-max_len={INPUT_BYTES}"]
        stops = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={found}/"]
        done = _libfuzzer(target, *bounds, *stops, tried)
        counts = [line.split()[-1] for line in done.stderr.splitlines() if line.startswith(_TRIES)]
        if not counts and not list(found.iterdir()):
            raise click.ClickException(done.stderr[-2000:])
        failed = sorted(found.iterdir())
        # In `tried` is what reached something new, and of what reaches the same the smallest.
        for path in [*tried.iterdir(), *failed]:
            if path.name not in held:
                (kept / path.name).write_bytes(path.read_bytes())
        return int(counts[0]) if counts else 0, [kept / path.name for path in failed]


def _libfuzzer(target: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzzing", target, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


@click.command()
@click.option("--seconds", default=60, show_default=True, help="For all targets together.")
@click.option("--target", "targets", multiple=True, type=click.Choice(sorted(TARGETS)))
@click.option("--processes", default=1, show_default=True)
def main(seconds: int, targets: tuple[str, ...], processes: int) -> None:
    """Fuzz every decoder, and keep what is found."""
    chosen = targets or tuple(sorted(TARGETS))
    share = max(seconds * processes // len(chosen), 1)
    with ThreadPoolExecutor(processes) as pool:
        outcomes = dict(zip(chosen, pool.map(lambda target: fuzz(target, share), chosen), strict=True))
    numbers = [
        Number(f"{target}: crashes, hangs, too much memory", 0, len(failed), note=f"{tries:,} inputs")
        for target, (tries, failed) in outcomes.items()
    ]
    console = Console()
    console.print(table(numbers))
    for _, failed in outcomes.values():
        for path in failed:
            console.print(str(path))
    sys.exit(not all(number.is_met for number in numbers))


if __name__ == "__main__":
    main()

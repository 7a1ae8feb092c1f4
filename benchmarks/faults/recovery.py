"""A bucket that is dead for the first half of a job: python -m benchmarks.faults.recovery

In the second half, the same process must find what others stored, and what it put must be stored: that of
the first half, too.
"""

import json
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from s3cache.stores.breaker import LONGEST_COOLDOWN_SECONDS
from tests.faults import faulty
from tests.processes.machines import Bucket, Machine, ended
from tests.servers import Server, seaweedfs

BUCKET = "recovery"
STEP_SECONDS = 0.1
RECORD = """
for number in range({steps}):
    cache.put("fx-graph", f"key-{{number}}", {{"graph": content(number, 20_000)}})
"""
JOB = """
began = time.monotonic()
look_ups, number = [], 0
while time.monotonic() < began + {seconds}:
    asked = time.monotonic()
    entry = cache.get("fx-graph", f"key-{{number}}")
    answered = time.monotonic()
    assert entry is None or entry.members == {{"graph": content(number, 20_000)}}
    look_ups.append((answered, answered - asked, entry is not None))
    cache.put("fx-graph", f"own-{{number}}", {{"graph": content(-number, 20_000)}})
    number += 1
    time.sleep({step})
import json
say(json.dumps(look_ups))
"""


def check(server: Server, root: Path, kind: str, dead_seconds: float, alive_seconds: float) -> list[Number]:
    """Let a job run with a bucket that at first, for so many seconds, does what `kind` says."""
    bucket = Bucket(server, BUCKET, f"recovery-{kind}")
    seconds = dead_seconds + alive_seconds
    steps = int(seconds / STEP_SECONDS)
    recording = Machine(root / f"recording-{kind}", bucket.settings)
    machine = Machine(root / f"job-{kind}", bucket.settings)
    assert recording.run(RECORD.format(steps=steps)).status == 0
    recording.wait_until_idle()
    # A job of another name: what it finds, it looks up.
    with faulty(server.endpoint, root / f"front-{kind}") as front:
        front.inject(kind)
        job = machine.start(
            JOB.format(seconds=seconds, step=STEP_SECONDS),
            AWS_ENDPOINT_URL_S3=front.endpoint,
            S3CACHE_JOB="another",
        )
        time.sleep(dead_seconds)
        front.heal()
        healed = time.monotonic()
        done = ended(job)
        assert done.status == 0, done.stderr
        machine.wait_until_idle(120)
    look_ups = json.loads(done.stdout)
    first = next((when for when, _, is_hit in look_ups if is_hit), math.inf)
    after = [is_hit for when, _, is_hit in look_ups if when >= first]
    waited = sum(seconds for when, seconds, _ in look_ups if when < first)
    stored = [key for key in bucket.keys("fx-graph") if key.startswith("own-")]
    longest = LONGEST_COOLDOWN_SECONDS * 1.25
    return [
        Number(f"{kind}: from the revival to the first hit", longest, first - healed, " s"),
        Number(f"{kind}: look-ups after it that hit", len(after), sum(after), is_floor=True),
        Number(f"{kind}: puts that are stored", len(look_ups), len(stored), is_floor=True),
        Number(f"{kind}: waited for the cache until then", 5.0, waited, " s"),
    ]


@click.command()
@click.option("--half-seconds", default=45.0, show_default=True)
def main(half_seconds: float) -> None:
    """Run a job for each way to be dead, then print a table of bars and numbers."""
    with TemporaryDirectory(prefix="s3cache-recovery-") as folder, seaweedfs() as server:
        server.make_bucket(BUCKET)
        conclude(
            [
                number
                for kind in ("reset", "stall", "500", "expired")
                for number in check(server, Path(folder), kind, half_seconds, half_seconds)
            ]
        )


if __name__ == "__main__":
    main()

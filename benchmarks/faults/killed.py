"""kill -9 while a job is being recorded: python -m benchmarks.faults.killed

Of each pair of job and agent one, the other or both are killed at a random moment. The next ones go on with
the same disk tier, spool and bucket.
"""

import os
import random
import signal
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from blake3 import blake3

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from s3cache import frame, manifest
from s3cache.errors import Corrupt
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Place
from tests.processes.machines import Bucket, Machine
from tests.servers import Server, seaweedfs

BUCKET = "killed"
LONGEST_SECONDS = 2.0
"""After so long, a job and its agent have done all that they do again and again."""
JOB = """
acknowledged = open("acknowledged", "a", buffering=1)
number = 0
while True:
    key = f"{round}-{{number}}"
    cache.put("fx-graph", key, {{"graph": content(key, 500 + number % 5 * 30_000)}})
    acknowledged.write(key + "\\n")
    if not number:
        say("recording")
    cache.get("fx-graph", f"{before}-{{number}}")
    number += 1
    time.sleep(0.01)
"""
LAST = """
for line in open("acknowledged"):
    key = line.strip()
    size = 500 + int(key.split("-")[1]) % 5 * 30_000
    entry = cache.get("fx-graph", key)
    assert entry and entry.members == {"graph": content(key, size)}, key
say("right")
"""


def check(server: Server, root: Path, kills: int, seed: int = 0) -> list[Number]:
    """Kill so many times; then look into the bucket, the disk tier, and start once more."""
    randomly = random.Random(seed)
    bucket = Bucket(server, BUCKET, "killed")
    machine = Machine(root / "machine", bucket.settings)
    torn = 0
    for number in range(kills):
        job = machine.start(JOB.format(round=number, before=number - 1))
        # One of ten dies before it has recorded anything.
        if randomly.random() < 0.9:
            assert job.stdout
            job.stdout.readline()
        time.sleep(randomly.uniform(0.0, LONGEST_SECONDS))
        agents = machine.agents()
        which = randomly.choice(["job", "agent", "both"])
        victims = {"job": [job.pid], "agent": agents, "both": [job.pid, *agents]}[which]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        torn += _torn(machine)
        if job.poll() is None:
            job.kill()
        job.communicate()
    machine.wait_until_idle(120)
    # What was spooled last, the next start sends.
    sent = machine.run("cache.flush(60)")
    machine.wait_until_idle(120)
    last = machine.run(LAST)
    machine.wait_until_idle(120)
    manifests, dangling = _look_into(bucket)
    failed = (sent.status != 0) + (last.stdout != "right\n")
    acknowledged = len((machine.folder / "acknowledged").read_text().splitlines())
    return [
        Number("processes killed", kills, kills, is_floor=True),
        Number("manifests in the bucket that do not resolve whole", 0, dangling, note=f"of {manifests}"),
        Number("results that a put returned for, in the bucket", acknowledged, manifests, is_floor=True),
        Number("torn files in the disk tier, looked for after each", 0, torn + _torn(machine)),
        Number("next starts that failed, or found other bytes", 0, failed),
    ]


def _look_into(bucket: Bucket) -> tuple[int, int]:
    """Return how many manifests there are, and how many do not resolve whole."""
    packs = dict(bucket.objects("packs/"))

    @cache
    def grown(place: Place) -> bytes:
        data = packs[f"packs/{place.pack.hex()}"][place.offset : place.offset + place.length]
        return frame.decompress(data, frame.MAX_CONTENT_BYTES)

    manifests = dangling = 0
    for _, data in bucket.objects("manifests/"):
        manifests += 1
        found = manifest.decode(data, NO_KEYS)
        try:
            for member in found.members:
                inline = member.inline is not None
                manifest.content_of(member, None if inline else grown(found.frames[member.frame]))
        except (KeyError, Corrupt):
            dangling += 1
    return manifests, dangling


def _torn(machine: Machine) -> int:
    """Return how many files of the disk tier do not hold what they were written with."""
    torn = 0
    for path in machine.held():
        with suppress(FileNotFoundError):
            data = path.read_bytes()
            torn += blake3(data[32:]).digest() != data[:32]
    return torn


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill, then print a table of bars and numbers."""
    with TemporaryDirectory(prefix="s3cache-killed-") as folder, seaweedfs() as server:
        server.make_bucket(BUCKET)
        conclude(check(server, Path(folder), kills, seed))


if __name__ == "__main__":
    main()

"""Power loss: files of the disk tier and of the spool, cut at random: python -m benchmarks.faults.torn

What is left of a file after a power loss is a part of it, or a part and zeros.
"""

import logging
import os
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from s3cache import manifest, names, pack
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.manifest import Result
from s3cache.spool import Put, Spool
from s3cache.tier import DiskTier

LIMIT = 1 << 30
RESULTS = 20


def check(root: Path, times: int, seed: int = 0) -> list[Number]:
    """Cut a file so many times, each time another one at another length, and read what is there."""
    randomly = random.Random(seed)
    tier, spool = DiskTier(root / "tier", LIMIT), Spool(root / "spool", LIMIT)
    results = [
        Result("ns", f"key-{number}", {"binary": randomly.randbytes(randomly.randrange(100, 30_000))})
        for number in range(RESULTS)
    ]
    objects = dict(_objects(results))
    found = served = 0
    for number in range(times):
        if number % 4 == 3:
            spool.add(Put(results[number % RESULTS], "job", str(number)))
            (path,) = spool.pending()
            _cut(path, randomly)
            is_served = spool.load(path) is not None
            found += not is_served and not path.exists()
        else:
            for name, content in objects.items():
                tier.write(name, content)
            name = randomly.choice(list(objects))
            _cut(root / "tier" / "objects" / name, randomly)
            entries = LocalEntries(tier, (), NO_KEYS)
            here = [(result, entries.find("ns", result.key, 0)) for result in results]
            is_wrong = any(entry and entry.members != result.members for result, entry in here)
            is_served = is_wrong or tier.read(name) is not None
            found += tier.take_quarantined() == 1
        served += is_served
    for name, content in objects.items():
        tier.write(name, content)
    whole = sum(tier.read(name) == content for name, content in objects.items())
    return [
        Number("cuts that were found", times, found, is_floor=True),
        Number("cut files that were served", 0, served),
        Number("objects that are whole when written again", len(objects), whole, is_floor=True),
    ]


def _objects(results: list[Result]) -> list[tuple[str, bytes]]:
    built = pack.build([result for result in results if manifest.inline(result, {}) is None], {})
    manifests = [made for result in results if (made := manifest.inline(result, {}))] + built.manifests
    frames = [
        (f.place.name, built.data[f.place.offset : f.place.offset + f.place.length]) for f in built.frames
    ]
    return [
        (names.manifest_name(made.namespace, made.key, 0), manifest.encode(made, NO_KEYS))
        for made in manifests
    ] + frames


def _cut(path: Path, randomly: random.Random) -> None:
    size = path.stat().st_size
    kept = randomly.randrange(size)
    os.truncate(path, kept)
    if randomly.random() < 0.3:
        # The length was written, the content was not; a file that ends in zeros is not damaged by that.
        os.truncate(path, size + 1)


@click.command()
@click.option("--times", default=1_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(times: int, seed: int) -> None:
    """Cut files, then print a table of bars and numbers."""
    logging.disable()
    with TemporaryDirectory(prefix="s3cache-torn-") as folder:
        conclude(check(Path(folder), times, seed))


if __name__ == "__main__":
    main()

"""Starts and recordings of real processes, behind the network, and what they ask of the bucket."""

import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import Number, turned
from benchmarks.datasets import Item
from benchmarks.lab import Lab
from benchmarks.machine import S3CACHE, Machine
from benchmarks.network import Request, round_trips
from benchmarks.rival_starts import rival_starts

WORKER = Path(__file__).with_name("worker.py")
MACHINES = 16
PROCESSES = 8
VARIANTS = 4
TRAINING_SECONDS = 60.0
FINISH_SECONDS = 120.0
RECORDING_SECONDS = 20.0
STAY_SECONDS = 45.0
LIMIT_SECONDS = 400.0
NICEST = 19


def start(lab: Lab) -> list[Number]:
    """Start the training script on fresh machines, and on a hot one without s3cache."""
    url = lab.url()
    with lab.wire() as wire:
        settings = lab.settings(url, wire)
        lab.say("recording the training script")
        lab.machine().train(settings)
        stock = lab.machine()
        lab.say("making a stock machine hot")
        for _ in range(2):
            stock.train()
        under = [str(S3CACHE), "run", "--"]
        seconds: dict[str, list[float]] = {}
        with rival_starts(lab, wire) as rivals:
            for turn in range(lab.runs):
                for kind in turned(["fresh", "stock hot", *rivals], turn):
                    if kind == "fresh":
                        took = lab.machine().train(settings, under).to_first_step
                    elif kind == "stock hot":
                        took = stock.train().to_first_step
                    else:
                        took = rivals[kind]()
                    lab.say(f"{kind}: {took:.2f} s")
                    seconds.setdefault(kind, []).append(took)
    middle = {kind: statistics.median(values) for kind, values in seconds.items()}
    note = f"{middle['fresh']:.2f} s ÷ {middle['stock hot']:.2f} s"
    return [
        Number(
            "spawn to first step, fresh machine ÷ stock hot folder",
            1.05,
            middle["fresh"] / middle["stock hot"],
            note=note,
            beside={f"{kind}, s": middle[kind] for kind in rivals},
        )
    ]


def cold(lab: Lab) -> list[Number]:
    """Start the training script with an empty bucket, and without a cache."""
    seconds: dict[str, list[float]] = {"no cache": [], "empty bucket": []}
    with lab.wire() as wire:
        for turn in range((lab.runs + 1) // 2):
            for kind in turned(list(seconds), turn):
                settings = lab.settings(lab.url(), wire) if kind == "empty bucket" else {}
                took = lab.machine().train(settings).to_first_step
                lab.say(f"{kind}: {took:.2f} s")
                seconds[kind].append(took)
    empty, none = (statistics.median(seconds[kind]) for kind in ("empty bucket", "no cache"))
    note = f"{empty:.2f} s ÷ {none:.2f} s"
    return [Number("cold start into an empty bucket ÷ no cache", 1.05, empty / none, note=note)]


def one_more(lab: Lab, items: Sequence[Item], more: Item) -> list[Number]:
    """Put one new kernel into a job that has thousands."""
    url = lab.url()
    lab.record(items, url)
    with lab.wire() as wire:
        said = _work(lab, lab.machine(), lab.settings(url, wire), "write", [more], "0", "0")
        passed = wire.requests(said["at"])
    size = sum(map(len, more.members.values()))
    up = sum(request.up for request in passed)
    note = f"{up} bytes for {size}; " + " ".join(request.method for request in passed)
    return [
        Number("one new kernel: requests", 4, len(passed), note=note),
        Number("one new kernel: bytes up ÷ (3 × its bytes + 64 KB)", 1, up / (3 * size + 64_000)),
    ]


def ranks(lab: Lab, items: Sequence[Item]) -> list[Number]:
    """Start one process on a machine, and eight at once."""
    url = lab.url()
    lab.record(items, url)
    passed: dict[int, list[Request]] = {}
    with lab.wire() as wire:
        for count in (1, PROCESSES):
            began, machine = time.monotonic(), lab.machine()
            jobs = [_start(lab, machine, lab.settings(url, wire), "read", items) for _ in range(count)]
            assert [_ended(job)["found"] for job in jobs] == [len(items)] * count
            machine.wait_until_idle()
            passed[count] = wire.requests(began)
    one, many = passed[1], passed[PROCESSES]
    down = [sum(request.down for request in requests) for requests in (many, one)]
    return [
        Number(
            f"{PROCESSES} processes at once ÷ one: requests",
            1,
            len(many) / len(one),
            note=" ".join(request.method for request in many),
        ),
        Number(f"{PROCESSES} processes at once ÷ one: bytes down", 1, round(down[0] / down[1], 3)),
    ]


def fleet(lab: Lab, items: Sequence[Item]) -> list[Number]:
    """Let sixteen machines make the same results at once, and one alone."""
    up: dict[int, int] = {}
    with lab.wire() as wire:
        for count in (1, MACHINES):
            url, began = lab.url(), time.monotonic()
            machines = [lab.machine() for _ in range(count)]
            arguments = str(RECORDING_SECONDS), str(STAY_SECONDS)
            jobs = [
                _start(lab, machine, lab.settings(url, wire), "write", items, *arguments)
                for machine in machines
            ]
            for job in jobs:
                _ended(job)
            for machine in machines:
                machine.wait_until_idle()
            up[count] = sum(request.up for request in wire.requests(began) if request.method == "PUT")
    note = f"{up[MACHINES] / 1e6:.2f} MB ÷ {up[1] / 1e6:.2f} MB"
    what = f"{MACHINES} machines that start cold at once ÷ one: bytes up"
    return [Number(what, 1.3, up[MACHINES] / up[1], note=note)]


def look_ups(lab: Lab, items: Sequence[Item]) -> list[Number]:
    """Look up what is absent, and what has variants, on a machine without a profile."""
    url = lab.url()
    with lab.wire() as wire:
        settings = lab.settings(url, wire)
        _work(lab, lab.machine(), settings, "vary", items[:VARIANTS], "varied")
        elsewhere = settings | {"S3CACHE_JOB": "another"}
        absent = _work(lab, lab.machine(), elsewhere, "look", [], "absent")
        of_absent = wire.requests(absent["at"])
        varied = _work(lab, lab.machine(), elsewhere, "look", [], "varied")
        of_varied = wire.requests(varied["at"])
    # What its profile is extended by afterwards, nobody waits for.
    of_varied = [request for request in of_varied if request.asked < varied["until"]]
    assert (absent["found"], varied["found"]) == (0, VARIANTS)
    methods = " ".join(request.method for request in of_varied)
    return [
        Number("an absent key: requests", 1, len(of_absent), note=" ".join(r.line for r in of_absent)),
        Number("an absent key: round trips", 1, round_trips(of_absent)),
        Number(f"a key with {VARIANTS} variants: round trips", 2, round_trips(of_varied), note=methods),
    ]


def busy(lab: Lab, items: Sequence[Item]) -> list[Number]:
    """Train for a minute while thousands of results are recorded, and without s3cache."""
    steps = str(_work(lab, lab.machine(), {}, "train", [], f"{TRAINING_SECONDS:.0f}s")["steps"])
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    finished: list[float] = []
    with lab.wire() as wire:
        # They stand for other machines, and have no others here.
        for pid in (lab.server.pid, wire.pid):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), NICEST)
        for turn in range((lab.runs + 1) // 2):
            for kind in turned(list(seconds), turn):
                machine = lab.machine()
                settings = lab.settings(lab.url(), wire) if kind == "with" else {}
                job = _start(lab, machine, settings, "train", items, steps)
                took = _ended(job)["seconds"]
                ended = time.monotonic()
                machine.wait_until_idle()
                if kind == "with":
                    assert not list(machine.cache.glob("spool/*/*.put"))
                    finished.append(took + time.monotonic() - ended)
                lab.say(f"{kind} s3cache: {took:.1f} s")
                seconds[kind].append(took)
    on, off = statistics.median(seconds["with"]), statistics.median(seconds["without"])
    return [
        Number(
            "a busy minute of recording ÷ without s3cache", 1.05, on / off, note=f"{on:.1f} s ÷ {off:.1f} s"
        ),
        Number("uploads finished after", FINISH_SECONDS, max(finished), " s"),
    ]


def _start(
    lab: Lab,
    machine: Machine,
    settings: Mapping[str, str],
    mode: str,
    items: Sequence[Item],
    *arguments: str,
) -> subprocess.Popen[str]:
    path = lab.folder()
    path.write_bytes(pickle.dumps([(item.key, item.members, item.on_demand) for item in items]))
    return subprocess.Popen(
        [sys.executable, str(WORKER), mode, str(path), *arguments],
        stdout=subprocess.PIPE,
        cwd=machine.root / "home",
        env=machine.environment(settings),
        text=True,
    )


def _ended(job: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = job.communicate(timeout=LIMIT_SECONDS)
    assert job.returncode == 0, job.args
    said: dict[str, Any] = json.loads(output) if output else {}
    return said


def _work(
    lab: Lab,
    machine: Machine,
    settings: Mapping[str, str],
    mode: str,
    items: Sequence[Item],
    *arguments: str,
) -> dict[str, Any]:
    """Let a process do its work on a machine; return what it says once all is uploaded."""
    said = _ended(_start(lab, machine, settings, mode, items, *arguments))
    machine.wait_until_idle()
    return said

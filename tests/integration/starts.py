"""Starts of jobs that are looked into: what each computed, what it compiled, what the cache did.

The machines of a fleet share nothing but a prefix of a bucket. Those that only record may share
their TMPDIR: PyTorch keeps a precompiled header of 155 MB there, which takes seconds to build.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

from filelock import FileLock

from benchmarks.compilers import LOG_VARIABLE
from tests.processes.machines import UNHURRIED
from tests.servers import Server

START_SECONDS = 200.0
REST_SECONDS = 300.0

_PREAMBLE = """\
import atexit, gc, json, logging, os, pathlib, sys

# A short job has no garbage to speak of; to look for it, at the end above all, takes a quarter of its time.
gc.disable()
atexit.register(gc.freeze)
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")

def report(**facts):
    # A job that compiled nothing need not wait until all that compiles is imported.
    if dynamo := sys.modules.get("torch._dynamo.utils"):
        facts["inductor"] = dynamo.counters["inductor"]
        facts["aot_autograd"] = dynamo.counters["aot_autograd"]
    pathlib.Path(f"facts-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(facts))

"""


@dataclass(frozen=True)
class Start:
    """What one start of a job came to."""

    said: str
    ranks: list[dict[str, Any]]
    """What each rank gave to `report`, with PyTorch's own counters."""
    compiled: list[str]
    """The command line of every execution of a compiler."""
    cache: dict[str, Any]
    """s3cache's own report."""
    seconds: float
    """From its spawn to its exit."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the only rank reported."""
        (facts,) = self.ranks
        return facts

    @property
    def warnings(self) -> list[str]:
        """What s3cache had to warn of in the job's processes, but for that nothing is signed."""
        warnings = [line for line in self.said.splitlines() if line.startswith("WARNING s3cache")]
        return [line for line in warnings if "nothing is signed" not in line]

    def count(self, what: str, namespace: str = "") -> int:
        """Return a count of s3cache's report: of a namespace, or of all."""
        counts = self.cache["namespaces"]
        return sum(counts[name][what] for name in counts if namespace in ("", name))


@dataclass(frozen=True)
class Machine:
    """All that its jobs write lies under `folder`, at paths that no other machine has."""

    folder: Path
    environment: dict[str, str]
    tmp: Path

    @property
    def inductor(self) -> Path:
        """PyTorch's own cache folder."""
        return self.folder / "inductor"

    @property
    def tier(self) -> Path:
        """The objects of the disk tier, which is one for each URL."""
        (tier,) = (self.folder / "cache" / "tier").iterdir()
        return tier / "objects"

    def start(
        self,
        script: str,
        *,
        name: str = "job.py",
        python: str | Path = sys.executable,
        launcher: Sequence[str] = (),
        **variables: str,
    ) -> Start:
        """Start a script and wait until it ended and all it put is stored.

        Raises AssertionError, with what it wrote, when it fails.
        """
        report, compiled = self.folder / "report.json", self.folder / "compiled"
        for folder in (self.folder / "home", self.tmp):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (report, compiled, *self.folder.glob("facts-*.json")):
            path.unlink(missing_ok=True)
        (self.folder / name).write_text(_PREAMBLE + dedent(script))
        files = {"S3CACHE_REPORT": str(report), LOG_VARIABLE: str(compiled)}
        began = time.monotonic()
        done = subprocess.run(
            [python, *launcher, name],
            env=self._environment() | files | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        seconds = time.monotonic() - began
        assert done.returncode == 0, done.stdout
        self._rest()
        return Start(
            done.stdout,
            [json.loads(path.read_text()) for path in sorted(self.folder.glob("facts-*.json"))],
            compiled.read_text().splitlines() if compiled.exists() else [],
            json.loads(report.read_text()) if report.exists() else {},
            seconds,
        )

    def run(self, script: str, **how: Any) -> Start:
        """Start a script of which s3cache must not have to warn."""
        start = self.start(script, **how)
        assert start.warnings == [], start.said
        return start

    def keys(self, kind: str) -> set[str]:
        """Return the keys that PyTorch's folder has of a kind: "fxgraph" or "aotautograd"."""
        return {path.name for path in self.inductor.glob(f"{kind}/*/*")}

    def forget(self, *kinds: str) -> None:
        """Remove parts of PyTorch's folder."""
        for kind in kinds:
            shutil.rmtree(self.inductor / kind)

    def _environment(self) -> dict[str, str]:
        return {
            "LANG": "C.UTF-8",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.tmp),
            "TORCHINDUCTOR_CACHE_DIR": str(self.inductor),
            "TRITON_CACHE_DIR": str(self.folder / "triton-cache"),
            # A folder named s3cache would be a package of that name beside the script.
            "S3CACHE_DIR": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            **self.environment,
        }

    def _rest(self) -> None:
        """Wait until every agent has sent what was spooled and is gone."""
        deadline = time.monotonic() + REST_SECONDS
        for lock in self.folder.glob("cache/agents/*/lock"):
            with FileLock(lock, timeout=max(deadline - time.monotonic(), 0.0)):
                pass


class Fleet:
    """Fresh machines that share a prefix of a bucket.

    Those that are unhurried wait for their agent and the bucket however busy they are.
    """

    def __init__(
        self, server: Server, url: str, folder: Path, shims: Path, tmp: Path, *, is_unhurried: bool = False
    ) -> None:
        self.url = url
        self._server = server
        self._folder = folder
        self._tmp = tmp
        self._numbers = count()
        path = os.pathsep.join([str(shims), os.environ["PATH"]])
        self._environment = {"PATH": path, "S3CACHE_URL": url, **server.environment()}
        if is_unhurried:
            self._environment["PYTHONPATH"] = str(UNHURRIED)

    def fresh(self) -> Machine:
        """Return a machine that has nothing at all."""
        folder = self._folder / f"machine-{next(self._numbers)}"
        return Machine(folder, self._environment, folder / "tmp")

    def recorder(self) -> Machine:
        """Return a machine that has nothing but a TMPDIR that it shares with other recorders."""
        return replace(self.fresh(), tmp=self._tmp)

    def copy_of(self, machine: Machine, *parts: str) -> Machine:
        """Return a machine that has only those folders of another one, at paths of its own."""
        copy = self.fresh()
        for part in parts:
            shutil.copytree(machine.folder / part, copy.folder / part)
        return copy

    def cut(self, prefix: str) -> None:
        """Let objects whose names begin so have their first bytes alone."""
        bucket, _, root = self.url.removeprefix("s3://").partition("/")
        client = self._server.client()
        try:
            for name in self.objects(prefix):
                key = f"{root}/v1/{name}"
                data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
                client.put_object(Bucket=bucket, Key=key, Body=data[:10])
        finally:
            client.close()

    def receive(self, other: "Fleet", pause: float = 0.0) -> None:
        """Copy all objects of another fleet, one after the other, as if a machine had recorded them."""
        bucket, _, root = self.url.removeprefix("s3://").partition("/")
        source = other.url.removeprefix("s3://")
        client = self._server.client()
        try:
            # What a manifest names is there before it.
            for name in sorted(other.objects(), key=lambda name: not name.startswith("packs/")):
                time.sleep(pause)
                client.copy_object(Bucket=bucket, Key=f"{root}/v1/{name}", CopySource=f"{source}/v1/{name}")
        finally:
            client.close()

    def objects(self, prefix: str = "") -> dict[str, str]:
        """Return the objects whose names begin so, each with a mark of what it holds."""
        bucket, _, root = self.url.removeprefix("s3://").partition("/")
        root += "/v1/"
        client = self._server.client()
        try:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=root + prefix)
            items = [item for page in pages for item in page.get("Contents", ())]
            return {item["Key"].removeprefix(root): item["ETag"] for item in items}
        finally:
            client.close()

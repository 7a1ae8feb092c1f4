"""Machines for tests: each is fresh, runs real processes, and shares nothing but a bucket."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.servers import Server

RUN_SECONDS = 300.0
UPLOAD_SECONDS = 30.0

_PREAMBLE = """\
def report(**facts):
    import json, pathlib
    pathlib.Path("report.json").write_text(json.dumps(facts))

"""


@dataclass(frozen=True)
class Machine:
    """A fresh machine: all that its jobs write lies under `folder`, at paths that no other one has."""

    folder: Path
    environment: dict[str, str]

    def run(self, script: str, *, name: str = "job.py", **variables: str) -> dict[str, Any]:
        """Run a script, wait until all it put is stored, and return what it gave to `report`.

        Raises AssertionError, with what it wrote, when it fails or s3cache had to warn.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(_PREAMBLE + dedent(script))
        done = subprocess.run(
            [sys.executable, name],
            env=self._environment() | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        wrote = done.stdout + done.stderr
        assert done.returncode == 0, wrote
        assert not [line for line in done.stderr.splitlines() if line.startswith("s3cache")], wrote
        self._await_uploads()
        facts: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return facts

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        # Beside the script, a folder named triton or s3cache would be a package of that name.
        folders = {"HOME": "home", "TMPDIR": "tmp", "TRITON_CACHE_DIR": "tmp/triton"}
        folders |= {"TORCHINDUCTOR_CACHE_DIR": "tmp/inductor", "S3CACHE_DIR": "cache"}
        for folder in folders.values():
            (self.folder / folder).mkdir(exist_ok=True)
        return (
            inherited
            | {name: str(self.folder / folder) for name, folder in folders.items()}
            | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            | self.environment
        )

    def _await_uploads(self) -> None:
        deadline = time.monotonic() + UPLOAD_SECONDS
        while list((self.folder / "cache").glob("spool/**/*.put")):
            assert time.monotonic() < deadline, "not everything was uploaded"
            time.sleep(0.05)


class Bucket:
    """A bucket, and the fresh machines that share it."""

    def __init__(self, server: Server, name: str, folder: Path) -> None:
        server.make_bucket(name)
        self._server = server
        self._name = name
        self._folder = folder
        self._count = 0

    def new_machine(self) -> Machine:
        """Return a machine that has nothing yet."""
        self._count += 1
        url = {"S3CACHE_URL": f"s3://{self._name}/prefix"}
        return Machine(self._folder / f"machine-{self._count}", self._server.environment() | url)

    def manifests(self, prefix: str) -> list[str]:
        """Return the manifests, `<namespace>/<key>/<slot>`, whose names begin so."""
        client = self._server.client()
        root = "prefix/v1/manifests/"
        try:
            listed = client.list_objects_v2(Bucket=self._name, Prefix=root + prefix)
            return [item["Key"].removeprefix(root) for item in listed.get("Contents", [])]
        finally:
            client.close()

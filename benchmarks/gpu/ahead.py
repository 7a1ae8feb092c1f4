"""Compile on a machine without a GPU, and keep the bucket in a file: python -m benchmarks.gpu.ahead FILE

On a machine with a GPU, python -m benchmarks.gpu --bucket FILE puts it into a bucket there, and launches.
Both need the same Python, to the minor version, and the same Triton.
"""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console

from benchmarks.lab import BUCKET, Lab
from benchmarks.machine import S3CACHE, Machine, StartError
from benchmarks.network import Network
from tests.servers import Server, seaweedfs

SOURCES: dict[str, list[str]] = {
    "library": [],
    "unseen": [str(Path(__file__).with_name("unseen.py"))],
}
"""What `s3cache kernels compile` is given for each: the library is what it compiles by itself."""


def compile_ahead(lab: Lab, name: str, settings: dict[str, str]) -> None:
    """Compile one of SOURCES and store it in the bucket, with no GPU to be seen."""
    machine = lab.machine()
    no_gpu = settings | {"CUDA_VISIBLE_DEVICES": ""}
    lab.say(said(machine, ["kernels", "compile", "--push", *SOURCES[name]], no_gpu))
    machine.wait_until_idle()


def load(lab: Lab, file: Path, name: str, url: str) -> None:
    """Put what a file has of one of SOURCES where `url` says."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    with tarfile.open(file) as objects, _client(lab.server) as client:
        for member in objects:
            if member.name.startswith(f"{name}/") and (content := objects.extractfile(member)):
                key = f"{prefix}/{member.name.removeprefix(f'{name}/')}"
                client.put_object(Bucket=bucket, Key=key, Body=content.read())


def said(machine: Machine, command: list[str], settings: dict[str, str]) -> str:
    """Return what `s3cache` wrote, with that command. Raises StartError when it fails."""
    done = subprocess.run(
        [str(S3CACHE), *command],
        env=machine.environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=machine.root,
    )
    if done.returncode:
        raise StartError(f"s3cache {' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout.strip()


def _save(server: Server, name: str, url: str, objects: tarfile.TarFile) -> None:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    with _client(server) as client:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for item in page.get("Contents", ()):
                content = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                member = tarfile.TarInfo(f"{name}/{item['Key'].removeprefix(f'{prefix}/')}")
                member.size = len(content)
                objects.addfile(member, io.BytesIO(content))


@contextmanager
def _client(server: Server) -> Iterator[Any]:
    client = server.client()
    try:
        yield client
    finally:
        client.close()


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Compile the library's kernels and those of a user's file, and keep the bucket in FILE."""
    with (
        TemporaryDirectory(prefix="s3cache-ahead-", ignore_cleanup_errors=True) as root,
        seaweedfs() as server,
        tarfile.open(file, "w") as objects,
    ):
        server.make_bucket(BUCKET)
        lab = Lab(Path(root), server, Network(), 1, Console(highlight=False))
        with lab.wire() as wire:
            for name in SOURCES:
                url = lab.url()
                compile_ahead(lab, name, lab.settings(url, wire))
                _save(server, name, url, objects)


if __name__ == "__main__":
    main()

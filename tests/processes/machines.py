"""Machines for tests of real processes: fresh ones, with jobs that are small scripts, and agents."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

from s3cache import frame, manifest
from s3cache.keyring import NO_KEYS
from tests.servers import Server

RUN_SECONDS = 200.0
IDLE_SECONDS = 100.0
_POLL_SECONDS = 0.02
UNHURRIED = Path(__file__).parent.parent / "unhurried"
"""The folder that lifts the bounds of waiting, on PYTHONPATH."""

# What importing torch does in a job, without torch.
PREAMBLE = """\
import os, random, signal, sys, threading, time
from s3cache.client import current

def content(seed, size):
    return random.Random(seed).randbytes(size)

def say(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())

cache = current()
if cache:
    cache.start()
"""


UNSIGNED = "s3cache: nothing is signed"
"""How the warning begins that every run has which trusts nobody in particular."""


class Ended(NamedTuple):
    """How a process ended, what it wrote, and for how long it was waited.

    That nothing is signed is counted, and left out of what it wrote.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    unsigned: int


@dataclass
class Machine:
    """A machine with its own home and cache folder. `python` is its interpreter.

    One that is unhurried waits for its agent and its bucket however busy it is.
    """

    folder: Path
    settings: dict[str, str]
    python: str = sys.executable
    is_unhurried: bool = False
    cache: Path = field(init=False)
    _running: list[subprocess.Popen[str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        # Not "s3cache": beside a script, a folder of that name is a package.
        self.cache = self.folder / "cache"
        (self.folder / "home").mkdir(parents=True)

    def environment(self, variables: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """Return the environment of a process on this machine; None takes a variable away."""
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {"HOME": str(self.folder / "home"), "S3CACHE_DIR": str(self.cache)}
        merged: dict[str, str | None] = {**inherited, **own, **self.settings, **(variables or {})}
        if self.is_unhurried:
            merged["PYTHONPATH"] = os.pathsep.join(filter(None, [str(UNHURRIED), merged.get("PYTHONPATH")]))
        return {name: value for name, value in merged.items() if value is not None}

    def script(self, text: str, name: str = "job.py") -> Path:
        """Write a job down and return its path."""
        path = self.folder / name
        # An earlier job may be about to read it: it finds the old one or the new one.
        written = path.with_suffix(".new")
        written.write_text(PREAMBLE + dedent(text))
        return written.replace(path)

    def start(self, text: str, **variables: str | None) -> subprocess.Popen[str]:
        """Start a job in a process group of its own."""
        return self.execute([self.python, str(self.script(text))], **variables)

    def execute(self, command: Sequence[str], **variables: str | None) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._running.append(process)
        return process

    def run(self, text: str, **variables: str | None) -> Ended:
        """Run a job to its end."""
        return ended(self.start(text, **variables))

    def run_command(self, command: Sequence[str], **variables: str | None) -> Ended:
        """Run a command to its end."""
        return ended(self.execute(command, **variables))

    def s3cache(self, *arguments: str, **variables: str | None) -> Ended:
        """Run the command line `s3cache` to its end."""
        return self.run_command([*self.command_line(), *arguments], **variables)

    def command_line(self) -> list[str]:
        """Return what `s3cache` is on this machine."""
        return [str(Path(self.python).with_name("s3cache"))]

    def agents(self) -> list[int]:
        """Return the processes that are agents of this machine, starting ones too."""
        return [pid for pid, command in _processes() if _is_agent(command, self.cache)]

    def log(self) -> str:
        """Return what the agents of this machine had to say."""
        return "".join(path.read_text() for path in sorted(self.cache.glob("agents/*/log")))

    def spooled(self) -> list[Path]:
        """Return what waits to be sent."""
        return sorted(self.cache.glob("spool/*/*.put"))

    def frames(self) -> list[str]:
        """Return the frames of packs that are on disk, sorted."""
        return sorted(
            f"{path.parent.name}/{path.name}" for path in self.cache.glob("tier/*/objects/packs/*/*")
        )

    def held(self) -> Iterator[Path]:
        """Yield the files in the disk tier, while others come and go."""
        for tier in self.cache.glob("tier/*/objects"):
            for folder, _, files in os.walk(tier):
                yield from (Path(folder, name) for name in files)

    def wait_until_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Wait until no agent is left."""
        wait_for(lambda: not self.agents(), "the agent to end", seconds, self.log)

    def wait_for_agent(self) -> int:
        """Wait until an agent listens, and return its process."""

        def listens() -> bool:
            # One that finds another there is about to end.
            return any(self.cache.glob("agents/*/socket")) and len(self.agents()) == 1

        wait_for(listens, "an agent", says=self.log)
        (agent,) = self.agents()
        return agent

    def kill_agent(self) -> None:
        """Kill the agent, once it listens."""
        agent = self.wait_for_agent()
        os.kill(agent, signal.SIGKILL)
        wait_for(lambda: _has_ended(agent), "the killed agent to be gone")

    def switch_off(self) -> None:
        """End what still runs on this machine."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate(timeout=RUN_SECONDS)
        for agent in self.agents():
            with suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)
        wait_for(lambda: not self.agents(), "killed agents to be gone")


class Bucket:
    """A prefix of a bucket that nobody else uses."""

    def __init__(self, server: Server, name: str, prefix: str) -> None:
        self.url = f"s3://{name}/{prefix}"
        self.settings = server.environment() | {"S3CACHE_URL": self.url}
        self._server = server
        self._name = name
        self._prefix = f"{prefix}/v1/"

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the objects that begin with `prefix`, sorted."""
        client = self._server.client()
        try:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=self._prefix + prefix
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
            return [key.removeprefix(self._prefix) for key in keys]
        finally:
            client.close()

    def read(self, name: str) -> bytes:
        """Return an object."""
        client = self._server.client()
        try:
            return self._get(client, name)
        finally:
            client.close()

    def objects(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the objects whose names begin with `prefix`, with their names, sorted."""
        client = self._server.client()
        try:
            for name in self.names(prefix):
                yield name, self._get(client, name)
        finally:
            client.close()

    def write(self, name: str, data: bytes) -> None:
        """Write an object, behind the back of the cache."""
        client = self._server.client()
        try:
            client.put_object(Bucket=self._name, Key=self._prefix + name, Body=data)
        finally:
            client.close()

    def delete(self, name: str) -> None:
        """Delete an object, behind the back of the cache."""
        client = self._server.client()
        try:
            client.delete_object(Bucket=self._name, Key=self._prefix + name)
        finally:
            client.close()

    def keys(self, namespace: str) -> list[str]:
        """Return the keys that are stored in a namespace, sorted."""
        return sorted(name.split("/")[2] for name in self.names(f"manifests/{namespace}/"))

    def members(self, namespace: str, key: str) -> dict[str, bytes]:
        """Return what is stored in slot 0 of a key."""
        client = self._server.client()
        try:
            found = manifest.decode(self._get(client, f"manifests/{namespace}/{key}/0"), NO_KEYS)
            return {member.name: self._content(client, found, member) for member in found.members}
        finally:
            client.close()

    def _content(self, client: Any, found: manifest.Manifest, member: manifest.Member) -> bytes:
        if member.inline is not None:
            return manifest.content_of(member, None)
        place = found.frames[member.frame]
        pack = self._get(client, f"packs/{place.pack.hex()}")
        grown = frame.decompress(pack[place.offset : place.offset + place.length], place.size)
        return manifest.content_of(member, grown)

    def _get(self, client: Any, name: str) -> bytes:
        data: bytes = client.get_object(Bucket=self._name, Key=self._prefix + name)["Body"].read()
        return data


def credentials_of(machine: Machine, program: str) -> dict[str, str | None]:
    """Return what lets a machine have its credentials from a program."""
    config = machine.folder / "config"
    config.write_text(f"[default]\ncredential_process = {program}\n")
    return {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_CONFIG_FILE": str(config)}


def content(seed: int | str, size: int) -> bytes:
    """Return the bytes that a job's `content` returns."""
    return random.Random(seed).randbytes(size)


def ended(process: subprocess.Popen[str], says: str | None = None) -> Ended:
    """Say something to a process that `Machine` started, close its stdin, return how it ended."""
    began = time.monotonic()
    stdout, stderr = process.communicate(says, timeout=RUN_SECONDS)
    lines = stderr.splitlines(keepends=True)
    others = [line for line in lines if not line.startswith(UNSIGNED)]
    seconds = time.monotonic() - began
    return Ended(process.returncode, stdout, "".join(others), seconds, len(lines) - len(others))


def least(measure: Callable[[], float], bar: float, times: int = 3) -> float:
    """Return the least of what is measured, which ends when the bar is met: what load costs, passes."""
    measured = measure()
    for _ in range(times - 1):
        if measured <= bar:
            break
        measured = min(measured, measure())
    return measured


def wait_for(
    condition: Callable[[], bool],
    what: str,
    seconds: float = IDLE_SECONDS,
    says: Callable[[], str] = lambda: "",
) -> None:
    """Wait until `condition` holds. Raises AssertionError after `seconds`, with what `says` returns."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}; {says()}"
        time.sleep(_POLL_SECONDS)


def children(parent: int) -> list[int]:
    """Return the processes whose parent is `parent`, zombies too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(_status(folder)[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _has_ended(pid: int) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        # Its sockets are open until the last of its threads is gone.
        return _status(process)[0] in "XZ" and len(list((process / "task").iterdir())) <= 1
    except OSError:
        return True


def _status(folder: Path) -> list[str]:
    # State, parent and so on; the name before them, in parentheses, may hold anything.
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found.append((int(folder.name), command))
    return found


def _is_agent(command: list[str], cache: Path) -> bool:
    return "s3cache.agent" in command and any(
        argument.startswith(f"{cache}/agents/") for argument in command
    )

"""Processes that die without a chance to clean up: at random, or before a line of one's choice."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType, ModuleType
from typing import Any

# A fork of this server takes 10 ms, a new interpreter 200.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pytest", "s3cache.spool", "s3cache.tier", "filelock", "tests.writers"])


def start(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run `work`, which is importable, in a process of its own; return when it has begun."""
    begun, begins = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_begin, args=(begins, work, arguments), daemon=True)
    process.start()
    begins.close()
    with begun:
        begun.recv()
    return process


def kill_within(seconds: float, processes: list[BaseProcess], randomly: random.Random) -> None:
    """Kill the processes at once, at a random moment of the next `seconds`."""
    time.sleep(randomly.uniform(0.0, seconds))
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def die_before_line(number: int, module: ModuleType, work: Callable[..., None], *arguments: object) -> bool:
    """Run `work` in a process that kills itself before the `number`th line of `module`.

    Returns whether it came to that; False means that it ended before.
    """
    process = start(_count_down, number, module.__file__, work, arguments)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _begin(begins: Connection, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    begins.send(None)
    begins.close()
    work(*arguments)


def _count_down(number: int, file: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work(*arguments)

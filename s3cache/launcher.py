"""Running a command in this process's place: signals in, exit status out."""

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_SHEBANG_BYTES = 512
_NOT_PASSED_ON = {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT}
_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
_KERNEL = 0x80  # si_code of a signal that the terminal sent: the command, in this group, has it too


def run(command: Sequence[str]) -> int:
    """Run `command`, pass signals on to it, and return its exit status as a shell would see it.

    127 when there is no such command, 126 when it cannot be executed, 128 + n when signal n ended it.
    """
    watched = signal.valid_signals() - _NOT_PASSED_ON - _synchronous() | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        try:
            child = os.posix_spawnp(
                command[0],
                list(command),
                os.environ,
                setsigmask=before,
                setsigdef=_IGNORED_BY_PYTHON,
            )
        except OSError as error:
            print(f"s3cache: cannot run {command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
            return 127 if isinstance(error, FileNotFoundError) else 126
        while True:
            arrived = signal.sigwaitinfo(watched)
            if arrived.si_signo != signal.SIGCHLD:
                if arrived.si_code != _KERNEL:
                    os.kill(child, arrived.si_signo)
                continue
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_of_this_environment(command: Sequence[str]) -> bool:
    """Return whether `command` is run by the Python that runs us, with Triton to import."""
    program = shutil.which(command[0])
    if program is None or importlib.util.find_spec("triton") is None:
        return False
    interpreter, ours = _interpreter(Path(program).absolute()), Path(sys.executable)
    return (interpreter.parent, interpreter.resolve()) == (ours.parent, ours.resolve())


def _interpreter(program: Path) -> Path:
    """Return the program that runs a script, or itself when it is none."""
    with suppress(OSError), program.open("rb") as file:
        words = file.readline(_SHEBANG_BYTES).split()
        if words and words[0].startswith(b"#!"):
            return Path(os.fsdecode(words[0][2:]))
    return program


def _synchronous() -> set[signal.Signals]:
    return {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGTRAP,
    }

"""A folder of stand-ins for compilers: put first on PATH, each counts itself and runs the real one.

The number of executions is the number of lines in the file that S3CACHE_SHIM_LOG names.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LOG_VARIABLE = "S3CACHE_SHIM_LOG"
COMPILER = re.compile(r"(.+-)?(c\+\+|cc|clang|clang\+\+|g\+\+|gcc|nvcc)(-[0-9.]+)?")

# The same bytes wherever the folder lies, so a key made of a compiler's content stays the same. The
# whole command line goes into one write, so lines of compilers that run at once stay whole.
SCRIPT = """\
#!/bin/sh
set -f
name=${0##*/}
here=$(CDPATH= cd -- "${0%/*}" && pwd)
rest=
IFS=:
for folder in $PATH; do
    [ "$folder" = "$here" ] || rest=$rest${rest:+:}$folder
done
unset IFS
PATH=$rest
export PATH
[ -z "$S3CACHE_SHIM_LOG" ] || printf '%s\\n' "$name $*" >>"$S3CACHE_SHIM_LOG"
real=$(command -v "$name") || { echo "$name: not found" >&2; exit 127; }
exec "$real" "$@"
"""


def write_shims(folder: Path) -> None:
    """Make a stand-in for every compiler on PATH: a compiler that is missing stays missing."""
    folder.mkdir(parents=True)
    for name in set(_on_path(os.environ.get("PATH", ""))):
        shim = folder / name
        shim.write_text(SCRIPT)
        shim.chmod(0o755)


def executions(log: Path) -> Counter[str]:
    """How often each compiler ran; nothing when the log was never begun."""
    if not log.exists():
        return Counter()
    return Counter(line.split(" ", 1)[0] for line in log.read_text().splitlines())


def _on_path(path: str) -> Iterator[str]:
    for folder in map(Path, filter(None, path.split(os.pathsep))):
        if folder.is_dir():
            yield from (entry.name for entry in folder.iterdir() if COMPILER.fullmatch(entry.name))

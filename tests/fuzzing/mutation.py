"""Changing an input: its bytes, or what it says when it is msgpack."""

import random
from typing import Any

import msgspec

_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1 << 31,
    1 << 53,
    (1 << 64) - 1,
    -(1 << 63),
    1e308,
    "",
    "../up",
    "/etc/passwd",
    "a\0b",
    "\x1b[2J",
    "x" * 2000,
    b"",
    bytes(32),
    bytes(2000),
    [],
    {},
    [[[]]],
    {"a": {}},
]
_LENGTHS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
]


def changed(data: bytes, chance: random.Random, most: int) -> bytes:
    """Return an input with a few changes, of `most` bytes at most; the same for one state of `chance`."""
    for _ in range(chance.randint(1, 4)):
        try:
            data = msgspec.msgpack.encode(_with_another_value(msgspec.msgpack.decode(data), chance))
        except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError, TypeError):
            data = _with_other_bytes(data, chance)
        if chance.random() < 0.3:
            data = _with_other_bytes(data, chance)
        # Each change can make it a hundred times as large.
        data = data[:most]
    return data


def _with_another_value(value: Any, chance: random.Random) -> Any:
    if chance.random() < 0.2:
        return chance.choice(_VALUES)
    match value:
        case list() if value:
            place = chance.randrange(len(value))
            how = chance.random()
            if how < 0.1:
                return value * chance.choice([0, 2, 100])
            if how < 0.2:
                return value[:place] + value[place + 1 :]
            return [*value[:place], _with_another_value(value[place], chance), *value[place + 1 :]]
        case dict() if value:
            name = chance.choice(list(value))
            if chance.random() < 0.1:
                return {key: held for key, held in value.items() if key != name}
            return {**value, name: _with_another_value(value[name], chance)}
        case bytes() | str() if value and chance.random() < 0.5:
            return value[: chance.randrange(len(value))]
        case bytes():
            return _with_other_bytes(value, chance)
        case int() if chance.random() < 0.5:
            return value + chance.choice([-1, 1])
    return chance.choice(_VALUES)


def _with_other_bytes(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    match chance.randrange(4):
        case 0:
            return data[:place] + chance.randbytes(1) + data[place + 1 :]
        case 1:
            return data[:place] + chance.choice(_LENGTHS) + data[place + 5 :]
        case 2:
            return data[:place] + data[place + chance.randint(1, 16) :]
        case _:
            return data[:place] + data[: chance.randint(1, 64)] + data[place:]

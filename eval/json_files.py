"""JSON files that every reader accepts and that survive a crash."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def strict_json(value: Any, where: str, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON text that every reader accepts: no NaN, no infinity, text keys only.

    where: names the value in messages. Raises ValueError with the place of the first value that JSON cannot carry.
    """
    _check_plain(value, where)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort_keys)


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}; the keys of results and configs must be text")
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_plain(item, f"{where}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; results hold finite numbers, and null where a number is missing")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{where} is {value!r} of type {type(value).__name__}; give a plain JSON value")


def encode(text: str) -> bytes:
    """UTF-8 of JSON text. A lone surrogate (half an emoji from a cut generation) becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step. Raises ValueError for what JSON cannot carry, OSError as `write_bytes`."""
    write_bytes(path, encode(strict_json(value, path.name, indent=2) + "\n"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one step: after a crash it is the old or the new one, never half of either.

    Raises OSError, one line that names the file.
    """
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def cannot_write(path: Path, error: OSError) -> OSError:
    """The same error in one line that names the file and, where the disk or the quota is full, the remedy."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "; what was written before is kept: make room, then run again" if full else ""
    return OSError(error.errno, f"cannot write {path}: {error.strerror}{remedy}")


def fsync_folder(folder: Path) -> None:
    """Makes names that were created or replaced in `folder` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

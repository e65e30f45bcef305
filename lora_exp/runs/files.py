"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lora_exp.errors import UserError
from lora_exp.runs.secrets import hidden

TEMPORARY = ".tmp"


def write(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replace a file: a reader, or a machine that loses power, sees the old one or the new one.

    Args:
        path: of the file.
        content: all of it; secrets of the environment are taken out of text.
        durable: wait until it is safely on disk; otherwise it is for readers alone, and after a
            loss of power it may be empty.
    """
    data = hidden(content).encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.write_bytes(data)
        if durable:
            commit(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()  # where the disk is full, it is in the way
        raise OSError(error.errno, error.strerror, str(path)) from error


def commit(temporary: Path, path: Path) -> None:
    """Put a file that is written into its place, once all of it is safely on disk."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


@contextmanager
def told(place: Path) -> Iterator[None]:
    """What cannot be written within is the user's to mend: in `place`, or in a file that is named.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        where, what = error.filename or place, error.strerror or error
        raise UserError(f"{where}: cannot be written to ({what}).") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room for what was to be written: here, now, and not for good."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def link(source: Path, path: Path) -> None:
    """One more name for a file that is never changed; a copy where the file system has no links."""
    if not path.exists():
        try:
            os.link(source, path)
        except OSError:
            write(path, source.read_bytes())


def check_new(folder: Path) -> None:
    """See, before anything expensive starts, whether `new_folder` may be made.

    Raises:
        UserError: if there is something already.
    """
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    if not free:
        raise UserError(f"{folder}: exists, and nothing is overwritten. Name a new folder.")


def check_new_file(path: Path) -> None:
    """See, before anything expensive starts, whether `write_new` may write a file.

    Raises:
        UserError: if there is something already, or its folder cannot be written in.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists, and nothing is overwritten. Name a new file.")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise UserError(f"{path}: {path.parent} is not a folder that can be written to.")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist, as a whole or not at all.

    Raises:
        UserError: if it exists, or cannot be written.
    """
    check_new_file(path)
    temporary = path.with_name(f".{path.name}-{os.getpid()}{TEMPORARY}")
    try:
        temporary.write_bytes(content)
        commit(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which is put in its place as a whole at the end, or not at all.

    Raises:
        UserError: if there is something already, or it cannot be written.
    """
    check_new(path)
    place = path.resolve()
    own = f".{place.name}-{socket.gethostname()}-"
    for left in place.parent.glob(f"{glob.escape(own)}*{TEMPORARY}"):
        if not _lives(left.name.removeprefix(own).removesuffix(TEMPORARY)):
            shutil.rmtree(left, ignore_errors=True)
    temporary = place.with_name(f"{own}{os.getpid()}{TEMPORARY}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for entry in (*temporary.rglob("*"), temporary):
            _sync(entry)
        temporary.replace(place)
        _sync(place.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _lives(process: str) -> bool:
    """Whether there is a process of this machine with this number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):  # somebody else's, or no number
        return True
    return True


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """`write` for JSON. Numbers that JSON cannot hold (NaN, infinity) are refused."""
    write(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> Any | None:
    """The file's content, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sync(path: Path) -> None:
    """Make a file's content durable, or the renames and new names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for leftover in folder.rglob("*" + TEMPORARY):
        leftover.unlink(missing_ok=True)

#!/usr/bin/python3
"""Runs in the guest: writes, syncs and reads back files until it is told to end, and checks what they hold.

    write_files.py DIRECTORY RECORDS SEED

Prints the time (CLOCK_MONOTONIC, s) at which each operation ended. When RECORDS/enough is there it writes the checksums
of all files to RECORDS/sums, as `sha256sum --check` takes them, and ends. Any error, or a file that does not hold what
was written, ends it with a traceback.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time

FILES = 60
BYTES_MAX = 1 << 18


def write(path: str, data: bytes, in_place: bool) -> None:
    """As a new file, or over the old one; durable when it returns."""
    with open(path, "r+b" if in_place else "wb") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def read(path: str) -> bytes:
    """From the disk, not from the cache; all of it is durable already."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def main(directory: str, records: str, seed: int) -> None:
    draws = random.Random(seed)
    sums: dict[str, str] = {}
    while not os.path.exists(f"{records}/enough"):
        path = f"{directory}/{draws.randrange(FILES):03}"
        if path in sums and draws.random() < 0.3:
            found = hashlib.sha256(read(path)).hexdigest()
            if found != sums[path]:
                raise ValueError(f"{path} does not hold what was written: {found}, not {sums[path]}")
        else:
            data = draws.randbytes(draws.randrange(1 << 9, BYTES_MAX))
            write(path, data, in_place=path in sums and draws.random() < 0.5)
            sums[path] = hashlib.sha256(data).hexdigest()
        print(f"{time.monotonic():.3f}", flush=True)
    with open(f"{records}/sums", "w") as file:
        file.writelines(f"{checksum}  {path}\n" for path, checksum in sums.items())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

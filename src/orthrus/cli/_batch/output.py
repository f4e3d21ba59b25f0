"""The output of a batch: a record per request, appended and flushed as it comes, so that a batch can go on later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from orthrus.file_cache import save_bytes, write_atomically
from orthrus.prompt_files import parse_object


def failed(record: Mapping[str, Any]) -> bool:
    """Whether the record of a request is that of an error."""
    response = record.get("response")
    return record.get("error") is not None or not isinstance(response, dict) or response.get("status_code") != 200


def problem(record: Mapping[str, Any]) -> str:
    """The message of the error in the record of a request that failed, and the id of the request."""
    response = record.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    error = record.get("error") or (body.get("error") if isinstance(body, dict) else None)
    message = error.get("message") if isinstance(error, dict) else error
    return f"{record['custom_id']}: {message or 'an answer without a message'}"


class BatchOutput:
    """An output file that may hold records of an earlier run. Open it with `with`."""

    def __init__(self, path: Path, *, retry_failed: bool = False) -> None:
        """Read what is there. A last line that was cut off is removed; with `retry_failed` failed records are too.

        Raises ValueError where another line is not a record: then it is some other file.
        """
        self.repaired = False
        self.failures: dict[str, bool] = {}
        """Whether the request failed, by custom_id."""
        self.first_problem = ""
        kept = []
        data = path.read_bytes() if path.exists() else b""
        *whole, rest = data.split(b"\n")
        for number, line in enumerate(whole, 1):
            record = self._record(line, f"{path}, line {number}")
            if not (retry_failed and failed(record)):
                self._count(record)
                kept.append(line)
        if rest:
            try:
                record = self._record(rest, str(path))
            except ValueError:  # it was being written when the run ended
                self.repaired = True
            else:
                self._count(record)
                kept.append(rest)
        content = b"".join(line + b"\n" for line in kept)
        if content != data:
            write_atomically(path.parent, {path.name: lambda written: save_bytes(written, content)})
        self._path, self._file = path, path.open("ab")

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, so that it outlives this process. Raises OSError, which names the file."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._count(record)

    def _count(self, record: Mapping[str, Any]) -> None:
        self.failures[record["custom_id"]] = failed(record)
        if failed(record) and not self.first_problem:
            self.first_problem = problem(record)

    @staticmethod
    def _record(line: bytes, where: str) -> dict[str, Any]:
        try:
            record = parse_object(line.decode(), where)
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8") from error
        if not isinstance(record.get("custom_id"), str):
            raise ValueError(f"{where}: no record of a batch (it has no custom_id); choose another --output")  # noqa: TRY004
        return record

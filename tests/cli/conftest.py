"""Fixture of the command-line tests: run the command line in this process."""

from __future__ import annotations

import io
import sys

import pytest

from orthrus import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["orthrus", *map(str, arguments)])
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return call

"""Some cases of the server fuzz."""

from __future__ import annotations

import asyncio

import server
import tiny

import orthrus


def test_no_case_breaks_the_server(tmp_path):
    model = orthrus.load(tiny.save_checkpoint(tmp_path / "tiny", template=tiny.CHAT), dtype="float32", ctx_size=512)
    counts, failures = asyncio.run(server.run(model, range(60), seed=0))
    assert failures == []
    assert {kind for kind, _ in counts} == {"body", "bytes", "head", "length", "chunks", "leave"}
    assert {"200", "400", "413"} <= {status for _, status in counts}


def test_wrong_answers_are_found():
    assert server.wrong(b"HTTP/1.1 500 X\r\n\r\n")
    error = b'HTTP/1.1 400 X\r\ncontent-type: application/json\r\n\r\n{"%s": {}}'
    assert server.wrong(error % b"detail")
    assert server.wrong(error % b"error")
    assert not server.wrong(b"HTTP/1.1 200 OK\r\n\r\n{}")

"""A server that streams scripted passes in the format of ours, and refuses as ours does.

A message that begins with "echo " is answered with what follows it, in tokens of three characters.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

SCRIPT = [
    ("two-pass", [("Here", "plain")], [], []),
    ("two-pass", [(" are", "draft"), (" two", "draft"), (" <b>tags</b>", "bonus")], [" of"], [0.9, 0.8, 0.3]),
    ("lookup", [(" and", "lookup"), (" é", "bonus")], [], [0.7]),
    ("ar", [(".\n", "plain")], [], []),
]
LONG = "refused" * 20
TEXT = "Here are two <b>tags</b> and é.\n"


class ScriptedServer:
    """Answers by the last message; records every request body, and how many streams were open at once."""

    def __init__(self):
        self.bodies, self.keys = [], []
        self.open = self.most_open = self.left = self.busy = 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.chat)

    async def models(self, request: Request):
        self.keys.append(request.headers.get("authorization"))
        return {"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": "orthrus"}]}

    async def chat(self, request: Request):
        body = await request.json()
        self.bodies.append(body)
        asked = body["messages"][-1]["content"]
        if asked == "long" and sum(message["role"] == "user" for message in body["messages"]) > 2:
            error = {"message": "too long", "type": "t", "param": "messages", "code": "context_length_exceeded"}
            return JSONResponse({"error": error}, 400)
        if asked.isdecimal():
            error = {"message": f"scripted {asked}", "type": "t", "param": None, "code": None}
            return JSONResponse({"error": error}, int(asked), headers={"Retry-After": "30"} if asked == "429" else {})
        if asked == "busy" and self.busy:
            self.busy -= 1
            return JSONResponse({}, 503, headers={"Retry-After": "0"})
        if asked == "hang":
            await asyncio.sleep(3600)
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
            return {"object": "chat.completion", "model": body.get("model"), "choices": [choice]}
        return StreamingResponse(self.stream(asked, body.get("drafts", True)), media_type="text/event-stream")

    async def stream(self, asked, drafts):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            yield event({"delta": {"role": "assistant", "content": ""}})
            number = 0
            for shape in passes(asked, drafts):
                number += 1
                if asked == "break" and number == 3:
                    raise ConnectionError("scripted")
                yield chunk(number, *shape)
                await asyncio.sleep(0.01)
            while asked == "endless":
                number += 1
                yield chunk(number, "ar", [(" more", "plain")], [], [])
                await asyncio.sleep(0.01)
            if asked == "differ" and drafts:
                yield chunk(number + 1, "ar", [("!", "plain")], [], [])
            yield event({"delta": {}, "finish_reason": "stop"})
            count = 1 + sum(len(pieces) for _, pieces, _, _ in passes(asked, drafts))  # and the end token
            yield event(None, usage={"completion_tokens": count})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.open -= 1


def passes(asked, drafts):
    if asked.startswith("echo ") and drafts:
        return echo(asked.removeprefix("echo "))
    if drafts:
        return SCRIPT
    return [("ar", [(text, "plain")], [], []) for _, pieces, _, _ in SCRIPT for text, _ in pieces]


def echo(text):
    """Passes of three tokens, of which the drafts are accepted; each refuses a long draft too."""
    tokens = [text[at : at + 3] for at in range(0, len(text), 3)]
    groups = [tokens[at : at + 3] for at in range(0, len(tokens), 3)]
    sources = ("draft", "lookup", "bonus")
    return [
        ("two-pass", list(zip(group, sources[-len(group) :], strict=True)), [LONG], [0.5] * len(group))
        for group in groups
    ]


def event(choice, **fields):
    return f"data: {json.dumps({'choices': [choice] if choice else [], **fields})}\n\n"


def chunk(number, kind, pieces, rejected, confidence):
    told = {"index": 0, "pass": number, "kind": kind, "rows": 1 + len(confidence), "rejected": rejected}
    told |= {"pieces": [{"text": text, "source": source} for text, source in pieces], "confidence": confidence}
    return event({"index": 0, "delta": {"content": "".join(text for text, _ in pieces)}}, orthrus=told)


@contextmanager
def served(app):
    """Run an app on a free port of this machine in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()

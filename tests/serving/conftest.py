"""A tiny model behind a service, and the playground in a browser before a scripted server."""

from __future__ import annotations

import pytest
import tiny
from browser import Page, chromium
from scripted_server import ScriptedServer, served

import orthrus
from orthrus.serving.routes import playground


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of 320 tokens, most of which are bytes, and of 512 positions."""
    directory = tiny.save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", template=tiny.CHAT)
    return orthrus.load(directory, dtype="float32", ctx_size=512)


@pytest.fixture(scope="session")
def coder(tmp_path_factory):
    """The same with the special tokens of Qwen2.5-Coder and a template that knows tools; of 2,048 positions."""
    path = tmp_path_factory.mktemp("coder") / "tiny"
    directory = tiny.save_checkpoint(path, template=tiny.TOOL_CHAT, special=tiny.FIM)
    return orthrus.load(directory, dtype="float32", ctx_size=2048)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="session")
def scripted():
    made = ScriptedServer()
    made.app.include_router(playground.router())
    with served(made.app) as made.address:
        yield made


@pytest.fixture
def page(browser, scripted):
    scripted.bodies.clear()
    scripted.most_open = 0
    return Page(browser, scripted.address, scripted)

"""The playground in a real browser, against a server that streams scripted passes in the format of ours.

Needs Chromium and selenium; without them the tests in the browser are skipped. Waits end at a condition, not a time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import tiny
from browser import Page
from fastapi import FastAPI
from fastapi.testclient import TestClient
from scripted_server import SCRIPT, TEXT, served

import orthrus
from orthrus.serving.app import create_app
from orthrus.serving.routes import playground
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings


def test_files_have_headers_that_keep_other_sites_out():
    app = FastAPI()
    app.include_router(playground.router())
    client = TestClient(app)
    for path in ("/", *(f"/playground/{name}" for name in playground.FILES if name != "index.html")):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/playground/..%2Froutes%2Fplayground.py").status_code == 404


def test_files_are_complete_and_small():
    folder = Path(playground.__file__).parents[1] / "playground"
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert set(files) == set(playground.FILES)
    assert all(text.count("\n") <= 300 for text in files.values())
    assert not any("http://" in text.replace("http://www.w3.org", "") or "https://" in text for text in files.values())
    assert not any("innerHTML" in text or "style=" in text for text in files.values())


def test_tokens_stream_in_the_colours_of_how_they_came(page):
    page.say("hello")
    tokens = [(token.get_attribute("textContent"), token.get_attribute("class")) for token in page.all(".text .token")]
    assert tokens == [(text, f"token {source}") for _, pieces, _, _ in SCRIPT for text, source in pieces]
    assert page.one(".text").get_property("textContent") == TEXT  # the tags are text
    assert page.text(".figures").startswith("8 tokens 4 passes 2.00 tokens per pass")
    assert page.text("#announce") == f"Answer: {TEXT}".strip()
    colours = {source: page.one(f".text .{source}").value_of_css_property("background-color") for source in
               ("draft", "lookup", "bonus", "plain")}  # fmt: skip
    assert len(set(colours.values())) == 4
    body = page.server.bodies[0]
    assert body["stream_options"] == {"include_usage": True, "include_drafts": True}
    assert (body["temperature"], body["max_tokens"], "seed" in body) == (0, 512, False)
    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_tip_tells_the_pass_of_a_token_by_mouse_and_by_keys(page):
    from selenium.webdriver import ActionChains

    page.say("hello")

    def pointed_at(token):
        ActionChains(page.driver).move_by_offset(1, 1).move_to_element(token).perform()
        return page.text("#tip")

    page.until(lambda: pointed_at(page.all(".text .draft")[1]))
    tip = page.text("#tip")
    assert "accepted draft" in tip
    assert "Pass 2 · two-pass · 4 rows" in tip
    assert "Confidence of the draft: 80 %" in tip
    assert "·of 30 %" in tip
    page.driver.execute_script("document.querySelector('.text').focus()")
    for _ in range(5):
        page.driver.switch_to.active_element.send_keys(page.keys.ARROW_RIGHT)
    assert "looked up" in page.text("#tip")
    assert page.driver.switch_to.active_element.get_attribute("aria-describedby") == "tip"
    page.driver.switch_to.active_element.send_keys(page.keys.ESCAPE)
    assert not page.one("#tip").is_displayed()


def test_a_race_runs_one_after_the_other_and_compares_the_texts(page):
    page.one("#tab-race").click()
    page.say("hello")
    assert [body["drafts"] for body in page.server.bodies] == [False, True]
    assert page.server.most_open == 1
    assert page.text(".badge") == f"✓ Identical: all {len(TEXT)} characters"
    assert "times as fast" in page.text(".headline")
    assert page.one("#lane-plain .text").get_property("textContent") == TEXT
    assert len(page.all("#lane-orthrus .pass")) == 4
    page.set(temperature=0.8)
    page.say("hello again")
    plain, orthrus = page.server.bodies[2:]
    assert plain["seed"] == orthrus["seed"]
    assert f"seed {plain['seed']}" in page.text("#verdict")
    page.say("differ")
    assert page.text(".badge.bad") == f"The texts differ from character {len(TEXT) + 1} on"


def test_stopping_keeps_the_text_and_the_conversation_goes_on(page):
    left = page.server.left
    page.say("endless", wait=False)
    page.until(lambda: " more" in page.one("#turns").get_property("textContent"))
    page.one("#prompt").send_keys(page.keys.ESCAPE)
    page.until(lambda: not page.all("body.busy"))
    page.until(lambda: page.server.left == left + 1)  # the server has noticed
    page.say("hello")
    roles = [message["role"] for message in page.server.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert page.server.bodies[-1]["messages"][1]["content"].startswith(TEXT)
    page.one(".again").click()
    page.until(lambda: len(page.server.bodies) == 3 and not page.all("body.busy"))
    assert page.server.bodies[1] == page.server.bodies[2]
    assert len(page.all("#turns article")) == 2


def test_problems_say_what_happened_and_what_to_do(page):
    def told(asked):
        page.say(asked)
        return page.text("#turns .problem")

    assert told("400") == "The server refused this request. scripted 400 Try again"
    assert told("500") == "The server failed. scripted 500 Try again"
    assert "The server is busy. scripted 429 Try again in" in told("429")
    assert not page.one("#turns .problem button").is_enabled()
    assert told("break") == "The connection broke midway. The text up to here is kept. Try again"
    assert page.one(".text").get_property("textContent").startswith("Here are two")
    assert [message["content"] for message in page.server.bodies[-1]["messages"]] == ["break"]  # the others are dropped
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **offline})
    assert "The server does not answer." in told("hello")
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **offline})
    page.one("#turns .problem button").click()
    page.until(lambda: page.one(".text").get_property("textContent") == TEXT)


def test_a_key_is_asked_for_sent_and_kept_in_the_tab_only(page):
    page.say("401")
    page.one("#turns .problem button").click()
    assert page.driver.switch_to.active_element.get_attribute("name") == "key"
    page.driver.switch_to.active_element.send_keys("secret" + page.keys.ENTER)
    page.until(lambda: page.server.keys[-1] == "Bearer secret")
    stored = page.driver.execute_script("return [JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
    assert ("secret" in stored[0], "secret" in stored[1]) == (False, True)


def test_it_fits_a_phone_and_follows_the_colour_scheme(page):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    background = lambda: page.one("body").value_of_css_property("background-color")  # noqa: E731
    light = background()
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for name in ("chat", "race"):
        page.one(f"#tab-{name}").click()
        page.say("hello " * 30)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 390
        assert page.driver.execute_script("return document.querySelector('main').scrollWidth") <= 390
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for theme, changed in (("light", False), ("dark", True)):
        page.one("#theme").click()
        assert (background() != light) is changed, theme


def test_it_understands_our_server(browser, tmp_path):
    """The scripted server above streams what the real one does."""
    model = orthrus.load(tiny.save_checkpoint(tmp_path / "model"))
    service = Service(model, ServeSettings(cycle="two-pass", served_model_name="scripted"))
    with served(create_app(service)) as address:
        page = Page(browser, address, None)
        page.set(max_tokens=12, temperature=0.8, seed=5)
        page.one("#tab-race").click()
        page.say("hello")
        text = model.generate([{"role": "user", "content": "hello"}], max_new_tokens=12, temperature=0.8, seed=5).text
        assert page.text(".badge") == f"✓ Identical: all {len(text)} characters"
        for lane in ("plain", "orthrus"):
            assert page.one(f"#lane-{lane} .text").get_property("textContent") == text
            assert page.text(f"#lane-{lane} .figures").startswith("12 tokens")
        assert page.text("#lane-plain .figures").startswith("12 tokens 12 passes 1.00 tokens per pass")
        assert not page.all("#lane-plain .token:not(.plain)")
        assert page.all("#lane-orthrus .bonus")
    asyncio.run(service.drain(0.0))

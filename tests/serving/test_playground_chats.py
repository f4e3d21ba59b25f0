"""Conversations in the playground: copied, edited, deleted, kept over a reload; and the settings they are sent with."""

from __future__ import annotations

import pytest
from scripted_server import LONG, SCRIPT, TEXT


def contents(page, at=-1):
    return [message["content"] for message in page.server.bodies[at]["messages"]]


def tokens(page):
    return page.script("[...document.querySelectorAll('.text .token')].map(e => [e.textContent, e.className])")


def test_markdown_keeps_the_colours_of_its_tokens(page):
    page.say("echo **bold** and `code`\n\n```\nx = 1\n```")
    assert page.one(".text strong").text == "bold"
    assert page.one(".text pre code").text == "x = 1"
    assert page.script("document.querySelectorAll('.text strong .token:is(.draft, .lookup, .bonus)').length") >= 2
    shown = page.one(".text strong .token").value_of_css_property("background-color")
    assert shown != "rgba(0, 0, 0, 0)"
    assert page.one(".text").text.startswith("bold and code")
    page.one("#markdown").click()
    assert page.one(".text").text.startswith("**bold** and `code`")
    page.one("#markdown").click()


def test_refused_drafts_wrap_inside_the_window(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    page.say("echo hello")
    page.script("document.querySelector('.text').focus()")
    page.driver.switch_to.active_element.send_keys(page.keys.ARROW_RIGHT)
    assert LONG in page.text("#tip").replace(" ", "")
    edges = page.script(
        "[...document.querySelectorAll('#tip, #tip *')].flatMap(e => [...e.getClientRects()])"
        ".map(box => [box.left, box.top, box.right, box.bottom])"
    )
    assert min(min(left, top) for left, top, _, _ in edges) >= 0
    assert max(right for _, _, right, _ in edges) <= 390
    assert max(bottom for _, _, _, bottom in edges) <= 844
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("secure", [True, False])
def test_questions_answers_and_code_are_copied(page, secure):
    """Pages without HTTPS have no `navigator.clipboard`."""
    clipboard = "{ writeText: async (text) => { window.copied = text; } }" if secure else "undefined"
    page.driver.execute_script(f"Object.defineProperty(navigator, 'clipboard', {{ value: {clipboard} }})")
    page.driver.execute_script(
        "document.execCommand = () => { window.copied = document.activeElement.value; return true; }"
    )
    page.say("echo a **b**\n```\nx = 1\n```")
    for selector, copied in (
        (".question .copy", "echo a **b**\n```\nx = 1\n```"),
        ("article > .actions .copy", "a **b**\n```\nx = 1\n```"),
        (".code .copy", "x = 1"),
    ):
        page.one(selector).click()
        page.until(lambda: page.one(selector).get_attribute("aria-label") == "Copied")  # noqa: B023
        assert page.script("window.copied") == copied


def test_a_question_is_edited_and_sent_again(page):
    page.say("one")
    page.say("two")
    page.all(".edit")[0].click()
    field = page.one(".editing textarea")
    assert page.text(".editing menu span") == "The turns after it are replaced."
    field.send_keys(page.keys.ESCAPE)
    assert not page.all(".editing")
    assert len(page.all("#turns article")) == 2
    page.all(".edit")[0].click()
    page.one(".editing textarea").clear()
    page.one(".editing textarea").send_keys("uno" + page.keys.ENTER)
    page.until(lambda: len(page.server.bodies) == 3 and not page.all("body.busy"))
    assert contents(page) == ["uno"]
    assert [each.text for each in page.all(".asked")] == ["uno"]


def test_an_exchange_is_deleted(page):
    page.say("one")
    page.say("two")
    page.all(".delete")[0].click()
    page.say("three")
    assert contents(page) == ["two", TEXT, "three"]
    for _ in range(2):
        page.one(".delete").click()
    assert page.one("#welcome").is_displayed()
    page.reload()
    assert not page.all("#turns article")


def test_a_conversation_survives_a_reload(page):
    page.say("hello")
    before, figures = tokens(page), page.text(".figures")
    page.reload()
    assert tokens(page) == before == [
        [text, f"token {source}"] for _, pieces, _, _ in SCRIPT for text, source in pieces
    ]  # fmt: skip
    assert page.text(".figures") == figures
    assert len(page.all(".rhythm i")) == len(SCRIPT)
    page.script("document.querySelector('.text').focus()")
    page.driver.switch_to.active_element.send_keys(page.keys.ARROW_RIGHT * 2)
    assert "Confidence of the draft: 90 %" in page.text("#tip")
    page.say("more")
    assert contents(page) == ["hello", TEXT, "more"]


def test_conversations_are_listed_opened_and_deleted(page):
    page.say("first")
    page.one("#new-chat").click()
    assert page.one("#welcome").is_displayed()
    page.say("second")
    page.one("#open-chats").click()
    assert [each.text.split("\n")[0] for each in page.all("#chats .open")] == ["second", "first"]
    page.one("#chats .open").click()
    assert [each.text for each in page.all(".asked")] == ["first"]
    page.say("more")
    assert contents(page) == ["first", TEXT, "more"]
    page.one("#open-chats").click()
    page.all("#chats li .quiet")[0].click()  # the one at hand, which is the newest now
    assert [each.text.split("\n")[0] for each in page.all("#chats .open")] == ["second"]
    page.one("#chats .primary").click()
    assert page.one("#welcome").is_displayed()
    page.reload()
    assert not page.all("#turns article")


def test_an_answer_that_is_left_or_stopped_says_so(page):
    def is_running():
        return " more" in page.one(".text").get_property("textContent")

    page.say("endless", wait=False)
    page.until(is_running)
    page.reload()
    assert page.one(".text").get_property("textContent").startswith(TEXT)
    assert page.text(".figures").endswith("stopped")
    page.say("endless", wait=False)
    page.until(is_running)
    page.one("#send").click()
    page.until(lambda: not page.all("body.busy"))
    assert page.text(".figures").endswith("stopped")
    page.say("hang", wait=False)
    page.until(lambda: contents(page)[-1] == "hang")
    page.one("#prompt").send_keys(page.keys.ESCAPE)
    page.until(lambda: not page.all("body.busy"))
    assert page.text(".figures") == "stopped before the first token"


def test_a_stopped_race_says_so(page):
    page.one("#tab-race").click()
    page.say("endless", wait=False)
    page.until(lambda: " more" in page.one("#lane-plain .text").get_property("textContent"))
    page.one("#prompt").send_keys(page.keys.ESCAPE)
    page.until(lambda: not page.all("body.busy"))
    assert "Stopped before both had ended" in page.text("#verdict")
    assert page.text("#lane-plain .figures").endswith("stopped")


def test_settings_are_sent_where_they_are_set(page):
    names = ("top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
    page.say("hello")
    assert not set(names) & set(page.server.bodies[-1])  # the model's own are not overruled
    chosen = dict(zip(names, (40, 0.05, 1.1, -0.5, 0.25), strict=True))
    page.set(**chosen)
    page.say("hello")
    assert chosen.items() <= page.server.bodies[-1].items()
    page.reload()
    page.say("hello")
    assert chosen.items() <= page.server.bodies[-1].items()
    page.one("#open-settings").click()
    page.one("#reset-settings").click()
    page.one("#settings .primary").click()
    page.say("hello")
    assert not set(names) & set(page.server.bodies[-1])


def test_the_oldest_conversations_go_where_the_browser_has_no_room(page):
    kept = page.driver.execute_async_script("""
        const done = arguments[0];
        const room = 4000;
        const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, value) {
          const used = Object.entries(this).filter(([name]) => name !== key).map(([, text]) => text.length);
          if (used.reduce((a, b) => a + b, 0) + value.length > room) throw new DOMException("", "QuotaExceededError");
          set.call(this, key, value);
        };
        localStorage.setItem("orthrus.chat.broken", "{");
        import("/playground/chats.js").then(({ keepChat, keptChats }) => {
          let now = 1;
          Date.now = () => now++;
          const chat = (id, size) => ({ id, exchanges: [{ question: "q".repeat(size), answer: {} }] });
          const told = ["a", "b", "c", "d"].map((id) => keepChat(chat(id, 1000)));
          told.push(keepChat(chat("large", 5000)));
          done([told, keptChats().map(({ id }) => id)]);
        });
    """)
    assert kept == [[True, True, True, True, False], []]

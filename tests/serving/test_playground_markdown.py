"""The playground's Markdown: what it makes of a source, that no character is lost, and that nothing in it ever runs."""

from __future__ import annotations

import random

import pytest

RENDER = """
const [sources, done] = [arguments[0], arguments[arguments.length - 1]];
const parts = (element) => [...element.querySelectorAll("*")];
import("/playground/markdown.js").then(({ Markdown }) => done(sources.map((source) => {
  const make = () => {
    const host = document.createElement("div");
    const paint = (parent, start, end, hidden) => {
      const text = document.createTextNode(source.slice(start, end));
      const span = document.createElement("span");
      if (hidden) span.append(text);
      parent.append(hidden ? span : text);
    };
    return [host, new Markdown(host, paint)];
  };
  const [whole, once] = make();
  once.update(source);
  const [grown, often] = make();
  for (let end = 1; end <= source.length; end += 1) often.update(source.slice(0, end));
  const shown = whole.cloneNode(true);
  shown.querySelectorAll("span, button").forEach((syntax) => syntax.remove());
  shown.normalize();
  return {
    shown: shown.innerHTML, text: whole.textContent,
    same: grown.innerHTML.replaceAll("</span><span>", "") === whole.innerHTML.replaceAll("</span><span>", ""),
    tags: parts(whole).map((each) => each.localName),
    attributes: parts(whole).flatMap((each) => each.getAttributeNames()),
    links: parts(whole).filter((each) => each.href !== undefined).map((each) => each.href),
  };
})));
"""
TAGS = {
    "p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "div", "pre", "code", "strong", "em", "del", "a",
    "span", "button", "table", "tbody", "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {"class", "type", "value", "href", "title", "target", "rel", "data-language", "data-label", "aria-label"}
CODE = '<div class="code" data-language="{}"><pre><code>{}</code></pre></div>'
SHOWN = {
    "a **b** *c* _d_ `e*f*` ~~g~~": "<p>a <strong>b</strong> <em>c</em> <em>d</em> <code>e*f*</code> <del>g</del></p>",
    "***both*** and **a *b* c**": "<p><strong><em>both</em></strong> and <strong>a <em>b</em> c</strong></p>",
    "2 * 3 * 4, 5*3*2, 2**3**2, snake_case_name": "<p>2 * 3 * 4, 5*3*2, 2**3**2, snake_case_name</p>",
    "**open, `open, *open": "<p>**open, `open, *open</p>",
    r"\*no\* and \[x\]": "<p>*no* and [x]</p>",
    "one\ntwo\n\nthree": "<p>one\ntwo</p><p>three</p>",
    "# A\n### B *c*\n#no": "<h3>A</h3><h5>B <em>c</em></h5><p>#no</p>",
    "```python\na  = 1 < 2\n\n**b**\n```\nafter": CODE.format("python", "a  = 1 &lt; 2\n\n**b**\n") + "<p>after</p>",
    "~~~\n```\n~~~": CODE.format("", "```\n"),
    "```js\nnever closed": CODE.format("js", "never closed"),
    "- a\n- b\n  - c\n\n* d": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li><li><p>d</p></li></ul>",
    "Steps:\n1. a\n   more\n2. b\nlazy": '<p>Steps:</p><ol><li value="1"><p>a\nmore</p></li>'
    '<li value="2"><p>b\nlazy</p></li></ol>',
    "It was\n1986. A year.": "<p>It was\n1986. A year.</p>",
    "1. a\n\n```\nb\n```\n\n2. c": '<ol><li value="1"><p>a</p></li></ol>'
    + CODE.format("", "b\n")
    + '<ol><li value="2"><p>c</p></li></ol>',
    "1. a\n   ```\n   b\n   ```": f'<ol><li value="1"><p>a</p>{CODE.format("", "b" + chr(10))}</li></ol>',
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li><p>b</p></li></ul></blockquote><p>c</p>",
    "a\n\n---\n* * *": '<p>a</p><div class="rule"></div><div class="rule"></div>',
    "| a | *b* |\n|--|:-:|\n| 1 | 2 \\| 3 |\nend": '<div class="table"><table><tr><th>a</th><th><em>b</em></th></tr>'
    "<tr><td>1</td><td>2 | 3</td></tr></table></div><p>end</p>",
    "a | b\n--|--\nc": '<div class="table"><table><tr><th>a</th><th>b</th></tr></table></div><p>c</p>',
}
LINK = '<a href="{0}" title="{0}" target="_blank" rel="noopener noreferrer">{1}</a>'
SHOWN |= {
    "[a *b*](https://x.org/y_(z)) [c](mailto:a@b.org)": f"<p>{LINK.format('https://x.org/y_(z)', 'a <em>b</em>')} "
    f"{LINK.format('mailto:a@b.org', 'c')}</p>",
    "See https://x.org/a?b=1.": f"<p>See {LINK.format('https://x.org/a?b=1', 'https://x.org/a?b=1')}.</p>",
    '![alt](https://x.org/i.png "t")': f"<p>{LINK.format('https://x.org/i.png', 'alt')}</p>",
}
ATTACKS = [
    "<script>RUN</script>", "<img src=x onerror='RUN'>", '<svg onload="RUN">', "<a href='javascript:RUN'>a</a>",
    "[a](javascript:RUN)", "[a](JaVaScRiPt:RUN)", "![a](javascript:RUN)", "[a](java\tscript:RUN)",
    "[a]( javascript:RUN)", "[a](vbscript:RUN)", "[a](//evil.org)", "[a](/v1/models)", "[a](blob:https://x.org)",
    "<javascript:RUN>", "javascript:RUN",
    "[a](data:text/html,<script>RUN</script>)", '[a](https://x.org/"onmouseover="RUN)',
    "[a](https://x.org \"' onclick='RUN\")", "`<script>RUN</script>`",
    "```\"><script>RUN</script>\n</code></pre><script>RUN</script>\n```", "# <img src=x onerror=RUN>",
    "- <iframe srcdoc='<script>parent.hacked=1</script>'>", "> <style>*{display:none}</style>",
    "|<img src=x onerror=RUN>|b|\n|-|-|\n|<script>RUN</script>|c|", "&lt;script&gt; &#x3c;script&#x3e;",
]  # fmt: skip
ATTACKS = [attack.replace("RUN", "window.hacked=1") for attack in ATTACKS]


@pytest.fixture
def render(browser, scripted):
    browser.get(scripted.address)
    return lambda sources: dict(zip(sources, browser.execute_async_script(RENDER, list(sources)), strict=True))


def check(made):
    for source, each in made.items():
        assert each["text"] == source  # whatever it is read as, each character is there once, in order
        assert each["same"], source  # and it does not depend on the chunks in which it came
        assert set(each["tags"]) <= TAGS
        assert set(each["attributes"]) <= ATTRIBUTES
        assert all(link.startswith(("https://", "http://", "mailto:")) for link in each["links"])


def test_sources_are_shown_as_they_are_meant(render):
    made = render(SHOWN)
    assert {source: each["shown"] for source, each in made.items()} == SHOWN
    check(made)


def test_whatever_comes_no_character_is_lost(render):
    rng = random.Random(7)
    parts = [
        "**", "*", "_", "__", "`", "```", "~~", "\n", "\n\n", "\n- ", "\n1. ", "\n  ", "\n> ", "\n# ", "\n|", "|",
        "\n|-|-|\n", "[a](", "https://x.org", ")", "\\", "a", "b c", " ", "<b>", "---", "\n---\n", "é🦄", "\t", "~~~",
        "!", "\n```js\n", "\r\n",
    ]  # fmt: skip
    check(render(["".join(rng.choices(parts, k=rng.randrange(1, 40))) for _ in range(150)]))


def test_deep_nesting_and_many_openers_end(render):
    check(render([">" * 300 + "a", "- " * 200 + "a", "*a " * 300, "[" * 300, "`" * 9 + "``a" * 100]))


def test_no_source_makes_html(render):
    made = render(ATTACKS)
    check(made)
    assert [link for each in made.values() for link in each["links"] if not link.startswith("https://x.org")] == []


def test_nothing_that_a_user_or_a_model_writes_runs(page):
    """On the page itself: asked, answered, edited, listed among the conversations, and shown again after a reload."""
    text = "echo " + "\n\n".join(ATTACKS)

    def check_page():
        assert page.script("window.hacked") is None
        assert page.script("[...document.querySelectorAll('#turns *')].flatMap(e => e.getAttributeNames())"
                           ".filter(name => name.startsWith('on'))") == []  # fmt: skip
        assert page.script("document.querySelectorAll('#turns :is(script, img, svg, iframe, style)').length") == 0
        hrefs = page.script("[...document.querySelectorAll('#turns [href]')].map(e => e.href)")
        assert all(href.startswith("https://x.org") for href in hrefs)
        assert page.one(".asked").get_property("textContent") == text.strip()
        assert page.one(".text").get_property("textContent") == text.removeprefix("echo ")

    page.say(text)
    check_page()
    page.reload()
    check_page()
    page.one(".edit").click()
    assert page.one(".editing textarea").get_property("value") == text
    page.one("#open-chats").click()
    assert page.script("[...document.querySelectorAll('#chats li *')].map(e => e.localName)") == [
        "button",
        "small",
        "button",
    ]
    check_page()

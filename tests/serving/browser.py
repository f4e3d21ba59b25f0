"""The playground in a headless Chromium, as a person uses it. Skips where there is no Chromium or no selenium."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


@contextmanager
def chromium(profile):
    """A driver of a browser with a new profile in a directory."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser tests need selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("the browser tests need chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it."""

    def __init__(self, driver, address, server):
        from selenium.webdriver.common.keys import Keys

        self.driver, self.server, self.keys = driver, server, Keys
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # of a test that failed
        driver.get(address)
        driver.execute_script("localStorage.clear(); sessionStorage.clear()")
        driver.get(address)
        self.until(lambda: self.text("#model-name") == "scripted")

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.all(selector)[-1]

    def text(self, selector):
        return " ".join(self.one(selector).text.split())

    def until(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 20, poll_frequency=0.03).until(lambda _: condition())

    def say(self, text, *, wait=True):
        field = self.one("#prompt")
        self.driver.execute_script("arguments[0].value = arguments[1]", field, text)  # line breaks and all
        field.send_keys(self.keys.ENTER)
        if wait:
            self.until(lambda: not self.all("body.busy"))

    def reload(self):
        self.driver.refresh()
        self.until(lambda: self.text("#model-name") == "scripted")

    def script(self, code, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def set(self, **values):
        self.one("#open-settings").click()
        for name, value in values.items():
            field = self.one(f"dialog [name={name}]")
            field.clear()
            field.send_keys(str(value))
        self.one("dialog .primary").click()

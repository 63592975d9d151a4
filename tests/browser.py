"""Chromium without a window, driven by Selenium: what the tests of the page and docs/screenshots.py do with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds until something that was to appear is given up.
PATIENCE = 120.0


def missing() -> str | None:
    """What is lacking to drive a browser here, in words; None where nothing is."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install selenium"
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return "no chromium and chromedriver: on Debian apt-get install chromium chromium-driver"
    return None


class Browser:
    """One window on the page, whose parts are found by the names (elem_id) that ddcm_fast.app.page gives them.

    Args:
        downloads: the folder where downloaded files go. width, height: of the window, in pixels.
    """

    def __init__(self, downloads: Path, width: int = 1280, height: int = 1200) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self.downloads = downloads
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},{height}"):
            options.add_argument(f"--{word}")
        options.add_argument("--hide-scrollbars")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()

    def open(self, url: str) -> None:
        """The page at an address, when it can be used."""
        self.driver.get(url)
        self.wait(lambda: self.find("#compress-start").is_displayed())

    def find(self, selector: str) -> Any:
        """The first element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        """All elements of a CSS selector that can be seen."""
        return [one for one in self.driver.find_elements("css selector", selector) if one.is_displayed()]

    def wait(self, found: Callable[[], Any]) -> Any:
        """What `found` returns once that is true; an element that is not there yet is no error."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + PATIENCE
        while True:
            try:
                if value := found():
                    return value
            except WebDriverException:
                pass
            if time.monotonic() > end:
                raise AssertionError(f"waited {PATIENCE:g} s in vain")
            time.sleep(0.1)

    def tab(self, name: str) -> None:
        """Turn to a tab."""
        self.wait(lambda: [one for one in self.all("[role=tab]") if one.text == name])[0].click()
        self.wait(lambda: self.find(f"#{name.lower()}-start").is_displayed())

    def press(self, name: str) -> None:
        """Press the button of this name."""
        button = self.find(f"#{name}")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def upload(self, name: str, path: Path) -> None:
        """Give a file to the part of this name, in the place of one that it may have; the command line then has it."""
        for clear in self.all(f"#{name} button[aria-label='Clear'], #{name} button[aria-label='Remove this file']"):
            clear.click()
        self.wait(lambda: self.find(f"#{name} input[type=file]")).send_keys(str(path))
        self.wait(lambda: path.name in self.text(f"{name.split('-')[0]}-command"))

    def choose(self, name: str, value: str) -> None:
        """Choose an entry of a list."""
        self.wait(lambda: self.find(f"#{name} input")).click()
        entries = self.wait(lambda: [one for one in self.all("ul.options li, [role=option]") if one.text == value])
        entries[0].click()
        self.wait(lambda: self.find(f"#{name} input").get_property("value") == value)

    def fill(self, name: str, value: str) -> None:
        """Write into a field, or the number beside a slider."""
        from selenium.webdriver.common.keys import Keys

        field = self.find(f"#{name} input[type=number], #{name} textarea")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.TAB)

    def shot(self) -> bytes:
        """All of the page as PNG, as wide as the window."""
        self.driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        time.sleep(2)  # of pictures that come and of what fades
        width, height = self.driver.execute_script(
            "return [window.innerWidth, document.querySelector('.gradio-container').scrollHeight]"
        )
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        time.sleep(1)
        return bytes(self.driver.get_screenshot_as_png())

    def text(self, name: str) -> str:
        """What a text box holds, or a command line says."""
        part = self.find(f"#{name}")
        for box in part.find_elements("css selector", "textarea"):
            return str(box.get_property("value"))
        return "\n".join(line.text for line in part.find_elements("css selector", ".cm-line"))

    def download(self, name: str) -> Path:
        """The file that the part of this name offers, downloaded."""
        before = set(self.downloads.iterdir())
        self.wait(lambda: self.all(f"#{name} a[download]"))[0].click()

        def new() -> list[Path]:
            there = [one for one in self.downloads.iterdir() if one not in before and one.name[0] != "."]
            return [one for one in there if one.suffix != ".crdownload" and one.stat().st_size > 0]

        return Path(self.wait(new)[0])

    def sizes(self, selector: str) -> list[tuple[int, int]]:
        """Width and height in pixels of every picture of a CSS selector, once all are there."""

        def loaded() -> list[Any]:
            found = self.driver.find_elements("css selector", selector)
            return found if all(one.get_property("naturalWidth") for one in found) else []

        return [(one.get_property("naturalWidth"), one.get_property("naturalHeight")) for one in self.wait(loaded)]

    def boxes(self, selector: str) -> list[tuple[float, float, float, float]]:
        """Where every part of a CSS selector stands: left, top, width and height in pixels of the page."""
        rects = [one.rect for one in self.driver.find_elements("css selector", selector)]
        return [(one["x"], one["y"], one["width"], one["height"]) for one in rects]

    def errors(self) -> str:
        """What the page complains of, once it does; the complaint is put away."""
        said = self.wait(lambda: [one.text for one in self.all("[data-testid=toast-body]")])
        for close in self.all("[data-testid=toast-close]"):
            close.click()
        self.wait(lambda: not self.all("[data-testid=toast-body]"))
        return "\n".join(said)

    def asked(self) -> list[str]:
        """Addresses that the browser has asked for since the last time, data in addresses aside."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:", "chrome:"))]

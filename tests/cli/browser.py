"""A headless Chromium that opens pages of this project, and what the tests ask it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

__all__ = ("Browser", "chromium")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
    "--window-size=1280,900",
)


class Browser:
    """One window. Every question waits for its answer, so that no test has to sleep."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a page, anew even if it is the one that is shown, and wait until it is drawn."""
        self.driver.get("about:blank")
        self.driver.get(path.as_uri() + fragment)
        self.until("return performance.getEntriesByName('ready').length === 1")

    def js(self, script: str, *arguments: Any) -> Any:
        """Return what `script` returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any) -> Any:
        """Wait until `script` returns something true, and return that."""
        wait = WebDriverWait(self.driver, 60, poll_frequency=0.02)
        return wait.until(lambda _: self.js(script, *arguments), f"not true: {script}")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def resize(self, width: int, height: int) -> None:
        """Give the page a size in CSS pixels, which may be less than a window can have."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def emulate(self, **features: str) -> None:
        """Set media features; `media` is the type of the medium."""
        media = features.pop("media", "")
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {
                "media": media,
                "features": [
                    {"name": name.replace("_", "-"), "value": value}
                    for name, value in features.items()
                ],
            },
        )

    def reset(self) -> None:
        """Undo `resize` and `emulate`, and forget what was logged."""
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.emulate()
        self.errors()

    def errors(self) -> list[str]:
        """Return what the console has said since this was last called."""
        log: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log]

    def fetched(self) -> list[str]:
        """Return the URLs of what the page has loaded beside itself."""
        fetched: list[str] = self.js(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        return fetched


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start Chromium with the empty directory `profile`. Skip the test if there is none."""
    binary, driver_binary = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        missing = "no chromium or no chromedriver on the PATH: install chromium and chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(driver_binary))
    try:
        yield Browser(driver)
    finally:
        driver.quit()

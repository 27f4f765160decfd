"""A real browser for tests of pages: headless Chromium, driven by Selenium.

    driver = open_page(path, width=390)
    assert console_errors(driver) == []
    assert overflow(driver) == 0
    screenshot(driver, folder / "page.png")

One browser serves all tests of a process. Where Chromium, its driver or Selenium is missing, a test that opens a page
is skipped, and says which of them. Nothing is downloaded, the pages come from files.
"""

import atexit
import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEIGHT = 900
# Selenium's classes are known only where it is installed.
Driver = Any


def open_page(path: Path, width: int = 1280, height: int = HEIGHT) -> Driver:
    """Loads a page in a viewport of so many pixels; console messages of earlier pages are forgotten."""
    driver = _driver()
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(Path(path).resolve().as_uri())
    return driver


def console_errors(driver: Driver) -> list[str]:
    """What the page has reported since it was opened, or since the last call: errors in scripts, files not found."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def overflow(driver: Driver) -> int:
    """By how many pixels the page is wider than the viewport."""
    return driver.execute_script("return document.documentElement.scrollWidth - innerWidth")


def screenshot(driver: Driver, path: Path) -> Path:
    """Saves a picture of the whole page, below the viewport too."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    width = driver.execute_script("return innerWidth")
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": max(height, 1), "deviceScaleFactor": 1, "mobile": False},
    )
    path.write_bytes(driver.get_screenshot_as_png())
    return path


@functools.cache
def _driver() -> Driver:
    missing = _missing()
    if missing:
        pytest.skip(f"a browser is needed, and {missing} is not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = _browser()
    # Containers have no sandbox of their own to give, and little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    atexit.register(driver.quit)
    return driver


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _missing() -> str:
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        return "selenium"
    if shutil.which("chromedriver") is None:
        return "chromedriver"
    return "" if _browser() else "chromium"

"""The browser that judges pages: it sees what is wrong with one."""

import browser


def page(folder, body):
    path = folder / "page.html"
    path.write_text(f"<!DOCTYPE html><html><head><link rel='icon' href='data:,'></head><body>{body}</body></html>")
    return path


def test_errors_in_scripts_and_missing_files_are_seen_once(tmp_path):
    driver = browser.open_page(page(tmp_path, "<img src='missing.png'><script>undefinedFunction()</script>"))
    told = " ".join(browser.console_errors(driver))
    assert "undefinedFunction" in told
    assert "missing.png" in told
    assert browser.console_errors(driver) == []
    assert browser.console_errors(browser.open_page(page(tmp_path, "<p>sound</p>"))) == []


def test_overflow_is_counted_against_the_viewport(tmp_path):
    wide = page(tmp_path, "<div style='width: 600px'>wide</div>")
    assert browser.overflow(browser.open_page(wide, width=1280)) == 0
    assert browser.overflow(browser.open_page(wide, width=390)) >= 210


def test_a_screenshot_holds_the_whole_page(tmp_path):
    tall = page(tmp_path, "<div style='height: 2000px'>tall</div>")
    shot = browser.screenshot(browser.open_page(tall, width=390), tmp_path / "tall.png")
    header = shot.read_bytes()[16:24]
    assert int.from_bytes(header[:4]) == 390
    assert int.from_bytes(header[4:]) >= 2000

"""What a person does with the dashboard, in Chromium: PYTHON browser.py FOLDER URL KEY.

Prints {name of a check: "" or what went wrong} as JSON; leaves screenshots in FOLDER.
"""

import json
import sys
import traceback

from playwright.sync_api import expect, sync_playwright

FOLDER, URL, KEY = sys.argv[1:4]
DEADLINE_MS = 60_000
problems = []


def enter(page):
    page.goto(f"{URL}/dashboard")
    page.fill("#key", "e2b_" + "0" * 40)
    page.click("button:has-text('Enter')")
    expect(page.get_by_role("alert")).to_contain_text("no such key")
    page.fill("#key", KEY)
    page.click("button:has-text('Enter')")
    expect(page.locator("h1")).to_have_text("Sandboxes")


def make_and_see(page):
    page.click("button:has-text('New sandbox')")
    expect(page.locator(".facts")).to_contain_text("running")
    name = page.locator("h1").inner_text()
    page.goto(f"{URL}/dashboard")
    expect(page.locator("table")).to_contain_text(name)
    page.screenshot(path=f"{FOLDER}/list.png")


def use_a_terminal(page):
    page.click("table a >> nth=0")
    page.click("text=Open a terminal")
    expect(page.locator(".xterm-rows")).to_contain_text("#")
    page.keyboard.type("echo wor''ks\n")
    expect(page.locator(".xterm-rows")).to_contain_text("works")
    page.screenshot(path=f"{FOLDER}/terminal.png")


def pause_and_resume_live(page):
    page.goto(f"{URL}/dashboard")
    page.click("button:has-text('Pause')")
    expect(page.locator(".paused")).to_be_visible()
    page.click("button:has-text('Resume')")
    expect(page.locator(".running")).to_be_visible()


def a_phone_in_the_dark(page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(f"{URL}/dashboard")
    expect(page.locator("table a")).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, f"it is {width} wide"
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(20, 22, 26)", back
    page.screenshot(path=f"{FOLDER}/phone.png")
    page.set_viewport_size({"width": 1200, "height": 800})


def kill_after_a_question(page):
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("button:has-text('Kill')")
    expect(page.locator("table a")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("button:has-text('Kill')")
    expect(page.locator("main")).to_contain_text("No sandbox runs.")


def make_a_key(page):
    page.goto(f"{URL}/dashboard/keys")
    page.fill("input[name=name]", "from-the-page")
    page.click("button:has-text('New key')")
    expect(page.locator("code")).to_contain_text("e2b_")
    page.goto(f"{URL}/dashboard/audit")
    expect(page.locator("table")).to_contain_text("add key")


def leave(page):
    page.click("button:has-text('Leave')")
    page.goto(f"{URL}/dashboard")
    expect(page.locator("#key")).to_be_visible()


def no_script_was_refused(page):
    assert not problems, problems


def main():
    results = {}
    expect.set_options(timeout=DEADLINE_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"], timeout=DEADLINE_MS
        )
        page = browser.new_page()
        page.set_default_timeout(DEADLINE_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda said: "Content Security" in said.text and problems.append(said.text),
        )
        for function in (
            enter, make_and_see, use_a_terminal, pause_and_resume_live, a_phone_in_the_dark,
            kill_after_a_question, make_a_key, leave, no_script_was_refused,
        ):  # fmt: skip
            try:
                function(page)
                results[function.__name__] = ""
            except BaseException:
                results[function.__name__] = traceback.format_exc()[-2000:]
                page.screenshot(path=f"{FOLDER}/wrong-{function.__name__}.png")
        browser.close()
    print(json.dumps(results))


main()

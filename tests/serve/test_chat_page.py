"""The page at `/`, driven in a headless Chromium against a real server."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from helpers import browser
from helpers.served import (
    MODEL,
    Served,
    data_url,
    image_part,
    make_checkpoint,
    noise,
    serving,
    text_part,
    user,
)
from PIL import Image

from nvlm.serve.chat_page import chat_page

KEY = "a key of the test"
SHEET = noise(900, 500)
HOSTILE = '<img src=x onerror="window.hit = 1">'
in_chromium = pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    with serving(make_checkpoint(folder), folder, "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(served: Served, context: Any) -> Iterator[Any]:
    """The page, with its key; whatever it complains of fails the test."""
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    problems: list[str] = []
    asked: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda said: problems.append(said.text))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(f"{served.url}/")
    wait(opened, "#error p")
    assert opened.text_content("#error p") == "no API key: send it as `Authorization: Bearer KEY`"
    assert opened.evaluate("document.activeElement.id") == "key"
    opened.keyboard.type(KEY)
    opened.keyboard.press("Tab")
    holds(opened, "#model").to_have_text(MODEL)
    assert opened.is_hidden("#error")
    yield opened
    refused = "Failed to load resource: the server responded with a status of 40"
    assert not [problem for problem in problems if not problem.startswith(refused)]
    assert not [url for url in asked if not url.startswith((f"{served.url}/", "data:"))]
    assert opened.evaluate("window.hit") is None
    opened.close()


def wait(page: Any, selector: str) -> None:
    page.wait_for_selector(selector, state="attached")


def holds(page: Any, selector: str) -> Any:
    """An assertion that waits; the page's policy allows no `wait_for_function`."""
    from playwright.sync_api import expect

    return expect(page.locator(selector))


def image_file(name: str = "sheet.png") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(SHEET).save(buffer, "png")
    return {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()}


def set_fields(page: Any, **values: str) -> None:
    for name, value in values.items():
        page.fill(f"#{name}", value)


def ask(page: Any, text: str, answers: int) -> str:
    """Send by the keyboard alone, and give the text of the answer, which is number `answers`."""
    page.focus("#question")
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    holds(page, ".assistant .note").to_have_count(answers)
    return page.locator(".assistant .said").last.text_content()


def answer_of(served: Served, messages: list[Any], **settings: Any) -> str:
    client = served.client(KEY)
    answer = client.chat.completions.create(model=MODEL, messages=messages, **settings)
    return answer.choices[0].message.content


def test_the_page_is_one_file_that_may_load_nothing(served: Served):
    html, policy = chat_page()
    found = httpx.get(served.url)
    assert found.text == html
    assert found.headers["content-security-policy"] == policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    for element in ("style", "script"):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert not re.search(r"\son\w+=|style=", html), "such attributes are not allowed to work"
    assert "innerHTML" not in html and "insertAdjacent" not in html and "eval(" not in html


@in_chromium
def test_images_and_several_turns(page: Any, served: Served):
    name = "<b>sheet<b>.png"
    page.set_input_files("#files", [image_file(name)])
    wait(page, "#images .over")
    assert page.locator("#images .over span").count() == 2
    caption = page.text_content("#images figcaption")
    assert re.fullmatch(
        rf"{name}: 900 × 500 pixels, 2 × 1 tiles and a thumbnail, \d+ tokens", caption
    )
    assert page.text_content("#images summary") == "Its 3 tiles and tags"
    tags = page.locator("#images code").all_text_contents()
    assert tags == ["<tile_1>", "<tile_2>", "<tile_global_thumbnail>"]
    set_fields(page, max_tokens="20")
    first = ask(page, "What is this?", 1)
    history = [user(image_part(data_url(SHEET)), text_part("What is this?"))]
    assert first == answer_of(served, history, max_tokens=20)
    assert "20 tokens written; cut off at the most new tokens" in page.text_content(".note")
    assert page.locator("#images figure").count() == 0
    assert page.locator(".user figure .over span").count() == 2
    second = ask(page, HOSTILE, 2)
    history += [{"role": "assistant", "content": first}, user(HOSTILE)]
    assert second == answer_of(served, history, max_tokens=20)
    assert page.locator(".user .said").last.text_content() == HOSTILE
    assert page.locator(".said *").count() == 0, "text is shown as text"
    page.check("#low")
    holds(page, ".user figure .over span").to_have_count(1)
    page.click("#fresh")
    assert page.locator(".turn").count() == 0 and page.is_visible("#hint")
    set_fields(page, system="Be brief.", temperature="1.2", seed="7", top_k="50", top_p="0.9")
    third = ask(page, "Hello!", 1)
    own = [{"role": "system", "content": "Be brief."}, user("Hello!")]
    settings = {"temperature": 1.2, "top_p": 0.9, "seed": 7, "extra_body": {"top_k": 50}}
    assert third == answer_of(served, own, max_tokens=20, **settings)


@in_chromium
@pytest.mark.parametrize("kind, field", [("paste", "clipboardData"), ("drop", "dataTransfer")])
def test_images_are_pasted_and_dropped(page: Any, kind: str, field: str):
    content = base64.b64encode(image_file()["buffer"]).decode()
    page.evaluate(
        """([kind, field, content]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "held.png", { type: "image/png" }));
            const event = kind === "paste"
                ? new ClipboardEvent(kind, { [field]: data, bubbles: true })
                : new DragEvent(kind, { [field]: data, bubbles: true });
            document.body.dispatchEvent(event);
        }""",
        [kind, field, content],
    )
    wait(page, "#images .over")
    assert page.text_content("#images figcaption b") == "held.png"
    page.check("#low")
    holds(page, "#images .over span").to_have_count(1)
    assert "one tile" in page.text_content("#images figcaption")
    page.click("#images .remove")
    assert page.locator("#images figure").count() == 0


@in_chromium
@pytest.mark.parametrize("by_key", [False, True])
def test_an_answer_is_stopped_and_what_came_stays(page: Any, by_key: bool):
    set_fields(page, max_tokens="1024")
    page.fill("#question", "Hello!")
    page.press("#question", "Enter")
    holds(page, ".assistant .said").to_have_text(re.compile(".{20}", re.DOTALL))
    assert page.is_visible("#stop") and page.is_hidden("#send")
    page.keyboard.press("Escape") if by_key else page.click("#stop")
    wait(page, ".note")
    assert page.text_content(".note") == "stopped by you"
    set_fields(page, max_tokens="5")
    assert ask(page, "And now?", 2)
    assert page.is_hidden("#error")


@in_chromium
def test_errors_are_said_and_nothing_is_lost(page: Any):
    def error() -> str:
        wait(page, "#error p")
        return page.text_content("#error p")

    broken = {"name": f"{HOSTILE}.png", "mimeType": "image/png", "buffer": b"%PDF-1.7"}
    page.set_input_files("#files", [broken, image_file()])
    holds(page, "#images .over").to_have_count(1)
    assert error().startswith(f"{HOSTILE}.png: image: a PDF")
    set_fields(page, temperature="3")
    page.fill("#question", "What is this?")
    page.press("#question", "Enter")
    assert error().startswith("Temperature: ")
    set_fields(page, temperature="", max_tokens="", stop_text="", key="wrong")
    page.press("#question", "Enter")
    holds(page, "#error").to_have_text("wrong API key")
    assert page.locator(".turn").count() == 0
    assert page.input_value("#question") == "What is this?"
    assert page.locator("#images figure").count() == 1
    set_fields(page, key=KEY, max_tokens="5")
    page.press("#question", "Enter")
    wait(page, ".note")
    assert page.is_hidden("#error")


@in_chromium
def test_light_dark_narrow_and_by_keyboard(page: Any, served: Served):
    colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    for width in (360, 1200):
        page.set_viewport_size({"width": width, "height": 700})
        wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert page.evaluate(wide), "nothing reaches over the side"
    unnamed = """[...document.querySelectorAll("button, input:not([hidden]), textarea")]
        .filter((e) => !(e.textContent.trim() || e.labels?.length || e.getAttribute("aria-label")))
        .map((e) => e.id)"""
    assert page.evaluate(unnamed) == []
    reached = []
    page.focus("#fresh")
    for _ in range(16):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    for name in ("fresh", "toggle", "key", "temperature", "low", "log", "attach", "question"):
        assert name in reached
    page.focus("#toggle")
    page.keyboard.press("Enter")
    assert page.is_hidden("#settings")
    assert page.get_attribute("#toggle", "aria-expanded") == "false"

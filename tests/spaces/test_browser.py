"""The Space, used as a person would use it, in headless Chromium."""

from __future__ import annotations

import os
import re
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from hf_mmembed.data.scenes import Scene, Shape, draw

SHOTS = Path(os.environ["MMEMBED_SCREENSHOTS"]) if "MMEMBED_SCREENSHOTS" in os.environ else None

# The lowest contrast of text to what lies behind it, by selector, as WCAG 2 computes it.
CONTRASTS = """selectors => {
  const pixel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (front, back) => [0, 1, 2].map(i => front[i] * front[3] + back[i] * (1 - front[3]));
  const luminance = colour => colour.map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const lowest = {};
  for (const selector of selectors) for (const element of document.querySelectorAll(selector)) {
    if (!element.textContent.trim() || !element.checkVisibility()) continue;
    let back = [255, 255, 255], opacity = 1, parents = [];
    for (let one = element; one; one = one.parentElement) parents.unshift(one);
    for (const one of parents) {
      const style = getComputedStyle(one);
      back = over(rgba(style.backgroundColor), back); opacity *= style.opacity;
    }
    const style = getComputedStyle(element), text = rgba(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    text[3] *= opacity;
    const [dark, light] = [luminance(over(text, back)), luminance(back)].sort((a, b) => a - b);
    lowest[selector] = Math.min(lowest[selector] ?? 99, (light + .05) / (dark + .05));
  }
  return lowest;
}
"""
# What our own style sheet colours or fades.
COLOURED = [
    "#heat tbody td", "#heat th[scope=row]", ".badge", ".moved.up", ".moved.down", ".note", ".about", ".score", ".leak-note",
    "#intro p", ".prompt pre b", ".own figcaption", ".owner", ".why",
]  # fmt: skip


def shoot(tab, name: str) -> None:
    """A screenshot for people to look at, where one is wanted."""
    if SHOTS is not None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def shown(tab, selector: str) -> str:
    """What a result shows, without the progress that Gradio lays over it."""
    return tab.locator(selector).inner_html()


def wait_for_other(tab, selector: str, before: str) -> None:
    """Until a result shows something else."""
    tab.wait_for_function(
        "([selector, before]) => (document.querySelector(selector)?.innerHTML ?? before) !== before",
        arg=[selector, before],
    )


def first(tab) -> str:
    return tab.locator("#results .hit .about").first.inner_text()


def search(tab, text: str) -> None:
    before = shown(tab, "#results ol")
    tab.locator("#query textarea").fill(text)
    tab.locator("#query textarea").press("Enter")
    wait_for_other(tab, "#results ol", before)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uploads") / "green-star.png"
    draw(Scene("one", (Shape("star", "green", "large", "solid", radius=14),), "white"), Random(0)).save(path)
    return path


def test_search_by_text_with_the_keyboard_alone(page):
    search(page, "a green heart")
    assert page.locator("#results .hit").count() == 10
    scores = [float(text) for text in page.locator("#results .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "BODY"
    shoot(page, "search")


def test_search_by_picture_and_own_picture_in_the_gallery(page, drawing):
    page.locator("#query-picture input[type=file]").set_input_files(drawing)
    page.wait_for_selector("#query-picture img")
    page.locator("#add").click()
    page.get_by_text("The gallery that is searched").click()
    page.get_by_text("1 of yours").wait_for()
    page.locator("#query textarea").fill("")
    before = shown(page, "#results ol")
    page.locator("#go").click()
    wait_for_other(page, "#results ol", before)
    assert first(page) == "your picture"


def test_a_corrupt_picture_is_explained_without_a_path(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing of use")
    page.locator("#query-picture input[type=file]").set_input_files(broken)
    page.locator("#add").click()
    toast = page.locator(".toast-body")
    toast.first.wait_for()
    said = toast.first.inner_text()
    assert "not a readable image" in said and "/" not in said.replace("and / or", "")
    assert "Traceback" not in said


def test_a_huge_picture_is_refused_by_its_size(page, tmp_path):
    huge = tmp_path / "huge.png"
    Image.new("1", (12_000, 12_000)).save(huge)
    page.locator("#query-picture input[type=file]").set_input_files(huge)
    page.locator("#query-picture img").wait_for(state="attached")
    page.locator("#go").click()
    page.locator(".toast-body", has_text="144,000,000 pixels").first.wait_for()


def test_a_huge_file_is_refused(page, tmp_path):
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(11_000_000))
    page.locator("#query-picture input[type=file]").set_input_files(heavy)
    page.get_by_text(re.compile("exceed", re.IGNORECASE)).first.wait_for()


def test_prompt_lab_shows_prompts_and_moves(page):
    page.get_by_role("tab", name="Prompt lab").click()
    page.wait_for_selector("#chart svg.bump")
    assert page.locator("#chart svg.bump image").count() == 18
    boxes = page.locator("#prompts pre").all_inner_texts()
    assert boxes[0] == "a green heart" and "helpful assistant" in boxes[1] and "one word" in boxes[2]
    before = shown(page, "#chart svg.bump")
    page.locator("#lab-query textarea").fill("a <|im_end|> <b>red</b> star")
    page.locator("#lab-go").click()
    wait_for_other(page, "#chart svg.bump", before)
    page.locator("#prompts pre", has_text="< |im_end|> <b>red</b> star").last.wait_for()
    shoot(page, "prompt-lab")


def test_similarity_map(page):
    page.get_by_role("tab", name="Prompt lab").click()
    page.wait_for_selector("#heat table")
    page.locator("#map-texts textarea").fill("a red star\na blue circle\n\ntwo hearts")
    before = shown(page, "#heat table")
    page.locator("#map-go").click()
    wait_for_other(page, "#heat table", before)
    assert page.locator("#heat tbody tr").count() == 3 and page.locator("#heat tbody td").count() == 24
    assert page.locator("#heat td.best").count() == 3


def test_saha_explorer(page):
    page.get_by_role("tab", name="SaHa explorer").click()
    page.wait_for_selector("#steps .step")
    assert page.locator("#steps .step").count() == 12
    assert page.locator("#cluster figure").count() == 8 and page.locator("#cluster figure.anchor").count() == 1
    before = shown(page, "#steps ol")
    page.locator("#pick input").click()
    page.get_by_role("option").nth(3).click()
    wait_for_other(page, "#steps ol", before)
    shoot(page, "saha-explorer")


def test_two_tabs_do_not_see_each_other(page, browser, space, drawing):
    page.locator("#query-picture input[type=file]").set_input_files(drawing)
    page.wait_for_selector("#query-picture img")
    page.locator("#add").click()
    page.get_by_text("The gallery that is searched").click()
    page.get_by_text("1 of yours").wait_for()
    other = browser.new_context().new_page()
    other.set_default_timeout(90_000)
    other.goto(space.url)
    other.wait_for_selector("#results .hit")
    search(other, "a green star")
    assert "your picture" not in other.locator("#results").inner_text()
    search(page, "a green star")
    assert "your picture" in page.locator("#results").inner_text()
    other.context.close()


@pytest.mark.parametrize(
    ("name", "size", "query"), [("mobile", (390, 844), ""), ("dark", (1280, 900), "?__theme=dark")]
)
def test_every_tab_fits_the_screen_and_can_be_read(browser, space, name, size, query):
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, is_mobile=name == "mobile", reduced_motion="reduce"
    )
    tab = context.new_page()
    tab.set_default_timeout(90_000)
    tab.goto(f"{space.url}/{query}")
    tab.wait_for_selector("#results .hit")
    for title, ready in (
        ("Search", "#results .hit"),
        ("Prompt lab", "#heat table"),
        ("SaHa explorer", "#cluster figure"),
    ):
        tab.get_by_role("tab", name=title).click()
        tab.locator(ready).first.wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0], title
        contrasts = tab.evaluate(CONTRASTS, COLOURED)
        assert len(contrasts) >= 4, "nothing was measured"
        assert min(contrasts.values()) >= 4.5, contrasts
        shoot(tab, f"{name}-{title.split()[0].lower()}")
    context.close()


def test_nothing_is_loaded_from_elsewhere(browser, space):
    context = browser.new_context()
    tab = context.new_page()
    foreign: list[str] = []
    tab.on("request", lambda request: foreign.append(request.url) if not request.url.startswith((space.url, "data:", "blob:")) else None)  # fmt: skip
    tab.set_default_timeout(90_000)
    tab.goto(space.url)
    tab.wait_for_selector("#results .hit")
    context.close()
    assert not foreign

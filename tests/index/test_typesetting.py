"""Line breaks and shortened names."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.index import typesetting
from hf_mmembed.index.typesetting import Typesetter

SETTER = Typesetter(["plain"])
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=300)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(60, 400))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = SETTER.wrap(text, 20, width, 1000)
    assert all(SETTER.length(line, 20) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(60, 400), st.integers(1, 4), st.booleans())
def test_cut_text_fits_and_says_that_it_was_cut(text, width, most, middle):
    lines = SETTER.wrap(text, 20, width, most)
    assert len(lines) <= most and all(SETTER.length(line, 20) <= width for line in lines)
    if "".join("".join(lines).split()) != "".join(text.split()):
        assert "…" in lines[-1]
    short = SETTER.shorten(text, 20, width, middle=middle)
    assert SETTER.length(short, 20) <= width and (short == " ".join(text.split()) or "…" in short)


def test_shortened_names_keep_both_ends():
    name = "holiday/2024/some very long folder name/IMG_20240801_123456.jpg"
    short = SETTER.shorten(name, 14, 200, middle=True)
    assert short.startswith("holiday") and short.endswith("6.jpg") and "…" in short


def test_one_font_for_all_text_of_a_drawing():
    plain, wide = Typesetter(["a", "b …"]), Typesetter(["a", "caf\u00e9"])
    assert plain.font(20) is SETTER.font(20)
    assert wide.font(20) is Typesetter(["\u6f22"]).font(20)


def test_signs_that_no_font_has_are_named(monkeypatch, caplog):
    monkeypatch.setattr(typesetting, "_WIDE_FONTS", ())
    typesetting._font.cache_clear()
    Typesetter(["a", "b \u2026"])
    assert not caplog.messages
    Typesetter(["a \u6f22\u5b57", "caf\u00e9"])
    assert [message.partition(":")[0] for message in caplog.messages] == ["no font here has \u00e9 \u5b57 \u6f22"]
    typesetting._font.cache_clear()


def test_a_very_long_word_takes_no_time_beyond_its_lines():
    assert len(SETTER.wrap("w" * 100_000, 20, 200, 3)) == 3

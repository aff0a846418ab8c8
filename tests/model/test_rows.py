"""An input that cannot be embedded is an error that names it; everything else becomes one row."""

from __future__ import annotations

import pytest

from hf_mmembed.model.rows_mmembed import HierarchicalPrompt, Row, row_of_conversation, rows_of_lists

PICTURE = object()


def test_what_stands_alone_is_a_list_of_one():
    assert rows_of_lists("a", None, None) == [Row((), "a", None)]
    assert rows_of_lists(None, b"x", None) == [Row((b"x",), None, None)]
    assert rows_of_lists(None, PICTURE, "i") == [Row((PICTURE,), None, "i")]
    assert rows_of_lists("a", None, None, "so") == [Row((), "a", None, "so")]


def test_missing_parts_and_several_pictures():
    rows = rows_of_lists(["a", None, ""], [None, PICTURE, [PICTURE, PICTURE]], ["x", None, "y"])
    assert rows == [Row((), "a", "x"), Row((PICTURE,), None, None), Row((PICTURE, PICTURE), "", "y")]
    assert rows_of_lists(None, [(PICTURE, PICTURE)], None) == [Row((PICTURE, PICTURE))]


@pytest.mark.parametrize(
    ("text", "images", "instruction", "message"),
    [
        (None, None, None, "both `text` and `images` are None"),
        ([], None, None, "`text` is an empty list"),
        (None, [], None, "`images` is an empty list"),
        (["a", "b"], [PICTURE], None, "`text` has 2 elements and `images` 1"),
        (["a", None], None, None, "input 1 has neither a text nor an image"),
        (["a", None], [None, []], None, "input 1 has neither a text nor an image"),
        (["a", 3], None, None, "the text of input 1 is a int"),
        (["a"], None, ["x", "y"], "`instruction` has 2 elements for 1 inputs"),
        (["a", "b"], None, ["x", 3], "the instruction of input 1 is a int"),
        (["a", "b"], None, 3, "the instruction of input 0 is a int"),
        (["a", "b\ud83d"], None, None, "the text of input 1 is not valid Unicode: character 1"),
    ],
)
def test_bad_lists_are_named(text, images, instruction, message):
    with pytest.raises(ValueError, match=message):
        rows_of_lists(text, images, instruction)


def test_a_trace_that_is_no_string_is_named():
    with pytest.raises(ValueError, match="the trace of input 1 is a int"):
        rows_of_lists(["a", "b"], None, None, [None, 3])


def test_a_conversation_is_one_row():
    conversation = [
        {"role": "system", "content": "Find:"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "image": PICTURE},
                {"type": "image", "path": "p.png"},
                {"type": "image", "url": "w.png"},
                {"type": "image_url", "image_url": {"url": "u"}},
                {"type": "image_url", "image_url": "v"},
                {"type": "text", "text": "b"},
                {"type": "text", "text": None},
                {"type": "image", "image": None},
                {"type": "image", "image": None, "path": "q.png"},  # a table has all columns in each row
            ],
        },
    ]
    assert row_of_conversation(conversation, 0) == Row((PICTURE, "p.png", "w.png", "u", "v", "q.png"), "a\nb", "Find:")


def test_an_empty_message_is_an_empty_text():
    assert row_of_conversation([{"role": "user", "content": ""}], 0) == Row((), "")


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([{"role": "tool", "content": "a"}], "input 7 has a message of role 'tool'"),
        ([{"content": "a"}], "input 7 has a message of role ''"),
        ([{"role": "user", "content": []}], "input 7 has neither a text nor an image"),
        ([{"role": "user", "content": [{"type": "video", "video": "v"}]}], "input 7 has a block of type 'video'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "input 7 has a block of type 'image' with \\[\\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "input 7 has a block of type 'text' with \\[\\]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "input 7 has a block of type 'image_url'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "type 'image_url'"),
        ([{"role": "user", "content": ["a"]}], "input 7 has a str in a user message"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}], "input 7 has a str in a user message"),
        ([{"role": "user", "content": [{"message": []}, {"type": "text", "text": "a"}]}], "a block of type None"),
        ([{"role": "user", "content": "a\ud83d"}], "the text of input 7 is not valid Unicode: character 1"),
        (
            [{"role": "system", "content": "\ud83d"}, {"role": "user", "content": "a"}],
            "the instruction of input 7 is not",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud83d"}],
            "the trace of input 7 is not valid Unicode: character 0",
        ),
        ([{"role": "system", "content": [{"type": "image", "image": 1}]}], "in a system message"),
    ],
)
def test_bad_conversations_are_named(conversation, message):
    with pytest.raises(ValueError, match=message):
        row_of_conversation(conversation, 7)


def test_endings():
    prompt = HierarchicalPrompt("s", "T", "I")
    assert [prompt.ending("query", has) for has in (False, True)] == ["T", "I"]
    assert prompt.ending("document", True) == prompt.ending(None, False) == ""
    both = HierarchicalPrompt("s", "T", "I", represent_documents=True)
    assert [both.ending(task, True) for task in ("query", "document", None)] == ["I"] * 3
    with pytest.raises(ValueError, match="task is 'passage'; use 'query', 'document' or None"):
        both.ending("passage", False)


def test_contradictory_prompts_are_refused():
    with pytest.raises(ValueError, match="image_style is 'big'"):
        HierarchicalPrompt("", "", "", image_style="big")
    with pytest.raises(ValueError, match="chat=False has no turns"):
        HierarchicalPrompt("system", "", "", chat=False, image_style="bare")
    with pytest.raises(ValueError, match="set image_style to 'inline' or 'bare'"):
        HierarchicalPrompt("", "", "", chat=False)

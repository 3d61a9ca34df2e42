"""The fields that name columns: plain text, prompt and completion, or messages, and never a mixture-up of them."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")

from packmamba.data.sources import Files

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ROW = {"text": "t", "q": "why", "a": "because", "chat": MESSAGES, "n": 1, "words": ["a"], "blocks": [{"role": "user"}]}
ROW["numbered"] = [{"role": "user", "content": 7}]


def test_prompt_and_completion_are_read_under_these_names(write_jsonl, cache):
    source = Files(paths=[write_jsonl([ROW])], prompt_column="q", completion_column="a")
    assert source.load(cache)[:] == {"prompt": ["why"], "completion": ["because"]}


def test_columns_that_carry_each_others_names_are_exchanged(write_jsonl, cache):
    path = write_jsonl([{"prompt": "because", "completion": "why"}])
    source = Files(paths=[path], prompt_column="completion", completion_column="prompt")
    assert source.load(cache)[0] == {"prompt": "why", "completion": "because"}


def test_messages_are_read_under_this_name(write_jsonl, cache):
    source = Files(paths=[write_jsonl([ROW])], messages_column="chat")
    assert source.load(cache)[:] == {"messages": [MESSAGES]}


def test_sharegpts_messages_and_tools_are_read_as_they_are(write_jsonl, cache):
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", "weight": 1}]
    rows = [{"t": talk, "tools": [{"name": "f"}]}, {"t": talk, "tools": None}]
    dataset = Files(paths=write_jsonl(rows), messages_column="t", tools_column="tools").load(cache)
    assert dataset[:] == {"messages": [talk, talk], "tools": [[{"name": "f"}], None]}
    pair = Files(paths=write_jsonl([ROW]), prompt_column="q", completion_column="a", tools_column="text")
    assert pair.load(cache)[0] == {"prompt": "why", "completion": "because", "tools": "t"}


WRONG = {
    "prompt-alone": ({"prompt_column": "q"}, r"set together, .*prompt_column='q', completion_column=None"),
    "completion-alone": ({"completion_column": "a"}, "set together, .*completion_column='a'"),
    "same-twice": ({"prompt_column": "q", "completion_column": "q"}, "to different columns"),
    "both-kinds": ({"prompt_column": "q", "completion_column": "a", "messages_column": "chat"}, "not both"),
    "missing": ({"messages_column": "messages"}, "no column 'messages'; its columns: text, q, a, chat"),
    "number": ({"prompt_column": "q", "completion_column": "n"}, r"column 'n' of .* holds int64, not text"),
    "text-as-messages": ({"messages_column": "text"}, r"column 'text' of .* holds string, not lists of messages"),
    "words-as-messages": ({"messages_column": "words"}, r"holds List, not lists of messages; a message has a role and"),
    "no-content": ({"messages_column": "blocks"}, "not lists of messages; a message has a role and a content"),
    "number-as-content": ({"messages_column": "numbered"}, r"messages in column 'numbered' .* have a content of int64"),
    "tools-alone": ({"tools_column": "blocks"}, "tools_column='blocks' needs conversations: set messages_column too"),
    "number-as-tools": (
        {"messages_column": "chat", "tools_column": "n"},
        r"column 'n' of .* holds int64, not tools: lists of JSON schemas, or such lists as text",
    ),
    "messages-as-text": ({"column": "chat"}, r"column 'chat' of .* holds List, not text"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_columns_that_cannot_be_used_say_why(write_jsonl, cache, fields, message):
    with pytest.raises(ValueError, match=message):
        Files(paths=[write_jsonl([ROW])], **fields).load(cache)

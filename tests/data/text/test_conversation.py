"""Rows as conversations: OpenAI's and ShareGPT's fields, tools, and which messages have a loss."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")

from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.text.chat import CHATML, ChatTemplate
from packmamba.data.text.conversation import (
    TRAIN_ON,
    ConversationError,
    TrainOn,
    are_trained,
    as_template_sees,
    conversation,
    tools_of,
)
from packmamba.data.text.encode import Encoder
from packmamba.data.text.tokenizers import ByteTokenizer
from tests.data.text.test_chat import HEADERS, LLAMA, TAGGED

IN_A_MACRO = (
    "{% macro said(turn) %}{% generation %}{{ turn.content }}{% endgeneration %}.{% endmacro %}"
    "{% set last = messages[-1] %}"
    "{% for entry in messages %}{% if entry.role == 'assistant' %}{% set before = messages[loop.index0 - 1] %}"
    "A:{{ said(entry) }}{% else %}{{ entry.role }}:{{ entry.content }}{% endif %}\n{% endfor %}"
)
TEMPLATES = {"headers": HEADERS, "llama": LLAMA, "tagged": TAGGED, "chatml": CHATML, "macro": IN_A_MACRO}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages in which message number i says one letter of its own, a few times."""
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=8))
    messages: list[dict[str, Any]] = []
    for number, role in enumerate(roles):
        message = {"role": role, "content": chr(0x4E00 + number) * draw(st.integers(1, 3))}
        if role == "assistant":
            message |= draw(st.sampled_from([{}, {"weight": 0}, {"weight": 1}, {"train": False}, {"training": True}]))
        messages.append(message)
    return messages


@given(conversations(), st.sampled_from(TRAIN_ON), st.sampled_from(sorted(TEMPLATES)))
def test_the_assistants_messages_of_weight_1_have_a_loss_and_nothing_else_anyone_says(messages, train_on, template):
    encoder = Encoder(ByteTokenizer(), ChatTemplate(TEMPLATES[template]), train_on)
    row = encoder.encode({"messages": [messages]}, 0)
    assert row.targets is not None
    text = ByteTokenizer().decode(row.tokens)
    letters = np.repeat(list(text), [len(letter.encode()) for letter in text])
    speakers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on == "last_assistant":
        speakers = speakers[-1:]
    wanted = {n for n in speakers if messages[n].get("weight", 1) and messages[n].get("train", True)}
    for number, message in enumerate(messages):
        said = row.targets[:-1][letters == chr(0x4E00 + number)]
        assert said.size == 3 * len(message["content"])
        assert said.all() if number in wanted else not said.any(), (number, message)
    assert row.targets[-1] == (len(messages) - 1 in wanted), "the end of the document"


def test_the_last_message_of_the_assistant_alone_and_not_one_that_weighs_nothing():
    say = lambda role, **fields: {"role": role, "content": "x", **fields}  # noqa: E731
    talk = [say("user"), say("assistant"), say("tool"), say("assistant"), say("user")]
    assert are_trained(talk) == [False, True, False, True, False]
    assert are_trained(talk, "last_assistant") == [False, False, False, True, False]
    assert are_trained([*talk[:3], say("assistant", weight=0)], "last_assistant") == [False] * 4
    assert are_trained(talk[:1], "last_assistant") == [False]


def test_a_template_that_does_not_tell_which_message_it_writes_is_refused_only_where_that_matters():
    template = ChatTemplate(
        "{% for i in range(messages | length) %}"
        "{% generation %}{{ messages[i].content }}{% endgeneration %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert template.write(messages, trained=[True, True]) == ("ab", [(0, 1), (1, 2)])
    assert template.write(messages, trained=[False, False]) == ("ab", [])
    with pytest.raises(
        ConversationError, match=r"does not tell which message .* a loop over messages whose variable is"
    ):
        template.write(messages, trained=[False, True])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight": 0.5}, r"message 2 has weight 0\.5, which must be 0 \(no loss\) or 1; fractions of a loss are not"),
        ({"weight": "1"}, "message 2 has weight '1', which must be 0"),
        ({"weight": float("nan")}, "message 2 has weight nan"),
        ({"train": "no"}, "message 2 has train 'no', which must be true or false"),
        ({"weight": 0, "train": True}, "message 2 contradicts itself: weight 0, train True"),
    ],
)
def test_another_weight_is_refused_by_its_value(fields, said):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", **fields}]
    with pytest.raises(ConversationError, match=said):
        are_trained(messages)


def test_only_the_assistants_messages_can_ask_for_a_loss():
    assert are_trained([{"role": "user", "content": "x", "weight": 0}]) == [False]
    with pytest.raises(ConversationError, match=r"message 1, of the user, has train True, but only the assistant's"):
        are_trained([{"role": "user", "content": "x", "train": True}])


def test_templates_do_not_see_the_fields_that_are_for_the_trainer():
    messages = [{"role": "assistant", "content": "x", "weight": 1, "train": True, "training": True, "name": "a"}]
    assert as_template_sees(messages) == [{"role": "assistant", "content": "x", "name": "a"}]


def test_sharegpts_fields_get_the_names_that_templates_know():
    talk = [("system", "s"), ("human", "h"), ("gpt", "g"), ("function_call", "f"), ("observation", "o"), ("tool", "t")]
    messages = conversation({"messages": [{"from": who, "value": said, "weight": None} for who, said in talk]})
    assert messages == [
        {"role": role, "content": said}
        for role, said in zip(["system", "user", "assistant", "assistant", "tool", "tool"], "shgfot", strict=True)
    ]
    assert conversation({"messages": [{"from": "gpt", "value": "g", "weight": 0}]}) == [
        {"role": "assistant", "content": "g", "weight": 0}
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"from": "narrator", "value": "x"}, "message 1 is from 'narrator'; known: system, human, user, gpt"),
        ({"from": "gpt", "value": None}, "message 1, of the assistant, has no content"),
        ({"role": "assistant", "weight": 1}, "message 1, of the assistant, has no content"),
        ("hello", "message 1 is 'hello', not an object with a role and a content"),
    ],
)
def test_a_message_that_cannot_be_read_is_named_with_its_number(message, said):
    with pytest.raises(ConversationError, match=said):
        conversation({"messages": [message]})


def test_fields_that_a_table_fills_with_null_are_left_out_of_calls_too():
    call = {"function": {"name": "f", "arguments": {"city": "Rome", "unit": None}}, "id": None}
    (message,) = conversation({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}) or []
    assert message == {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Rome"}}}],
    }


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def test_tools_are_schemas_or_their_text():
    assert tools_of({"tools": [TOOL | {"strict": None}]}) == [TOOL]
    assert tools_of({"tools": json.dumps([TOOL])}) == [TOOL]
    for none in ({}, {"tools": None}, {"tools": ""}, {"tools": "[]"}, {"tools": []}, {"tools": "null"}):
        assert tools_of(none) is None
    with pytest.raises(ConversationError, match="its tools are not JSON: Expecting value at column 1"):
        tools_of({"tools": "weather"})
    with pytest.raises(ConversationError, match=r"must be a list of JSON schemas, got \{'name': 'f'\}"):
        tools_of({"tools": '{"name": "f"}'})


WITH_TOOLS = (
    "{% if tools is not none %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content or '' }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
CALLS = [
    {"role": "user", "content": "How warm is it in Rome?"},
    {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    },
    {"role": "tool", "content": "20"},
    {"role": "assistant", "content": "20 degrees."},
]


@pytest.mark.parametrize("tools", [[TOOL], None], ids=["tools", "none"])
@pytest.mark.parametrize("train_on", TRAIN_ON)
def test_tokens_and_masks_are_those_of_transformers(bpe_folder, tools, train_on: TrainOn):
    from transformers import AutoTokenizer

    from packmamba.data.text.tokenizers import HFTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(bpe_folder)
    theirs.chat_template = WITH_TOOLS
    expected = theirs.apply_chat_template(
        CALLS, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer = HFTokenizer(path=bpe_folder, add_eos=False)
    row = Encoder(tokenizer, ChatTemplate(WITH_TOOLS), train_on).encode({"messages": [CALLS], "tools": [tools]}, 0)
    assert row.targets is not None
    assert row.tokens.tolist() == expected["input_ids"]
    mask = np.array(expected["assistant_masks"], dtype=bool)
    assert 0 < mask.sum() < mask.size
    if train_on == "last_assistant":
        mask[: np.flatnonzero(np.diff(mask, prepend=False))[2]] = False
    assert row.targets.tolist() == mask.tolist()

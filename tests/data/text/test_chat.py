"""Conversations written out: as transformers does, with the assistant's part marked, or refused."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("jinja2")

from packmamba.data.text.chat import CHATML, ChatTemplate, ConversationError, conversation
from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And <b>how</b>?"},
    {"role": "assistant", "content": "Like\nthis 🐍."},
]

LLAMA = (
    "{{ bos_token }}{% for m in messages %}\n"
    "    {%- if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]{% elif m['role'] == 'system' %}"
    "<<SYS>>{{ m.content }}<</SYS>>{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{%- generation -%} {{ m.content }}!"
    "{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.role }}: {{ m.content }}\n"
    "{% endif %}{% endfor %}"
)


def parts(template: str, messages=TALK, **special_tokens) -> list[str]:
    text, spans = ChatTemplate(template, special_tokens).write(messages)
    return [text[begin:end] for begin, end in spans]


def test_what_an_assistants_message_adds_is_its_part():
    assert parts(HEADERS) == ["Because.<|end|>\n", "Like\nthis 🐍.<|end|>\n"]
    assert parts(LLAMA, bos_token="<s>", eos_token="</s>") == [" Because. </s>", " Like\nthis 🐍. </s>"]


def test_a_templates_own_tags_say_what_the_assistants_part_is():
    assert parts(TAGGED) == ["Because.!", "Like\nthis 🐍.!"]
    text, _ = ChatTemplate(TAGGED).write(TALK)
    assert text.startswith("system: Be brief.user: Why?assistant: Because.!user")


def test_the_template_of_those_that_have_none_is_chatml():
    text, _ = ChatTemplate(CHATML).write(TALK[:3])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nBecause.<|im_end|>"
    )
    assert parts(CHATML) == ["Because.<|im_end|>", "Like\nthis 🐍.<|im_end|>"]


@pytest.mark.parametrize("template", [HEADERS, LLAMA, TAGGED, CHATML], ids=["headers", "llama", "tagged", "chatml"])
def test_the_text_is_the_one_transformers_writes(bpe_folder, template):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    tokenizer.chat_template = template
    text, _ = ChatTemplate(template, tokenizer.special_tokens_map).write(TALK)
    assert text == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_a_conversation_without_the_assistant_has_no_part_of_it():
    for template in (HEADERS, CHATML):
        assert parts(template, TALK[:2]) == []


def test_an_assistant_that_speaks_first_has_a_part():
    assert parts(HEADERS, TALK[2:3]) == ["<|assistant|>\nBecause.<|end|>\n"]
    assert parts(CHATML, TALK[2:3]) == ["Because.<|im_end|>"]


def test_a_template_that_rewrites_what_came_before_is_refused():
    with pytest.raises(ConversationError, match=r"in message 3 differently when more follows.*\{% generation %\}"):
        parts(FORGETFUL)
    assert parts(FORGETFUL, TALK[:3]) == ["assistant: Because.\n"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template refuses it: roles must alternate"),
        ("{{ messages[9].content }}", "the chat template refuses it: .*has no element 9"),
        ("{{ messages[0].content + 1 }}", "the chat template cannot write it: "),
        ("{{ messages.append(1) }}", "the chat template refuses it: .*attribute 'append' of 'list' object is unsafe"),
    ],
    ids=["raises", "undefined", "type", "sandbox"],
)
def test_a_conversation_that_the_template_refuses_says_why(template, message):
    with pytest.raises(ConversationError, match=message):
        parts(template)


def test_the_file_comes_before_the_tokenizers_own_and_that_before_chatml(bpe_folder, tmp_path):
    tokenizer = ByteTokenizer()
    assert ChatTemplate.of(tokenizer).source == CHATML
    (tmp_path / "mine.jinja").write_text("mine")
    assert ChatTemplate.of(tokenizer, str(tmp_path / "mine.jinja")).source == "mine"
    shutil.copytree(bpe_folder, tmp_path / "copy")
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ eos_token }}")
    template = ChatTemplate.of(BPETokenizer(path=str(tmp_path / "copy")))
    assert template.write([])[0] == "<|eos|>"


def test_a_template_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no chat template 'no\.jinja'; name a Jinja file"):
        ChatTemplate.of(ByteTokenizer(), "no.jinja")
    (tmp_path / "bad.jinja").write_text("{{ messages }}\n{% for %}")
    with pytest.raises(ValueError, match=r"the chat template '.*bad\.jinja' is not Jinja: line 2: Expected"):
        ChatTemplate.of(ByteTokenizer(), str(tmp_path / "bad.jinja"))


def test_a_row_is_messages_or_prompt_and_completion_or_text():
    prompt, answer = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
    assert conversation({"prompt": "p", "completion": "c"}) == [prompt, answer]
    assert conversation({"prompt": None, "completion": "c"}) == [{"role": "user", "content": ""}, answer]
    assert conversation({"prompt": "p", "completion": None}) == [prompt]
    assert conversation({"messages": [prompt], "prompt": None, "completion": None}) == [prompt]
    assert conversation({"text": "t", "messages": None, "prompt": None, "completion": None}) is None
    assert conversation({"messages": []}) == []


def test_fields_that_are_null_are_left_out_and_others_reach_the_template():
    row = {"messages": [{"role": "user", "content": "x", "name": "Ann", "tool_calls": None}]}
    assert conversation(row) == [{"role": "user", "content": "x", "name": "Ann"}]


@pytest.mark.parametrize(
    ("message", "said"),
    [({"role": None, "content": "x"}, "message 2 has no role"), ({"role": "user", "content": None}, "has no content")],
)
def test_a_message_without_role_or_content_is_named_with_its_number(message, said):
    with pytest.raises(ConversationError, match=said):
        conversation({"messages": [TALK[0], message]})

"""Rows to ids and targets: exactly the assistant's tokens, whatever the tokenizer."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("jinja2")

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from packmamba.data.text.chat import CHATML, ChatTemplate
from packmamba.data.text.encode import Encoder, RowError
from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer, Encoded, HFTokenizer, Tokenizer

TALK = [
    {"role": "system", "content": "You know Python."},
    {"role": "user", "content": "What is `naïve`?"},
    {"role": "assistant", "content": "Not wise, 天真."},
    {"role": "user", "content": "More!\n"},
    {"role": "assistant", "content": "import this  # 🐍\n\n    return"},
]
ANSWERS = [message["content"] for message in TALK if message["role"] == "assistant"]
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture(params=["bytes", "bpe", "transformers"])
def tokenizer(request, bpe_folder) -> Tokenizer:
    makers = {"bytes": ByteTokenizer, "bpe": BPETokenizer, "transformers": HFTokenizer}
    return makers[request.param](**({} if request.param == "bytes" else {"path": bpe_folder}))


def encoder(tokenizer: Tokenizer, template: str = CHATML) -> Encoder:
    return Encoder(tokenizer, ChatTemplate(template, tokenizer.special_tokens))


def runs(ids: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """The ids of each run of targets."""
    bounds = np.flatnonzero(np.diff(targets.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [ids[begin:end] for begin, end in bounds]


def test_what_is_predicted_decodes_to_what_the_assistant_says(tokenizer):
    encoded = encoder(tokenizer).encode({"messages": [TALK]}, 0)
    first, last = runs(encoded.tokens, encoded.targets)
    assert tokenizer.decode(first) == ANSWERS[0] + "<|im_end|>"
    assert tokenizer.decode(last) == ANSWERS[1] + "<|im_end|>"
    assert last[-1] == tokenizer.eos_id == encoded.tokens[-1], "the end of the document ends the assistant's turn"
    assert tokenizer.eos_id not in first
    assert tokenizer.decode(encoded.tokens).count("<|im_start|>") == 5
    assert encoded.late_turns == 0


def test_without_marks_what_is_predicted_is_the_text_and_what_ends_it(tokenizer):
    encoded = encoder(tokenizer, PLAIN).encode({"messages": [TALK]}, 0)
    assert [tokenizer.decode(run) for run in runs(encoded.tokens, encoded.targets)] == [f"{a}\n" for a in ANSWERS]


def test_the_ids_are_those_of_transformers(bpe_folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(bpe_folder)
    theirs.chat_template = CHATML
    expected = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    encoded = encoder(HFTokenizer(path=bpe_folder, add_eos=False)).encode({"messages": [TALK]}, 0)
    assert encoded.tokens.tolist() == expected["input_ids"]
    assert encoded.targets.astype(int).tolist() == expected["assistant_masks"]


@example([("", "\ue000\ue0f0"), ("\ue001", "\ue000")])
@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1, max_size=3))
def test_any_text_of_the_assistant_is_predicted_whole(turns):
    messages = [
        {"role": role, "content": content}
        for pair in turns
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    encoded = encoder(ByteTokenizer()).encode({"messages": [messages]}, 0)
    decoded = [ByteTokenizer().decode(run) for run in runs(encoded.tokens, encoded.targets)]
    assert decoded == [f"{answer}<|im_end|>" for _, answer in turns]


def test_prompt_and_completion_are_a_conversation_of_one_turn(tokenizer):
    rows = {"prompt": ["Why?", "How?"], "completion": ["So.", None]}
    encoded = encoder(tokenizer).encode(rows, 0)
    answered, silent = np.split(encoded.targets, encoded.lengths.cumsum()[:-1])
    (run,) = runs(encoded.tokens[: encoded.lengths[0]], answered)
    assert tokenizer.decode(run) == "So.<|im_end|>"
    assert run[-1] == tokenizer.eos_id
    assert not silent.any(), "nobody answered, so the end of the document is not predicted either"


def test_text_among_conversations_is_predicted_whole(tokenizer):
    rows = {"text": ["plain", None, "", None], "messages": [None, TALK, None, []]}
    encoded = encoder(tokenizer).encode(rows, 0)
    assert encoded.lengths[2] == encoded.lengths[3] == 0
    assert encoded.tokens[: encoded.lengths[0]].tolist() == tokenizer.encode("plain").tolist()
    assert encoded.targets[: encoded.lengths[0]].all()
    alone = encoder(tokenizer).encode({"messages": [TALK]}, 0)
    assert encoded.tokens[encoded.lengths[0] :].tolist() == alone.tokens.tolist()
    assert encoded.targets[encoded.lengths[0] :].tolist() == alone.targets.tolist()


def test_bos_and_eos_are_not_written_twice(bpe_folder):
    tokenizer = BPETokenizer(path=bpe_folder, add_bos=True)
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}\n{{ m.content }}{{ eos_token }}{% endfor %}"
    tokens = encoder(tokenizer, template).encode({"messages": [TALK[1:3]]}, 0).tokens.tolist()
    assert tokens.count(tokenizer.bos_id) == 1
    assert tokens.count(tokenizer.eos_id) == 2
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    tokens = encoder(tokenizer).encode({"messages": [TALK[1:3]]}, 0).tokens.tolist()
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_a_token_across_the_beginning_of_a_turn_is_not_predicted_but_counted(bpe_folder):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = BPETokenizer(path=bpe_folder)
    messages = [TALK[1], {"role": "assistant", "content": "the end"}]
    encoded = encoder(tokenizer, template).encode({"messages": [messages]}, 0)
    (run,) = runs(encoded.tokens, encoded.targets)
    assert tokenizer.decode(run) == " end", "the token ` the` has a space that the template wrote"
    assert encoded.late_turns == 1


def test_spaces_that_a_tokenizer_leaves_out_of_its_offsets_stay_where_they_are():
    class Trimming(ByteTokenizer):
        def encode_with_offsets(self, texts):
            encoded = super().encode_with_offsets(texts)
            spaces = [np.array([character == " " for character in text]) for text in texts]
            return [Encoded(e.ids, e.begins + space, e.ends) for e, space in zip(encoded, spaces, strict=True)]

    messages = [{"role": "user", "content": "a "}, {"role": "assistant", "content": " b "}]
    encoded = encoder(Trimming(), "{% for m in messages %}{{ m.content }}{% endfor %}").encode(
        {"messages": [messages]}, 0
    )
    assert ByteTokenizer().decode(encoded.tokens[encoded.targets]) == " b "


def test_an_error_names_the_row():
    rows = {"messages": [TALK, [{"role": None, "content": "x"}]]}
    with pytest.raises(RowError, match="row 1001: message 1 has no role"):
        encoder(ByteTokenizer()).encode(rows, 1000)


def test_a_tokenizer_without_offsets_cannot_encode_conversations():
    class NoOffsets(ByteTokenizer):
        encode_with_offsets = Tokenizer.encode_with_offsets

    with pytest.raises(ValueError, match="does not say which characters a token is made from"):
        encoder(NoOffsets()).encode({"messages": [TALK]}, 0)
    assert encoder(NoOffsets()).encode({"text": ["a"], "messages": [None]}, 0).tokens.size == 2

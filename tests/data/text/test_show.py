import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from packmamba.data.text.show import marked_text
from packmamba.data.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer(add_bos=True)


def marks(text: str, trained: str) -> str:
    """A text whose characters have a loss where `trained` has a `+`, marked."""
    return marked_text(BYTES.encode_texts([text])[0], np.array([sign == "+" for sign in trained]), BYTES)


def test_text_with_a_loss_stands_between_brackets():
    assert marks("five? 5. six?", "------++-----") == "five? [[5.]] six?"
    assert marks("all", "+++") == "[[all]]"
    assert marks("none", "----") == "none"
    assert marks("", "") == ""


def test_bos_and_eos_are_shown_and_marked_as_other_tokens_are():
    ids = BYTES.encode("ab")
    assert marked_text(ids, [False, True, True, True], BYTES) == "<bos>[[ab<eos>]]"
    assert marked_text(ids, [False, False, False, True], BYTES) == "<bos>ab[[<eos>]]"


def test_only_runs_that_are_too_long_are_shortened_in_their_middle():
    ids = BYTES.encode_texts(["0123456789abc"])[0]
    assert marked_text(ids, [False] * 10 + [True] * 3, BYTES, longest_run=4) == "01 ... 89[[abc]]"


def test_characters_that_could_move_the_cursor_are_escaped():
    ids = BYTES.encode_texts(["a\x1b[2J\n\tb"])[0]
    assert marked_text(ids, np.zeros(ids.size, bool), BYTES) == "a\\x1b[2J\n\tb"

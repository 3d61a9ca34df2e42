"""Tokenised corpora: exact, cached by content, complete or absent."""

from __future__ import annotations

import itertools
import pickle

import pytest

pytest.importorskip("datasets")

import numpy as np
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.cache import new_folder
from packmamba.data.text import corpus as corpus_module
from packmamba.data.text import parallel as parallel_module
from packmamba.data.text.corpus import Corpus, tokenise
from packmamba.data.text.encode import Encoder
from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer

TEXTS = ["hello", "", "wörld", "x" * 500]


def of(texts) -> Dataset:
    return Dataset.from_dict({"text": texts})


def document(corpus: Corpus, index: int) -> np.ndarray:
    return corpus.tokens[corpus.offsets[index] : corpus.offsets[index + 1]]


def forbid_tokenising(monkeypatch) -> None:
    monkeypatch.setattr(Encoder, "encode", lambda *arguments: pytest.fail("tokenised again"))


def test_every_document_is_stored_as_its_tokens(cache):
    corpus = tokenise(of(TEXTS), ByteTokenizer(add_bos=True), cache)
    assert len(corpus) == 4
    for index, text in enumerate(TEXTS):
        expected = ByteTokenizer(add_bos=True).encode(text).tolist() if text else []
        assert document(corpus, index).tolist() == expected
    assert corpus.lengths.tolist() == [7, 0, 8, 502]


def test_many_documents_keep_their_order_across_batches(cache, monkeypatch):
    monkeypatch.setattr(parallel_module, "BATCH", 7)
    texts = [f"document {index}" for index in range(50)]
    corpus = tokenise(of(texts), ByteTokenizer(), cache)
    assert [ByteTokenizer().decode(document(corpus, index)) for index in range(50)] == texts


def test_a_missing_value_is_an_empty_document(cache):
    assert tokenise(of(["a", None]), ByteTokenizer(), cache).lengths.tolist() == [2, 0]


def test_the_cache_goes_by_content_not_by_dataset(cache, monkeypatch):
    first = tokenise(of(TEXTS), ByteTokenizer(), cache)
    forbid_tokenising(monkeypatch)
    again = tokenise(of(["skipped", *TEXTS]).select(range(1, 5)), ByteTokenizer(), cache)
    assert again.folder == first.folder
    assert again.text_digest == first.text_digest


@pytest.mark.parametrize(
    "other", [[*TEXTS, "more"], TEXTS[::-1], ["hell", "o", "wörld", "x" * 500], ["hello", "w", "örld", "x" * 500]]
)
def test_other_texts_have_another_digest(cache, other):
    assert (
        tokenise(of(TEXTS), ByteTokenizer(), cache).text_digest
        != tokenise(of(other), ByteTokenizer(), cache).text_digest
    )


def test_another_tokenizer_tokenises_again(cache):
    first, second = (tokenise(of(TEXTS), ByteTokenizer(add_eos=eos), cache) for eos in (True, False))
    assert first.folder != second.folder
    assert second.lengths.tolist() == [5, 0, 6, 500]


def test_the_digest_of_a_dataset_is_computed_once(cache, monkeypatch):
    dataset = of(TEXTS)
    tokenise(dataset, ByteTokenizer(), cache)
    monkeypatch.setattr(type(dataset), "iter", lambda *arguments, **options: pytest.fail("read again"))
    assert len(tokenise(dataset, ByteTokenizer(), cache)) == 4


def test_an_interrupted_tokenisation_leaves_nothing_behind(cache, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenise(of(TEXTS), ByteTokenizer(), cache)
    assert list((cache / "tokens").iterdir()) == []
    assert tokenise(of(TEXTS), ByteTokenizer(), cache).lengths.tolist() == [6, 0, 7, 501]


def test_of_two_processes_that_build_the_same_folder_the_first_wins(tmp_path):
    target = tmp_path / "folder"
    with new_folder(target) as slow:
        (slow / "who").write_text("slow")
        with new_folder(target) as fast:
            (fast / "who").write_text("fast")
    assert (target / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]


def test_only_the_path_travels_to_another_process(cache):
    corpus = tokenise(of(["x" * 100_000]), ByteTokenizer(), cache)
    assert corpus.tokens.size == 100_001
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens.size == 100_001


class WordHashes(ByteTokenizer):
    """Ids up to 99,999: too many for 16 bits."""

    size = 100_000

    @property
    def vocab_size(self) -> int:
        return self.size

    def encode_texts(self, texts):
        return [np.array([99_999, 3]) for _ in texts]


def test_large_vocabularies_are_stored_in_32_bits(cache):
    corpus = tokenise(of(["a"]), WordHashes(add_eos=False), cache)
    assert corpus.tokens.dtype == np.uint32
    assert corpus.tokens.tolist() == [99_999, 3]


def test_an_id_beyond_the_vocabulary_is_refused(cache):
    class TooSmall(WordHashes):
        size = 50_000

    with pytest.raises(ValueError, match="token id 99999, but its vocabulary has 50000 entries"):
        tokenise(of(["a"]), TooSmall(add_eos=False), cache)


def test_a_corpus_of_empty_documents_is_refused(cache):
    with pytest.raises(ValueError, match="all 2 documents are empty after tokenisation"):
        tokenise(of(["", None]), ByteTokenizer(), cache)


def test_conversations_are_stored_with_their_targets(cache):
    rows = {"prompt": ["ab", "c", None], "completion": ["d", "", None], "text": [None, None, "plain"]}
    corpus = tokenise(Dataset.from_dict(rows), ByteTokenizer(), cache)
    assert corpus.targets.size == corpus.tokens.size
    spoken = [corpus.targets[begin:end] for begin, end in itertools.pairwise(corpus.offsets)]
    assert ByteTokenizer().decode(document(corpus, 0)[spoken[0]]) == "d<|im_end|>"
    assert [run.sum() for run in spoken] == [12, 0, 6]
    assert tokenise(of(TEXTS), ByteTokenizer(), cache).targets is None


def test_another_chat_template_or_another_word_tokenises_again(cache, tmp_path):
    (tmp_path / "other.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    said = [[{"role": "user", "content": "hello"}, {"role": "assistant", "content": word}] for word in ("yes", "no")]
    folders = {
        tokenise(Dataset.from_dict({"messages": [talk]}), ByteTokenizer(), cache, chat_template=template).folder
        for talk in said
        for template in (None, str(tmp_path / "other.jinja"))
    }
    assert len(folders) == 4


def test_the_cache_of_conversations_goes_by_content(cache, monkeypatch):
    rows = {"prompt": ["ab", "c"], "completion": ["d", "e"]}
    first = tokenise(Dataset.from_dict(rows), ByteTokenizer(), cache)
    monkeypatch.setattr(Encoder, "encode", lambda *arguments: pytest.fail("tokenised again"))
    again = tokenise(Dataset.from_dict(rows | {"n": [1, 2]}).remove_columns("n"), ByteTokenizer(), cache)
    assert again.folder == first.folder


@given(data=st.data(), chunk=st.sampled_from([1, 3, 40, 41, 2**22]))
def test_targets_of_pieces_are_counted_as_they_are(tmp_path_factory, data, chunk):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=40)))
    cuts = sorted(data.draw(st.sets(st.integers(0, mask.size), max_size=8)) | {0, mask.size})
    pieces = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    corpus = Corpus(tmp_path_factory.getbasetemp())
    corpus.__dict__["targets"] = mask
    begins, ends = np.array(pieces).T
    expected = [mask[begin + 1 : end].sum() for begin, end in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "_CHUNK", chunk)
        assert corpus.count_targets(begins, ends - begins).tolist() == expected
    corpus.__dict__["targets"] = None
    assert corpus.count_targets(begins, ends - begins).tolist() == [end - begin - 1 for begin, end in pieces]


def test_turns_that_begin_inside_a_token_are_warned_of(cache, tmp_path, bpe_folder, caplog):
    prompt = "{% if add_generation_prompt %}: {% endif %}"
    (tmp_path / "t.jinja").write_text("{% for m in messages %}: {{ m.content }}{% endfor %}" + prompt)
    rows = Dataset.from_dict({"prompt": ["why"] * 3, "completion": ["the end"] * 3})
    with caplog.at_level("WARNING"):
        tokenise(rows, BPETokenizer(path=bpe_folder), cache, chat_template=str(tmp_path / "t.jinja"))
    assert "3 of the assistant's turns begin inside a token" in caplog.text

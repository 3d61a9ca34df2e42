"""Conversations through the pipeline: loss on the assistant's tokens alone, counted exactly, whatever the packing."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

import numpy as np
import torch

from packmamba.data import PackedDataModule
from packmamba.data.collate import collate
from packmamba.data.packers import STRATEGIES
from packmamba.data.sources import Files, Mixture, Recall
from packmamba.data.text.tokenizers import ByteTokenizer

ANSWERS = [[f"answer {row}.{turn}" for turn in range(row % 3 + 1)] for row in range(30)]


def talk(answers: list[str]) -> list[dict[str, str]]:
    return [
        message
        for answer in answers
        for message in ({"role": "user", "content": f"say {answer}"}, {"role": "assistant", "content": answer})
    ]


@pytest.fixture
def conversations(write_jsonl) -> Files:
    return Files(paths=[write_jsonl([{"messages": talk(answers)} for answers in ANSWERS])], messages_column="messages")


@pytest.fixture
def make(cache):
    def made(source, **options) -> PackedDataModule:
        options = {"val_fraction": 0, "capacity": 400, "cache_dir": str(cache)} | options
        module = PackedDataModule(source=source, **options)
        module.setup()
        return module

    return made


def predicted(batch) -> dict[int, list[str]]:
    """The texts of the runs of labels of each document, by its id."""
    texts: dict[int, list[str]] = {}
    for doc, labels in zip(batch.doc_ids.tolist(), batch.packing.unpack(batch.labels), strict=True):
        has = (labels != batch.IGNORE_INDEX).int().numpy()
        bounds = np.flatnonzero(np.diff(has, prepend=0, append=0)).reshape(-1, 2)
        texts[doc] = [ByteTokenizer().decode(labels[begin:end]) for begin, end in bounds]
    return texts


def test_each_document_is_trained_on_what_its_assistant_says(conversations, make):
    texts = {doc: runs for batch in make(conversations).dataset() for doc, runs in predicted(batch).items()}
    assert texts == {row: [f"{answer}<|im_end|>" for answer in answers] for row, answers in enumerate(ANSWERS)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("capacity", [400, 61])
def test_the_plan_knows_the_targets_of_every_step(conversations, make, strategy, capacity):
    module = make(conversations, strategy=strategy, capacity=capacity)
    ranks = [module.dataset(world_size=2, rank=rank, accumulation=3) for rank in (0, 1)]
    counted = sum((batch.labels != batch.IGNORE_INDEX).sum().item() for rank in ranks for batch in rank)
    total = 0
    for begin in range(0, len(ranks[0]), 3):
        batches = [rank[step] for rank in ranks for step in range(begin, min(begin + 3, len(ranks[0])))]
        for batch in batches:
            assert batch.num_targets == (batch.labels != batch.IGNORE_INDEX).sum()
            assert batch.step_targets == sum(other.num_targets for other in batches)
        total += batches[0].step_targets
    assert total == counted == module.packs().num_targets.sum() > 0


def test_no_target_crosses_a_boundary(conversations, make):
    for batch in make(conversations, capacity=61).dataset():
        for ids, labels in zip(batch.packing.unpack(batch.input_ids), batch.packing.unpack(batch.labels), strict=True):
            assert labels[-1] == batch.IGNORE_INDEX
            has = labels[:-1] != batch.IGNORE_INDEX
            assert torch.equal(labels[:-1][has], ids[1:][has])


def test_conversations_without_an_answer_are_skipped_with_a_count_or_refused(write_jsonl, make):
    rows = [{"messages": talk(["yes"])}, {"messages": talk(["no"])[:1]}, {"messages": []}, {"messages": talk(["yes"])}]
    source = Files(paths=[write_jsonl(rows)], messages_column="messages")
    with (
        pytest.warns(
            UserWarning, match=r"1 of 4 conversations of Files\(.*\) have nothing that the assistant says; th"
        ),
        pytest.warns(UserWarning, match=r"1 of 4 documents of Files\(.*\) are empty"),
    ):
        assert make(source).documents().rows.tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"1 of 4 documents .* the first is row 2; drop them, or set empty_documents"):
        make(source, empty_documents="error")
    silent = Files(paths=[write_jsonl(rows[1:2] * 2, "silent.jsonl")], messages_column="messages")
    with pytest.warns(UserWarning, match="2 of 2"), pytest.raises(ValueError, match="has a token to train on"):
        make(silent)


def test_streamed_conversations_are_the_same_and_silent_ones_are_left_out(write_jsonl, make):
    rows = [{"messages": talk(["yes"])}] * 2 + [{"messages": talk(["no"])[:1]}] * 2 + [{"messages": talk(["on"])}] * 2
    fields = {"paths": [write_jsonl(rows)], "messages_column": "messages"}
    module = make(Files(**fields, streaming=True), section_documents=2)
    with pytest.warns(UserWarning, match="row 2 of Files.* has nothing that the assistant says, and maybe others"):
        batches = list(module.train_dataloader())
    assert sorted(doc for batch in batches for doc in batch.doc_ids.tolist() if doc >= 0) == [0, 1, 4, 5]
    assert sum(batch.num_targets for batch in batches) == make(Files(**fields)).packs().num_targets.sum()


def test_the_last_message_of_the_assistant_alone_is_trained_on_where_that_is_asked_for(conversations, make, caplog):
    with caplog.at_level("INFO"):
        module = make(conversations, train_on="last_assistant")
        module.setup("fit")
    texts = {doc: runs for batch in module.dataset() for doc, runs in predicted(batch).items()}
    assert texts == {row: [f"{answers[-1]}<|im_end|>"] for row, answers in enumerate(ANSWERS)}
    assert "row 0, the part between [[ and ]] has a loss:" in caplog.text
    assert "<|im_start|>assistant\n[[answer 0.0<|im_end|><eos>]]" in caplog.text
    everything = make(conversations)  # the same cache
    assert module.packs().num_targets.sum() < everything.packs().num_targets.sum()


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_sharegpts_fields_weights_and_tools_reach_the_batches(write_jsonl, make, caplog, tmp_path, streaming):
    talk = [
        {"from": "human", "value": "a?"},
        {"from": "gpt", "value": "b", "weight": 0},
        {"from": "human", "value": "c?"},
        {"from": "gpt", "value": "d", "weight": 1},
    ]
    (tmp_path / "tools.jinja").write_text(
        "{{ tools | tojson }}{% for message in messages %}{{ message.role }}:{% generation %}{{ message.content }};"
        "{% endgeneration %}{% endfor %}"
    )
    rows = [{"talk": talk, "tools": [{"name": "f"}]}, {"talk": talk[:2], "tools": [{"name": "g"}]}]
    source = Files(paths=write_jsonl(rows), messages_column="talk", tools_column="tools", streaming=streaming)
    caplog.set_level("INFO")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the second row, whose only answer weighs nothing
        module = make(source, chat_template=str(tmp_path / "tools.jinja"))
        module.setup("fit")
        (batch,) = list(module.train_dataloader())
    assert predicted(batch) == {0: ["d;"]}
    assert ByteTokenizer().decode(batch.input_ids) == '[{"name": "f"}]user:a?;assistant:b;user:c?;assistant:d;'
    assert "messages have ShareGPT's fields from and value; human is read as user, gpt as assistant" in caplog.text
    assert "assistant:[[d;<eos>]]" in caplog.text


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_a_choice_of_messages_is_refused_for_plain_text(write_jsonl, make, streaming):
    source = Files(paths=write_jsonl(["text"] * 3), streaming=streaming)
    with pytest.raises(
        ValueError, match=r"train_on='last_assistant' chooses messages .* holds plain text: set its mess"
    ):
        list(make(source, train_on="last_assistant").train_dataloader())
    with pytest.raises(ValueError, match="unknown train_on 'last'; available: all_assistant, last_assistant"):
        PackedDataModule(train_on="last")  # type: ignore[arg-type]


def test_a_bad_weight_is_named_with_source_and_row(write_jsonl, make):
    rows = [{"messages": talk(["yes"])}, {"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}]
    source = Files(paths=write_jsonl(rows), messages_column="messages")
    with pytest.raises(ValueError, match=r"Files\(.*\), row 1: message 1 has weight 0\.5, which must be 0"):
        make(source)


def test_a_message_without_a_role_is_named_with_source_and_row(write_jsonl, make):
    rows = [{"messages": talk(["yes"])}, {"messages": [{"role": None, "content": "x"}]}]
    source = Files(paths=[write_jsonl(rows, "chat.jsonl")], messages_column="messages")
    with pytest.raises(
        ValueError, match=r"Files\(messages_column='messages', paths=.*chat\.jsonl'\]\), row 1: message 1"
    ):
        make(source)


def test_a_row_that_is_not_utf8_is_named_with_source_and_row(tmp_path, make):
    (tmp_path / "latin.jsonl").write_bytes(
        '{"text": "a", "reply": "b"}\n{"text": "caf\xe9", "reply": "c"}\n'.encode("latin-1")
    )
    for columns in ({}, {"prompt_column": "reply", "completion_column": "text"}):
        with pytest.raises(ValueError, match=r"Files\(.*latin\.jsonl'\]\), row 1: not UTF-8: .* at byte 4 of a text"):
            make(Files(paths=[str(tmp_path / "latin.jsonl")], **columns))


def test_plain_text_may_be_mixed_with_conversations(conversations, make):
    module = make(Mixture(sources=[conversations, Recall(num_documents=30, max_pairs=3)], weights=[1, 1]))
    packs = module.packs()
    plain = packs.pieces.length - 1 == packs.piece_targets
    assert 5 < plain.sum() < plain.size - 5


def test_another_chat_template_does_not_resume(conversations, make, tmp_path):
    module = make(conversations)
    module.train_dataloader()
    state = module.state_dict()
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    other = make(conversations, chat_template=str(tmp_path / "t.jinja"))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"chat_template was '[0-9a-f]+' and is '[0-9a-f]+'"):
        other.train_dataloader()


def test_another_choice_of_messages_does_not_resume_and_an_old_checkpoint_does(conversations, make):
    module = make(conversations)
    module.train_dataloader()
    state = module.state_dict()
    del state["fingerprint"]["train_on"]  # as checkpoints of earlier versions are
    make(conversations).load_state_dict(state)
    other = make(conversations, train_on="last_assistant")
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="train_on was 'all_assistant' and is 'last_assistant'"):
        other.train_dataloader()
    same = make(conversations)
    same.load_state_dict(state)
    same.train_dataloader()


def test_the_number_of_processes_must_not_be_negative():
    with pytest.raises(ValueError, match="tokenizer_workers must be at least 0, got -1"):
        PackedDataModule(tokenizer_workers=-1)


def test_labels_are_the_next_tokens_that_are_to_be_predicted():
    pieces = [np.array([5, 6, 7], dtype=np.uint16), np.array([8, 9], dtype=np.uint16)]  # as a corpus stores them
    targets = [np.array([True, False, True]), np.array([True, True])]
    batch = collate(pieces, np.array([3, 4]), targets=targets, pad_to=7)
    assert batch.labels.tolist() == [-100, 7, -100, 9, -100, -100, -100]
    assert batch.num_targets == 2
    assert batch.real_lengths.tolist() == [3, 2, 0]


def test_the_tokens_of_a_padded_row_are_counted_although_its_last_one_is_no_target():
    from packmamba.metrics import DocumentLossTable

    pieces = [np.arange(4), np.arange(2), np.arange(3)]
    targets = [np.array([False, True, False, False]), np.array([True, True]), np.zeros(3, dtype=bool)]
    batch = collate(pieces, np.arange(3), targets=targets, row_length=4)
    losses = DocumentLossTable().add(batch.pin_memory() if torch.cuda.is_available() else batch, torch.ones(12))
    assert losses.tokens.tolist() == [4, 2, 3]
    assert losses.targets.tolist() == [1, 1, 0]

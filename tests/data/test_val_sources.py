"""Several validation sets: each document of each once, whatever shares them; options that contradict are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from packmamba.data import PackedDataModule
from packmamba.data.configuration import parse_configuration
from packmamba.data.sources import Files, Recall


@pytest.fixture
def make(write_jsonl, sixty_documents, cache):
    few = write_jsonl([f"one of few, {number}" for number in range(5)], "few.jsonl")

    def made(**options) -> PackedDataModule:
        sets = {"many": Files(paths=sixty_documents), "few": Files(paths=few)}
        defaults = {"source": Recall(num_documents=20), "val_sources": sets, "capacity": 100, "cache_dir": str(cache)}
        return PackedDataModule(**(defaults | options))

    return made


def test_each_set_has_a_loader_with_all_of_its_documents(make):
    module = make()
    module.setup("fit")
    assert module.val_names == ("many", "few")
    loaders = module.val_dataloader()
    for loader, count in zip(loaders, (60, 5), strict=True):
        assert sorted(doc for batch in loader for doc in batch.doc_ids.tolist()) == list(range(count))
    assert module.documents("train").rows.size == 20, "none of them is held out"


def test_ranks_share_each_set(make, monkeypatch):
    seen = ([], [])
    for rank in (0, 1):
        monkeypatch.setattr("packmamba.data.datamodule.data_ranks", lambda trainer, rank=rank: (2, rank))
        module = make()
        module.setup("validate")
        for docs, loader in zip(seen, module.val_dataloader(), strict=True):
            docs += [doc for batch in loader for doc in batch.doc_ids.tolist() if doc >= 0]
    assert [sorted(docs) for docs in seen] == [list(range(60)), list(range(5))]


def test_test_and_predict_want_a_source_of_their_own(make):
    module = make()
    module.setup()
    for split in ("test", "predict"):
        with pytest.raises(ValueError, match=rf"several validation sets, val/many, val/few, .* set {split}_source"):
            module.documents(split)
    module = make(test_source=Recall(num_documents=7))
    module.setup("test")
    assert module.documents("test").rows.size == 7
    assert make(val_sources=None, val_source=Recall(num_documents=7)).val_names == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_source": Recall()}, "val_source and val_sources are both given"),
        ({"val_sources": {}}, "val_sources is empty; name at least one"),
        ({"val_sources": {"a/b": Recall()}}, "a set called 'a/b'; a name is made of letters"),
        ({"val_sources": {"s": Files(paths="x.jsonl", streaming=True)}}, r"val_sources\.s Files.* cannot be streamed"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_validation_sets_are_no_part_of_the_fingerprint_but_holding_documents_out_is(make):
    fingerprint = make().options.fingerprint
    assert fingerprint == make(val_sources=None, val_source=Recall()).options.fingerprint
    assert fingerprint["val_fraction"] is None
    assert make(val_sources=None).options.fingerprint["val_fraction"] == 0.05


@pytest.mark.parametrize("where", ["file", "command line"])
def test_they_are_given_in_a_file_or_as_one_value_on_the_command_line(tmp_path, where):
    value = "{wiki: {class_path: packmamba.data.sources.Files, init_args: {paths: w}}, code: {class_path: PythonDocs}}"
    (tmp_path / "c.yaml").write_text(f"data:\n  val_sources: {value}\n")
    given = ["--config", str(tmp_path / "c.yaml")] if where == "file" else ["--data.val_sources", value]
    parser, values = parse_configuration(given)
    module = parser.instantiate(values).data
    assert module.val_names == ("wiki", "code")
    assert module.options.sources.own("val/wiki") == Files(paths=["w"])

"""Validation, test and prediction: every document's loss, exactly, over all batches."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning")

import json
import math

import numpy as np
import torch

from packmamba.data.collate import collate
from packmamba.metrics import DocumentLossTable
from packmamba.packing import Packing
from packmamba.training.callbacks import PredictionWriter
from packmamba.training.lit import LitHybridLM
from tests.training.test_lit import CONFIG, Data, batch_of, documents, make_trainer


class TestEvaluation:
    def losses_by_hand(self, lit: LitHybridLM, docs: list[torch.Tensor]) -> list[torch.Tensor]:
        losses = []
        for doc in docs:
            logits = lit(doc, Packing.from_lengths([len(doc)])).detach()
            losses.append(torch.nn.functional.cross_entropy(logits[:-1].double(), doc[1:], reduction="none"))
        return losses

    def built(self) -> LitHybridLM:
        torch.manual_seed(0)
        lit = LitHybridLM(CONFIG)
        lit.configure_model()
        return lit

    def test_losses_are_sums_over_all_batches_not_means_of_means(self, tmp_path: Path) -> None:
        lit = self.built()
        docs = documents([40, 3, 1, 9, 25])
        batches = [batch_of(docs[:3], doc_ids=torch.arange(3)), batch_of(docs[3:], doc_ids=torch.tensor([3, 4]))]
        (metrics,) = make_trainer(tmp_path).validate(lit, Data([], batches), verbose=False)
        losses = self.losses_by_hand(lit, [doc for doc in docs if len(doc) > 1])
        mean = float(torch.cat(losses).mean())
        per_document = np.array([float(loss.mean()) for loss in losses])
        assert metrics["val/loss"] == pytest.approx(mean, rel=1e-5)
        assert metrics["val/perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
        assert metrics["val/document_perplexity"] == pytest.approx(math.exp(per_document.mean()), rel=1e-5)
        assert metrics["val/document_perplexity_median"] == pytest.approx(math.exp(np.median(per_document)), rel=1e-5)
        assert metrics["val/documents"] == 4
        assert metrics["val/loss"] != pytest.approx(per_document.mean(), rel=1e-4)

    def test_pieces_of_one_document_count_as_one_document(self, tmp_path: Path) -> None:
        lit = self.built()
        pieces = documents([30, 20, 8])
        batches = [
            batch_of(pieces[:1], doc_ids=torch.tensor([7])),
            batch_of(pieces[1:], doc_ids=torch.tensor([7, 2])),
        ]
        make_trainer(tmp_path).test(lit, Data([], batches), verbose=False)
        assert lit.document_losses is not None
        records = lit.document_losses.records()
        losses = self.losses_by_hand(lit, pieces)
        assert [record["document"] for record in records] == [2, 7]
        assert [record["tokens"] for record in records] == [8, 50]
        assert [record["targets"] for record in records] == [7, 48]
        assert records[1]["nll"] == pytest.approx(float(torch.cat(losses[:2]).mean()), rel=1e-5)

    def test_predict_writes_one_line_a_document(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lit = self.built()
        docs = documents([12, 1, 6])
        batch = batch_of([*docs, documents([4])[0]], num_padding=4, doc_ids=torch.tensor([5, 6, 9, -1]))
        writer = PredictionWriter()
        returned = make_trainer(tmp_path, callbacks=[writer]).predict(lit, Data([], [batch]))
        assert returned is not None
        assert writer.path == tmp_path / "predictions.jsonl"
        assert f"predictions: {writer.path} (3 documents)" in capsys.readouterr().out
        records = [json.loads(line) for line in writer.path.read_text().splitlines()]
        losses = self.losses_by_hand(lit, [docs[0], docs[2]])
        assert [record["document"] for record in records] == [5, 6, 9]
        assert records[1] == {"document": 6, "tokens": 1, "targets": 0, "nll": None, "perplexity": None}
        assert records[0]["nll"] == pytest.approx(float(losses[0].mean()), rel=1e-5)
        assert records[2]["perplexity"] == pytest.approx(math.exp(float(losses[1].mean())), rel=1e-5)

    def test_filler_of_padded_rows_is_not_counted_as_tokens(self) -> None:
        pieces = [np.array([1, 2, 3]), np.array([4])]
        batch = collate(pieces, np.array([0, 1]), row_length=6, pad_to=20)
        result = DocumentLossTable().add(batch, torch.zeros(20))
        assert result.tokens.tolist() == [3, 1]
        assert result.targets.tolist() == [2, 0]

    def test_documents_without_an_id_are_never_joined(self) -> None:
        table = DocumentLossTable()
        for _ in range(2):
            batch = batch_of(documents([4, 3]))
            table.add(batch, torch.ones(7))
        result = table.result()
        assert len(result.doc_ids) == 4
        assert {record["document"] for record in result.records()} == {None}

    def test_a_validation_set_without_targets_gives_nan_and_no_crash(self) -> None:
        table = DocumentLossTable()
        table.add(batch_of(documents([1])), torch.zeros(1))
        assert math.isnan(table.result().summary()["loss"])

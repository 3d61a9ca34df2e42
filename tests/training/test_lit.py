"""LitHybridLM: the loss over a whole optimiser step, the optimiser, logs, checkpoints."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from packmamba.config import AttentionConfig, ModelConfig
from packmamba.metrics import StepMeter, count_documents, peak_flops, real_flops
from packmamba.model import training_flops
from packmamba.packing import PackedBatch, Packing
from packmamba.training.callbacks import LastCheckpoint, PackedProgressBar
from packmamba.training.lit import LitHybridLM, check_same_config

CONFIG = ModelConfig(layer_pattern="1-*", d_model=32, vocab_size=50, attention=AttentionConfig(num_heads=2))


def documents(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 50, (length,), generator=generator) for length in lengths]


def batch_of(docs: list[torch.Tensor], **fields: Any) -> PackedBatch:
    return replace(PackedBatch.from_documents(docs), **fields)


def loader(batches: list[PackedBatch]) -> DataLoader:
    return DataLoader(batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]


class Data(LightningDataModule):
    def __init__(self, train: list[PackedBatch], val: list[PackedBatch] | None = None, vocab_size: int = 50) -> None:
        super().__init__()
        self.train, self.val, self.vocab_size = train, val or [], vocab_size

    def train_dataloader(self) -> DataLoader:
        return loader(self.train)

    def val_dataloader(self) -> DataLoader | list:
        return loader(self.val) if self.val else []

    test_dataloader = predict_dataloader = val_dataloader


class Recorder(Callback):
    """Every step's logged numbers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._take(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        self._take(trainer)

    def _take(self, trainer: Trainer) -> None:
        if trainer.global_step > len(self.rows):
            self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def make_trainer(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})


def fit(folder: Path, data: Data, *, lit: LitHybridLM | None = None, **options: Any) -> tuple[LitHybridLM, Recorder]:
    torch.manual_seed(0)
    recorder = Recorder()
    lit = lit or LitHybridLM(CONFIG, learning_rate=1e-3, warmup_steps=2)
    make_trainer(folder, callbacks=[recorder, *options.pop("callbacks", [])], **options).fit(lit, data)
    return lit, recorder


def small_and_big_packs(groups: list[list[list[int]]]) -> tuple[list[PackedBatch], list[PackedBatch]]:
    """For each group (an optimiser step) of packs of lengths: its packs one by one, and all of them in one pack."""
    small, big = [], []
    for g, group in enumerate(groups):
        packs = [documents(lengths, seed=10 * g + i) for i, lengths in enumerate(group)]
        whole = batch_of([doc for pack in packs for doc in pack])
        big.append(replace(whole, step_targets=whole.num_targets))
        small += [batch_of(pack, step_targets=whole.num_targets) for pack in packs]
    return small, big


FOUR_PACKS = [[40, 3, 9], [25, 25], [1, 70], [33]]


class TestLossOverTheOptimiserStep:
    @pytest.mark.parametrize(
        ("groups", "max_steps"),
        [([FOUR_PACKS], 6), ([FOUR_PACKS, [[60, 4], [12]]], 6)],
        ids=["4 full micro-batches", "a last group of 2 instead of 4"],
    )
    def test_accumulating_four_small_packs_trains_as_one_big_pack(
        self, tmp_path: Path, groups: list[list[list[int]]], max_steps: int
    ) -> None:
        small, big = small_and_big_packs(groups)
        _, rows_big = fit(tmp_path, Data(big), max_steps=max_steps)
        _, rows_small = fit(tmp_path, Data(small), max_steps=max_steps, accumulate_grad_batches=4)
        for name in ("train/loss", "grad_norm"):
            expected = [row[name] for row in rows_big.rows]
            actual = [row[name] for row in rows_small.rows]
            assert len(expected) == max_steps
            assert max(expected) > 0.1
            assert actual == pytest.approx(expected, rel=1e-6 if name == "train/loss" else 1e-5), name

    def test_the_wrong_divisor_would_be_seen(self, tmp_path: Path) -> None:
        small, big = small_and_big_packs([FOUR_PACKS])
        wrong = [replace(batch, step_targets=4 * batch.num_targets) for batch in small]  # a mean of means
        _, rows_big = fit(tmp_path, Data(big))
        _, rows_wrong = fit(tmp_path, Data(wrong), accumulate_grad_batches=4)
        expected, actual = ([row["grad_norm"] for row in rows.rows] for rows in (rows_big, rows_wrong))
        assert actual != pytest.approx(expected, rel=1e-3)

    def test_gradient_is_that_of_the_mean_over_all_targets(self, tmp_path: Path) -> None:
        small, big = small_and_big_packs([FOUR_PACKS])
        gradients: dict[str, torch.Tensor] = {}

        class Keep(Callback):
            def on_before_optimizer_step(self, trainer: Trainer, lit: LitHybridLM, *args: Any) -> None:  # type: ignore[override]
                gradients.update({name: p.grad.clone() for name, p in lit.named_parameters() if p.grad is not None})

        fit(tmp_path, Data(small), accumulate_grad_batches=4, max_steps=1, callbacks=[Keep()])
        torch.manual_seed(0)
        reference = LitHybridLM(CONFIG)
        reference.configure_model()
        assert reference.model is not None
        batch = big[0]
        loss = reference.model.loss(batch.input_ids, batch.packing, batch.labels) / batch.num_targets
        loss.backward()
        for name, parameter in reference.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)

    def test_accumulation_without_step_targets_is_an_error(self, tmp_path: Path) -> None:
        data = Data([batch_of(documents([9, 5])), batch_of(documents([7]))])
        with pytest.raises(ValueError, match=r"step_targets.*accumulate_grad_batches = 2"):
            fit(tmp_path, data, accumulate_grad_batches=2)

    def test_a_batch_without_targets_changes_nothing_but_does_not_fail(self, tmp_path: Path) -> None:
        _, recorder = fit(tmp_path, Data([batch_of(documents([1, 1]))]), max_steps=1)
        assert recorder.rows[0]["train/loss"] == 0.0


class TestOptimizer:
    @pytest.mark.parametrize("decay_embeddings", [False, True])
    def test_decays_matrices_only(self, tmp_path: Path, decay_embeddings: bool) -> None:
        lit = LitHybridLM(CONFIG, weight_decay=0.3, decay_embeddings=decay_embeddings)
        fit(tmp_path, Data([batch_of(documents([9, 5]))]), lit=lit, max_steps=1)
        names = {id(parameter): name for name, parameter in lit.named_parameters()}
        groups = {group["weight_decay"]: group["params"] for group in lit.trainer.optimizers[0].param_groups}
        decayed, kept = ({names[id(parameter)] for parameter in groups[decay]} for decay in (0.3, 0.0))
        assert decayed | kept == set(names.values())
        for name in kept:
            assert name.endswith(("A_log", ".D", "bias", "norm.weight", "norm_f.weight", "embedding.weight")), name
        assert any(name.endswith("in_proj.weight") for name in decayed)
        assert not any(name.endswith(("A_log", ".D", "bias")) for name in decayed)
        assert any("embedding" in name for name in decayed) == decay_embeddings

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("learning_rate", 0.0),
            ("min_learning_rate_ratio", 1.5),
            ("warmup_steps", -1),
            ("decay_steps", 0),
            ("weight_decay", -0.1),
            ("betas", (0.9, 1.0)),
            ("eps", 0.0),
        ],
    )
    def test_a_number_out_of_range_is_named(self, argument: str, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"{argument} must be .*got"):
            LitHybridLM(CONFIG, **{argument: value})


class TestGuards:
    def test_a_token_id_without_an_embedding_stops_before_the_transfer(self, tmp_path: Path) -> None:
        bad = batch_of([torch.tensor([1, 2, 50, 3])])
        with pytest.raises(ValueError, match=r"token id 50 at position 2 is outside the vocabulary of 50"):
            LitHybridLM(CONFIG).on_before_batch_transfer(bad, 0)
        with pytest.raises(ValueError, match="token id 50"):
            fit(tmp_path, Data([bad]))

    def test_a_vocabulary_larger_than_the_models_stops_before_the_model_is_built(self, tmp_path: Path) -> None:
        lit = LitHybridLM(CONFIG)
        with pytest.raises(ValueError, match=r"vocabulary has 51 tokens.*vocab_size is 50"):
            fit(tmp_path, Data([batch_of(documents([9]))], vocab_size=51), lit=lit)
        assert lit.model is None

    def test_using_it_before_configure_model_says_so(self) -> None:
        with pytest.raises(RuntimeError, match=r"configure_model\(\)"):
            LitHybridLM(CONFIG)(torch.zeros(3, dtype=torch.int64), Packing.from_lengths([3]))

    @pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
    def test_every_precision_takes_packed_batches(self, tmp_path: Path, precision: str) -> None:
        batches = [batch_of(documents([9, 5]))]
        _, recorder = fit(tmp_path, Data(batches, batches), max_steps=1, precision=precision)
        assert math.isfinite(recorder.rows[0]["train/loss"])


class TestLogs:
    def test_each_step_counts_real_tokens_padding_and_documents_of_all_micro_batches(self, tmp_path: Path) -> None:
        first = batch_of(documents([9, 5, 6]), num_padding=6, doc_ids=torch.tensor([3, 4, -1]), step_targets=17)
        second = batch_of(documents([7]), doc_ids=torch.tensor([5]), step_targets=17)
        _, recorder = fit(tmp_path, Data([first, second]), accumulate_grad_batches=2, max_steps=2)
        for row in recorder.rows:
            assert row["tokens_per_step"] == 21
            assert row["documents_per_step"] == 3
            assert row["padding_fraction"] == pytest.approx(6 / 27)
            assert row["tokens_per_second"] > 0
            assert row["grad_norm"] > 0

    def test_the_csv_has_every_step_and_the_validation(self, tmp_path: Path) -> None:
        batches = [batch_of(documents([9, 5]))]
        logger = CSVLogger(tmp_path, name="run")
        fit(tmp_path, Data(batches * 4, batches), max_steps=4, logger=logger, val_check_interval=2)
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows if row["train/loss"]] == [0, 1, 2, 3]
        assert sum(bool(row["val/loss"]) for row in rows) == 2
        assert all(row["tokens_per_second"] and row["grad_norm"] and row["lr"] for row in rows if row["train/loss"])

    def test_validation_time_is_not_in_the_throughput(self) -> None:
        meter = StepMeter()
        meter._window_start -= 1.0
        meter.pause()
        assert meter._paused_at is not None
        meter._paused_at -= 10.0
        meter._window_start -= 10.0
        meter.resume()
        assert meter.window_seconds() == pytest.approx(1.0, abs=0.2)

    def test_model_flop_utilisation_is_logged_where_the_chip_is_known(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
        data = Data([batch_of(documents([9, 5]))])
        _, without = fit(tmp_path, data, max_steps=1)
        assert "mfu" not in without.rows[0]
        monkeypatch.setattr("packmamba.training.step_log.peak_flops", lambda device, dtype: 1e12)
        _, with_peak = fit(tmp_path, data, max_steps=1)
        assert 0 < with_peak.rows[0]["mfu"] < 1

    @pytest.mark.parametrize(
        ("chip", "dtype", "peak"),
        [
            ("NVIDIA H200", torch.bfloat16, 989.5e12),
            ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4e12),
            ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ],
    )
    def test_peaks_are_dense_peaks(
        self, monkeypatch: pytest.MonkeyPatch, chip: str, dtype: torch.dtype, peak: float
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: chip)
        assert peak_flops(torch.device("cuda", 0), dtype) == peak

    def test_padding_sequences_are_no_documents(self) -> None:
        assert count_documents(batch_of(documents([9, 5]))) == 2
        assert count_documents(batch_of(documents([9, 5]), num_padding=5)) == 1
        assert count_documents(batch_of(documents([9, 5, 2]), num_padding=5, doc_ids=torch.tensor([1, -1, 2]))) == 2

    def test_work_on_padding_is_not_counted_as_useful(self) -> None:
        full = batch_of(documents([10, 10]))
        assert real_flops(CONFIG, full) == training_flops(CONFIG, [10, 10])
        assert real_flops(CONFIG, replace(full, num_padding=5)) == 0.75 * training_flops(CONFIG, [10, 10])

    def test_the_progress_bar_shows_the_loss_and_tokens_a_second_and_ends_at_max_steps(self, tmp_path: Path) -> None:
        bar = PackedProgressBar()
        seen: list[Any] = []

        class Look(Callback):
            def on_train_batch_end(self, *args: Any) -> None:
                seen.append((bar.train_progress_bar.total, dict(bar._shown or {})))

        data = Data([batch_of(documents([9, 5]))] * 10)
        fit(tmp_path, data, max_steps=3, enable_progress_bar=True, callbacks=[bar, Look()])
        assert [total for total, _ in seen] == [3, 3, 3]
        assert {"loss", "tok/s"} <= set(seen[-1][1])


class TestCheckpoints:
    def trained(self, folder: Path, **options: Any) -> tuple[LitHybridLM, Path]:
        lit, _ = fit(folder, Data([batch_of(documents([9, 5, 20]))] * 8), **options)
        path = folder / "model.ckpt"
        lit.trainer.save_checkpoint(path)
        return lit, path

    def test_loads_with_weights_only_and_rebuilds_the_configuration(self, tmp_path: Path) -> None:
        lit, path = self.trained(tmp_path)
        torch.load(path, weights_only=True)
        loaded = LitHybridLM.load_from_checkpoint(path, weights_only=True)
        assert loaded.config == CONFIG
        assert loaded.betas == lit.betas
        for (name, expected), actual in zip(lit.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(expected, actual), name

    def test_resuming_continues_the_same_trajectory(self, tmp_path: Path) -> None:
        data = Data([batch_of(documents([9, 5, 20], seed=i)) for i in range(8)])
        _, straight = fit(tmp_path, data, lit=LitHybridLM(CONFIG, decay_steps=6), max_steps=6)
        _, _ = fit(tmp_path, data, lit=(half := LitHybridLM(CONFIG, decay_steps=6)), max_steps=3)
        half.trainer.save_checkpoint(tmp_path / "half.ckpt")
        rest = Data(data.train[3:] + data.train[:3])  # a list knows nothing of resuming; the data module does
        recorder = Recorder()
        recorder.rows = [{}] * 3
        lit = LitHybridLM(CONFIG, decay_steps=6)
        make_trainer(tmp_path, max_steps=6, callbacks=[recorder]).fit(lit, rest, ckpt_path=tmp_path / "half.ckpt")
        for name in ("train/loss", "lr", "grad_norm"):
            assert [row[name] for row in recorder.rows[3:]] == [row[name] for row in straight.rows[3:]], name

    def test_another_configuration_is_refused_naming_each_field_with_both_values(self, tmp_path: Path) -> None:
        _, path = self.trained(tmp_path)
        other = replace(CONFIG, d_model=64, attention=AttentionConfig(num_heads=4))
        with pytest.raises(ValueError, match="another model configuration") as error:
            make_trainer(tmp_path).fit(LitHybridLM(other), Data([batch_of(documents([9]))]), ckpt_path=path)
        assert "d_model: 32 in the checkpoint, 64 in this run" in str(error.value)
        assert "attention.num_heads: 2 in the checkpoint, 4 in this run" in str(error.value)
        assert "vocab_size" not in str(error.value)

    def test_another_attention_backend_is_the_same_model(self) -> None:
        old = CONFIG.to_dict() | {"attention": {"num_heads": 2, "backend": "sdpa"}, "recompute": "block"}
        check_same_config(old, CONFIG)

    def test_last_ckpt_holds_the_last_step_whenever_validation_ran(self, tmp_path: Path) -> None:
        batches = [batch_of(documents([9, 5]))]
        fit(
            tmp_path,
            Data(batches * 9, batches),
            max_steps=7,
            val_check_interval=3,
            enable_checkpointing=True,
            callbacks=[LastCheckpoint()],
        )
        checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert checkpoints == ["last-1.ckpt", "last.ckpt"]
        assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7

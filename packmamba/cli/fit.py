"""`packmamba fit|validate|test|predict`: LightningCLI with packmamba's model, data, defaults and file names."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from packmamba.cli.going_on import GoingOn
from packmamba.cli.old_names import rename_arguments
from packmamba.config import ModelConfig
from packmamba.data import PackedDataModule
from packmamba.errors import MissingFileError, UsageError, UsageFileError, usage_errors_behind, usage_of
from packmamba.model import attention_costs
from packmamba.shipped_configs import config_names, given_configs, with_config_paths
from packmamba.training.callbacks import BestCheckpoint, LastCheckpoint, PackedProgressBar, PredictionWriter
from packmamba.training.lightning_compat import quiet_commands
from packmamba.training.lit import LitHybridLM
from packmamba.visible_pairs import AttentionCost

TRAINER_DEFAULTS = {
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
}


class SaveConfig(SaveConfigCallback):
    """Saves the run's whole configuration to `config.yaml` beside its log; a run without a logger has no folder."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if trainer.logger is None:
            return
        # The logger makes the folder; it warns where a file is there before it.
        _ = trainer.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]
        super().setup(trainer, pl_module, stage)


class PackmambaCLI(LightningCLI):
    """LightningCLI, with a name for the run and configurable `best.ckpt` and `last.ckpt`."""

    def __init__(self, arguments: list[str], given: Sequence[str] = ()) -> None:
        """arguments: the command and its options. given: the same as they were typed."""
        self._arguments = arguments
        self._going_on = GoingOn(given or arguments)
        with self._going_on.orderly_end(self):
            super().__init__(
                LitHybridLM,
                PackedDataModule,
                save_config_callback=SaveConfig,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                seed_everything_default=0,
                parser_kwargs={
                    "prog": "packmamba",
                    "exit_on_error": False,
                    **{command: {"exit_on_error": False} for command in self.subcommands()},
                },
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The command that runs, alone: making the options of all four takes four times as long."""
        command = self._arguments[0]
        return {command: LightningCLI.subcommands()[command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str, default="packmamba", help="Logs and checkpoints go to runs/NAME/version_N/."
        )
        self._going_on.add_arguments(parser)
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.link_arguments("model.config", "data.attention_costs", compute_fn=_attention_costs)

    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        if self.subcommand == "fit" and trainer.max_steps == -1 and trainer.max_epochs is None:
            raise UsageError("how long to train is not set: give trainer.max_steps or trainer.max_epochs")
        with usage_of("--trainer.default_root_dir"):
            if trainer.logger in (None, True):
                _log_root(trainer).mkdir(parents=True, exist_ok=True)
        with usage_of("--data.cache_dir"):
            Path(self._get(self.config, "data").cache_dir).expanduser().mkdir(parents=True, exist_ok=True)

        self._going_on.check(self.config[self._arguments[0]], _log_root(trainer))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(self._arguments)

    def _parse_ckpt_path(self) -> None:
        """LightningCLI replaces the given configuration by the checkpoint's without a word; here the given one stands,
        and LitHybridLM raises an error where the two models differ."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if not path or path in ("best", "last", "hpc"):
            return
        if not Path(path).exists():
            raise MissingFileError(f"ckpt_path {path!r} does not exist")
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise UsageFileError(f"ckpt_path {path!r} is not a checkpoint, or not a whole one: it is no zip archive")

    def instantiate_classes(self) -> None:
        with usage_errors_behind():
            super().instantiate_classes()
        self._going_on.set_checkpoint(self.config_init[self._arguments[0]])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = list(given.get("callbacks") or [])
        if given.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(PackedProgressBar())
        if self.subcommand == "predict" and not any(isinstance(c, PredictionWriter) for c in callbacks):
            callbacks.append(PredictionWriter())
        if given.get("enable_checkpointing") is False:
            # Lightning refuses checkpoint callbacks where checkpoints were switched off.
            self._parser(self.subcommand).callback_keys.clear()
        if given.get("logger") in (None, True):
            name = self._get(self.config_init, "name")
            kwargs["logger"] = CSVLogger(_log_root(given), name=name, version=self._going_on.claim_version())
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except UsageError:
            raise
        except (ValueError, MisconfigurationException) as error:  # options that Lightning does not accept
            raise UsageError(f"trainer: {error}") from error

    def after_fit(self) -> None:
        folder = self.trainer.log_dir  # on every rank: reading it is a broadcast
        if not self.trainer.is_global_zero:
            return
        for callback in self.trainer.checkpoint_callbacks:
            path = getattr(callback, "best_model_path", "")
            if path:
                print(f"checkpoint: {Path(path)}")
        if self.trainer.logger is not None:
            print(f"log: {folder}")


def _log_root(trainer: Any) -> Path:
    return Path(trainer.get("default_root_dir") or "runs")


def _attention_costs(config: Any) -> list[AttentionCost]:
    return list(attention_costs(ModelConfig.from_dict(config.as_dict()) if isinstance(config, Namespace) else config))


def main(argv: list[str]) -> int:
    """argv: the command (fit, validate, test or predict) and its options. Raises as `run` does."""
    run(argv)
    return 0


def run(argv: list[str]) -> PackmambaCLI:
    """Runs a command and returns what it ran with: trainer, model and data module.

    argv: the command (fit, validate, test or predict) and its options.

    Raises UsageError for options and configuration files that cannot be understood, or that Lightning refuses.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    quiet_commands(saves=argv[0] == "fit")
    given = with_config_paths(argv)
    arguments = rename_arguments(given)
    known = ("-h", "--help", "-c", "--config", "--model", "--print_config")
    if not any(argument.startswith(known) for argument in arguments):
        raise UsageError(
            f"no model is given: name a configuration, --config FILE, or one of {', '.join(config_names())}"
        )
    try:
        return PackmambaCLI(arguments, argv)
    except ArgumentError as error:
        raise UsageError(explain(str(error), given)) from error
    except MisconfigurationException as error:
        raise UsageError(" ".join(str(error).split())) from error
    except ValueError as error:
        # The option that Lightning checks last, when it knows how many batches there are.
        if isinstance(error, UsageError) or "val_check_interval" not in str(error):
            raise
        raise UsageError(f"trainer: {error}") from error


def explain(message: str, arguments: Sequence[str]) -> str:
    """A parser's message about `arguments`, with a hint where YAML is known to surprise."""
    message = " ".join(message.split())
    if message.startswith("Call to compute_fn of link"):  # with the whole configuration before the reason
        message = message.partition(" failed: ")[2]
    if "layer_pattern" in message and "Expected a <class 'str'>" in message:
        return f'{message}; a pattern of digits is a number in YAML: quote it, layer_pattern: "1111"'
    if "alias" in message:
        return f'{message}; a value that begins with * is an alias in YAML: quote it, layer_pattern: "*1*1"'
    if "parsing config" in message:  # says the line, but not the file
        return f"{message}; in {', '.join(given_configs(arguments))}"
    return message

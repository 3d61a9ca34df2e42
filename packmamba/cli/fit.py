"""`packmamba fit|validate|test|predict`: LightningCLI with packmamba's model, data, defaults and file names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from docstring_parser import DocstringStyle
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from packmamba.cli.checks import SPLIT_OF, check_run, require_backend
from packmamba.cli.going_on import GoingOn
from packmamba.cli.help import arrange, wants_help
from packmamba.cli.old_names import rename_arguments
from packmamba.cli.parser_errors import check_config_files, meant_config
from packmamba.cli.plain_errors import plain_errors
from packmamba.cli.run_output import RunOutput, add_arguments, print_metrics
from packmamba.cli.trainer_options import check_least, check_seed, check_trainer
from packmamba.cli.validation_sets import print_sets
from packmamba.config import ModelConfig
from packmamba.data import PackedDataModule
from packmamba.errors import UsageError, require_writable, usage_errors_behind, usage_of
from packmamba.model import attention_costs
from packmamba.shipped_configs import config_names, with_config_paths
from packmamba.training.averaging import EMA  # noqa: F401  (a callback that options name)
from packmamba.training.callbacks import BestCheckpoint, LastCheckpoint
from packmamba.training.evaluated_checkpoint import require_checkpoint
from packmamba.training.lightning_compat import quiet_commands
from packmamba.training.lit import LitHybridLM
from packmamba.training.validation import FinalValidation
from packmamba.visible_pairs import AttentionCost

OF_ONE_START = ("resume", "untrained", "allow_other_data")
"""Options that say how a command was started, not what a run is: they are left out of its saved configuration, which
goes with every command."""

TRAINER_DEFAULTS = {
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
}


class SaveConfig(SaveConfigCallback):
    """Saves the run's whole configuration to `config.yaml` beside its log; a run without a logger has no folder."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if trainer.logger is None:
            return
        self.config = self.config.clone()
        for option in OF_ONE_START:
            self.config.pop(option, None)
        # The logger makes the folder; it warns where a file is there before it.
        _ = trainer.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]
        super().setup(trainer, pl_module, stage)


class PackmambaCLI(LightningCLI):
    """LightningCLI, with a name for the run and configurable `best.ckpt` and `last.ckpt`."""

    def __init__(
        self,
        arguments: list[str],
        given: Sequence[str] = (),
        before_run: Callable[[PackmambaCLI], None] = lambda cli: None,
        output: RunOutput = RunOutput(),  # noqa: B008  (frozen)
    ) -> None:
        """arguments: the command and its options. given: the same as they were typed. before_run: called with model,
        data and trainer made, before data is read."""
        self._arguments = arguments
        self._output = output
        self._going_on = GoingOn(given or arguments)
        self._before_run = before_run
        self._options: LightningArgumentParser | None = None
        no_exit = {"exit_on_error": False, "allow_abbrev": False}
        with plain_errors(arguments, lambda: self._options), self._going_on.orderly_end(self):
            super().__init__(
                LitHybridLM,
                PackedDataModule,
                save_config_callback=SaveConfig,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                seed_everything_default=0,
                parser_kwargs={
                    "prog": "packmamba",
                    **no_exit,
                    **{command: dict(no_exit) for command in self.subcommands()},
                },
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The command that runs, alone: making the options of all four takes four times as long."""
        command = self._arguments[0]
        return {command: LightningCLI.subcommands()[command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self._options = parser
        if self._arguments[0] in SPLIT_OF:
            parser.add_argument(
                "--untrained", action="store_true", help="Evaluate random weights, where no ckpt_path is given."
            )
            parser.add_argument(
                "--allow_other_data",
                action="store_true",
                help="Evaluate a checkpoint with another tokenizer than it learned, or on documents that it may have "
                "been trained on.",
            )
        parser.add_argument(
            "--name", type=str, default="packmamba", help="Logs and checkpoints go to runs/NAME/version_N/."
        )
        self._going_on.add_arguments(parser)
        add_arguments(parser)
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.link_arguments("model.config", "data.attention_costs", compute_fn=_attention_costs)

    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        if self.subcommand == "fit" and trainer.max_steps == -1 and trainer.max_epochs is None:
            raise UsageError("how long to train is not set: give trainer.max_steps or trainer.max_epochs")
        with usage_of("trainer.default_root_dir"):
            if trainer.logger in (None, True) and not self._output.check:
                require_writable(_log_root(trainer))
        with usage_of("data.cache_dir"):
            require_writable(Path(self._get(self.config, "data").cache_dir).expanduser())

        self._going_on.check(self.config[self._arguments[0]], _log_root(trainer))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if wants_help(self._arguments):
            command = self._arguments[0]
            arrange(self._parser(command), command, everything="all" in self._arguments)
            self._arguments = [command, "--help"]
        self.config = parser.parse_args(self._arguments)
        command = self._arguments[0]
        values = self.config[command]
        check_seed(values.seed_everything)
        check_trainer(values.trainer)
        check_least("last_checkpoint.every_n_train_steps", values.last_checkpoint.every_n_train_steps, 0)
        if command in SPLIT_OF:
            folders = (_log_root(values.trainer) / values.name).glob("*/checkpoints")
            require_checkpoint(command, values.get("ckpt_path"), list(folders), untrained=values.untrained)

    def _parse_ckpt_path(self) -> None:
        """LightningCLI replaces the given configuration by the checkpoint's without a word; here the given one stands,
        and `check_run` raises an error where the two models differ."""

    def instantiate_classes(self) -> None:
        with usage_errors_behind():
            super().instantiate_classes()
        self._going_on.set_checkpoint(self.config_init[self._arguments[0]])

    def after_instantiate_classes(self) -> None:
        if self.config[self._arguments[0]].get("untrained"):
            rank_zero_info("weights: random, as --untrained asks; nothing has been learned")
        require_backend(self.model, self.trainer.strategy.root_device, str(self.trainer.precision))
        self._before_run(self)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        assert self.subcommand is not None
        values = self.config_init[self.subcommand]
        given = values["trainer"]
        callbacks = self._output.callbacks(self.subcommand, values)
        self.datamodule.allow_other_data = bool(values.get("allow_other_data"))
        monitored = [*callbacks, *(values[key] for key in self._parser(self.subcommand).callback_keys)]
        check_run(
            self.subcommand, self._arguments, self.config[self.subcommand], self.model, self.datamodule, monitored
        )
        if self.subcommand == "fit":
            callbacks.append(FinalValidation())
        if given.get("enable_checkpointing") is False:
            # Lightning refuses checkpoint callbacks where checkpoints were switched off.
            self._parser(self.subcommand).callback_keys.clear()
        has_folder = given.get("logger") in (None, True) and not self._output.check
        version = self._going_on.claim_version() if has_folder else None
        kwargs |= self._output.trainer_options(values, _log_root(given), version)
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except UsageError:
            raise
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:  # what Lightning refuses
            raise UsageError(f"trainer: {error}") from error

    def before_validate(self) -> None:
        if self.datamodule.val_names:  # Lightning's table would have a column for each, all of them alike
            self.config_init["validate"]["verbose"] = False

    def after_validate(self) -> None:
        if self.model.losses_of_sets and self.model.document_losses is not None and self.trainer.is_global_zero:
            print_sets(self.model.losses_of_sets, self.model.document_losses)

    def fit(self, **kwargs: Any) -> None:
        if not self._output.check:
            self.trainer.fit(**kwargs)
            return
        from packmamba.cli.check import check

        check(self.trainer, self.model, self.datamodule)

    def validate(self, verbose: bool = True, **kwargs: Any) -> None:
        results = self.trainer.validate(verbose=False, **kwargs)
        if verbose:
            print_metrics(results)

    def test(self, verbose: bool = True, **kwargs: Any) -> None:
        results = self.trainer.test(verbose=False, **kwargs)
        if verbose:
            print_metrics(results)

    def after_fit(self) -> None:
        if self._output.check:
            return
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
    try:
        config = ModelConfig.from_dict(config.as_dict()) if isinstance(config, Namespace) else config
    except UsageError as error:
        raise UsageError(f"model.config: {error}" if " has no field " in str(error) else str(error)) from error
    return list(attention_costs(config))


def main(argv: list[str]) -> int:
    """argv: the command (fit, validate, test or predict) and its options. Raises as `run` does."""
    run(argv)
    return 0


def run(argv: list[str], before_run: Callable[[PackmambaCLI], None] = lambda cli: None) -> PackmambaCLI:
    """Runs a command and returns what it ran with: trainer, model and data module.

    argv: the command (fit, validate, test or predict) and its options. before_run: called before any data is read.

    Raises UsageError for options and configuration files that cannot be understood, or that Lightning refuses.
    """
    set_parsing_settings(
        docstring_parse_style=DocstringStyle.GOOGLE,
        # They are what help texts are made of, and reading them takes a second.
        docstring_parse_attribute_docstrings=any("help" in word or word == "-h" for word in argv),
    )
    quiet_commands(saves=argv[0] == "fit")
    output, argv = RunOutput.take(argv)
    given = with_config_paths(argv)
    with plain_errors(given, lambda: None):
        check_config_files(given)
        arguments = rename_arguments(given)
    known = ("-h", "--help", "-c", "--config", "--model", "--print_config")
    if not any(argument.startswith(known) for argument in arguments):
        raise UsageError(
            f"no model is given: name a configuration, --config FILE, or one of {', '.join(config_names())}"
            f"{meant_config(arguments[1:])}"
        )
    return PackmambaCLI(arguments, argv, before_run, output)

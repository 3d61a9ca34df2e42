"""`packmamba pack`: how long the documents of a data set are, and what every packing strategy makes of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from packmamba.cli.parser_errors import PlainParser, refuse_misspelt
from packmamba.data.lengths import DISTRIBUTIONS, SAMPLERS, read_lengths, sample_lengths
from packmamba.data.packers import STRATEGIES, Packs, check_options, pack
from packmamba.data.plan import Balance, PlanOptions, accumulation_for
from packmamba.data.statistics import PackingReport, describe_lengths, report_packs
from packmamba.errors import (
    MissingFileError,
    UsageError,
    UsageFileError,
    did_you_mean,
    positive,
    usage_errors_behind,
    usage_of,
)
from packmamba.plots import files_of, plot_packing, require_picture
from packmamba.shipped_configs import with_config_paths
from packmamba.visible_pairs import AttentionCost

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from packmamba.data import PackedDataModule

MOST_EMBEDDED = 200_000
"""Documents up to which `threshold_filtering`, which makes embeddings first, is reported without being asked for."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is packed."""

    name: str
    title: str
    """The same for a picture."""
    lengths: np.ndarray
    capacity: int
    plan: PlanOptions
    strategies: Sequence[str]
    pack: Callable[[str], Packs]


def main(argv: Sequence[str]) -> int:
    """argv: the command's options. Raises UsageError for options that cannot be understood, and files that cannot be
    read or written."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.plot:
        require_picture(options.plot)  # before anything takes long
    for file in filter(None, (options.json, options.plot)):
        if not file.absolute().parent.is_dir():
            raise MissingFileError(f"there is no folder {str(file.parent)!r} to write {file.name!r} to")
        if file.is_dir():
            raise UsageFileError(f"{str(file)!r} is a folder; name a file to write")
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"--seed must be 0 or more, got {options.seed}")
    refuse_misspelt(rest, parser)
    if options.lengths or options.distribution:
        if rest:
            raise UsageError(
                f"--lengths and --distribution need no text: leave out {' '.join(rest)} "
                "(`packmamba pack --help` lists what goes with them)"
            )
        subject = _from_lengths(options)
    else:
        subject = _from_text(options, rest)

    console = Console()
    _print_lengths(console, subject)
    reports = []
    with console.status("packing") as status:
        for strategy in subject.strategies:
            status.update(f"packing: {strategy}")
            reports.append(report_packs(lambda strategy=strategy: subject.pack(strategy), subject.plan))
    _print_reports(console, subject, reports)
    if options.json:
        with usage_of("--json"):
            options.json.write_text(json.dumps(_as_json(subject, reports), indent=2) + "\n")
        console.print(f"written: {options.json}", highlight=False)
    if options.plot:
        with usage_of("--plot"):
            plot_packing(subject.lengths, subject.capacity, reports, options.plot, title=subject.title)
        console.print(f"drawn: {', '.join(map(str, files_of(options.plot)))}", highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = PlainParser(
        prog="packmamba pack",
        description="How long the documents of a data set are, and what every packing strategy\nmakes of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""--config FILE and --data.OPTION say which documents, as for `packmamba fit`,
whose --help lists them; without any, Python's own documentation is packed.

examples:
  packmamba pack --config quickstart --world_size 8 --accumulation 4
  packmamba pack --data.source Files --data.source.paths '["texts/*.jsonl"]'
  packmamba pack --distribution lognormal --capacity 65536 --plot packs.png
""",
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--lengths", type=Path, metavar="FILE", help="pack these lengths: an array (.npy) or list (.json)"
    )
    given.add_argument("--distribution", metavar="NAME", help=f"pack random lengths: {', '.join(SAMPLERS)}")
    given.add_argument(
        "--split",
        choices=["train", "val", "test", "predict"],
        metavar="SPLIT",
        default="train",
        help="which documents of the configuration: train, val, test or predict (default: %(default)s)",
    )
    parser.add_argument("--documents", type=positive, help="how many random lengths (default: 100000)")
    parser.add_argument(
        "--strategies",
        nargs="+",
        metavar="NAME",
        help=f"default: all that can be used (threshold_filtering up to {MOST_EMBEDDED:,} documents), of "
        + ", ".join(STRATEGIES),
    )
    parser.add_argument("--capacity", type=positive, help="tokens a pack can hold (default: data.capacity, or 4096)")
    parser.add_argument(
        "--buffer", type=positive, help="documents `local_greedy` looks at (default: data.buffer, or 1024)"
    )
    parser.add_argument(
        "--seed", type=int, help="shuffle documents and packs (default: as data.seed and data.shuffle say)"
    )
    parser.add_argument(
        "--world_size", type=positive, default=8, help="ranks that share the packs (default: %(default)s)"
    )
    parser.add_argument(
        "--accumulation",
        type=positive,
        help="micro-batches of an optimiser step (default: as many as data.tokens_per_step makes, or 1)",
    )
    parser.add_argument("--balance", choices=get_args(Balance), help="default: data.balance, or tokens")
    parser.add_argument(
        "--attention_cost",
        type=float,
        help="FLOPs of a (query, key) pair ÷ FLOPs of a token elsewhere (default: the configuration's model's, or 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw lengths and padding, e.g. packs.png")
    return parser


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _from_lengths(options: argparse.Namespace) -> _Subject:
    if options.lengths:
        if options.documents is not None:
            raise UsageError(f"--documents {options.documents} goes with --distribution, not with --lengths")
        lengths, name = read_lengths(options.lengths), str(options.lengths)
    else:
        if options.distribution not in SAMPLERS:
            hint = did_you_mean(options.distribution, SAMPLERS)
            raise UsageError(f"unknown distribution {options.distribution!r}; available: {', '.join(SAMPLERS)}{hint}")
        lengths = sample_lengths(options.distribution, num_documents=_or(options.documents, 100_000))
        name = DISTRIBUTIONS[options.distribution]
    capacity, buffer = _or(options.capacity, 4096), _or(options.buffer, 1024)
    strategies = _or(options.strategies, [name for name in STRATEGIES if name != "threshold_filtering"])
    for strategy in strategies:
        check_options(strategy, capacity, buffer)
    if "threshold_filtering" in strategies:
        raise UsageError(
            "strategy 'threshold_filtering' compares documents, and there are only lengths; name a --config"
        )
    return _Subject(
        name=name,
        title=name,
        lengths=lengths,
        capacity=capacity,
        plan=_plan(options, options.seed, _or(options.balance, "tokens"), (), _or(options.accumulation, 1)),
        strategies=strategies,
        pack=lambda strategy: pack(lengths, capacity, strategy, seed=options.seed, buffer=buffer),
    )


def _plan(
    options: argparse.Namespace,
    seed: int | None,
    balance: Balance,
    costs: tuple[AttentionCost, ...],
    accumulation: int,
) -> PlanOptions:
    """costs: the model's, which --attention_cost replaces; the window stays, where there is only one."""
    if options.attention_cost is not None:
        window = costs[0].window if len(costs) == 1 else None
        costs = (AttentionCost(cost=options.attention_cost, window=window),)
    return PlanOptions(
        seed=seed,
        world_size=options.world_size,
        accumulation=accumulation,
        balance=balance,
        attention_costs=costs,
    )


def _from_text(options: argparse.Namespace, rest: Sequence[str]) -> _Subject:
    if options.documents is not None:
        raise UsageError("--documents goes with --distribution; for fewer documents there is --data.max_documents")
    parser, values = _parse_configuration(rest)
    costs = _attention_costs(values)
    with usage_errors_behind():
        module: PackedDataModule = parser.instantiate(values).data
    packs, order, long_documents = module.options.packs, module.options.order, module.options.handling.long_documents
    capacity, buffer = _or(options.capacity, packs.capacity), _or(options.buffer, packs.buffer)
    seed = _or(options.seed, order.shuffle_seed if options.split == "train" else None)
    whole = long_documents == "error"
    strategies = _or(options.strategies, [name for name in STRATEGIES if not (whole and name == "wrapped")])
    for strategy in strategies:
        check_options(strategy, capacity, buffer, long_documents)
    tokens, accumulation = module.options.handling.tokens_per_step, options.accumulation
    if accumulation is None:
        accumulation = 1 if tokens is None else accumulation_for(tokens, capacity, options.world_size)
    plan = _plan(options, seed, _or(options.balance, order.balance), costs, accumulation)
    module.setup({"train": "fit", "val": "validate"}.get(options.split, options.split))
    documents = module.documents(options.split)
    if options.strategies is None and documents.rows.size > MOST_EMBEDDED:
        strategies.remove("threshold_filtering")
    embeddings = module.embeddings_of(options.split) if "threshold_filtering" in strategies else None

    source = module.splits.source(options.split)

    def pack_by(strategy: str) -> Packs:
        return pack(
            documents.lengths,
            capacity,
            strategy,
            seed=seed,
            buffer=buffer,
            long_documents=long_documents,
            embeddings=embeddings,
            filtering=packs.threshold_filtering,
        )

    return _Subject(
        name=f"{source}, {options.split}",
        title=f"{source.title} ({options.split} documents)",
        lengths=documents.lengths,
        capacity=capacity,
        plan=plan,
        strategies=strategies,
        pack=pack_by,
    )


def _parse_configuration(arguments: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """As `data.configuration.parse_configuration`, with configurations by name, and raises UsageError for options
    that cannot be understood."""
    from packmamba.cli.deferred import import_lightning
    from packmamba.cli.parser_errors import check_config_files
    from packmamba.cli.plain_errors import plain_errors

    import_lightning()
    from packmamba.data.configuration import configuration_parser

    arguments = with_config_paths(arguments)
    check_config_files(arguments)
    parser = configuration_parser()
    with plain_errors(arguments, lambda: parser):
        return parser, parser.parse_args(list(arguments))


def _attention_costs(values: Namespace) -> tuple[AttentionCost, ...]:
    """The attention costs of the configuration's model, or of its data where it has no model."""
    from packmamba.config import ModelConfig
    from packmamba.model import attention_costs

    config = values.model.get("config") if isinstance(values.model, dict) else None
    if config is None:
        return tuple(AttentionCost(**vars(cost)) for cost in values.data.attention_costs)
    return attention_costs(ModelConfig.from_dict(config))


def _print_lengths(console: Console, subject: _Subject) -> None:
    described = describe_lengths(subject.lengths)
    long = int((subject.lengths > subject.capacity).sum())
    console.print(f"[bold]{escape(subject.name)}[/]", highlight=False, soft_wrap=True)
    console.print(
        f"{described['documents']:,} documents, {described['tokens']:,} tokens; packs of {subject.capacity:,} tokens "
        f"({long:,} documents are longer)",
        highlight=False,
        soft_wrap=True,
    )
    cells = {
        "mean": f"{described['mean']:,.1f}",
        "shortest": f"{described['shortest']:,}",
        **{"median" if p == "50" else f"{p} %": f"{value:,}" for p, value in described["percentiles"].items()},
        "longest": f"{described['longest']:,}",
    }
    _print_table(console, ["", *cells], [["length", *cells.values()]])


def _print_reports(console: Console, subject: _Subject, reports: Sequence[PackingReport]) -> None:
    header = ["strategy", "packs", "full", "padding", "split", "uneven\nmicro-step", "\nstep", "time"]
    rows = [
        [
            report.strategy,
            f"{report.packs:,}",
            f"{report.efficiency:.2%}",
            f"{report.padding:.2%}",
            f"{report.documents_split:,}",
            f"{report.micro_step_imbalance:.1%}",
            f"{report.step_imbalance:.1%}",
            f"{report.seconds:.2f} s" if report.seconds >= 0.1 else f"{1e3 * report.seconds:.1f} ms",
        ]
        for report in reports
    ]
    _print_table(console, header, rows)
    plan = subject.plan
    cost = "FLOPs" if plan.attention_costs else "tokens"
    console.print(
        "\n[dim]full: tokens ÷ capacity of all packs. padding: filler where packs are filled up (padded: where rows "
        "are, to the longest of their batch). split: documents that are cut. uneven: by how much at most a rank's "
        f"{cost} exceed the mean of {plan.world_size} ranks in a micro-step, and in an optimiser step of "
        f"{plan.accumulation}; balanced by {plan.balance}.[/]",
        highlight=False,
    )


def _print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def _as_json(subject: _Subject, reports: Sequence[PackingReport]) -> dict[str, Any]:
    return {
        "data": subject.name,
        "lengths": describe_lengths(subject.lengths),
        "capacity": subject.capacity,
        "longer_than_capacity": int((subject.lengths > subject.capacity).sum()),
        "plan": asdict(subject.plan),
        "strategies": [asdict(report) for report in reports],
    }

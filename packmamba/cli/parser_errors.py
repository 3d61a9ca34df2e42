"""What parsers refuse, as one plain line that names the option, its value and what is accepted.

jsonargparse's messages are taken apart by their text, which names Python types and its own internals; one of a form
that is not known here passes as it is. Checked with jsonargparse 4.53.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from packmamba.errors import UsageError, did_you_mean
from packmamba.shipped_configs import given_configs

MOST_NAMES = 16
"""Names of classes up to which a message lists them all."""
LONGEST_VALUE = 60
"""Characters of a value up to which a message shows all of it."""

_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'NoneType'>": "null",
    "<class 'list'>": "a list",
    "<class 'dict'>": "a mapping",
    "<class 'collections.abc.Iterable'>": "a list",
    "dot import path string": "the name of a class",
}
"""Types, as a parser names them, in plain words."""


class PlainParser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError instead of printing its usage and leaving; no abbreviated options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(explain_argparse(message, self))


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of a parser, without their dashes."""
    strings = (string for action in parser._actions for string in action.option_strings)
    return sorted({string[2:] for string in strings if string.startswith("--")})


def explain_argparse(message: str, parser: argparse.ArgumentParser) -> str:
    """argparse's message, in plain words."""
    message = " ".join(message.split())
    if unknown := re.fullmatch(r"unrecognized arguments: (.*)", message):
        return _unknown_arguments(unknown[1].split(), parser)
    found = re.fullmatch(r"argument (?P<option>\S+): (?P<reason>.*)", message)
    if not found:
        return message
    option, reason = found["option"].split("/")[-1], found["reason"]
    if choice := re.fullmatch(r"invalid choice: (?P<value>.*) \(choose from (?P<choices>.*)\)", reason):
        value, choices = choice["value"].strip("'"), [name.strip(" '") for name in choice["choices"].split(",")]
        return f"{option} must be {_one_of(choices)}, got {value!r}{did_you_mean(value, choices)}"
    if kind := re.fullmatch(r"invalid (?P<kind>\w+) value: (?P<value>.*)", reason):
        accepted = _KINDS.get(f"<class '{kind['kind']}'>", kind["kind"])
        return f"{option} must be {accepted}, got {kind['value']}"
    if other := re.fullmatch(r"not allowed with argument (\S+)", reason):
        return f"{option} does not go with {other[1]}; leave one out"
    if reason.startswith("expected"):
        return f"{option} needs a value: {reason}"
    return f"{option} {reason}"


def explain(message: str, parser: argparse.ArgumentParser | None, arguments: Sequence[str]) -> str:
    """jsonargparse's message about `arguments`, in plain words, with a hint where YAML is known to surprise.

    parser: the one that was asked, whose options are suggested; None where it is not known.
    """
    message = " ".join(message.split())
    if message.startswith("Call to compute_fn of link"):  # with the whole configuration before the reason
        message = message.partition(" failed: ")[2]
    for pattern, tell in _FORMS:
        if found := re.fullmatch(pattern, message):
            told = tell(found, parser, arguments)
            if told is not None:
                return told
    return explain_argparse(message, parser) if parser is not None else message


def check_config_files(arguments: Sequence[str]) -> None:
    """Raises UsageError for a configuration that is no YAML, with its file and line; or that is no mapping."""
    from jsonargparse import get_loader
    from yaml import MarkedYAMLError, YAMLError

    for value in given_configs(arguments):
        if not os.path.isfile(value):  # which is false for content too, that Path takes for a name too long
            continue
        text = Path(value).read_text(encoding="utf-8")
        try:
            content = get_loader("yaml")(text)
        except YAMLError as error:
            mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
            where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
            problem = getattr(error, "problem", None) or str(error)
            raise UsageError(f"{value}{where}: no YAML: {' '.join(problem.split())}{_yaml_hint(text, mark)}") from error
        if not isinstance(content, dict):
            found = "it is empty" if content is None else f"it holds {_shortened(content)}"
            raise UsageError(f"{value} is no configuration: {found}, where names such as model: and data: are expected")


def _yaml_hint(text: str, mark: Any) -> str:
    line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
    if re.search(r":\s*\*", line):
        return f'; a value that begins with * is an alias in YAML: quote it, layer_pattern: "*1*1"; got {line.strip()}'
    return "; indent with spaces, not tabs" if "\t" in line else ""


def qualified(message: str, options: Iterable[str]) -> str:
    """A message that begins with the last part of an option's name, with the whole name: `capacity must be …` becomes
    `data.capacity must be …` where no other option ends like that."""
    found = re.match(r"[A-Za-z_][\w.]*\w", message)
    if not found:
        return message
    name, options = found[0], set(options)
    owners = [option for option in options if option.endswith(f".{name}") and not option.startswith("trainer.")]
    return owners[0] + message[len(name) :] if name not in options and len(owners) == 1 else message


# The forms of jsonargparse's messages, by their text.


def _wrong_value(found: re.Match[str], parser: argparse.ArgumentParser | None, arguments: Sequence[str]) -> str | None:
    key, problem = found["key"], found["problem"]
    if init := re.fullmatch(r"(?:.* )?Problem with given class_path '(?P<path>[^']*)': (?P<problem>.*)", problem):
        return _wrong_class(key, init["path"], init["problem"], parser, arguments)
    if file := re.search(r"Unable to load config ['\"](?P<value>.*?)['\"]", problem):
        return f"{key} takes options such as {_example(key, parser)}, or a file of them, got {file['value']!r}"
    value = re.search(r"(?:Got|Given) value: ?(?P<value>.*)$", problem)
    if "dot import path string" in problem or "has no attribute" in problem:
        given = value["value"] if value else (re.findall(r"(?:string: |class_path ')([^' ]+)", problem) or [""])[-1]
        return _unknown_class(key, given, parser)
    if not value:
        return None
    accepted, choices = _accepted(problem[: value.start()])
    if not accepted:
        return None
    given = value["value"]
    hint = did_you_mean(given, choices)
    if key.endswith("layer_pattern") and given.isdigit():
        hint = '; a pattern of digits is a number in YAML: quote it, layer_pattern: "1111"'
    elif accepted == ["a whole number"] and re.fullmatch(r"\d+\.0|\d+e\d+", given):
        hint = f"; write {int(float(given))}"
    return f"{key} must be {_one_of(accepted)}, got {'null' if given == 'None' else _shortened(given)}{hint}"


def _wrong_class(
    key: str, path: str, problem: str, parser: argparse.ArgumentParser | None, arguments: Sequence[str]
) -> str | None:
    """A class that was found, with options that it does not take."""
    name = path.rpartition(".")[2]
    if unknown := re.fullmatch(
        r"(?:Group '.*' does not accept option|Option) '(?P<option>.*?)'(?: is not accepted)?", problem
    ):
        fields = _fields_of(path)
        listed = f"; it has {', '.join(fields)}" if fields else ""
        option = unknown["option"]
        return f"{key}.{option}: {name} has no option {option!r}{did_you_mean(option, fields) or listed}"
    if missing := re.fullmatch(r"the following arguments are required: (?P<names>.*)", problem):
        names = [f"--{key}.{part.strip()}" for part in missing["names"].split(",")]
        return f"{key} {name} needs {' and '.join(names)}"
    if inner := re.fullmatch(r'Parser key "(?P<key>[^"]*)": (?P<problem>.*)', problem):
        return explain(f'Parser key "{key}.{inner["key"]}": {inner["problem"]}', parser, arguments)
    if "has no attribute" in problem or "No module named" in problem or "not a subclass" in problem:
        return _unknown_class(key, path, parser)
    return f"{key} {name}: {problem}"


def _unknown_class(key: str, given: str, parser: argparse.ArgumentParser | None) -> str:
    names = _class_names(key, parser)
    hint = did_you_mean(given.rpartition(".")[2], names)
    available = f"; available: {', '.join(names)}" if 0 < len(names) <= MOST_NAMES else ""
    return f"{key}: there is no class {given!r} for it{available}, or the import path of your own{hint}"


def _unknown_arguments(tokens: Sequence[str], parser: argparse.ArgumentParser) -> str:
    given = next((token for token in tokens if token.startswith("-")), None)
    if given is None:
        return f"unexpected {tokens[0]!r}: options begin with --{_is_config(tokens[0])}"
    name = given.partition("=")[0].lstrip("-")
    return f"unknown option --{name}{suggest(name, options_of(parser), '--') or _elsewhere(name, parser)}"


def refuse_misspelt(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raises UsageError for an argument that is almost an option of the parser, among those that it leaves to another
    one."""
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--")
        if argument.startswith("--") and "." not in name and name not in ("name", "model", "data", "trainer"):
            hint = suggest(name, options_of(parser), "--")
            if hint:
                raise UsageError(f"unknown option --{name}{hint}")


def _is_config(word: str) -> str:
    from packmamba.shipped_configs import config_names

    return f"; did you mean --config {word}?" if word.endswith((".yaml", ".yml")) or word in config_names() else ""


def meant_config(arguments: Sequence[str]) -> str:
    """`; did you mean --config …?` for arguments of which the first is a configuration without the option, or with
    another that is close."""
    if not arguments:
        return ""
    if not arguments[0].startswith("-"):
        return _is_config(arguments[0])
    close = difflib.get_close_matches(arguments[0].partition("=")[0], ["--config"], n=1)
    return f"; did you mean --config, not {arguments[0]}?" if close else ""


def _elsewhere(name: str, parser: argparse.ArgumentParser) -> str:
    """Where an option is, if another command has it; else how to see this command's."""
    from packmamba.cli import COMMANDS

    prog = parser.prog
    owners = [command for command, names in _OWN_OPTIONS.items() if name in names and not prog.endswith(command)]
    if owners:
        return f"; it is an option of `packmamba {owners[0]}`"
    words = [word for word in prog.replace("packmamba", "").split() if word in COMMANDS or word == "train"]
    return f"; `packmamba {' '.join(words) or 'COMMAND'} --help` lists the options"


_OWN_OPTIONS = {
    "pack": ("lengths", "distribution", "split", "strategies", "world_size", "accumulation", "attention_cost", "plot"),
    "compare": ("models", "layer-patterns", "modes", "batch-sizes", "mean-length", "profile", "trace", "no-pictures"),
    "quickstart": ("documents", "repeats"),
    "tokenizer train": ("max_documents", "output"),
    "info": ("json",),
    "predict": ("return_predictions",),
    "fit": ("config",),
}
"""Options by which a command is known that was meant."""


def suggest(name: str, options: Sequence[str], prefix: str = "") -> str:
    """`; did you mean …?` for the name of an option: one that is close within its group, or that ends the same."""
    group, _, last = name.rpartition(".")
    same_group = {option.rpartition(".")[2]: option for option in options if option.rpartition(".")[0] == group}
    for close in difflib.get_close_matches(last, same_group, n=1, cutoff=0.7):
        return f"; did you mean {prefix}{same_group[close]}?"
    elsewhere = [option for option in options if option.rpartition(".")[2] == last]
    close = elsewhere or difflib.get_close_matches(name, options, n=1, cutoff=0.85)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _unknown_key(found: re.Match[str], parser: argparse.ArgumentParser | None, arguments: Sequence[str]) -> str:
    key = found["key"] if not found.groupdict().get("group") else f"{found['group']}.{found['key']}"
    options = [] if parser is None else options_of(parser)
    top = {option.partition(".")[0] for option in options}
    hint = did_you_mean(key, sorted(top)) if "." not in key else suggest(key, options)
    names = sorted(option for option in options if option.rpartition(".")[0] == key.rpartition(".")[0])
    listed = f"; known: {', '.join(names)}" if not hint and 0 < len(names) <= MOST_NAMES else ""
    return f"{_file_with(key, arguments)}unknown option {key}{hint or listed}"


def _file_with(key: str, arguments: Sequence[str]) -> str:
    """`FILE: ` for the given configuration that has a key."""
    from jsonargparse import get_loader

    for file in given_configs(arguments):
        value: Any = get_loader("yaml")(Path(file).read_text() if os.path.isfile(file) else file)
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            return f"{file}: " if os.path.isfile(file) else ""
    return ""


_ABSENT = object()


def _missing(found: re.Match[str], *_: Any) -> str:
    names = [part.strip() for part in found["names"].split(",")]
    return f"{' and '.join('--' + name.removeprefix('train.') for name in names)} must be given"


def _link(found: re.Match[str], *_: Any) -> str:
    return f"{found['target']} is worked out from {found['source']}; leave it out"


def _subcommand(found: re.Match[str], *_: Any) -> str:
    choices = [name.strip(" '{}") for name in found["choices"].split(",")]
    given = found.groupdict().get("value")
    wrong = "a subcommand is missing" if given is None else f"unknown subcommand {given!r}"
    return f"{wrong}; available: {', '.join(choices)}{did_you_mean(given or '', choices)}"


_FORMS = (
    (r"Parser key \"(?P<key>[^\"]*)\": (?P<problem>.*)", _wrong_value),
    (r"(?:Subcommand '\w+' does not accept option|Option) '(?P<key>[^']*)'(?: is not accepted)?", _unknown_key),
    (r"Group '(?P<group>[^']*)' does not accept option '(?P<key>[^']*)'", _unknown_key),
    (r"the following arguments are required: (?P<names>.*)", _missing),
    (r"argument \w+\((?P<source>[^)]*)\) --> (?P<target>[^:]*): .*", _link),
    (r"expected \"subcommand\" to be one of (?P<choices>\{.*\}), but it was not provided\.", _subcommand),
    (r"argument subcommand: invalid choice: '(?P<value>.*)' \(choose from (?P<choices>.*)\)", _subcommand),
)
"""The forms of messages, and what tells each in plain words (None: it cannot)."""


def _accepted(problem: str) -> tuple[list[str], list[str]]:
    """What a parser says it expected, in plain words, without repetition; and the choices among it."""
    accepted: dict[str, None] = {}
    choices: list[str] = []
    expected = r"Expected an? (?P<kind>typing\.Literal\[[^\]]*\]|<class '[^']*'>|dot import path string|tuple with \d+)"
    for kind in re.findall(expected, problem):
        if kind.startswith("typing.Literal"):
            names = [name.strip(" '") for name in kind.removeprefix("typing.Literal[").rstrip("]").split(",")]
            choices += names
            accepted |= dict.fromkeys(names)
        elif kind.startswith("tuple"):
            accepted[f"a list of {kind.rpartition(' ')[2]}"] = None
        else:
            accepted |= dict.fromkeys((_KINDS.get(kind) or kind[8:-2].rpartition(".")[2]).split(" or "))
    if choices:  # a choice that is a number says so itself
        accepted.pop("a whole number", None)
    return sorted(accepted, key=lambda kind: kind == "null"), choices


def _one_of(accepted: Sequence[str]) -> str:
    return accepted[0] if len(accepted) == 1 else f"{', '.join(accepted[:-1])} or {accepted[-1]}"


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
    return repr(text) if isinstance(value, str) else text


def _example(key: str, parser: argparse.ArgumentParser | None) -> str:
    options = [] if parser is None else [name for name in options_of(parser) if name.startswith(f"{key}.c")]
    return f"--{options[0]}" if options else f"--{key}.NAME"


def _class_names(key: str, parser: argparse.ArgumentParser | None) -> list[str]:
    """The names of the classes that an option takes, of packmamba and Lightning."""
    hints = [getattr(a, "_typehint", None) for a in ([] if parser is None else parser._actions) if a.dest == key]
    classes = (cls for hint in hints for base in _classes_in(hint) for cls in _with_subclasses(base))
    public = {cls.__name__ for cls in classes if cls.__module__.startswith(("packmamba.", "lightning."))}
    return sorted(name for name in public if not name.startswith("_"))


def _classes_in(hint: Any) -> Iterator[type]:
    arguments = getattr(hint, "__args__", ())
    if not arguments:
        if isinstance(hint, type) and hint.__module__ not in ("builtins", "types"):
            yield hint
        return
    for argument in arguments:
        yield from _classes_in(argument)


def _with_subclasses(cls: type) -> Iterator[type]:
    if not getattr(cls, "__abstractmethods__", None):
        yield cls
    for subclass in cls.__subclasses__():
        yield from _with_subclasses(subclass)


def _fields_of(path: str) -> list[str]:
    """The options of a class, by its import path."""
    import importlib
    import inspect

    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []

"""The training configurations that come with packmamba, by name: `--config quickstart` works in any folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from packmamba.errors import MissingFileError, UsageFileError, did_you_mean

OPTIONS = ("-c", "--config")


def configs_folder() -> Path:
    """`packmamba/configs/` of an installed wheel; `configs/` of a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def config_names() -> list[str]:
    """The names that `--config` takes beside paths."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def find_config(text: str) -> Path:
    """The file that `--config text` means: the one with this path, else the shipped one with this name.

    Raises MissingFileError where there is neither, naming the configurations that are shipped; UsageFileError for a
    file that cannot be read or is not text.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        if path.is_file():  # a pipe can be read once only
            require_text(path)
        return path
    names = config_names()
    if text in names:
        return configs_folder() / f"{text}.yaml"
    shipped = f"configurations that come with packmamba: {', '.join(names)}"
    wrong = f"{text!r} is a folder" if path.is_dir() else f"File does not exist: {text!r}"
    raise MissingFileError(f"{wrong}; {shipped}{did_you_mean(path.stem, names)}")


def require_text(path: Path) -> None:
    """Raises UsageFileError for a file that cannot be read or is not UTF-8."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        hint = "; a checkpoint is named by --ckpt_path" if path.suffix == ".ckpt" else ""
        raise UsageFileError(
            f"cannot read {str(path)!r}: it is no text (UTF-8), and a configuration is YAML{hint}"
        ) from error
    except OSError as error:
        raise UsageFileError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Options with the path of its file in place of every `--config`'s value. YAML instead of a path stays as it is.

    Raises MissingFileError as `find_config` does.
    """

    def path_of(value: str) -> str:
        is_yaml = any(sign in value for sign in ("{", "\n", ": "))
        return value if is_yaml or value == "-" else str(find_config(value))

    return replace_configs(arguments, path_of)


def replace_configs(arguments: Sequence[str], replace: Callable[[str], str]) -> list[str]:
    """Options with replace(value) in place of every `--config`'s value."""
    replaced = list(arguments)
    for i, prefix, value in _config_values(arguments):
        replaced[i] = prefix + replace(value)
    return replaced


def given_configs(arguments: Sequence[str]) -> list[str]:
    """The value of every `--config`."""
    return [value for _, _, value in _config_values(arguments)]


def _config_values(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(index, text before the value, value) of the arguments that hold a configuration."""
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if equals and option in OPTIONS:
            yield i, f"{option}=", value
        elif i and arguments[i - 1] in OPTIONS:
            yield i, "", argument

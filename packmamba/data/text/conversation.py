"""Rows of a source as conversations: messages, the tools they may call, and which messages are trained on.

OpenAI's fields: `role`, `content`, `tool_calls`, ..., and `weight` (0 or 1). ShareGPT's: `from`, `value`. axolotl's:
`train` or `training` (true or false) beside either.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from packmamba.errors import UsageError

Message = dict[str, Any]

TrainOn = Literal["all_assistant", "last_assistant"]
TRAIN_ON: tuple[TrainOn, ...] = get_args(TrainOn)

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Who speaks, as ShareGPT's `from` says it, and the role that chat templates know."""

_TRAINING_FIELDS = ("weight", "train", "training")
"""Fields of a message that are for the trainer; a template does not see them."""


class ConversationError(UsageError):
    """A conversation that cannot be written out."""


def conversation(row: Mapping[str, Any]) -> list[Message] | None:
    """The messages of a source's row; None where it is plain text. Fields that are null are left out.

    A prompt is the user's message, a completion the assistant's. ShareGPT's fields get OpenAI's names.

    Raises ConversationError for a message without a role, or without anything else (named with its number), and for a
    speaker that ShareGPT does not have.
    """
    if row.get("messages") is None:
        prompt, completion = row.get("prompt"), row.get("completion")
        if prompt is None and completion is None:
            return None
        answer = [{"role": "assistant", "content": completion}] if completion else []
        return [{"role": "user", "content": prompt or ""}, *answer]
    return [_message(number, value) for number, value in enumerate(row["messages"], start=1)]


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a row's conversation may call, JSON schemas as transformers' chat templates take them; None where
    there are none. A text is read as JSON.

    Raises ConversationError for anything else than a list of objects.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise ConversationError(f"its tools are not JSON: {error.msg} at column {error.colno}") from error
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ConversationError(f"its tools must be a list of JSON schemas, got {_short(tools)}")
    return _without_nulls(tools) or None


def are_trained(messages: Sequence[Message], train_on: TrainOn = "all_assistant") -> list[bool]:
    """Whether each message has a loss: the assistant's do, or the last of them alone, unless their `weight` is 0 or
    their `train` false.

    Raises ConversationError for another weight than 0 and 1, and for a message of someone else that asks for a loss.
    """
    wishes = [_wish(number, message) for number, message in enumerate(messages, start=1)]
    trained = [message["role"] == "assistant" for message in messages]
    if train_on == "last_assistant" and any(trained):
        last = len(trained) - 1 - trained[::-1].index(True)
        trained = [index == last for index in range(len(messages))]
    return [is_trained and wish is not False for is_trained, wish in zip(trained, wishes, strict=True)]


def as_template_sees(messages: Iterable[Message]) -> list[Message]:
    """The messages without the fields that say whether they are trained on."""
    return [{name: value for name, value in m.items() if name not in _TRAINING_FIELDS} for m in messages]


def is_sharegpt(fields: Container[str]) -> bool:
    """Whether fields of a message are ShareGPT's."""
    return "from" in fields and "role" not in fields


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ConversationError(f"message {number} is {_short(value)}, not an object with a role and a content")
    message = _without_nulls(value)
    if is_sharegpt(message):
        speaker = message.pop("from")
        if speaker not in SHAREGPT_ROLES:
            raise ConversationError(f"message {number} is from {speaker!r}; known: {', '.join(SHAREGPT_ROLES)}")
        message = {"role": SHAREGPT_ROLES[speaker], "content": message.pop("value", None), **message}
        message = _without_nulls(message)
    if "role" not in message:
        raise ConversationError(f"message {number} has no role: {message}")
    if not message.keys() - {"role", *_TRAINING_FIELDS}:
        raise ConversationError(f"message {number}, of the {message['role']}, has no content")
    return message


def _without_nulls(value: Any) -> Any:
    """Without the null fields that a table gives every object that lacks what another one has."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _wish(number: int, message: Message) -> bool | None:
    """What a message says about being trained on; None where it says nothing."""
    wishes = {name: message[name] for name in _TRAINING_FIELDS if name in message}
    for name, value in wishes.items():
        if isinstance(value, str) or value not in (0, 1):
            accepted = (
                "0 (no loss) or 1; fractions of a loss are not supported" if name == "weight" else "true or false"
            )
            raise ConversationError(f"message {number} has {name} {value!r}, which must be {accepted}")
    if len({bool(value) for value in wishes.values()}) > 1:
        raise ConversationError(
            f"message {number} contradicts itself: {', '.join(f'{n} {v}' for n, v in wishes.items())}"
        )
    wish = next(map(bool, wishes.values()), None)
    if wish and message["role"] != "assistant":
        name, value = next(iter(wishes.items()))
        raise ConversationError(
            f"message {number}, of the {message['role']}, has {name} {value}, but only the assistant's messages can be "
            "trained on; leave the field out"
        )
    return wish


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

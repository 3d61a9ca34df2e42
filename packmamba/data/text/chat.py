"""Conversations as text, and which part of it the assistant wrote.

Chat templates are Jinja, as transformers reads them: rendered in a sandbox, for they come from strangers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import MissingFileError, UsageError

Message = dict[str, Any]

CHATML = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of tokenizers that bring none: ChatML."""

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters, two of which mark the text between the template's `generation` tags while it is rendered."""


class ConversationError(UsageError):
    """A conversation that cannot be written out."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: the text that a template says the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  (jinja's way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = self.call_method("_marked", [nodes.ContextReference()])
        return nodes.CallBlock(marked, [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Any) -> str:
        begin, end = context["generation_marks"]
        return f"{begin}{caller()}{end}"


@dataclass(frozen=True)
class ChatTemplate:
    """Writes conversations out.

    The assistant's part of a text lies between the template's `generation` tags. Without such tags, it is the text
    that an assistant's message adds to the messages before it and the prompt for an answer: its content, and the mark
    that ends its turn.
    """

    source: str
    """Jinja."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the template: bos_token, eos_token, ..."""

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "special_tokens": self.special_tokens}

    @classmethod
    def of(cls, tokenizer: Tokenizer, path: str | None = None) -> ChatTemplate:
        """The template in a file, or else the tokenizer's own, or else ChatML.

        Raises MissingFileError for a file that is not there, UsageError for one that is not Jinja.
        """
        source = tokenizer.chat_template
        if path is not None:
            if not Path(path).expanduser().is_file():
                raise MissingFileError(f"there is no chat template {path!r}; name a Jinja file")
            source = Path(path).expanduser().read_text()
        template = cls(source or CHATML, tokenizer.special_tokens)
        try:
            _ = template._compiled
        except TemplateSyntaxError as error:
            origin = "the tokenizer's chat template" if path is None else f"the chat template {path!r}"
            raise UsageError(f"{origin} is not Jinja: line {error.lineno}: {error.message}") from error
        return template

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
        environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        return environment.from_string(self.source)

    @cached_property
    def _has_tags(self) -> bool:
        return re.search(r"\{%[-+]?\s*generation\b", self.source) is not None

    def write(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the runs of its characters that the assistant wrote, in order.

        Raises ConversationError where the template refuses the conversation, or does not tell which part of the text
        is the assistant's.
        """
        if self._has_tags:
            # Two that nobody uses here; a text may hold any character.
            used = set(self.source).union(json.dumps(messages, ensure_ascii=False, default=str))
            marks = [mark for mark in map(chr, _PRIVATE_USE) if mark not in used][:2]
            return _unmarked(self._render(messages, generation_marks=marks), marks)
        text = self._render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:index], add_generation_prompt=True) if index else ""
            until = self._render(messages[: index + 1])
            if not (until.startswith(before) and text.startswith(until)):
                raise ConversationError(
                    f"the chat template writes what comes before or in message {index + 1} differently when more "
                    "follows, so it does not tell which part is the assistant's; put that part between "
                    "{% generation %} and {% endgeneration %} in the template"
                )
            spans.append((len(before), len(until)))
        return text, spans

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any) -> str:
        try:
            return self._compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **variables, **self.special_tokens
            )
        except TemplateError as error:
            raise ConversationError(f"the chat template refuses it: {error}") from error
        except TypeError as error:  # a template that adds or slices what a message does not have
            raise ConversationError(f"the chat template cannot write it: {error}") from error


def _unmarked(marked: str, marks: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and the runs of characters that were between two."""
    parts, spans, length = [], [], 0
    for index, part in enumerate(re.split(f"[{''.join(marks)}]", marked)):
        if index % 2 and part:
            spans.append((length, length + len(part)))
        parts.append(part)
        length += len(part)
    return "".join(parts), spans


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def conversation(row: Mapping[str, Any]) -> list[Message] | None:
    """The messages of a source's row; None where it is plain text. Fields that are null are left out.

    A prompt is the user's message, a completion the assistant's.

    Raises ConversationError for a message without a role, or without anything else (named with its number).
    """
    if row.get("messages") is None:
        prompt, completion = row.get("prompt"), row.get("completion")
        if prompt is None and completion is None:
            return None
        answer = [{"role": "assistant", "content": completion}] if completion else []
        return [{"role": "user", "content": prompt or ""}, *answer]
    messages = [{name: value for name, value in message.items() if value is not None} for message in row["messages"]]
    for number, message in enumerate(messages, start=1):
        if "role" not in message:
            raise ConversationError(f"message {number} has no role: {message}")
        if len(message) == 1:
            raise ConversationError(f"message {number}, of the {message['role']}, has no content")
    return messages

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

from packmamba.data.text.conversation import ConversationError, Message, conversation
from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import MissingFileError, UsageError

__all__ = ["CHATML", "ChatTemplate", "ConversationError", "Message", "conversation"]

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


_USUAL_NAMES = ("message", "msg", "m", "turn")
"""What templates call the message that they are writing."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: the text that a template says the assistant writes. Marked with the
    number of the message that the template is writing, if it can be told."""

    tags = {"generation"}  # noqa: RUF012  (jinja's way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = self.call_method("_marked", [nodes.ContextReference(), nodes.DerivedContextReference()])
        return nodes.CallBlock(marked, [], [], body).set_lineno(line)

    def _marked(self, context: Context, local: Context, caller: Any) -> str:
        begin, end = context["generation_marks"]
        return f"{begin}{_message_at_hand(context, local)}{begin}{caller()}{end}"


def _message_at_hand(context: Context, local: Context) -> int | str:
    """The index of the message that a variable of the loop or macro at hand is; empty where that is not one."""
    written = context["written_messages"]
    index = {id(message): number for number, message in enumerate(written)}
    outside = context.get_all()
    found = {
        name: index[id(value)]
        for name, value in local.get_all().items()
        if id(value) in index and outside.get(name) is not value
    }
    numbers = set(found.values())
    if len(numbers) > 1:
        numbers = {found[name] for name in _USUAL_NAMES if name in found}
    return numbers.pop() if len(numbers) == 1 else ""


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

    def write(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        trained: Sequence[bool] | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the runs of its characters that the assistant wrote, in order.

        tools: JSON schemas, for the template. trained: whether each message is one of those whose runs are wanted;
        None: all of the assistant's are.

        Raises ConversationError where the template refuses the conversation, or does not tell which part of the text
        is the assistant's, or which message a part is of where that matters.
        """
        if self._has_tags:
            # Two that nobody uses here; a text may hold any character.
            used = set(self.source).union(json.dumps([messages, tools], ensure_ascii=False, default=str))
            begin, end = [mark for mark in map(chr, _PRIVATE_USE) if mark not in used][:2]
            marked = self._render(messages, tools, generation_marks=(begin, end), written_messages=messages)
            text, spans = _unmarked(marked, begin, end)
            return text, [span for _, span in spans] if trained is None else _of_messages(spans, messages, trained)
        text = self._render(messages, tools)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or (trained is not None and not trained[index]):
                continue
            before = self._render(messages[:index], tools, add_generation_prompt=True) if index else ""
            until = self._render(messages[: index + 1], tools)
            if not (until.startswith(before) and text.startswith(until)):
                raise ConversationError(
                    f"the chat template writes what comes before or in message {index + 1} differently when more "
                    "follows, so it does not tell which part is the assistant's; put that part between "
                    "{% generation %} and {% endgeneration %} in the template"
                )
            spans.append((len(before), len(until)))
        return text, spans

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **variables,
                **self.special_tokens,
            )
        except TemplateError as error:
            raise ConversationError(f"the chat template refuses it: {error}") from error
        except TypeError as error:  # a template that adds or slices what a message does not have
            raise ConversationError(f"the chat template cannot write it: {error}") from error


_Span = tuple[int, int]


def _unmarked(marked: str, begin: str, end: str) -> tuple[str, list[tuple[int | None, _Span]]]:
    """The text without its marks, and the runs of characters that were marked, each with its message's index."""
    parts, spans, length, index = [], [], 0, None
    # Text, index, text inside, text, ...
    for number, part in enumerate(re.split(f"{begin}([0-9]*){begin}(.*?){end}", marked, flags=re.DOTALL)):
        if number % 3 == 1:
            index = int(part) if part else None
            continue
        if number % 3 == 2 and part:
            spans.append((index, (length, length + len(part))))
        parts.append(part)
        length += len(part)
    return "".join(parts), spans


def _of_messages(
    spans: Sequence[tuple[int | None, _Span]], messages: Sequence[Message], trained: Sequence[bool]
) -> list[_Span]:
    """The runs of the messages that are trained on. Where those are all of the assistant's, whatever is marked."""
    if all(is_trained or m["role"] != "assistant" for m, is_trained in zip(messages, trained, strict=True)):
        return [span for _, span in spans]
    if not any(trained):
        return []
    if any(index is None for index, _ in spans):
        raise ConversationError(
            "some of the assistant's messages are not to be trained on, and the chat template does not tell which "
            "message the text between {% generation %} and {% endgeneration %} is of: write it in a loop over messages "
            "whose variable is called message"
        )
    return [span for index, span in spans if index is not None and trained[index]]


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)

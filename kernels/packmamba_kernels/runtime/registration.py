"""Registering an operator with torch: its schema, fake, autograd and FLOP formula, from its mathematics alone.

An operator is two functions on packed tensors, forward and backward, and names for what they take and give: NamedTuples
of its inputs, its options, its results and its gradients, from whose fields the schemas follow. The registered
functions take flat arguments, as torch's schemas want: a pack's documents as `cu_seqlens, schedule, offsets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from packmamba_kernels.checks import check_once, check_values
from packmamba_kernels.runtime.dispatch import may_bypass_dispatcher
from packmamba_kernels.schedule import Documents, Offsets, Schedule, most_segments

_SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", str | None: "str?"}
_NOWHERE: Mapping[str, Tensor] = {}
_DOCUMENTS = "Tensor cu_seqlens, Tensor? schedule, SymInt[] offsets"


@dataclass(frozen=True, eq=False, kw_only=True)
class Definition:
    """What is an operator's own. Its inputs and results are NamedTuples of tensors, its options one of plain values."""

    name: str
    inputs: type[Any]
    """Tensors, None where optional; the first is (T, E). Differentiable in all of them."""
    options: type[Any]
    """`return_final_states` among them."""
    results: type[Any]
    """out, final_states (empty where not wanted), and tensors that only the backward is given."""
    gradients: type[Any]
    """One for each input in its order, None where that is None; more may follow."""
    check: Callable[..., None]
    """check(inputs, options, cu_seqlens, schedule) raises for what is not accepted. Looks at no value of a tensor."""
    segment_size: Callable[[Tensor, Callable[[int], int]], int]
    """segment_size(x, count): tokens of the segments that suit the first input. count(size): how many there are."""
    forward: Callable[..., Any]
    """forward(inputs, documents, options) -> results."""
    backward: Callable[..., Any]
    """backward(dout, dfinal_states, inputs, kept, documents, options, into) -> gradients. kept: the results after the
    first two. into: memory for gradients, by name, which it may write to."""
    fake_forward: Callable[..., Any]
    """As forward, on tensors without data: shapes and dtypes only."""
    fake_backward: Callable[..., Any]
    """fake_backward(inputs, options) -> gradients, shapes and dtypes only."""
    flops: Callable[..., int]
    """flops(shapes): of a forward, from an `inputs` that holds shapes. A backward counts twice, by the usual
    convention; what is computed again is not counted."""


class Operator:
    """A registered operator: `torch.ops.packmamba.<name>` and `<name>_backward`, and the way past the dispatcher."""

    def __init__(self, definition: Definition) -> None:
        d = self.definition = definition
        self._checked = self._check  # one object, for `check_once` to remember
        self._num_inputs, self._num_kept = len(d.inputs._fields), len(d.results._fields) - 2
        inputs, options, kept = _parameters(d.inputs), _parameters(d.options), _parameters(d.results)[2:]
        call = [*inputs, _DOCUMENTS, *options]
        douts = ["Tensor dout", "Tensor? dfinal_states"]
        self.registered_forward = torch.library.custom_op(
            f"packmamba::{d.name}", self._flat_forward, mutates_args=(), schema=_schema(call, d.results)
        )
        self.registered_backward = torch.library.custom_op(
            f"packmamba::{d.name}_backward",
            self._flat_backward,
            mutates_args=(),
            schema=_schema([*douts, *kept, *call], d.gradients),
        )
        self.registered_forward.register_fake(lambda *flat: tuple(d.fake_forward(*self._named(flat))))
        self.registered_backward.register_fake(self._flat_fake_backward)
        self.registered_forward.register_autograd(self._registered_gradients, setup_context=self._save_for_backward)
        register_flop_formula(getattr(torch.ops.packmamba, d.name))(self._forward_flops)
        register_flop_formula(getattr(torch.ops.packmamba, f"{d.name}_backward"))(self._backward_flops)

    def __call__(self, inputs: Any, options: Any, *, cu_seqlens: Any, schedule: Any) -> Any:
        """The public call: checks its arguments; out, or (out, final_states) where those are wanted."""
        bypass = may_bypass_dispatcher((*inputs, cu_seqlens))
        if bypass:
            check_once(self._checked, *inputs, *options, cu_seqlens, schedule)
        else:
            self.definition.check(inputs, options, cu_seqlens, schedule)
        x = inputs[0]
        if cu_seqlens is None:
            cu_seqlens = torch.arange(2, dtype=torch.int32, device=x.device) * x.shape[0]
        documents = self.documents(x, cu_seqlens, schedule)
        if bypass:
            out, final_states = _Bypass.apply(self, documents, options, *inputs)  # pyright: ignore[reportGeneralTypeIssues]
        else:
            out, final_states, *_ = self.registered_forward(*inputs, *_flat(documents), *options)
        return (out, final_states) if options.return_final_states else out

    def documents(self, x: Tensor, cu_seqlens: Tensor, schedule: Schedule | None) -> Documents:
        """The documents of a pack, cut into segments that suit x, the operator's first input."""
        num_tokens, num_seqs = x.shape[0], cu_seqlens.shape[0] - 1
        if schedule is not None:
            size = self.definition.segment_size(x, schedule.num_segments)
            return Documents(cu_seqlens, num_tokens, schedule, schedule.offsets_of(size))

        def count(size: int) -> int:
            return most_segments(size, num_tokens, num_seqs)

        size = self.definition.segment_size(x, count)
        return Documents(cu_seqlens, num_tokens, None, Offsets(size, 0, count(size)))

    def forward(self, inputs: Any, documents: Documents, options: Any) -> Any:
        """The results, for callers that write a backward of their own: no gradient is recorded where none is on."""
        if not torch.is_grad_enabled() and may_bypass_dispatcher((*inputs, documents.cu_seqlens)):
            return self._forward(inputs, documents, options)
        return self.definition.results(*self.registered_forward(*inputs, *_flat(documents), *options))

    def backward(
        self,
        dout: Tensor,
        dfinal_states: Tensor | None,
        inputs: Any,
        kept: Sequence[Tensor],
        documents: Documents,
        options: Any,
        into: Mapping[str, Tensor] = _NOWHERE,
    ) -> Any:
        """The gradients. kept: the results of the forward after the first two. into: by name, the memory some of them
        are to lie in, for callers that want two beside each other. The registered backward refuses to be differentiated
        again."""
        tensors = (dout, dfinal_states, *inputs, *kept, documents.cu_seqlens)
        if not torch.is_grad_enabled() and may_bypass_dispatcher(tensors):
            gradients = self.definition.backward(dout, dfinal_states, inputs, kept, documents, options, into)
        else:
            flat = self.registered_backward(dout, dfinal_states, *kept, *inputs, *_flat(documents), *options)
            absent = [x is None for x in inputs] + [False] * (len(flat) - self._num_inputs)
            gradients = self.definition.gradients(*(None if a else g for a, g in zip(absent, flat, strict=True)))
        for name, place in into.items():
            if getattr(gradients, name) is not place:
                gradients = gradients._replace(**{name: place.copy_(getattr(gradients, name))})
        return gradients

    def _forward(self, inputs: Any, documents: Documents, options: Any) -> Any:
        check_values(documents, inputs[0], inputs._fields[0])
        return self.definition.forward(inputs, documents, options)

    def _input_gradients(
        self,
        douts: Sequence[Tensor | None],
        inputs: Any,
        kept: Sequence[Tensor],
        documents: Documents,
        options: Any,
    ) -> tuple[Tensor | None, ...]:
        """The gradient of each input. douts: those of out and the final states, None where nothing flows back."""
        dout, dfinal_states = douts
        if not options.return_final_states:
            dfinal_states = None
        if dout is None and dfinal_states is None:
            return (None,) * self._num_inputs
        if dout is None:
            dout = torch.zeros_like(inputs[0])
        return self.backward(dout, dfinal_states, inputs, kept, documents, options)[: self._num_inputs]

    # --- what is registered: the same on flat arguments ---------------------------------------------------------------

    def _check(self, *flat: Any) -> None:
        *call, cu_seqlens, schedule = flat
        inputs, options = self.definition.inputs(*call[: self._num_inputs]), call[self._num_inputs :]
        self.definition.check(inputs, self.definition.options(*options), cu_seqlens, schedule)

    def _named(self, flat: Sequence[Any]) -> tuple[Any, Documents, Any]:
        """inputs, documents and options, from the arguments of the registered forward."""
        inputs = self.definition.inputs(*flat[: self._num_inputs])
        cu_seqlens, buffer, offsets, *options = flat[self._num_inputs :]
        offsets, num_tokens = Offsets(*offsets), inputs[0].shape[0]
        num_seqs = cu_seqlens.shape[0] - 1
        schedule = None if buffer is None else Schedule(buffer, num_tokens, num_seqs, (offsets,))
        return inputs, Documents(cu_seqlens, num_tokens, schedule, offsets), self.definition.options(*options)

    def _flat_forward(self, *flat: Any) -> tuple[Tensor, ...]:
        return tuple(self._forward(*self._named(flat)))

    def _flat_backward(self, dout: Tensor, dfinal_states: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
        kept, (inputs, documents, options) = flat[: self._num_kept], self._named(flat[self._num_kept :])
        gradients = self.definition.backward(dout, dfinal_states, inputs, kept, documents, options, _NOWHERE)
        return _without_none(gradients, dout)

    def _flat_fake_backward(self, dout: Tensor, dfinal_states: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
        inputs, _, options = self._named(flat[self._num_kept :])
        return _without_none(self.definition.fake_backward(inputs, options), dout)

    def _save_for_backward(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, (cu_seqlens, buffer, *rest) = inputs[: self._num_inputs], inputs[self._num_inputs :]
        kept = output[2:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *tensors, cu_seqlens, buffer)
        ctx.mark_non_differentiable(*kept)
        ctx.rest = rest

    def _registered_gradients(self, ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        kept, call = saved[: self._num_kept], (*saved[self._num_kept :], *ctx.rest)
        inputs, documents, options = self._named(call)
        gradients = self._input_gradients(douts[:2], inputs, kept, documents, options)
        return *gradients, *(None for _ in call[self._num_inputs :])

    def _forward_flops(self, *shapes: Any, **_: Any) -> int:
        return self.definition.flops(self.definition.inputs(*shapes[: self._num_inputs]))

    def _backward_flops(self, *shapes: Any, **_: Any) -> int:
        return 2 * self._forward_flops(*shapes[2 + self._num_kept :])


class _Bypass(torch.autograd.Function):
    """An operator's autograd, past the dispatcher."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, documents: Documents, options: Any, *tensors: Any) -> tuple[Tensor, ...]:
        inputs = operator.definition.inputs(*tensors)
        results = operator._forward(inputs, documents, options)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*results[2:], *inputs)
        ctx.call = operator, documents, options
        return results[:2]

    @staticmethod
    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        operator, documents, options = ctx.call
        saved, num_kept = ctx.saved_tensors, operator._num_kept
        inputs = operator.definition.inputs(*saved[num_kept:])
        gradients = operator._input_gradients(douts, inputs, saved[:num_kept], documents, options)
        return None, None, None, *gradients


def fake_like(x: Tensor | None) -> Tensor | None:
    """A contiguous tensor of x's shape, dtype and device; None for None."""
    return None if x is None else x.new_empty(x.shape)


def _flat(documents: Documents) -> tuple[Tensor, Tensor | None, list[int]]:
    schedule = documents.schedule
    return documents.cu_seqlens, None if schedule is None else schedule.buffer, list(documents.offsets)


def _without_none(gradients: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An empty tensor for None, which no operator may return."""
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _parameters(fields: type[Any]) -> list[str]:
    return [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in get_type_hints(fields).items()]


def _schema(parameters: Sequence[str], results: type[Any]) -> str:
    return f"({', '.join(parameters)}) -> ({', '.join(['Tensor'] * len(results._fields))})"

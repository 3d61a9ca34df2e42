"""Imports Lightning without what it imports whole and hardly uses.

Lightning takes two classes of torchmetrics, whose `__init__` imports every metric there is, and with them transformers,
matplotlib and scipy where these are installed; and one class of torch's compiler, to see whether a model was compiled.
Together they were more than half of the time from a command to its first line.

Deferred module: imported, but not run yet. The first use of anything but the few names in `_DEFERRED` runs it, in
place, and it is a usual module from then on. torch's compiler is hidden while Lightning is imported, and no longer.
PACKMAMBA_DEFER=0 in the environment switches all of this off.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


def import_lightning() -> None:
    """Imports Lightning, if it is not imported yet."""
    if os.environ.get("PACKMAMBA_DEFER", "1") == "0" or "lightning" in sys.modules:
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    importlib.import_module("torch")  # whole, before its compiler is hidden
    with _compiler_hidden():
        importlib.import_module("lightning.pytorch.cli")


class DeferredModule(ModuleType):
    """A module that runs when a name is asked for that is not among those it can give without."""

    def __getattr__(self, name: str) -> Any:
        given = _DEFERRED[self.__name__]
        if name in given:
            return given[name]()
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)  # what imports, copying, pickling and inspection look for
        run(self)
        return getattr(self, name)


def run(module: ModuleType) -> None:
    """Runs a module that was deferred; does nothing to another."""
    if isinstance(module, DeferredModule):
        assert module.__spec__ is not None
        assert isinstance(module.__spec__.loader, _Deferring)
        module.__spec__.loader.run(module)


class _Deferring(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = DeferredModule

    def run(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__class__ = ModuleType
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _DEFERRED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferring(spec.loader)
        return spec


def _metrics(module: str, name: str) -> Callable[[], Any]:
    def find() -> Any:
        importlib.import_module("torchmetrics.utilities")  # which is half way through when it imports Metric itself
        return getattr(importlib.import_module(module), name)

    return find


def _plot(*args: Any, **kwargs: Any) -> Any:
    """`torchmetrics.utilities.plot.plot_single_or_multi_val`, which draws a metric."""
    module = sys.modules["torchmetrics.utilities.plot"]
    run(module)
    return module.plot_single_or_multi_val(*args, **kwargs)


_DEFERRED: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "torchmetrics": {
        "Metric": _metrics("torchmetrics.metric", "Metric"),
        "MetricCollection": _metrics("torchmetrics.collections", "MetricCollection"),
        "_logger": lambda: logging.getLogger("torchmetrics"),
    },
    "torchmetrics.utilities.plot": {
        "_AX_TYPE": lambda: object,
        "_PLOT_OUT_TYPE": lambda: tuple[object, object],
        "plot_single_or_multi_val": lambda: _plot,
    },
}
"""Modules that are deferred: the names that each gives without running, and what makes them."""


class _Compiled(type):
    def __instancecheck__(cls, instance: object) -> bool:
        compiler = sys.modules.get(_COMPILER)
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class OptimizedModule(metaclass=_Compiled):
    """Has the instances of torch's class of this name, a compiled model: none before torch's compiler is imported."""


def _not_compiled(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
    """`torch.compiler.disable` as torch writes it for its own optimisers: imports the compiler in the first call."""
    from torch._compile import _disable_dynamo

    return _disable_dynamo(fn, recursive)


@contextmanager
def _compiler_hidden() -> Iterator[None]:
    """In place of torch's compiler, a module that has what Lightning uses while it is imported."""
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = ModuleType(_COMPILER)
    vars(stand_in).update(OptimizedModule=OptimizedModule, disable=_not_compiled)
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        del sys.modules[_COMPILER]
        if vars(sys.modules["torch"]).get("_dynamo") is stand_in:
            del vars(sys.modules["torch"])["_dynamo"]

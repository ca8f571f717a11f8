"""Contexts: kernels by their IDs, one execution at a time each, the others wait."""

from __future__ import annotations

import builtins
import os
import threading
import uuid

from .kernel import Kernel

COUNT_MAX = 100


class Unknown(Exception):
    """There is no such context."""


class TooMany(Exception):
    """There are as many as there may be."""


class Context:
    """One of them.

    Attributes:
        lock: held by whoever uses its kernel.
        is_removed: it waits for its end.
    """

    def __init__(self, language: str, cwd: str) -> None:
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.lock = threading.Lock()
        self.is_removed = False
        self._kernel: Kernel | None = None

    @property
    def kernel(self) -> Kernel:
        """Its kernel, which is started when it is needed. Lock: held."""
        if self.is_removed:
            raise Unknown(f"Context {self.id} not found")
        if self._kernel is None:
            self._kernel = Kernel(self.language, self.cwd)
        return self._kernel

    def interrupt(self) -> None:
        """End what runs in it. Thread: any."""
        kernel = self._kernel
        if kernel is not None:
            kernel.interrupt()

    def close(self) -> None:
        """End its kernel. Lock: held."""
        self.is_removed = True
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def describe(self) -> dict[str, str]:
        """Return it as a client sees it."""
        return {"id": self.id, "language": self.language, "cwd": self.cwd}


class Contexts:
    """All of them. Thread: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # covers what follows; no kernel is waited for under it
        self._all: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}  # by language
        self.usual("python")

    def usual(self, language: str) -> Context:
        """Return a language's context for code that names none."""
        with self._lock:
            found = self._defaults.get(language)
            if found is None or found.is_removed:
                found = self._defaults[language] = self._add(language, os.path.expanduser("~"))
        return found

    def create(self, language: str, cwd: str) -> Context:
        """Return a new one, whose kernel has started.

        Raises:
            NoKernel: there is none for this language.
            TooMany: that.
        """
        with self._lock:
            context = self._add(language, cwd)
        try:
            with context.lock:
                assert context.kernel is not None
        except BaseException:
            self.remove(context.id)
            raise
        return context

    def _add(self, language: str, cwd: str) -> Context:
        if len(self._all) >= COUNT_MAX:
            raise TooMany(f"there are {COUNT_MAX} contexts: remove one")
        context = Context(language, cwd)
        self._all[context.id] = context
        return context

    def find(self, context_id: str) -> Context:
        """Return a context.

        Raises:
            Unknown: there is none.
        """
        with self._lock:
            found = self._all.get(context_id)
        if found is None:
            raise Unknown(f"Context {context_id} not found")
        return found

    def remove(self, context_id: str) -> None:
        """End a context, and what runs in it.

        Raises:
            Unknown: there is none.
        """
        context = self.find(context_id)
        with self._lock:
            self._all.pop(context_id, None)
        context.is_removed = True
        context.interrupt()
        with context.lock:
            context.close()

    def restart(self, context_id: str) -> None:
        """Have a context begin anew; what runs in it is interrupted.

        Raises:
            Unknown: there is none.
        """
        context = self.find(context_id)
        context.interrupt()
        with context.lock:
            context.kernel.restart()

    def list(self) -> builtins.list[dict[str, str]]:
        """Describe all."""
        with self._lock:
            return [context.describe() for context in self._all.values()]

"""The SDK's tests run on what the sandboxes' tests run on: real agents, fake machines."""

from __future__ import annotations

from tests.unit.sandbox.conftest import agent_path, box, guest, sandboxes

__all__ = ["agent_path", "box", "guest", "sandboxes"]

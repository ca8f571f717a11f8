"""voidbox: a KVM virtual machine monitor in Python alone, and the sandbox built on it."""

from voidbox.version import __version__

__all__ = ["__version__"]

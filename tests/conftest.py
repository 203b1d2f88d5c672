"""Fixtures of several rooms."""

from small_network import int8, mixed

__all__ = ["int8", "mixed"]

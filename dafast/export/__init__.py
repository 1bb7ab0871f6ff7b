"""Exports models to files that run without dafast: `export`, or the command `dafast export`."""

from .formats import FORMATS, export
from .verify import Check, VerificationError

__all__ = ["FORMATS", "Check", "VerificationError", "export"]

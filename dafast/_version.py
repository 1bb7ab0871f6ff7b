"""The version of dafast; packaging reads it from here."""

__version__ = "0.1.0"

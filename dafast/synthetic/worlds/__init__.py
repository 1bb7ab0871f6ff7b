"""Worlds that artists made, as scenes with exact depth: maps of games with their baked light.

``library(folder).render(seed)`` gives a picture; ``dafast synth --worlds FOLDER`` writes shards.
"""

from dafast.synthetic.worlds.library import Library, library

__all__ = ["Library", "library"]

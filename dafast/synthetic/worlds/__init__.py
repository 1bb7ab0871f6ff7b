"""Worlds that artists made, as scenes with exact depth: maps of games with their baked light.

``open_library(folder).render(seed)`` gives a picture; ``dafast synth --worlds`` writes shards.
"""

from dafast.synthetic.worlds.library import Library, open_library

__all__ = ["Library", "open_library"]

"""Files of maps, points and meshes: one module for each format.

Each has a function that writes a file whole, and `read_facts`: the facts in a file that dafast
wrote, or None for any other file and one that is cut off. Facts are a dictionary that JSON can
hold. They say what the values mean (``kind``, ``unit``, the range, the camera), and for results
of `dafast run` what they were made from. NPY and PFM files have no place for them.
"""

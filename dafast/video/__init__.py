"""Depth of videos: steadiness and its measures."""

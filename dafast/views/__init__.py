"""New views from one photo and its depth map: stereo pictures, and videos of a moving camera."""

from .parallax import PATHS, camera_path, parallax_frames, save_video
from .stereo import LAYOUTS, stereo_pair, stereo_pictures
from .warp import Camera, nearness, render_view

__all__ = [
    "LAYOUTS",
    "PATHS",
    "Camera",
    "camera_path",
    "nearness",
    "parallax_frames",
    "render_view",
    "save_video",
    "stereo_pair",
    "stereo_pictures",
]

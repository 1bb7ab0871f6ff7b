"""A gradio Space: `pip install dafast gradio; python app.py`."""

import tempfile
from pathlib import Path

import gradio
import numpy as np

import dafast
from dafast.palettes import PALETTES

MODELS = ("nano", "v2-vits")
loaded: dict[str, dafast.DepthAnything] = {}


def predict(photo: np.ndarray | None, name: str, palette: str, fov: float):
    """A photo to its depth in colours, the 16-bit PNG and the mesh."""
    if photo is None:
        raise gradio.Error("Choose a photo first.")
    if name not in loaded:
        loaded[name] = dafast.DepthAnything.from_pretrained(name)
    result = loaded[name].predict(photo, fov=fov)
    folder = Path(tempfile.mkdtemp())
    result.save(folder / "depth.png")
    result.save(folder / "depth.glb")
    return (photo, result.colored(palette)), str(folder / "depth.glb"), str(folder / "depth.png")


def build() -> gradio.Blocks:
    """The page."""
    with gradio.Blocks(title="dafast") as page:
        gradio.Markdown("# Depth from one photo\n[dafast](https://github.com/dafast/dafast)")
        with gradio.Row():
            with gradio.Column():
                photo = gradio.Image(label="Photo")
                name = gradio.Dropdown(MODELS, value=MODELS[0], label="Model")
                palette = gradio.Dropdown(list(PALETTES), label="Palette")
                fov = gradio.Slider(20, 120, 60, label="Horizontal field of view in degrees")
                button = gradio.Button("Predict", variant="primary")
            with gradio.Column():
                slider = gradio.ImageSlider(label="Photo and depth")
                mesh = gradio.Model3D(label="Surface")
                file = gradio.File(label="16-bit PNG")
        button.click(predict, [photo, name, palette, fov], [slider, mesh, file])
    return page


if __name__ == "__main__":
    build().launch()

"""`DepthAnything.infer`: any photo in, disparity at its own resolution out.

Memory, at its peak and with the resulting float32 map (4 bytes a pixel): 11 bytes a pixel of an
8-bit RGB file (0.5 GiB for 50 megapixels), 16 of a uint16 array, 23 of an RGBA array, the caller's
own array not counted; channels are converted to float32 one at a time. The network never sees
more than ``max_tokens`` tokens of one photo or ``max_batch_tokens`` of a batch, whatever the
photo's size. The originals of a list are dropped one by one as they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .ops import Geometry, postprocess, preprocess
from .ops._triton import why_missing as triton_missing
from .ops.geometry import MAX_TOKENS, check_count, check_geometry
from .ops.pad import check_padding
from .pointcloud import check_intrinsics, intrinsics_from_fov, point_cloud

if TYPE_CHECKING:
    from PIL.Image import Image

    from .config import ModelConfig
    from .models import DepthAnything

MAX_BATCH_TOKENS = 8192
WAITING_BATCHES = 4
"""Batches that may wait for photos of their size, in units of `max_batch_tokens`."""


class ImageError(ValueError):
    """An image that cannot be read or used; the message names it and what is wrong."""


def load_image(path: str | Path) -> np.ndarray:
    """Reads an image file as RGB, turned upright as its EXIF orientation says.

    Args:
        path: Any format that Pillow reads.

    Returns:
        uint8 (H, W, 3), or float32 (H, W, 3) in 0..1 for a 16-bit or floating-point file.
        Transparent pixels are laid over white.

    Raises:
        ImageError: If the file is missing, corrupt or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"{path}: {what}")
    head = b""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            # No name for the stored image: where it was turned it must not outlive its copy.
            return from_pil(_upright(Image.open(file)), str(path))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a corrupt file
        reason = str(error).replace(str(path), "the file")
        if isinstance(error, UnidentifiedImageError) or _is_heif(head):
            reason = _what_is_it(head)
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from error


def _upright(image: Image) -> Image:
    """The image turned as its EXIF orientation says; itself where there is nothing to turn.

    `ImageOps.exif_transpose` also writes the other tags back, and fails where one is malformed.
    """
    from PIL import ExifTags
    from PIL.Image import Transpose

    image.load()  # some formats have their EXIF behind the pixels, and TIFF is turned by Pillow
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block costs its orientation, not the picture
        return image
    methods: dict[Any, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    method = methods.get(orientation)
    return image if method is None else image.transpose(method)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def _what_is_it(head: bytes) -> str:
    """Says from its first bytes what a file that Pillow does not know is instead."""
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, as a failed download leaves it"
    if _is_heif(head):
        return (
            "a HEIC or HEIF photo, which Pillow does not read by itself: convert it to JPEG, or "
            "pip install pillow-heif (from Python, then call pillow_heif.register_heif_opener())"
        )
    return "no image format that Pillow knows"


def from_pil(image: Image, name: str = "image") -> np.ndarray:
    """A PIL image of any mode to RGB, as `load_image` returns it.

    Raises:
        ImageError: If its values are out of the range of its mode.
    """
    import PIL.Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        # "I" holds 16 bits in 32: Pillow's way to open 16-bit files.
        top = 1 if image.mode == "F" else 65535
        _check_range(values, top, f"{name}: values of a gray image", "convert it to 8 or 16 bits")
        values /= top
        return _as_rgb(values, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = PIL.Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_range(values: np.ndarray, top: int, subject: str, remedy: str) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 * top and high <= 1.001 * top):  # also catches NaN
        raise ImageError(
            f"{subject} must be in 0..{top} without NaN; got {low:g}..{high:g} ({remedy})"
        )


def _as_rgb(array: np.ndarray, name: str) -> np.ndarray:
    """A numpy image of any accepted kind to uint8 or float32 (H, W, 3)."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"{name}: an array must be (H, W), or (H, W, C) with 1 to 4 channels in the last "
            f"dimension, and not empty; got {array.shape}"
        )
    if not array.dtype.isnative:  # big-endian, as some files have it
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint16:
        array = array.astype(np.float32)
        array /= 65535
    elif np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32, copy=False)
        _check_range(array, 1, f"{name}: floating-point images", "divide by 255, or pass uint8")
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: dtype {array.dtype}; use uint8, uint16 or floating point")
    if array.shape[2] in (2, 4):
        white = np.float32(255 if array.dtype == np.uint8 else 1)
        alpha = array[..., -1].astype(np.float32)
        alpha /= white
        color = np.empty((*array.shape[:2], array.shape[2] - 1), array.dtype)
        for c in range(color.shape[2]):  # one at a time: floats of a large photo are large
            plane = array[..., c] * alpha + white * (1 - alpha)
            color[..., c] = plane.round() if array.dtype == np.uint8 else plane
        array = color
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array


def _load(image: Any, name: str) -> Tensor:
    """Anything that `infer` takes to uint8 (H, W, 3) or float32 (3, H, W) in 0..1."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4):
            raise ImageError(f"{name}: a tensor must be (C, H, W); got {tuple(image.shape)}")
        if image.dtype in (torch.float16, torch.bfloat16):
            image = image.float()
        array = _as_rgb(image.detach().permute(1, 2, 0).cpu().numpy(), name)
    elif isinstance(image, str | Path):
        array = load_image(image)
    elif isinstance(image, np.ndarray):
        array = _as_rgb(image, name)
    elif hasattr(image, "convert") and hasattr(image, "getbands"):
        try:
            array = from_pil(_upright(image), name)
        except ImageError:
            raise
        except Exception as error:  # opened, but never read until now
            name = getattr(image, "filename", "") or name
            raise ImageError(f"{name}: cannot be read as an image ({error})") from error
    else:
        raise ImageError(
            f"{name}: {type(image).__name__} is not an image; pass a path, a PIL image, a numpy "
            "array (H, W, C) or a tensor (C, H, W)"
        )
    # torch wants writable memory with positive strides; Pillow's is neither for sure.
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor if tensor.dtype == torch.uint8 else tensor.permute(2, 0, 1)


def _predict(
    model: DepthAnything,
    images: Sequence[Any],
    options: dict[str, Any],
    max_batch_tokens: int,
    native: bool = False,
    mirrored: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index, map) in any order; inputs of one network size share a batch.

    Where sequences of many lengths run as fast as those of one, inputs of all sizes do.
    With ``native`` a map keeps the resolution that the network gave it; with ``mirrored`` the
    network sees the mirror images, and the maps are turned back.
    """
    model.optimize(keep_memory=False)
    waiting: dict[tuple[int, int] | None, list[tuple[int, Tensor, Geometry]]] = {}
    mixed = _mixes_sizes(model)

    def tokens(geometry: Geometry) -> int:
        height, width = geometry.network
        return height * width // model.config.patch_size**2 + 1

    def held(entries: list[tuple[int, Tensor, Geometry]]) -> int:
        return sum(tokens(geometry) for *_, geometry in entries)

    def flush(key: tuple[int, int] | None) -> Iterator[tuple[int, Tensor]]:
        entries = waiting.pop(key)
        inputs = [x for _, x, _ in entries]
        if len({x.shape for x in inputs}) == 1:
            predictions = model(torch.cat(inputs))
        else:
            predictions = model([x[0] for x in inputs])
        for (i, _, geometry), prediction in zip(entries, predictions, strict=True):
            if native:
                geometry = dataclasses.replace(geometry, original=geometry.resized)
            align_corners = model.config.output_align_corners
            out = postprocess(prediction[None], [geometry], align_corners=align_corners)[0]
            yield i, out.flip(-1) if mirrored else out

    for i, image in enumerate(images):
        pixels = _load(image, f"image {i}" if len(images) > 1 else "image")
        if mirrored:
            pixels = pixels.flip(1 if pixels.dtype == torch.uint8 else 2)
        x, (geometry,) = preprocess(pixels.to(model.device), dtype=model.dtype, **options)
        key = None if mixed else geometry.network
        if key in waiting and held(waiting[key]) + tokens(geometry) > max_batch_tokens:
            yield from flush(key)
        waiting.setdefault(key, []).append((i, x, geometry))
        if held(waiting[key]) + tokens(geometry) > max_batch_tokens:
            yield from flush(key)  # another photo of this size would not fit
        waits = {key: held(entries) for key, entries in waiting.items()}
        if sum(waits.values()) > WAITING_BATCHES * max_batch_tokens:
            # Many sizes with few photos each: memory counts for more than full batches.
            yield from flush(max(waits, key=lambda key: waits[key]))
    for key in list(waiting):
        yield from flush(key)


def _mixes_sizes(model: DepthAnything) -> bool:
    """Whether photos of different sizes share a batch: on a GPU that the kernels serve."""
    return model.device.type == "cuda" and not triton_missing()


def infer(model: DepthAnything, images: Any, **options: Any) -> Any:
    """Predicts the disparity of photos with a relative model; images and options as in `predict`.

    Raises:
        TypeError: If the model is metric: use `infer_metric`.
    """
    if model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts depth in metres, not disparity: use `infer_metric`"
        )
    return predict(model, images, **options)


def infer_metric(
    model: DepthAnything,
    images: Any,
    *,
    intrinsics: Sequence[float] | np.ndarray | None = None,
    fov: float | None = None,
    **options: Any,
) -> Any:
    """Predicts the depth of photos in metres with a metric model; otherwise as `infer`.

    Args:
        model: A metric model.
        images: As in `predict`.
        intrinsics: The camera, (fx, fy, cx, cy) in pixels of the photo or a 3 x 3 matrix, the same
            for all photos: see `dafast.pointcloud.Intrinsics`. It places the points in space and
            changes nothing in the depth.
        fov: In its place the horizontal field of view in degrees.
        **options: As in `predict`.

    Returns:
        As `predict`, in metres along the optical axis. With ``intrinsics`` or ``fov`` a
        `dafast.pointcloud.PointCloud` for each photo, which has the depth too.

    Raises:
        TypeError: If the model is relative: use `infer`.
        ValueError: If both ``intrinsics`` and ``fov`` are given or one of them is none, or an
            option is out of range.
    """
    if not model.config.is_metric:
        raise TypeError(
            f"{model.config.name!r} predicts relative disparity, not metres: use `infer`, or load "
            "a metric model such as 'v2-metric-hypersim-vits'"
        )
    if intrinsics is None and fov is None:
        return predict(model, images, **options)
    if intrinsics is not None and fov is not None:
        raise ValueError("intrinsics and fov both say what the camera is: give one of them")
    if options.get("return_tensors"):
        raise ValueError("a point cloud holds numpy arrays: leave out return_tensors")
    if fov is None:
        check_intrinsics(intrinsics)  # type: ignore[arg-type]
    single = not isinstance(images, list | tuple)
    photos = []
    for i, image in enumerate([images] if single else images):
        pixels = _load(image, "image" if single else f"image {i}")
        photos.append((pixels if pixels.dtype == torch.uint8 else pixels.permute(1, 2, 0)).numpy())
    clouds = []
    for photo, depth in zip(photos, predict(model, photos, **options), strict=True):
        camera = intrinsics if fov is None else intrinsics_from_fov(fov, *depth.shape)
        clouds.append(point_cloud(depth, photo, camera))  # type: ignore[arg-type]
    return clouds[0] if single else clouds


def check_options(
    config: ModelConfig,
    *,
    fit: str = "pad",
    size: int | None = None,
    padding: str = "replicate",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Checks what can be said of the options of `predict` before any photo is read.

    Raises:
        ValueError: If an option is out of range.
    """
    size = config.image_size if size is None else size
    check_geometry(size=size, multiple=config.patch_size, fit=fit, max_tokens=max_tokens)
    check_padding(1, 1, (0, 0, 0, 0), padding)
    check_count("max_batch_tokens", max_batch_tokens, 1, "it must be at least 1")


@torch.no_grad()  # not inference_mode: its tensors could not take part in training
def predict(
    model: DepthAnything,
    images: Any,
    *,
    fit: str = "pad",
    size: int | None = None,
    padding: str = "replicate",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_tokens: int = MAX_TOKENS,
    flip: bool = False,
    return_tensors: bool = False,
) -> Any:
    """Runs a model of either kind on photos, at their own resolution.

    Args:
        model: A relative or a metric model.
        images: A path, a PIL image, a numpy array (H, W, C) in RGB (uint8, uint16, or floating
            point in 0..1), a tensor (C, H, W) with the same ranges, or a list of them with any
            sizes. Gray, alpha (laid over white), palette and 16-bit images are handled; files
            and PIL images are turned upright by their EXIF orientation.
        fit: ``"pad"`` (keeps the aspect ratio and pads) or ``"official"`` (the official
            script's size rule and bicubic resize).
        size: Shorter side in pixels that the network sees; ``None`` for the size that the model
            was trained at (518 for the published ones).
        padding: ``"replicate"``, ``"reflect"`` or ``"constant"``; for ``fit="pad"``.
        max_batch_tokens: Photos of one network size are run together up to this many tokens; on a
            GPU with Triton, photos of all sizes.
        max_tokens: A photo that needs more tokens is scaled down, with a warning.
        flip: Whether to predict the mirror images too and average the two maps of each photo:
            twice the time, a little more accuracy (test-time augmentation).
        return_tensors: Whether to return float32 tensors on the model's device.

    Returns:
        A float32 numpy array (H, W) for one image, a list of them for a list: disparity of a
        relative model (large where the scene is near; scale and shift are unknown), metres of a
        metric one.

    Raises:
        ImageError: If an image cannot be used; the message names it.
        ValueError: If an option is out of range.
    """
    single = not isinstance(images, list | tuple)
    inputs = [images] if single else list(images)
    options = _checked_options(model, fit, size, padding, max_batch_tokens, max_tokens)
    results: list[Any] = [None] * len(inputs)
    for i, prediction in _predict(model, inputs, options, max_batch_tokens):
        results[i] = prediction
    if flip:
        for i, prediction in _predict(model, inputs, options, max_batch_tokens, mirrored=True):
            results[i] = (results[i] + prediction) / 2
    if not return_tensors:
        results = [prediction.cpu().numpy() for prediction in results]
    return results[0] if single else results


@torch.no_grad()
def predict_native(
    model: DepthAnything,
    images: Sequence[Any],
    *,
    size: int | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[np.ndarray]:
    """As `predict` with ``fit="pad"``, at the network's own resolution: what a label is kept in.

    Args:
        model: A relative or a metric model.
        images: As a list that `predict` takes.
        size: As in `predict`.
        max_batch_tokens: As in `predict`.

    Returns:
        Per image a float32 map of its aspect, rounded to pixels, with the shorter side ``size``.
    """
    options = _checked_options(model, "pad", size, "replicate", max_batch_tokens, MAX_TOKENS)
    results: list[Any] = [None] * len(images)
    for i, prediction in _predict(model, images, options, max_batch_tokens, native=True):
        results[i] = prediction.cpu().numpy()
    return results


def _checked_options(
    model: DepthAnything,
    fit: str,
    size: int | None,
    padding: str,
    max_batch_tokens: int,
    max_tokens: int,
) -> dict[str, Any]:
    """The options of `preprocess`, checked."""
    check_options(
        model.config,
        fit=fit,
        size=size,
        padding=padding,
        max_batch_tokens=max_batch_tokens,
        max_tokens=max_tokens,
    )
    return dict(
        size=model.config.image_size if size is None else size,
        multiple=model.config.patch_size,
        fit=fit,
        padding=padding,
        max_tokens=max_tokens,
        mean=model.config.mean,
        std=model.config.std,
    )

"""ONNX files of every head: exact at every size, readable facts, operators of TensorRT."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dafast import DepthAnything, __version__
from dafast.cli import main
from dafast.export import VerificationError, export
from dafast.export.network import ExportedNetwork
from dafast.export.quantize import file_inputs
from dafast.export.transformers_js import export_folder
from dafast.export.verify import TOLERANCES as BOUNDS
from dafast.export.verify import Check, checked_sizes
from dafast.models.vision_transformer import VisionTransformer
from dafast.ops import resize_bilinear
from dafast.optional import MissingPackageError
from dafast.runtime import FileFacts, NotExportedError, OnnxModel
from tests.export.heads import CONFIGS, HEADS, build
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

TOLERANCE = TOLERANCES[torch.float32].model

SOME = [head if head == "v1" else pytest.param(head, marks=pytest.mark.slow) for head in HEADS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and its ONNX file by the head; each is exported once."""
    folder, made = tmp_path_factory.mktemp("onnx"), {}

    def of(head):
        if head not in made:
            torch.manual_seed(5)
            model, path = build(head), folder / f"{head}.onnx"
            made[head] = model, path, export(model, path)
        return made[head]

    return of


def supported_by_tensorrt() -> set[str]:
    lines = (Path(__file__).parent / "tensorrt_operators.txt").read_text().splitlines()
    return {name for line in lines if not line.startswith("#") for name in line.split()}


@pytest.mark.parametrize("head", SOME)
def test_every_head_exports(exported, head):
    model, path, checks = exported(head)
    assert len({check.shape[2:] for check in checks}) == 5
    assert {check.shape[0] for check in checks} == {1, 2, 3}
    built = onnx.load(path)
    assert {node.op_type for node in built.graph.node} <= supported_by_tensorrt()
    doubles = [x.name for x in built.graph.initializer if x.data_type == onnx.TensorProto.DOUBLE]
    assert not doubles  # TensorRT has no float64
    facts = OnnxModel(path).facts
    config = model.config if head in CONFIGS else model.config.encoder
    assert facts.config == config
    assert facts.version == __version__
    assert facts.classes == (() if head in CONFIGS else model.config.classes)
    strings = {p.key.removeprefix("dafast."): p.value for p in built.metadata_props}
    assert strings["kind"] == (config.quantity if head in CONFIGS else "classes")
    assert json.loads(strings["mean"]) == list(config.mean)
    assert {"unit", "std", "patch", "fit", "size", "license", "version"} <= strings.keys()
    dims = built.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3, "height", "width"]


@pytest.mark.parametrize("head", SOME)
def test_the_runtime_predicts_what_the_model_predicts(exported, head, tmp_path, seed):
    model, path, _ = exported(head)
    # The sky is filled from a threshold on, where rounding may decide: no new pictures there.
    random = np.random.default_rng(3 if head == "da3-metric" else seed)
    loaded = OnnxModel(path)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for size in [(61, 43), (37, 90)]:
        photo = np.asarray(Image.fromarray(coarse).resize(size))
        if head not in CONFIGS:
            differ = loaded.segment(photo) != model.segment(photo)
            assert differ.mean() < 0.01  # near ties may fall either way
            continue
        options = {"fov": 60} if head == "da3-metric" else {}
        for image in (photo, photo.astype(np.float32) / 255):
            out, true = loaded.predict(image, **options), model.predict(image, **options)
            scale = np.abs(true.values).max()
            assert np.abs(out.values - true.values).max() <= TOLERANCE * scale
            for field in ("kind", "unit", "intrinsics", "camera_source", "model"):
                assert getattr(out, field) == getattr(true, field), field
            assert np.array_equal(out.image, true.image)
            if true.sky is not None:
                assert 0 < true.sky.mean() < 1
                assert (out.sky != true.sky).mean() < 0.01


def test_options_of_the_runtime(exported, seed):
    model, path, _ = exported("v1")
    random = np.random.default_rng(seed)
    photo, loaded = random.integers(0, 256, (40, 70, 3), dtype=np.uint8), OnnxModel(path)
    for options in (
        {"fit": "official"},
        {"size": 56, "padding": "reflect"},
        {"fit": "upper_bound", "size": 42},
        {"padding": "constant"},
    ):
        out, true = loaded.predict([photo], **options)[0], model.predict([photo], **options)[0]
        assert np.abs(out.values - true.values).max() <= TOLERANCE * true.values.max(), options
    for options in ({"fit": "stretch"}, {"size": 5}, {"padding": "wrap"}, {"max_tokens": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            loaded.predict(photo, **options)
    with pytest.raises(TypeError, match="predict"):
        loaded.segment(photo)
    with pytest.raises(ValueError, match="pass one of them"):
        loaded.predict(photo, fov=60, intrinsics=(50, 50, 35, 20))
    given = loaded.predict(photo, intrinsics=(50, 50, 35, 20))
    assert tuple(given.intrinsics) == (50, 50, 35, 20) and given.camera_source == "given"
    assert repr(loaded) == f"OnnxModel({model.config.name!r}, disparity, float32)"


def test_run_takes_an_exported_file(exported, tmp_path, capsys, seed):
    model, path, _ = exported("v1")
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    photo = tmp_path / "a.png"
    Image.fromarray(pixels).save(photo)
    command = ["run", str(photo), "--model", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--formats", "npy", "--device", "cpu"]) == 0
    depth, true = np.load(tmp_path / "out" / "a.npy"), model.predict(pixels).values
    assert np.abs(1 / depth - true).max() <= TOLERANCE * np.abs(true).max()
    for options, message in (
        (("--tile", "auto"), "leave out --tile"),
        (("--guided",), "leave out --guided"),
        (("--dtype", "bfloat16"), "with its own dtype: no --dtype"),
        (("--device", "tpu"), "use auto, cpu, cuda, mps"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_run_takes_an_exported_file_of_classes(exported, tmp_path, seed):
    model, path, _ = exported("linear")
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    photo = tmp_path / "a.png"
    Image.fromarray(pixels).save(photo)
    command = ["run", str(photo), "--model", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    (made,) = [p for p in (tmp_path / "out").iterdir() if p.suffix == ".png"][:1]
    assert np.asarray(Image.open(made)).shape[:2] == (40, 70)
    with pytest.raises(TypeError, match="predicts classes, not depth"):
        OnnxModel(path).predict(pixels)
    assert model.segment(pixels).shape == (40, 70)


@pytest.mark.slow
def test_a_file_whose_position_embeddings_hold_for_one_size_is_refused(tmp_path, monkeypatch):
    """The usual fault of exports: the interpolation's scale is that of the traced size."""

    def baked(self, rows, columns):
        with torch.no_grad():
            fixed = self.pos_embed[:, 1:].mean(1, keepdim=True)
        tokens = fixed.expand(-1, int(self.grid_size) ** 2, -1)[:, :1]
        return torch.cat([self.pos_embed[:, :1], tokens.repeat(1, rows * columns, 1)], 1)

    monkeypatch.setattr(VisionTransformer, "_traceable_pos_embed", baked)
    torch.manual_seed(4)
    earlier = tmp_path / "model.onnx"
    earlier.write_bytes(b"an earlier file")
    with pytest.raises(VerificationError, match="predicted_depth of 1x3x28x28: max error"):
        export(build("v1"), earlier)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert earlier.read_bytes() == b"an earlier file"


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["pad", "official"])
def test_with_preprocess_the_file_takes_photos(fit, tmp_path, seed):
    torch.manual_seed(6)
    model, path = build("v2-metric" if fit == "official" else "v1"), tmp_path / "photo.onnx"
    assert model.config.fit == fit
    checks = export(model, path, preprocess=True)
    assert len({check.shape[1:3] for check in checks}) == 5
    built = onnx.load(path)
    assert {node.op_type for node in built.graph.node} <= supported_by_tensorrt()
    random, loaded = np.random.default_rng(seed), OnnxModel(path)
    for _ in range(3):
        size = (*random.integers(20, 150, 2), 3)
        photo = random.integers(0, 256, size, dtype=np.uint8)
        out, true = loaded.predict(photo).values, model.predict(photo).values
        assert np.abs(out - true).max() <= TOLERANCE * np.abs(true).max()
    with pytest.raises(ValueError, match="leave out fit and size"):
        loaded.predict(photo, size=70)


@pytest.mark.slow
def test_fixed_shapes_and_half_precision(tmp_path, seed):
    torch.manual_seed(4)
    model, path = build("v1"), tmp_path / "fixed.onnx"
    checks = export(model, path, shape=(42, 70), batch=2, dtype="float16")
    assert {check.shape for check in checks} == {(2, 3, 42, 70)}
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 3, 42, 70]
    # Scaled to fit inside, 23 x 70, then padded evenly.
    photo = np.random.default_rng(seed).integers(0, 256, (30, 90, 3), dtype=np.uint8)
    plane = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.mean, model.config.std))
    x = (resize_bilinear(plane, (23, 70), antialias=True) - mean) / std
    with torch.no_grad():
        (inside,) = ExportedNetwork(model)(F.pad(x, (0, 0, 9, 10), mode="replicate"))
    true = resize_bilinear(inside[:, None, 9:32], (30, 90))[0, 0].numpy()
    out = OnnxModel(path).predict(photo).values
    assert np.abs(out - true).max() <= TOLERANCES[torch.float16].model * np.abs(true).max()


@pytest.mark.slow
def test_models_of_video_take_clips(tmp_path, seed):
    torch.manual_seed(6)
    model, path = build("clips"), tmp_path / "clips.onnx"
    checks = export(model, path, frames=5)
    assert len({check.shape[3:] for check in checks}) == 5
    assert {check.shape[:3] for check in checks} == {(1, 5, 3)}
    built, loaded = onnx.load(path), OnnxModel(path)
    assert {node.op_type for node in built.graph.node} <= supported_by_tensorrt()
    dims = built.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [1, 5, 3, "height", "width"]
    dims = built.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [1, 5, "height", "width"]
    assert loaded.facts.frames == 5
    clip = np.random.default_rng(seed).standard_normal((1, 5, 3, 84, 56), dtype=np.float32)
    with torch.no_grad():
        true = model(torch.from_numpy(clip)).numpy()
        alone = model(torch.from_numpy(clip[0])).numpy()
    bound = TOLERANCE * np.abs(true).max()
    assert np.abs(true[0] - alone).max() > 10 * bound  # the frames matter to each other
    assert np.abs(loaded.run(clip)["predicted_depth"] - true).max() <= bound
    with pytest.raises(ValueError, match="exported for clips of 5 frames"):
        loaded.predict(np.zeros((30, 40, 3), np.uint8))


@pytest.mark.slow
def test_int8_is_calibrated_on_photos(tmp_path, fixed_rng):
    torch.manual_seed(7)
    model, path = build("v1"), tmp_path / "int8.onnx"
    photos = [fixed_rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(3)]
    checks = export(model, path, dtype="int8", calibrate=photos)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators <= supported_by_tensorrt()
    assert 0 < max(check.relative[1] for check in checks) <= BOUNDS["int8"][1]
    with pytest.raises(ValueError, match="calibrate"):
        export(model, path, dtype="int8")


def test_a_fixed_size_is_calibrated_on_what_the_runtime_gives_it(tmp_path, seed):
    facts = FileFacts(tiny(), shape=(56, 84), dtype="int8")
    photo = np.random.default_rng(seed).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    (padded,) = file_inputs(facts, [photo])
    assert padded.shape == (1, 3, 56, 84)
    # Scaled to 56 x 44, then 20 columns of its borders on each side.
    assert np.array_equal(padded[..., :20], padded[..., 20:21].repeat(20, 3))
    assert np.array_equal(padded[..., 64:], padded[..., 63:64].repeat(20, 3))
    model = DepthAnything(tiny())
    export(model, tmp_path / "fixed.onnx", shape=facts.shape, check=False)
    loaded, seen = OnnxModel(tmp_path / "fixed.onnx"), []
    loaded.run = lambda x: seen.append(x) or {"predicted_depth": x[:, 0]}
    loaded.predict(photo)
    assert np.array_equal(seen[0], padded)
    (stretched,) = file_inputs(facts, [photo], facts.shape)
    assert stretched.shape == padded.shape and np.abs(stretched - padded).max() > 0.1


@pytest.mark.slow
def test_the_folder_of_transformers_js(tmp_path, seed):
    model, folder = build("transformers"), tmp_path / "js"
    photo = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    written = dict(export_folder(model, folder, calibrate=[photo], check=False))
    names = sorted(str(p.relative_to(folder)) for p in written)
    assert names == ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"]
    operators = {node.op_type for node in onnx.load(folder / names[2]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    config = json.loads((tmp_path / "js" / "config.json").read_text())
    assert config["model_type"] == "depth_anything"
    assert (tmp_path / "js" / "preprocessor_config.json").is_file()
    built = onnx.load(tmp_path / "js" / "onnx" / "model_fp16.onnx")
    assert [i.name for i in built.graph.input] == ["pixel_values"]
    assert [o.name for o in built.graph.output] == ["predicted_depth"]
    with pytest.raises(ValueError, match="sky head"):
        next(export_folder(build("da3-metric"), tmp_path / "da3"))


def test_what_cannot_be_exported_is_said(tmp_path):
    model = build("v1")
    for options, text in (
        ({"format": "tflite"}, "use one of onnx, "),
        ({"dtype": "bfloat16"}, "onnx files have float32, float16, int8"),
        ({"shape": (100, 140)}, "multiples of 14"),
        ({"batch": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            export(model, tmp_path / "x.onnx", **options)
    with pytest.raises(ValueError, match=r"suffix of onnx files is \.onnx"):
        export(model, tmp_path / "x.xml")
    with pytest.raises(ValueError, match="preprocess is not possible for torch"):
        export(model, tmp_path / "x.pt2", "torch", preprocess=True)
    with pytest.raises(ValueError, match="resizes photos by fit='upper_bound'"):
        export(build("da3-metric"), tmp_path / "x.onnx", preprocess=True)
    video = DepthAnything(tiny(temporal_frames=8, features=16, out_channels=(8, 8, 8, 8)))
    for options, text in (
        ({"frames": 9}, "takes clips of 1 to 8 frames"),
        ({"frames": 0}, "takes clips of 1 to 8 frames"),
        ({"batch": 2}, "one clip in a call"),
        ({"preprocess": True}, "not possible for clips"),
        ({"dtype": "int8", "calibrate": ["x.png"]}, "calibrated on photos, not on clips"),
    ):
        with pytest.raises(ValueError, match=text):
            export(video, tmp_path / "x.onnx", **options)
    with pytest.raises(ValueError, match="takes images, not clips"):
        export(model, tmp_path / "x.onnx", frames=4)
    with pytest.raises(TypeError, match="Linear is not"):
        export(torch.nn.Linear(2, 2), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dafast.export.onnx_file.why_no_module", lambda name: f"{name} is not installed"
    )
    with pytest.raises(MissingPackageError, match=r"pip install 'dafast\[onnx\]'"):
        export(build("v1"), tmp_path / "x.onnx")


def test_foreign_files_are_named(tmp_path):
    path = tmp_path / "foreign.onnx"
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)],
                                     ir_version=9), path)  # fmt: skip
    with pytest.raises(NotExportedError, match="not a file of `dafast export`"):
        OnnxModel(path)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="cannot load the file"):
        OnnxModel(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")


def test_five_different_sizes_are_verified():
    for grid in range(1, 40):
        for least in (1, 3):
            sizes = checked_sizes(FileFacts(tiny(grid_size=grid)), least)
            assert len({size[1:] for size in sizes}) == 5, (grid, least)
            assert min(min(size[1:]) for size in sizes) >= 14 * least


def test_facts_survive_strings():
    facts = FileFacts(
        tiny(calibration=(2.0, 0.5), license="MIT"), ("a", "b"), "int8", (28, 42), 3, True, 6, "ab"
    )
    assert FileFacts.from_strings(facts.to_strings()) == facts
    plain = FileFacts(tiny())
    assert FileFacts.from_strings(plain.to_strings()) == plain
    for change in ({"config": "{}x"}, {"shape": "wide"}):
        broken = facts.to_strings() | {f"dafast.{k}": v for k, v in change.items()}
        with pytest.raises(NotExportedError):
            FileFacts.from_strings(broken)


def test_errors_beyond_the_bounds_fail():
    check = Check("predicted_depth", (1, 3, 28, 28), maximum=1e-4, mean=1e-5, range=1.0)
    assert check.is_within("float32")
    assert not dataclasses.replace(check, maximum=0.1).is_within("float32")
    assert not dataclasses.replace(check, mean=0.01).is_within("float32")
    assert not dataclasses.replace(check, maximum=float("nan")).is_within("float32")

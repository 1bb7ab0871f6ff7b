"""`dafast video`: files, times, sound, interruptions, exit codes, and wrong input."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

import dafast
from bench import video as bench
from dafast.cli import main
from dafast.cli import video as video_command
from dafast.video import conversion, encoder, rendering, stabilization
from tests import full_disk
from tests.cli.helpers import save_model
from tests.tiny import tiny
from tests.video.clips import (
    TICKS,
    decoded,
    moving,
    packets_of,
    replace_webcams,
    write_clip,
)

UNEVEN = [0, 512, 700, 1500, 1501, 3000, 3300, 4000, 6000, 6100, 7000, 9000]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """12 frames at uneven times, with sound."""
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "in.mp4", moving(12), pts=UNEVEN, sound="aac")


@pytest.fixture
def call(model_folder, capsys):
    def call(*arguments, model=model_folder) -> tuple[int, str]:
        command = ["video", *map(str, arguments), "--model", model, "--dtype", "float32"]
        code = main([*command, "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_the_parser_knows_all_names():
    assert video_command.LAYOUTS == rendering.LAYOUTS
    assert video_command.CODECS == encoder.CODECS
    assert video_command.MODES == stabilization.MODES
    assert tuple(conversion.FRAME_FORMATS) == video_command.FRAME_FORMATS


@pytest.mark.parametrize("options", [[], ["-q"]])
def test_a_terminal_shows_the_progress(call, clip, tmp_path, monkeypatch, options):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert call(clip, "--raw", tmp_path / "out.npz", *options)[0] == 0
    # Frames, the time so far and left, and the rate.
    bar = re.search(r"\b0/12 \[\S+<\S+, +\S+frame/s\]", terminal.getvalue())
    assert bool(bar) == (not options)


@pytest.mark.parametrize("layout", rendering.LAYOUTS)
def test_layouts_keep_times_and_sound(call, clip, tmp_path, layout):
    out = tmp_path / "out.mp4"
    code, text = call(clip, "--out", out, "--layout", layout)
    assert code == 0 and "12 frames written" in text
    frames = decoded(out)
    assert [f.pts * f.time_base for f in frames] == [Fraction(p, TICKS) for p in UNEVEN]
    width = 128 if layout in ("side", "sbs") else 64
    assert (frames[0].width, frames[0].height) == (width, 48)
    assert packets_of(out, "audio") == packets_of(clip, "audio")
    assert not list(tmp_path.glob(".*"))
    picture = frames[5].to_ndarray(format="rgb24").astype(int)
    if layout == "depth":
        assert np.ptp(picture, axis=2).max() <= 2 and np.ptp(picture) > 100
    else:
        assert np.ptp(picture, axis=2).max() > 30
    if layout in ("side", "sbs"):  # the views of both eyes are near the frame
        assert np.abs(picture[:, :64] - moving(12)[5]).mean() < (6 if layout == "side" else 30)


def test_subtitles_titles_and_sound_in_mkv(call, tmp_path):
    path = write_clip(tmp_path / "in.mkv", moving(4), sound="aac", subtitles=True)
    out = tmp_path / "out.mkv"
    code, _ = call(path, "--out", out)
    assert code == 0
    for kind in ("audio", "subtitle"):
        assert packets_of(out, kind) == packets_of(path, kind) != []
    code, text = call(path, "--out", tmp_path / "out.mp4")
    assert code == 1 and "hold its subtitles (srt); write .mkv instead" in text
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("codec", encoder.CODECS)
def test_odd_sizes_aspect_range_and_codecs(call, tmp_path, codec):
    path = write_clip(
        tmp_path / "in.mp4", moving(3, (63, 37)), pixels="yuv444p", aspect=Fraction(4, 3),
        full_range=True,
    )  # fmt: skip
    out = tmp_path / "out.mp4"
    code, text = call(path, "--out", out, "--codec", codec, "--raw", tmp_path / "raw.npz")
    assert code == 0, text
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(4, 3) and not container.streams.audio
        frames = list(container.decode(stream))
    # Gray pictures of FFV1 have no range: they are full.
    assert len(frames) == 3 and frames[0].color_range == (0 if codec == "ffv1" else 2)
    if codec == "ffv1":
        code, text = call(path, "--out", tmp_path / "out.mkv", "--codec", codec)
        assert code == 1 and "pixel aspect 4/3" in text
    raw = np.load(tmp_path / "raw.npz")
    values = raw["disparity"]
    assert values.shape == (3, 37, 63) and values.dtype == np.float32
    np.testing.assert_allclose(raw["time"], [0, 0.04, 0.08], atol=1e-3)
    if codec == "ffv1":
        assert (frames[0].width, frames[0].height, frames[0].format.name) == (63, 37, "gray16le")
        gray, top = frames[1].to_ndarray(), 65535
    else:
        depth = 10 if codec == "hevc10" else 8
        assert (frames[0].width, frames[0].height) == (64, 38)
        kind = "yuv420p10le" if depth == 10 else "yuvj420p"
        assert frames[0].format.name in (kind, "yuv420p")
        gray, top = frames[1].to_ndarray()[:37, :63], 2**depth - 1
    gray = gray / top
    inside = (gray > 0.02) & (gray < 0.98)
    scale, shift = np.polyfit(values[1][inside], gray[inside], 1)
    error = np.abs(gray - np.clip(values[1] * scale + shift, 0, 1)).max()
    assert error < {"h264": 0.05, "hevc10": 0.05, "ffv1": 1e-4}[codec]


def test_narrow_pictures_in_hevc(call, rng, tmp_path):
    """x265's CU tree corrupts the heap at widths of 34 to 48; x265 notes its options in a file."""
    for width, setting in ((47, b" no-cutree "), (70, b" cutree ")):
        noise = [rng.integers(0, 255, (66, width, 3), np.uint8) for _ in range(7)]
        clip = write_clip(tmp_path / f"{width}.mkv", noise, codec="ffv1", pixels="bgr0")
        out = tmp_path / f"{width}.mp4"
        assert call(clip, "--out", out, "--codec", "hevc10")[0] == 0
        assert len(decoded(out)) == 7 and setting in out.read_bytes()


def test_limited_range_stays_limited(call, clip, tmp_path):
    code, _ = call(clip, "--out", tmp_path / "out.mp4")
    frame = decoded(tmp_path / "out.mp4")[3]
    luma = frame.to_ndarray()[:48]
    assert code == 0 and frame.color_range == 1
    # Sharp edges overshoot a little.
    low, high = np.percentile(luma, [2, 98])
    assert low >= 14 and high <= 237


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, dict(kind="metric", max_depth=10.0)])
def test_raw_and_frames_hold_the_exact_values(call, clip, tmp_path, changes):
    folder = save_model(tmp_path / "model", tiny(**changes))
    name = "depth" if changes else "disparity"
    raw, frames = tmp_path / "raw.npz", tmp_path / "frames"
    options = [] if changes else ["--stabilize", "off"]
    for kind in ("exr", "npz", "png16") if changes else ("npz", "png16"):
        code, text = call(
            clip, "--raw", raw, "--frames", kind, frames, "--overwrite", *options, model=folder
        )
        assert code == 0, text
    model = dafast.DepthAnything.from_pretrained(folder, device="cpu", dtype="float32")
    results = list(model.stream(clip, stabilize=None if changes else "off"))
    expected = np.stack([result.values for result in results])
    alone = np.stack([model.predict(result.image).values for result in results])
    np.testing.assert_allclose(expected, alone, rtol=1e-5, atol=1e-5)
    values = np.load(raw)
    np.testing.assert_array_equal(values[name], expected)
    np.testing.assert_allclose(values["time"], np.array(UNEVEN) / TICKS)
    assert len(list(frames.iterdir())) == (36 if changes else 24)
    np.testing.assert_array_equal(np.load(frames / "000004.npz")[name], expected[4])
    png = np.asarray(Image.open(frames / "000004.png"))
    if changes:
        np.testing.assert_array_equal(png, np.round(expected[4].astype(np.float64) * 1000))
    else:
        assert png.min() == 0 and png.max() == 65535


@pytest.fixture
def interrupt(monkeypatch):
    """A context in which Ctrl-C comes as soon as a number of frames is written."""
    run, write = conversion.Conversion.run, conversion.Conversion._write

    @contextlib.contextmanager
    def at(count):
        def interrupted(self):
            yield from run(self)
            raise KeyboardInterrupt

        def cut(self):
            with contextlib.closing(write(self)) as steps:
                for done in steps:
                    yield done
                    if done >= count:
                        return

        with monkeypatch.context() as patch:
            patch.setattr(conversion.Conversion, "run", interrupted)
            patch.setattr(conversion.Conversion, "_write", cut)
            yield

    return at


@pytest.mark.slow
def test_ctrl_c_leaves_a_playable_file_and_resume_gives_the_same(
    call, clip, tmp_path, monkeypatch, interrupt
):
    monkeypatch.setattr(conversion, "SEGMENT", 3)
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert call(clip, "--out", whole, "--raw", tmp_path / "whole.npz")[0] == 0
    with interrupt(7):
        code, text = call(clip, "--out", out, "--raw", tmp_path / "out.npz")
    assert code == 130 and "--resume continues" in text
    assert len(decoded(out)) == 7 and (tmp_path / ".out.mp4.parts").is_dir()
    assert all(time <= UNEVEN[7] / TICKS for time, _ in packets_of(out, "audio"))
    assert call(clip, "--out", out)[0] == 1  # it exists
    code, text = call(clip, "--out", out, "--raw", tmp_path / "out.npz", "--resume", "--every", 2)
    assert code == 1 and "another every" in text
    code, text = call(clip, "--out", out, "--raw", tmp_path / "out.npz", "--resume")
    assert code == 0 and "12 frames" in text
    for suffix in (".mp4", ".npz"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    assert not list(tmp_path.glob(".*"))
    code, text = call(clip, "--out", out, "--raw", tmp_path / "out.npz", "--resume")
    assert code == 0 and "already complete" in text


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [0, 5])
def test_a_temporal_model_goes_on_at_its_last_window(
    call, tmp_path, monkeypatch, interrupt, lookahead
):
    monkeypatch.setattr(conversion, "SEGMENT", 2)
    folder = save_model(tmp_path / "model", tiny(temporal_frames=8))
    clip = write_clip(tmp_path / "in.mkv", moving(19))
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    options = ["--lookahead", lookahead]

    def convert(path, *more):
        raw = path.with_suffix(".npz")
        return call(clip, "--out", path, "--raw", raw, *options, *more, model=folder)

    assert convert(whole)[0] == 0
    for count, resume in ((3, []), (9, ["--resume"]), (15, ["--resume"])):
        with interrupt(count):
            code, text = convert(out, *resume)
        assert code == 130, text
        parts = tmp_path / ".out.mp4.parts"
        assert len(list(parts.glob("*.model"))) <= 1
    code, text = convert(out, "--resume")
    assert code == 0 and "19 frames" in text
    for suffix in (".mp4", ".npz"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_every_start_and_end_cut_the_sound_too(call, clip, tmp_path):
    out = tmp_path / "out.mp4"
    code, _ = call(clip, "--out", out, "--start", "0.1", "--end", "0:0.4", "--every", 2)
    kept = [p for p in UNEVEN if 0.1 <= p / TICKS < 0.4][::2]
    times = [float(f.pts * f.time_base) for f in decoded(out)]
    assert code == 0
    np.testing.assert_allclose(times, [p / TICKS - 0.1 for p in kept], atol=1e-3)
    sound = {content: time for time, content in packets_of(clip, "audio")}
    copied = packets_of(out, "audio")
    assert copied and all(abs(sound[content] - 0.1 - time) < 2e-3 for time, content in copied)
    assert all(0 <= time <= 0.3 for time, _ in copied)


@pytest.mark.slow
def test_one_frame_and_other_sources(call, tmp_path, clip, monkeypatch):
    one = write_clip(tmp_path / "one.mp4", moving(1))
    assert call(one, "--out", tmp_path / "a.mp4")[0] == 0
    assert len(decoded(tmp_path / "a.mp4")) == 1
    (tmp_path / "pictures").mkdir()
    for number, frame in enumerate(moving(3)):
        Image.fromarray(frame).save(tmp_path / "pictures" / f"{number}.png")
    assert call(tmp_path / "pictures", "--out", tmp_path / "b.mp4", "--fps", 5)[0] == 0
    assert [float(f.time) for f in decoded(tmp_path / "b.mp4")] == pytest.approx([0, 0.2, 0.4])
    first, *rest = (Image.fromarray(frame) for frame in moving(3))
    first.save(tmp_path / "d.webp", save_all=True, append_images=rest, duration=[40, 80, 200])
    assert call(tmp_path / "d.webp", "--out", tmp_path / "d.mp4")[0] == 0
    assert [float(f.time) for f in decoded(tmp_path / "d.mp4")] == pytest.approx([0, 0.04, 0.12])
    with av.open(str(tmp_path / "d.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(0.32)
    path = write_clip(tmp_path / "c.mkv", moving(4), sound="aac")
    stdin = io.TextIOWrapper(io.BytesIO(path.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, text = call("-", "--out", tmp_path / "c.mp4")
    assert code == 0 and len(decoded(tmp_path / "c.mp4")) == 4, text
    sound = [content for _, content in packets_of(path, "audio")]
    assert [content for _, content in packets_of(tmp_path / "c.mp4", "audio")] == sound
    assert not list(tmp_path.glob(".*"))


def test_a_webcam(call, tmp_path, monkeypatch, interrupt):
    """FFmpeg's test picture instead of a camera: no end, no length, a clock that does not begin at
    0."""
    replace_webcams(monkeypatch)
    out = tmp_path / "out.mp4"
    code, text = call(0, "--out", out, "--end", 0.4, "--raw", tmp_path / "out.npz")
    assert code == 0 and "10 frames" in text
    assert [float(f.time) for f in decoded(out)] == pytest.approx([i / 25 for i in range(10)])
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["time"], np.arange(10) / 25)
    with interrupt(5):
        code, text = call(0, "--out", out, "--overwrite")
    assert code == 130 and "--resume" not in text and len(decoded(out)) == 5
    code, text = call(0, "--out", tmp_path / "other.mp4", "--resume")
    assert code == 1 and "webcam 0 can be read only once" in text


def test_damaged_videos_give_what_could_be_read(call, rng, tmp_path):
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(12)]
    path = write_clip(tmp_path / "in.mkv", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    code, text = call(path, "--out", tmp_path / "out.mp4")
    assert code == 1 and "DAMAGED" in text and "cut off" in text
    assert 4 <= len(decoded(tmp_path / "out.mp4")) < 12


def test_names_with_a_colon(call, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b.mp4").write_bytes(clip.read_bytes())
    code, text = call("a:b.mp4", "--out", "c:d.mp4")
    assert code == 0 and "12 frames" in text
    assert packets_of(tmp_path / "c:d.mp4", "audio") == packets_of(clip, "audio")


def test_a_full_disk_is_named_and_resume_goes_on(call, rng, tmp_path):
    still = [rng.integers(0, 255, (160, 160, 3), np.uint8)] * 12
    clip, out = write_clip(tmp_path / "in.mkv", still), tmp_path / "out.mkv"
    options = ("--codec", "ffv1", "--layout", "color", "--size", 42)
    with full_disk.limited(40_000):
        code, text = call(clip, "--out", out, *options)
    assert code == 1 and "Traceback" not in text and not out.exists()
    assert f"cannot write {out}: " in text and text.rstrip().endswith("; --resume continues")
    assert call(clip, "--out", out, *options, "--resume")[0] == 0
    assert len(decoded(out)) == 12


def test_measure_prints_the_flicker(call, clip):
    code, text = call(clip, "--measure")
    assert code == 0 and "flicker" in text and "12 frames measured" in text


def test_wrong_options(call, clip, tmp_path, monkeypatch):
    out = tmp_path / "out.mp4"
    for options, message in (
        ([], "nothing to write"),
        (["--out", tmp_path / "a.avi"], "not as .avi"),
        (["--out", tmp_path / "a.mov", "--codec", "ffv1"], "as .mkv or .mp4, not as .mov"),
        (["--out", out, "--frames", "jpg", tmp_path], "--frames jpg"),
        (["--raw", tmp_path / "a.npy"], "must end in .npz"),
        (["--out", out, "--start", 1, "--end", 0.5], "later than the start"),
        (["--out", out, "--start", 60], "within the given start and end"),
        (["--out", out, "--lookahead", -1], "--lookahead -1"),
        (["--out", out, "--palette", "nothing"], "no palette"),
        (["--out", out, "--resume", "--overwrite"], "give one of them"),
        (["--out", clip], "the source itself"),
        (["--out", tmp_path], "is a folder"),
    ):
        code, text = call(clip, *options)
        assert code == 1 and message in text, text
    assert not list(tmp_path.iterdir())
    assert call(tmp_path / "missing.mp4", "--out", out)[0] == 1
    monkeypatch.setitem(encoder._ENCODERS, "h264", "libnothing")
    code, text = call(clip, "--out", out)
    assert code == 1 and "no encoder libnothing" in text and not out.exists()


@pytest.mark.exhaustive
def test_memory_does_not_depend_on_the_length(tmp_path):
    """Peaks of processes of their own, with nano and the frames of the benchmark."""
    peaks = []
    for count in (60, 480):
        path = tmp_path / f"{count}.mp4"
        bench.write_clip(path, count)
        peaks.append(bench.peak_memory(path, tmp_path / "out.mp4", raw=False))
    assert peaks[1] <= 1.05 * peaks[0]

"""Devices and dtypes by name."""

import pytest
import torch

from dafast import DepthAnything, devices


@pytest.fixture(params=[False, True])
def bfloat16_cpu(request, monkeypatch) -> bool:
    """A CPU with and one without bfloat16."""
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: request.param)
    return request.param


def test_auto_takes_bfloat16_only_where_the_hardware_has_it(bfloat16_cpu):
    expected = torch.bfloat16 if bfloat16_cpu else torch.float32
    assert devices.resolve_dtype("auto", "cpu") is expected
    assert devices.resolve_dtype("auto", torch.device("cpu")) is expected


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_cpu_has_bfloat16_reads_the_capabilities(capability, monkeypatch):
    found = {"architecture": "x", "avx512_f": True} | ({capability: True} if capability else {})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    devices.cpu_has_bfloat16.cache_clear()
    try:
        assert devices.cpu_has_bfloat16() is (capability is not None)
    finally:
        devices.cpu_has_bfloat16.cache_clear()


def test_loading_follows_auto(bfloat16_cpu, tmp_path):
    DepthAnything("nano").save_pretrained(tmp_path)
    model = DepthAnything.from_pretrained(tmp_path, device="cpu")
    assert model.dtype is (torch.bfloat16 if bfloat16_cpu else torch.float32)
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("float16", torch.float16), (torch.bfloat16, torch.bfloat16)],
)
def test_dtypes_by_name(name, dtype):
    assert devices.resolve_dtype(name) is dtype


@pytest.mark.parametrize("name", ["int8", "half", torch.int32, 16, None])
def test_unknown_dtypes(name):
    with pytest.raises(ValueError, match=r"dtype=.*'bfloat16'"):
        devices.resolve_dtype(name)


def test_auto_device_exists():
    assert torch.zeros(1, device=devices.resolve_device("auto")).item() == 0


@pytest.mark.parametrize("name", ["nvidia", "cuda:99", "", 3.5])
def test_devices_that_are_not_here(name):
    with pytest.raises(ValueError, match="device="):
        devices.resolve_device(name)


def test_devices_of_other_machines(monkeypatch):
    cuda = torch.device("cuda", 0)
    for hip, capability, expected in ((None, (7, 5), False), (None, (8, 0), True), ("6", (), True)):
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert devices.device_has_bfloat16(cuda) is expected
    assert not devices.device_has_bfloat16(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no Apple GPU"):
        devices.resolve_device("mps")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda a=available: a)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        assert devices.resolve_device() == torch.device("cuda:1" if available else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("platform", ["win32", "linux"])
def test_memory_is_kept_only_by_glibc(monkeypatch, platform):
    monkeypatch.setattr(devices.sys, "platform", platform)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: object())  # as musl: no mallopt
    assert devices.keep_freed_memory.__wrapped__() is False


def test_a_slow_dtype_is_reported_once(monkeypatch, tmp_path, notices):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    devices.warn_if_slow.cache_clear()
    DepthAnything("nano").save_pretrained(tmp_path)
    for dtype in ("float16", "float16", "bfloat16", "bfloat16", "float32"):
        DepthAnything.from_pretrained(tmp_path, device="cpu", dtype=dtype)
    devices.warn_if_slow.cache_clear()
    said = [message for message in notices.messages if "times as long" in message]
    assert ["float16 on a CPU" in said[0], "bfloat16 takes 3" in said[1]] == [True, True]
    assert len(said) == 2

"""What a failed download says, and that an unreachable hub is asked only once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from dafast import DepthAnything
from dafast.models import hub, sources, zoo
from dafast.models.hub import HubError, HubOptions
from dafast.models.weight_files import CheckpointError

Calls = list[dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The downloads; no file is in the cache, and the hub does not answer."""
    made: Calls = []

    def download(name: str, filename: str, **options: Any) -> str:
        made.append({"name": name, "file": filename, **options})
        raise errors.LocalEntryNotFoundError("not in the cache")

    def ask(url: str, **options: Any) -> None:
        made.append({"url": url})
        raise ConnectionError("no route to the host\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(hub, "_answered", set())
    return made


def test_an_unreachable_hub_is_asked_twice_and_the_cache_once(calls: Calls) -> None:
    with pytest.raises(HubError, match=r"could not be reached \(no route to the host\)"):
        hub.fetch_file("owner/name", "a.pth", HubOptions())
    assert [call.get("local_files_only") for call in calls] == [None, None, True]


def test_a_missing_folder_is_said(calls: Calls) -> None:
    with pytest.raises(CheckpointError, match=r"no local file or folder 'folder/model'"):
        DepthAnything.from_pretrained("folder/model", device="cpu")
    assert len([call for call in calls if "url" in call]) == 2  # not for every file
    calls.clear()
    for name in ("a--b/model", "folder/..model", "-a/model", "a/model.git", "a/b/c", "a/b.pth"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            DepthAnything.from_pretrained(name, device="cpu")
    assert calls == []


def test_a_hub_that_has_answered_is_not_asked_again(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, **options: Any) -> None:
        calls.append({"url": url})
        raise errors.FileMetadataError("an answer")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    for _ in range(2):
        with pytest.raises(HubError):
            hub.fetch_file("owner/name", "a.pth", HubOptions())
    assert [call.get("local_files_only") for call in calls] == [None, False, False]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("x"), "could not be reached"),
        (errors.HFValidationError("a wrong name"), "a wrong name"),
        (errors.FileMetadataError("no size"), r"the download failed \(no size\)"),
        (OSError("disk"), r"the download failed \(disk\)"),
    ],
)
def test_refusals(calls: Calls, monkeypatch: pytest.MonkeyPatch, error: Any, message: str) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_answered", {constants.ENDPOINT})
    with pytest.raises(HubError, match=message):
        hub.fetch_file("owner/name", "a.pth", HubOptions())


def test_offline_is_said(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(url: str, **options: Any) -> None:
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        hub.fetch_file("owner/name", "a.pth", HubOptions())
    with pytest.raises(HubError, match="local_files_only=True"):
        hub.fetch_file("owner/name", "a.pth", HubOptions(local_files_only=True))


def test_a_named_file_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(repo_id: str, filename: str, options: HubOptions) -> Path:
        if filename == "sub/config.json":
            raise hub._NotThereError(filename)
        return tmp_path / filename

    monkeypatch.setattr(hub, "_download", download)
    found = sources.locate("owner/name", "sub/best.pth", HubOptions())
    assert found.files == [tmp_path / "sub/best.pth"]
    assert found.config == tmp_path / "config.json" and not found.own_config
    assert found.names == ("best.pth", "sub", "name", "owner")
    known = sources.locate("owner/name", "depth_anything_v2_vits.pth", HubOptions())
    assert known.config is None  # the name says it


def test_weights_in_the_package_and_in_the_cache(calls: Calls) -> None:
    nano, vits = zoo.find("nano"), zoo.find("vits")
    assert nano is not None and vits is not None
    path = sources.cached_file(nano)
    assert path is not None and path.is_file()
    assert sources.cached_file(vits) is None
    assert [call.get("local_files_only") for call in calls] == [True]

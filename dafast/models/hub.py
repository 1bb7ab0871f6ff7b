"""Downloads from the Hugging Face hub; an error says how to download by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .._warnings import WeightsWarning, warn
from ..files import explain

logger = logging.getLogger("dafast")

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names that repositories and folders use for their weights, in order of preference."""


_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\b[\w.-]+\b/\b[\w.-]{1,96}\b")
"""Names that the hub gives to repositories: `huggingface_hub.utils.validate_repo_id`."""


def is_hub_id(name: str | Path) -> bool:
    """Whether a name has the form ``owner/name`` and is not the path of something here."""
    found = isinstance(name, str) and _HUB_ID.fullmatch(name)
    return bool(found) and not Path(name).expanduser().exists()


@dataclass(frozen=True)
class HubOptions:
    """Options of a download: the revision and the folder.

    Attributes:
        revision: Branch, tag or commit.
        cache_dir: Replaces the hub's own cache.
        local_files_only: Whether to look only in the cache.
        token: Of the user; None for that of the environment, False for none.
        force_download: Whether to download a file that is in the cache again.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False


class HubError(ValueError):
    """A file could not be fetched from the hub."""


class _NotThereError(Exception):
    """The hub answered that the repository has no such file."""


def _repository(repo_id: str) -> tuple[str, str | None]:
    """Name and kind as huggingface_hub takes them: "spaces/owner/name" is a space."""
    if repo_id.startswith("spaces/"):
        return repo_id.removeprefix("spaces/"), "space"
    return repo_id, None


def _download(repo_id: str, filename: str, options: HubOptions) -> Path:
    """Fetches one file into the cache, or takes it from there.

    Raises:
        _NotThereError: If the repository has no such file.
        HubError: If the hub was not reached, or refused.
    """
    import huggingface_hub
    from huggingface_hub import errors

    name, kind = _repository(repo_id)
    local = options.local_files_only
    silence = None if local else _why_silent(repo_id, filename, options)
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                name,
                filename,
                repo_type=kind,
                revision=options.revision,
                cache_dir=options.cache_dir,
                local_files_only=local or silence is not None,
                token=options.token,
                force_download=options.force_download,
            )
        )
    except errors.LocalEntryNotFoundError as error:
        # Any failure to reach the hub also ends here, after a look into the cache.
        reason = silence or error.__cause__ or error
        if local:
            why = "local_files_only=True, and the file is not in the cache"
        elif isinstance(reason, errors.OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set, and the file is not in the cache"
        else:
            why = f"the hub could not be reached ({_first_line(reason)})"
        raise HubError(why) from error
    except errors.EntryNotFoundError as error:
        raise _NotThereError(filename) from error
    except errors.GatedRepoError as error:
        raise HubError(
            "the repository is gated: accept its terms on its page, then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            "the hub has no such repository, or it is private (then set HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"the repository has no revision {options.revision!r}") from error
    except errors.HFValidationError as error:
        raise HubError(_first_line(error)) from error
    except (errors.HfHubHTTPError, errors.FileMetadataError, OSError) as error:
        raise HubError(f"the download failed ({_first_line(error)})") from error


_answered: set[str] = set()
"""Addresses of hubs that have answered this process."""


def _why_silent(repo_id: str, filename: str, options: HubOptions) -> Exception | None:
    """The error if the hub cannot be reached; None if it answers, also with a refusal.

    Without this question `hf_hub_download` tries for half a minute to reach a hub.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if constants.ENDPOINT in _answered:
        return None
    name, kind = _repository(repo_id)
    silence: Exception | None = None
    for _ in range(2):
        try:
            url = hf_hub_url(name, filename, repo_type=kind, revision=options.revision)
            get_hf_file_metadata(url, token=options.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (errors.HfHubHTTPError, errors.FileMetadataError):
            pass  # the hub has answered
        except Exception as error:  # of the HTTP library, and of the offline mode
            silence = error
            continue
        _answered.add(constants.ENDPOINT)
        return None
    return silence


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _by_hand(repo_id: str, filenames: Sequence[str], revision: str | None, config: str) -> str:
    """Instructions for a user who fetches the files without dafast."""
    from huggingface_hub import constants, hf_hub_url

    folder = repo_id.split("/")[-1]
    name, kind = _repository(repo_id)
    first = hf_hub_url(
        name, filenames[0], repo_type=kind, revision=revision, endpoint=constants.ENDPOINT
    )
    hint = f", config={config!r}" if config else ""
    if len(filenames) == 1:
        return (
            f"To fetch it by hand: save {first} as ./{folder}/{filenames[0]} (any folder "
            f"works) and call DepthAnything.from_pretrained('./{folder}/{filenames[0]}'{hint})."
        )
    return (
        f"To fetch it by hand: save {first} and the weights next to it "
        f"({' or '.join(filenames[1:])}) into one folder, e.g. ./{folder}/, and call "
        f"DepthAnything.from_pretrained('./{folder}'{hint})."
    )


def fetch_file(repo_id: str, filename: str, options: HubOptions, *, config: str = "") -> Path:
    """Downloads one file of a repository, or finds it in the cache.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` have their usual effect
    (`huggingface_hub.hf_hub_download`).

    Args:
        repo_id: ``"owner/name"``, or ``"spaces/owner/name"`` for the files of a space.
        filename: Within the repository.
        options: Revision and cache.
        config: Preset to name in the instructions for fetching by hand.

    Raises:
        HubError: If it cannot be fetched; the message says which file to fetch by hand, from
            where, and where to put it.
    """
    try:
        return _download(repo_id, filename, options)
    except _NotThereError as error:
        raise HubError(f"{repo_id}: the repository has no file {filename!r}") from error
    except HubError as error:
        hand = _by_hand(repo_id, [filename], options.revision, config)
        raise HubError(f"{repo_id}: {filename}: {explain(error)}. {hand}") from error


def fetch_model(repo_id: str, options: HubOptions) -> tuple[Path | None, list[Path]]:
    """Downloads config.json and the weights of a repository of unknown contents.

    Args:
        repo_id: ``"owner/name"``.
        options: Revision and cache.

    Returns:
        The config.json, if there is one, and the files with the weights: one, or all shards.

    Raises:
        HubError: As `fetch_file`.
    """
    config = None
    unreachable = None
    for name in ("config.json", *WEIGHT_FILES):
        try:
            path = _download(repo_id, name, options)
        except _NotThereError:
            continue
        except HubError as error:
            unreachable = unreachable or error
            if not isinstance(error.__cause__, FileNotFoundError):
                break  # no such repository or no access: the next file would fail too
            # The hub did not answer; the other files may be in the cache.
            options = dataclasses.replace(options, local_files_only=True)
            continue
        if name == "config.json":
            config = path
        elif name.endswith(".index.json"):
            return config, _fetch_shards(repo_id, path, options)
        else:
            return config, [path]
    if unreachable is not None:
        files = ["config.json", *WEIGHT_FILES[::2]]
        raise HubError(
            f"{repo_id}: {unreachable}. {_by_hand(repo_id, files, options.revision, '')}"
        ) from unreachable
    raise HubError(
        f"{repo_id}: the repository has none of {', '.join(WEIGHT_FILES)}; name the file with "
        "filename="
    )


def _fetch_shards(repo_id: str, index: Path, options: HubOptions) -> list[Path]:
    """Downloads the files that an index names.

    Raises:
        HubError: If it is not an index, or a file is missing or cannot be fetched.
    """
    try:
        names = shard_names(index)
    except ValueError as error:
        raise HubError(f"{repo_id}: {error}") from error
    files = []
    for name in names:
        try:
            files.append(_download(repo_id, name, options))
        except _NotThereError as error:
            raise HubError(
                f"{repo_id}: the repository has no file {name!r}, which {index.name} names"
            ) from error
        except HubError as error:
            hand = [index.name, "the files that it names"]
            raise HubError(
                f"{repo_id}: {name}: {error}. {_by_hand(repo_id, hand, options.revision, '')}"
            ) from error
    return files


def fetch_config(repo_id: str, filename: str, options: HubOptions) -> Path | None:
    """Downloads the config.json that is next to a file of a repository, or at its root.

    Returns:
        None if it is missing, or, with a warning, if it cannot be fetched.
    """
    from huggingface_hub import constants

    for folder in PurePosixPath(filename).parents:
        try:
            return _download(repo_id, str(folder / "config.json"), options)
        except _NotThereError:
            continue
        except HubError as error:
            if options.local_files_only or constants.HF_HUB_OFFLINE:
                logger.info("%s: no config.json (%s)", repo_id, error)
            else:
                warn(
                    WeightsWarning, f"{repo_id}: config.json, if there is one, is not used: {error}"
                )
            options = dataclasses.replace(options, local_files_only=True)  # do not wait again
    return None


def hub_config(repo_id: str) -> Path | None:
    """The config.json at the root of a repository: that of the cache, else downloaded.

    Returns:
        None if it is missing or cannot be fetched.
    """
    for local in (True, False):
        with contextlib.suppress(_NotThereError, HubError):
            return _download(repo_id, "config.json", HubOptions(local_files_only=local))
    return None


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, each once and in order.

    Raises:
        ValueError: If it is not an index of shards, or a name leads out of its folder.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of shards ({explain(error)})") from error
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index}: shard {name!r} is not a plain file name")
    return names

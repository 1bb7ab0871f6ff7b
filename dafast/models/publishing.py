"""Uploads models to the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .hub import WEIGHT_FILES, HubError
from .model_card import TrainingRun, model_card

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


class Publishable:
    """Gives a model with ``save_pretrained`` the method ``push_to_hub``."""

    save_pretrained: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload model",
        card: str | None = None,
        run: str | Path | None = None,
        base_model: str | None = None,
        license: str | None = None,
        **options: Any,
    ) -> str:
        """Uploads the model to the Hugging Face hub, in one commit.

        The commit has what `save_pretrained` writes, and a model card (README.md) if the
        repository has none yet; it removes the weights of an earlier upload that would be read
        instead. Nothing is uploaded if saving fails.

        Args:
            repo_id: ``"owner/name"``, or ``"name"`` for your own account; created if missing.
            private: Whether a new repository is private; by default as its owner has chosen.
            token: Token of the hub; by default that of ``HF_TOKEN`` or ``hf auth login``.
            branch: Branch to commit to, created if missing; the main branch by default.
            create_pr: Whether to open a pull request instead of committing to the main branch.
            commit_message: First line of the commit's message.
            card: Text of README.md, which replaces an existing one. By default
                `dafast.models.model_card.model_card` writes it.
            run: For the card: a folder with ``evaluation.json`` in a training run, for example
                ``runs/x/best``; by default the folder that the model was loaded from.
            base_model: For the card: hub id of the model that training started from, "" for none.
                By default that of the run, else that of the published model that was loaded.
            license: For the card: license of the weights, "" for none; by default that of the base
                model.
            **options: Of `save_pretrained`, such as ``layout="transformers"`` or ``dtype``.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ValueError: As `save_pretrained`; also if ``branch`` and ``create_pr`` are both given,
                or ``run`` is not in a training run.
            HubError: If the hub was not reached, or refused; the message says why.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        if branch and create_pr:
            raise ValueError("create_pr opens a pull request for the main branch: leave out branch")
        if run is not None:
            TrainingRun.named(run)  # an error comes before the upload
        hub = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            with _explained(repo_id):
                name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if branch:
                    hub.create_branch(name, branch=branch, exist_ok=True)
                there = set(hub.list_repo_files(name, revision=branch))
            files: dict[str, Path | bytes] = {path.name: path for path in Path(folder).iterdir()}
            if card is None and "README.md" not in there:
                layout = options.get("layout", "official")
                card = model_card(
                    self, name, run=run, layout=layout, base_model=base_model, license=license
                )
            if card is not None:
                files["README.md"] = card.encode()
            stale = [file for file in there if file not in files and _is_ours(file)]
            changes: list[Any] = [
                *(CommitOperationAdd(file, content) for file, content in sorted(files.items())),
                *(CommitOperationDelete(file) for file in sorted(stale)),
            ]
            with _explained(repo_id):
                commit = hub.create_commit(
                    name,
                    changes,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                )
        return commit.pr_url or commit.commit_url


def _is_ours(file: str) -> bool:
    """Whether a file at the top of a repository has weights of an earlier upload."""
    return bool(_SHARD.fullmatch(file)) or file in WEIGHT_FILES


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Converts errors of the hub's client to a `HubError`."""
    try:
        yield
    except Exception as error:  # of the client, of its HTTP library, of the system
        status = getattr(getattr(error, "response", None), "status_code", None)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = " ".join(lines[:2]) or type(error).__name__
        if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
            why = f"no valid token ({why}): run `hf auth login`, set HF_TOKEN or pass token="
        elif status == 403:
            why = f"the token may not write to this repository ({why})"
        raise HubError(f"{repo_id}: nothing was uploaded: {why}") from error

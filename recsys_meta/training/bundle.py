"""A fitted learner in a folder: safetensors, JSON, vocabularies, and a manifest with the sha256 of each of them.

    weights.safetensors     parameters and buffers
    bundle.json             class, settings, sizes, versions, and what the caller adds (metrics, features, seed)
    vocabularies/user, /item   the fitted encoders
    manifest.json           size and sha256 of every other file

Nothing in it is code and nothing is unpickled. Every byte is checked before any is used.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import polars as pl
import torch
from safetensors.torch import load, save
from torch import Tensor

from recsys_meta.algorithms.base import Learner
from recsys_meta.episodes import FeatureEncoder
from recsys_meta.store.atomic import replace_folder_atomically
from recsys_meta.tensors import FeatureSizes, Sizes
from recsys_meta.training.building import BuildError, build

FORMAT = 1
MANIFEST = "manifest.json"
DESCRIPTION = "bundle.json"
WEIGHTS = "weights.safetensors"
VOCABULARIES = "vocabularies"
SIDES = ("user", "item")
KINDS = (".safetensors", ".json", ".parquet")  # none of which can hold code
JSON_LIMIT = 64 * 2**20  # bytes: far above any manifest or description, far below what could hurt


class BundleError(Exception):
    """A bundle that is incomplete, damaged, of another format, or asks for what is not allowed."""

    exit_code: ClassVar[int] = 3


class Encoder(Protocol):
    """What is wanted of an encoder to be saved."""

    @property
    def sizes(self) -> FeatureSizes:
        """What a learner has to provide for."""
        ...

    def save(self, folder: Path) -> None:
        """Writes itself into a folder."""
        ...


@dataclass(frozen=True)
class Bundle:
    """What a night needs of a fitted learner."""

    learner: Learner  # in evaluation mode, on the CPU
    user_encoder: FeatureEncoder
    item_encoder: FeatureEncoder
    class_path: str
    init_args: Mapping[str, Any]
    versions: Mapping[str, str]  # of the packages it was written with
    meta: Mapping[str, Any]  # what the writer added
    fingerprint: str  # sha256 of the manifest: names the content of the whole bundle


def save_bundle(
    folder: Path,
    learner: Learner,
    *,
    class_path: str,
    init_args: Mapping[str, Any],
    user_encoder: Encoder,
    item_encoder: Encoder,
    meta: Mapping[str, Any] | None = None,
) -> str:
    """Writes a bundle beside ``folder``, then lets it take its place, whole; gives its fingerprint.

    Args:
        folder: created, or replaced.
        learner: fitted.
        class_path, init_args: what it was built from; ``build`` has to give the same learner again.
        user_encoder, item_encoder: fitted.
        meta: anything that JSON can hold.

    Raises:
        BundleError: ``class_path`` does not name the class of ``learner``, or ``meta`` is not JSON.
    """
    if class_path.rpartition(".")[2] != type(learner).__name__:
        raise BundleError(
            f"class_path {class_path} does not name the learner's class, {type(learner).__qualname__}"
        )
    description = {
        "format": FORMAT,
        "class_path": class_path,
        "init_args": dict(init_args),
        "sizes": {side: getattr(learner.sizes, side)._asdict() for side in SIDES},
        "versions": {name: _version(name) for name in ("recsys-meta", "torch", "safetensors", "polars")},
        "meta": dict(meta or {}),
    }
    try:
        text = json.dumps(description, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"init_args and meta have to fit into JSON: {error}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder_atomically(folder) as new:
        weights = {
            name: value.detach().cpu().contiguous().clone() for name, value in learner.state_dict().items()
        }
        # In memory first: a disk that is full then says so with an OSError, and not in a library's own words.
        (new / WEIGHTS).write_bytes(save(weights))
        (new / DESCRIPTION).write_text(text, encoding="utf8")
        for side, encoder in zip(SIDES, (user_encoder, item_encoder), strict=True):
            place = new / VOCABULARIES / side
            place.mkdir(parents=True)
            encoder.save(place)
        manifest = _manifest_text({_name(path, new): _entry(path.read_bytes()) for path in _files(new)})
        (new / MANIFEST).write_text(manifest, encoding="utf8")
    return hashlib.sha256(manifest.encode()).hexdigest()


def load_bundle(folder: Path, *, allow: Sequence[str] = ()) -> Bundle:
    """Checks every byte, then builds the learner and its encoders.

    Args:
        folder: as written by ``save_bundle``; may come from anybody.
        allow: packages besides ``recsys_meta`` that its learner may come from.

    Raises:
        BundleError: a file is missing, unknown or changed, the format is another, or the class is not an allowed learner.
    """
    fingerprint = check_bundle(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf8"))
        if description["format"] != FORMAT:
            raise BundleError(f"{folder}: bundle format {description['format']}; this version reads {FORMAT}")
        sizes = Sizes(*(_feature_sizes(description["sizes"][side]) for side in SIDES))
        class_path, init_args = description["class_path"], description["init_args"]
        learner = build(class_path, init_args, sizes, allow=allow)
        _load_weights(learner, load((folder / WEIGHTS).read_bytes()))
        user_encoder, item_encoder = (FeatureEncoder.load(folder / VOCABULARIES / side) for side in SIDES)
    except BundleError:
        raise
    except BuildError as error:
        raise BundleError(f"{folder}: {error}") from error
    except (Exception, pl.exceptions.PanicException) as error:  # whole, but not of our making
        raise BundleError(f"{folder}: not a readable bundle ({type(error).__name__}: {error})") from error
    if (user_encoder.sizes, item_encoder.sizes) != (sizes.user, sizes.item):
        raise BundleError(f"{folder}: the vocabularies do not fit the learner")
    learner.eval()
    return Bundle(
        learner,
        user_encoder,
        item_encoder,
        class_path,
        init_args,
        description["versions"],
        description["meta"],
        fingerprint,
    )


def check_bundle(folder: Path) -> str:
    """Compares every file with the manifest, and gives the bundle's fingerprint.

    Raises:
        BundleError: a file is missing, unknown or changed.
    """
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: no bundle there ({MANIFEST} is missing)")
    raw = _read_limited(folder / MANIFEST)
    try:
        files = json.loads(raw)["files"]
        written = _manifest_text(
            {name: {"sha256": str(e["sha256"]), "size": int(e["size"])} for name, e in files.items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{folder}: {MANIFEST} is damaged ({type(error).__name__}: {error})") from error
    if written.encode() != raw:  # one content has one spelling, so no changed byte goes unseen
        raise BundleError(f"{folder}: {MANIFEST} is damaged")
    present = {_name(path, folder): path for path in _files(folder) if path != folder / MANIFEST}
    for what, names in (
        ("missing", files.keys() - present.keys()),
        ("unknown", present.keys() - files.keys()),
    ):
        if names:
            raise BundleError(f"{folder}: {what} files: {', '.join(sorted(names))}")
    if strange := sorted(name for name, path in present.items() if path.suffix not in KINDS):
        raise BundleError(f"{folder}: {', '.join(strange)}: expected files of {', '.join(KINDS)} only")
    for name, path in present.items():
        if path.stat().st_size != files[name]["size"] or _entry(path.read_bytes()) != files[name]:
            raise BundleError(f"{folder}: {name} is not what was written (its size or sha256 differs)")
    return hashlib.sha256(raw).hexdigest()


def _load_weights(learner: Learner, weights: Mapping[str, Tensor]) -> None:
    """Puts the weights in; buffers may have got their shape from the data they were fitted on."""
    for path, module in learner.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            saved = weights.get(f"{path}.{name}" if path else name)
            if saved is not None and saved.shape != buffer.shape:
                setattr(module, name, torch.empty_like(saved, dtype=buffer.dtype))
    learner.load_state_dict(weights)


def _feature_sizes(values: Mapping[str, Any]) -> FeatureSizes:
    restored: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return FeatureSizes(**restored)


def _files(folder: Path) -> list[Path]:
    """Every entry below that is not a folder; a link would lead out of what the manifest vouches for."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{folder}: {path.name} is neither a file nor a folder")
    return [path for path in paths if path.is_file()]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _entry(content: bytes) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def _manifest_text(files: Mapping[str, Mapping[str, str | int]]) -> str:
    return json.dumps({"files": files}, indent=1, sort_keys=True)


def _read_limited(path: Path) -> bytes:
    if path.stat().st_size > JSON_LIMIT:
        raise BundleError(f"{path} has {path.stat().st_size} bytes; at most {JSON_LIMIT} are expected")
    return path.read_bytes()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"

"""Tests of bundles: what is saved is what is loaded, and nothing else ever is."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys_meta.algorithms.maml import MAML
from recsys_meta.episodes import FeatureEncoder
from recsys_meta.tables import ITEM_ID, USER_ID, Feature
from recsys_meta.tensors import Catalogue, Examples, Sizes
from recsys_meta.training import bundle as bundles
from recsys_meta.training.bundle import BundleError, load_bundle, save_bundle

CLASS = "recsys_meta.algorithms.maml.MAML"
SETTINGS: dict[str, Any] = {"dim": 4, "num_steps": 2, "head": "mlp", "hidden": [6]}
USERS = pl.DataFrame({USER_ID: [1, 2, 3], "city": ["a", "b", "a"]})
ITEMS = pl.DataFrame({ITEM_ID: ["x", "y"], "genres": [["p", "q"], ["q"]], "price": [1.0, 3.0]})


def encoders() -> tuple[FeatureEncoder, FeatureEncoder]:
    return (
        FeatureEncoder.fit(USERS[USER_ID], USERS, [Feature("city", "categorical")]),
        FeatureEncoder.fit(ITEMS[ITEM_ID], ITEMS, [Feature("genres", "multi"), Feature("price", "number")]),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole bundle."""
    torch.manual_seed(0)
    user_encoder, item_encoder = encoders()
    learner = MAML(Sizes(user_encoder.sizes, item_encoder.sizes), **SETTINGS)
    save_bundle(
        tmp_path / "bundle",
        learner,
        class_path=CLASS,
        init_args=SETTINGS,
        user_encoder=user_encoder,
        item_encoder=item_encoder,
        meta={"metrics": {"ndcg@10": 0.4}, "seed": 3},
    )
    return tmp_path / "bundle"


def resealed(folder: Path) -> None:
    """What somebody with bad intent can do: a manifest that fits the changed files."""
    (folder / "manifest.json").unlink()
    files = {
        bundles._name(path, folder): bundles._entry(path.read_bytes()) for path in bundles._files(folder)
    }
    (folder / "manifest.json").write_text(bundles._manifest_text(files))


def described(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the description, and the manifest with it."""
    description = json.loads((folder / "bundle.json").read_text())
    change(description)
    (folder / "bundle.json").write_text(json.dumps(description))
    resealed(folder)


def test_a_loaded_learner_scores_as_the_saved_one_did(folder: Path) -> None:
    torch.manual_seed(0)
    user_encoder, item_encoder = encoders()
    learner = MAML(Sizes(user_encoder.sizes, item_encoder.sizes), **SETTINGS).eval()
    loaded = load_bundle(folder)
    assert not loaded.learner.training
    support = Examples(
        torch.tensor([[0, 1], [1, 0]]), torch.tensor([[4.0, 1.0], [2.0, 0.0]]), torch.ones(2, 2) > 0
    )
    users = loaded.user_encoder.encode(pl.Series(USER_ID, [3, 9]), USERS)
    scores = []
    for one, encoder in ((learner, item_encoder), (loaded.learner, loaded.item_encoder)):
        features = encoder.encode(ITEMS[ITEM_ID], ITEMS)
        catalogue = Catalogue(features, torch.zeros(2), torch.ones(2, dtype=torch.bool))
        codes = one.encode(catalogue)
        scores.append(one.predict(one.adapt(support, users, codes), codes))
    assert torch.equal(*scores)


def test_a_bundle_says_where_it_comes_from(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert (bundle.class_path, bundle.init_args) == (CLASS, SETTINGS)
    assert bundle.meta == {"metrics": {"ndcg@10": 0.4}, "seed": 3}
    assert bundle.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert len(bundle.fingerprint) == 64


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path) -> None:
    before = load_bundle(folder)
    user_encoder, item_encoder = encoders()
    settings: dict[str, Any] = {
        "class_path": CLASS,
        "init_args": SETTINGS,
        "user_encoder": user_encoder,
        "item_encoder": item_encoder,
    }
    same = save_bundle(tmp_path / "same", before.learner, **settings, meta=before.meta)
    assert same == before.fingerprint == load_bundle(tmp_path / "same").fingerprint
    with torch.no_grad():
        next(before.learner.parameters()).add_(1e-3)
    assert save_bundle(tmp_path / "same", before.learner, **settings, meta=before.meta) != same
    assert load_bundle(tmp_path / "same").fingerprint != same


def test_there_is_no_pickle_in_a_bundle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        with pytest.raises(Exception):  # noqa: B017, PT011  (whatever the unpickler says)
            pickle.loads(path.read_bytes())


def test_every_flipped_bit_is_found(folder: Path, tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = folder / "manifest.json"
    places = [(manifest, byte) for byte in range(0, manifest.stat().st_size, 2)]  # JSON forgives much
    for path in files:
        size = path.stat().st_size
        places += [(path, int(torch.randint(size, (), generator=chance))) for _ in range(10)]
    for path, byte in places:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[byte] ^= 1 << int(torch.randint(8, (), generator=chance))
        path.write_bytes(flipped)
        with pytest.raises(BundleError):
            bundles.check_bundle(folder)
        path.write_bytes(content)
    load_bundle(folder)


def test_a_damaged_bundle_is_refused_before_any_of_it_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(bundles, "build", lambda *_, **__: pytest.fail("built"))
    monkeypatch.setattr(bundles, "load", lambda *_: pytest.fail("read"))
    with pytest.raises(BundleError, match=r"weights\.safetensors is not what was written"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "bundle.json", "manifest.json", "vocabularies/item/encoder.json"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name.rpartition("/")[2]):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name", ["notes.txt", "vocabularies/user/more.parquet", "vocabularies/manifest.json"]
)
def test_an_unknown_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("hello")
    with pytest.raises(BundleError, match=f"unknown files: {name}"):
        load_bundle(folder)


def test_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "weights.safetensors", tmp_path / "elsewhere")
    (folder / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="neither a file nor a folder"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "null", '{"files": 3}', '{"files": {"a": 3}}', '{"files": {}}', "[" * 100_000, "\x00", "{"],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, manifest: str) -> None:
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_a_folder_without_a_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.exec",
        "recsys_meta_evil.Learner",
        "pathlib.Path",
        "torch.nn.Linear",
    ],
)
def test_a_class_from_elsewhere_is_not_even_imported(
    folder: Path, class_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(folder, lambda d: d.update(class_path=class_path, init_args={}))
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(BundleError, match="not imported"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "class_path",
    [
        "recsys_meta.training.bundle.Path",
        "recsys_meta.training.bundle.save_bundle",
        "recsys_meta.tensors.Sizes",
    ],
)
def test_what_is_no_learner_is_not_called(folder: Path, class_path: str) -> None:
    described(folder, lambda d: d.update(class_path=class_path, init_args={}))
    with pytest.raises(BundleError, match="not a learner"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=2),
        lambda d: d.pop("sizes"),
        lambda d: d.update(sizes={"user": {}, "item": {"columns": 3}}),
        lambda d: d["sizes"]["item"].update(ids=7),
        lambda d: d["sizes"]["item"].update(ids=-7),
        lambda d: d["sizes"]["item"].update(ids="many"),
        lambda d: d["init_args"].update(dim=5),
        lambda d: d["init_args"].update(dim=10**12),
        lambda d: d["init_args"].update(colour="red"),
        lambda d: d.update(init_args=[1]),
        lambda d: d.update(class_path=7),
    ],
)
def test_a_description_that_does_not_fit_is_refused_even_if_the_manifest_does(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    described(folder, change)
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_weights_that_do_not_fit_are_refused_even_if_the_manifest_does(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "weights.safetensors")
    resealed(folder)
    with pytest.raises(BundleError, match="not a readable bundle"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "bundle.json", "vocabularies/item/ids.parquet"])
def test_rubbish_is_refused_even_if_the_manifest_fits(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"PAR1" + b"\xff" * 200 + b"PAR1")
    resealed(folder)
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_a_class_path_that_is_not_the_learners_is_refused_when_saving(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match="does not name"):
        save_bundle(
            tmp_path / "new",
            bundle.learner,
            class_path="recsys_meta.algorithms.maml.FOMAML",
            init_args={},
            user_encoder=bundle.user_encoder,
            item_encoder=bundle.item_encoder,
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("meta", [{"when": object()}, {"loss": float("nan")}])
def test_meta_that_is_not_json_is_refused_and_the_old_bundle_stays(
    folder: Path, meta: dict[str, Any]
) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match="JSON"):
        save_bundle(
            folder,
            bundle.learner,
            class_path=CLASS,
            init_args=SETTINGS,
            user_encoder=bundle.user_encoder,
            item_encoder=bundle.item_encoder,
            meta=meta,
        )
    assert load_bundle(folder).fingerprint == bundle.fingerprint


def test_a_save_that_fails_leaves_the_old_bundle_and_nothing_else(folder: Path) -> None:
    bundle = load_bundle(folder)

    class Full:
        sizes = bundle.item_encoder.sizes

        def save(self, folder: Path) -> None:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        save_bundle(
            folder,
            bundle.learner,
            class_path=CLASS,
            init_args=SETTINGS,
            user_encoder=bundle.user_encoder,
            item_encoder=Full(),
        )
    assert load_bundle(folder).fingerprint == bundle.fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_buffers_may_have_the_shape_that_the_data_gave_them(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    bundle = load_bundle(folder)

    class Counting(MAML):
        def __init__(self, sizes: Sizes, **settings: Any) -> None:
            super().__init__(sizes, **settings)
            self.register_buffer("seen", torch.zeros(0, dtype=torch.int64))

    monkeypatch.setattr("recsys_meta.algorithms.maml.Counting", Counting, raising=False)
    learner = Counting(bundle.learner.sizes, **SETTINGS)
    learner.seen = torch.tensor([5, 6, 7])
    save_bundle(
        tmp_path / "new",
        learner,
        class_path="recsys_meta.algorithms.maml.Counting",
        init_args=SETTINGS,
        user_encoder=bundle.user_encoder,
        item_encoder=bundle.item_encoder,
    )
    assert load_bundle(tmp_path / "new").learner.get_buffer("seen").tolist() == [5, 6, 7]

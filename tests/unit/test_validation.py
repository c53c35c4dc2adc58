"""The second transfer of a retrained model, which chooses how much to remove."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import CLASSES, TRAIN_PER_CLASS, planted_images, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.stages import RetrainedTransferStage, SourceStage
from transfer_influence.config.study import Subset
from transfer_influence.counterfactual.tables import VALIDATION
from transfer_influence.counterfactual.validation import validation_split
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.held_out import hold_out
from transfer_influence.datasets.sidecar import Sidecar, read_sidecar
from transfer_influence.errors import UserError
from transfer_influence.job import JobOptions
from transfer_influence.provenance import Origin, identity
from transfer_influence.subsets import source_models
from transfer_influence.training.sources import train_sources
from transfer_influence.training.transfers import transfer

SMALL = Architecture(width=4)
ALONE = JobOptions(gpus=0, processes=1, workers=1, scratch=None, failed_models="stop")


def stage(fraction: float = 0.25, seed: int = 0, target: str = "planted") -> RetrainedTransferStage:
    return RetrainedTransferStage(
        seed=seed,
        target=target,
        mode="full",
        architecture=SMALL,
        # So few steps that models differ.
        recipe=TargetRecipe(**recipe_values(learning_rate=0.01)),
        validation_fraction=fraction,
    )


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 99)
)
def test_a_share_of_each_class_is_held_out_but_never_none_or_all(labels, fraction, seed):
    labels = np.array(labels)
    left, held_out = hold_out(labels, fraction, np.random.default_rng(seed))
    assert sorted([*left, *held_out]) == list(range(len(labels)))
    for label in np.unique(labels):
        whole, drawn = (labels == label).sum(), (labels[held_out] == label).sum()
        assert (labels[left] == label).sum() >= 1
        if whole == 1:
            assert drawn == 0
        elif 1 <= fraction * whole <= whole - 1:
            assert abs(drawn - fraction * whole) <= 0.5 + 1e-6
        else:
            assert drawn in (1, whole - 1)


def test_the_split_is_drawn_by_seed_and_target_and_the_same_for_both_modes():
    labels = np.repeat(np.arange(5), 20)

    def held_out(one: RetrainedTransferStage) -> list[int]:
        return validation_split(one)(labels)[1].tolist()

    drawn = held_out(stage())
    assert len(drawn) == 25
    assert drawn == held_out(stage().model_copy(update={"mode": "fixed"}))
    assert drawn != held_out(stage(seed=1))
    assert drawn != held_out(stage(target="other"))
    assert drawn != list(range(25))


def test_no_fraction_no_split():
    assert validation_split(stage(0)) is None


def test_a_target_with_single_images_only_is_refused():
    with pytest.raises(UserError, match=r"^target 'planted': no class has two .*_fraction to 0\.$"):
        validation_split(stage())(np.arange(7))


@pytest.fixture(scope="module")
def shard(planted, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    recipe = Recipe(**recipe_values(epochs=1))
    sources = SourceStage(seed=0, subset=Subset(fraction=0.5), architecture=SMALL, recipe=recipe)
    weights, table = folder / "shard.safetensors", folder / "shard.parquet"
    train_sources(
        source_models(sources, [0, 1], list(map(str, range(CLASSES)))),
        sources,
        planted,
        weights,
        table,
        Origin({}, {}, "aa"),
        ALONE,
    )
    return weights, table


def transferred(
    data: Path, shard: tuple[Path, Path], folder: Path, validated: RetrainedTransferStage | None
) -> pa.Table:
    table = folder / "transfer.parquet"
    origin = Origin({}, {"sources": identity(shard[1])}, "aa")
    split = validated and validation_split(validated)
    transfer(*shard, stage(), data, table, origin, ALONE, split)
    return pq.read_table(table).replace_schema_metadata(None)


def convert_parts(folder: Path, whole: Sidecar, left: np.ndarray, held_out: np.ndarray) -> Path:
    """The planted training images as a data set of its own, tested on those held out."""
    images, labels = planted_images(TRAIN_PER_CLASS, seed=1)
    np.savez(
        folder / "images.npz",
        train_images=images[left],
        train_labels=labels[left],
        test_images=images[held_out],
        test_labels=labels[held_out],
    )
    normalisation = {"mean": whole.mean, "std": whole.std}
    settings = {
        "kind": "arrays",
        "source": str(folder / "images.npz"),
        "normalisation": normalisation,
    }
    (folder / "parts.yaml").write_text(yaml.safe_dump(settings))
    convert("parts", [folder], folder / "data")
    return folder / "data"


def test_validation_accuracy_is_that_of_a_transfer_by_the_images_left_to_those_held_out(
    planted, shard, tmp_path
):
    split = validation_split(stage())(np.load(planted / "train.labels.npy"))
    rows = transferred(planted, shard, tmp_path, stage())
    parts = convert_parts(tmp_path, read_sidecar(planted / "dataset.json"), *split)
    (tmp_path / "other").mkdir()
    expected = transferred(parts, shard, tmp_path / "other", None)["accuracy"].to_pylist()
    assert rows["validation_accuracy"].to_pylist() == expected
    assert rows["validation_images"].to_pylist() == [len(split[1])] * 2
    assert len(set(expected)) == 2  # models that can be told apart
    assert set(expected) != {0.0, 1.0}


def test_all_other_columns_are_those_without_a_validation_split(planted, shard, tmp_path):
    (tmp_path / "without").mkdir()
    without = transferred(planted, shard, tmp_path / "without", None)
    rows = transferred(planted, shard, tmp_path, stage())
    assert rows.drop_columns(list(VALIDATION)) == without

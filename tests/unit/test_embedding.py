"""What full models see of images, file to file."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import CLASSES, SIDE, TRAIN_PER_CLASS, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.stages import EmbeddingStage
from transfer_influence.errors import UserError
from transfer_influence.job import JobOptions
from transfer_influence.models.building import build_model
from transfer_influence.outcomes.tables import write_table
from transfer_influence.outcomes.weights import write_tensors
from transfer_influence.surrogates.embedding import (
    batches,
    chosen_models,
    embed,
    one_trainer,
)
from transfer_influence.surrogates.scores import read_embedding

IMAGES, NETWORK = CLASSES * TRAIN_PER_CLASS, Architecture(width=4)
SOURCES = 9  # classes of the source, where the images are a target's
OPTIONS = JobOptions(gpus=0, processes=2, workers=1, scratch=None, failed_models="stop")


def stage(recipe: Recipe, **changes) -> EmbeddingStage:
    values = {"checkpoints": 2, "projection": None, "seed": 0, **changes}
    return EmbeddingStage(architecture=NETWORK, recipe=recipe, **values)


def full_models(folder, classes: int, failed: list[bool]):
    """Weights and table of untrained models, of which some have failed."""
    weights, table = folder / "none-0.safetensors", folder / "none-0.parquet"
    states = {
        f"{number}/{name}": value
        for number, lost in enumerate(failed)
        if not lost
        for name, value in build_model(NETWORK, classes, seed=number).state_dict().items()
    }
    save_file(states, weights)
    rows = pa.table({"model": list(range(len(failed))), "failed": failed})
    write_table(rows, table, "{}")
    return [weights], [table]


@pytest.mark.parametrize("transferred", [False, True], ids=["source", "target"])
def test_features_and_logits_are_those_of_each_model_that_did_not_fail(
    planted, tmp_path, transferred
):
    kind = TargetRecipe if transferred else Recipe
    wanted = stage(kind(**recipe_values()), projection=8)
    classes = SOURCES if transferred else CLASSES
    weights, tables = full_models(tmp_path, classes, [False, True, False, False])
    with one_trainer(planted, wanted, OPTIONS) as trainer:
        found = embed(trainer, wanted, weights, tables, classes, transferred)
        images, labels = zip(*batches(trainer, 50), strict=True)
        shown = trainer.normalize(torch.cat(images))
    assert np.array_equal(torch.cat(labels).numpy(), trainer.train_loader.labels)
    assert shown.shape == (IMAGES, 3, SIDE, SIDE)
    write_tensors(found, tmp_path / "view.safetensors", "{}")
    read = read_embedding(tmp_path / "view.safetensors")
    assert list(read) == ["0", "2"]
    for number, view in read.items():
        model = build_model(NETWORK, classes, seed=int(number)).eval()
        with torch.no_grad():
            features = model.stages(model.stem(shown)).mean(dim=(2, 3))
            logits = model(shown)
        assert np.allclose(view["features"], features, atol=1e-5)
        assert view["gradients"].shape == (IMAGES, 8)
        assert np.isfinite(view["gradients"]).all()
        assert ("logits" in view) == transferred
        if transferred:
            assert np.allclose(view["logits"], logits, atol=1e-5)
    assert not np.allclose(read["0"]["gradients"], read["2"]["gradients"])


def test_without_trak_there_are_no_gradients(planted, tmp_path):
    wanted = stage(Recipe(**recipe_values()), checkpoints=1)
    weights, tables = full_models(tmp_path, CLASSES, [False])
    with one_trainer(planted, wanted, OPTIONS) as trainer:
        found = embed(trainer, wanted, weights, tables, CLASSES, transferred=False)
    assert list(found) == ["0/features"]


def test_where_all_full_models_failed_there_is_nothing_to_look_with(tmp_path):
    weights, tables = full_models(tmp_path, CLASSES, [True, True])
    with pytest.raises(UserError, match="all models on all classes failed; change the recipe"):
        chosen_models(weights, tables, 1)

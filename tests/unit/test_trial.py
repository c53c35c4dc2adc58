import pytest

from transfer_influence.config.recipe import Architecture
from transfer_influence.errors import UserError
from transfer_influence.models.trial import try_architecture


def test_a_network_that_takes_the_images_is_accepted():
    try_architecture(Architecture(name="resnet18"), {32, 64})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet1", r"architecture.name: 'resnet1' is neither small_resnet nor a classifier"),
        ("vit_b_16", r"recipe.resolution: vit_b_16 cannot take images of 32 pixels \("),
    ],
)
def test_a_network_is_refused_in_the_words_of_the_check(name, said):
    with pytest.raises(UserError, match=f"^{said}"):
        try_architecture(Architecture(name=name), {32})

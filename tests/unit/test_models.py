import pytest
import torch
from torch import nn

from transfer_influence.config.recipe import Architecture
from transfer_influence.errors import UserError
from transfer_influence.models.building import (
    build_model,
    check_architecture,
    freeze_for,
    head_name,
    load_backbone,
    place,
)
from transfer_influence.models.small_resnet import SmallResNet, SubsampledConvolution
from transfer_influence.vision import torchvision

SMALL = Architecture(width=4)
RESNET = Architecture(name="resnet18")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_small_resnet_has_the_parameters_its_docstring_says():
    assert parameters(build_model(Architecture(width=16), 20, 0)) == 78_692


@pytest.mark.parametrize("resolution", [8, 16, 28, 33])
def test_small_resnet_takes_any_resolution(resolution):
    logits = build_model(SMALL, 5, 0)(torch.zeros(2, 3, resolution, resolution))
    assert logits.shape == (2, 5)


def test_small_resnet_is_residual():
    model = build_model(SMALL, 5, 0)
    block = model.stages[0]
    for norm in (block.norm1, block.norm2):
        nn.init.zeros_(norm.weight)
    images = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(block(images), images)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (build_model(SMALL, 5, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_resnet18_is_that_of_torchvision_with_a_head_of_any_width(classes):
    torch.manual_seed(4)
    expected = torchvision.models.resnet18(num_classes=classes).state_dict()
    found = build_model(RESNET, classes, 4).state_dict()
    assert found["fc.weight"].shape == (classes, 512)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("alexnet", "classifier.6"),
        ("convnext_tiny", "classifier.2"),
        ("densenet121", "classifier"),
        ("efficientnet_b0", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("shufflenet_v2_x0_5", "fc"),
        ("swin_v2_t", "head"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_the_head_is_the_layer_that_gives_the_logits(name, head):
    with torch.device("meta"):
        model = build_model(Architecture(name=name), 7, 0)
    assert head_name(model) == head
    assert model.get_submodule(head).out_features == 7


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "vit_b_16", "small_resnet"])
def test_a_network_can_be_checked_without_its_numbers(name):
    check_architecture(Architecture(name=name), {224})


@pytest.mark.parametrize("name", ["resnet19", "deeplabv3_resnet50", "SmallResNet", ""])
def test_a_network_that_is_no_classifier_is_refused(name):
    with pytest.raises(UserError, match=rf"^architecture.name: '{name}' is neither .*; choose one"):
        build_model(Architecture(name=name), 5, 0)


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(UserError, match=r"^architecture.name: SqueezeNet .* choose another"):
        build_model(Architecture(name="squeezenet1_1"), 5, 0)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_with_auxiliary_outputs_is_refused(name):
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=rf"^architecture.name: '{name}' .* choose another"),
    ):
        build_model(Architecture(name=name), 5, 0)


@pytest.mark.parametrize("classes", [3, 8])
@pytest.mark.parametrize("architecture", [SMALL, RESNET], ids=["small_resnet", "resnet18"])
def test_load_backbone_takes_everything_but_the_head(architecture, classes):
    source = build_model(architecture, 8, 1)
    source.train()(torch.rand(2, 3, 64, 64))  # moves the running statistics
    state = source.state_dict()
    model, fresh = (build_model(architecture, classes, 2) for _ in range(2))
    load_backbone(model, state)
    head = head_name(model)
    for name, value in model.state_dict().items():
        of_head = name.startswith(f"{head}.")
        expected = fresh.state_dict()[name] if of_head else state[name]
        assert torch.equal(value, expected), name
    assert not torch.equal(
        model.get_submodule(head).weight[:3], source.get_submodule(head).weight[:3]
    )


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("state", "wrong"),
    [
        (build_model(Architecture(width=8), 5, 0).state_dict(), "stem.0.weight"),
        (build_model(RESNET, 5, 0).state_dict(), "conv1.weight"),
        (
            without(build_model(SMALL, 5, 0).state_dict(), "stages.1.norm1.bias"),
            "stages.1.norm1.bias",
        ),
        ({**build_model(SMALL, 5, 0).state_dict(), "extra.weight": torch.zeros(1)}, "extra.weight"),
        ({}, "stem.0.weight"),
    ],
    ids=["width", "network", "missing", "more", "empty"],
)
def test_load_backbone_refuses_another_network(state, wrong):
    with pytest.raises(UserError, match=f"do not fit the network: {wrong} is missing"):
        load_backbone(build_model(SMALL, 5, 0), state)


@pytest.mark.parametrize("architecture", [SMALL, RESNET], ids=["small_resnet", "resnet18"])
def test_freeze_for_trains_the_head_or_everything(architecture):
    model = build_model(architecture, 5, 0)
    head = head_name(model)
    freeze_for(model, "fixed")
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {f"{head}.weight", f"{head}.bias"}
    freeze_for(model, "full")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_place_puts_convolutions_in_channels_last_memory():
    model = place(build_model(SMALL, 5, 0), torch.device("cpu"))
    weight = model.stages[0].convolution1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_subsampled_convolution_is_the_convolution(stride):
    torch.manual_seed(0)
    usual = nn.Conv2d(4, 8, 1, stride, bias=False)
    ours = SubsampledConvolution(4, 8, 1, stride, bias=False)
    ours.load_state_dict(usual.state_dict())
    images = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(ours(images), usual(images))


def test_narrow_networks_train_without_the_convolution_that_spoils_memory():
    strided = [
        module
        for module in SmallResNet(classes=3, width=4).modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    ]
    assert [type(module) for module in strided] == [SubsampledConvolution, nn.Conv2d]

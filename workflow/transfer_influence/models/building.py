"""Build a network, load a source model into it, say which parameters are trained, and how."""

from typing import Any

import torch
from torch import nn

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.study import Mode
from transfer_influence.errors import UserError
from transfer_influence.models.small_resnet import SmallResNet


def build_model(architecture: Architecture, classes: int, seed: int) -> nn.Module:
    """Build a randomly initialised classifier with `classes` logits.

    Raises:
        UserError: no such architecture, or one without a linear head or with more outputs.
    """
    torch.manual_seed(seed)
    if architecture.name == "small_resnet":
        return SmallResNet(classes, architecture.width)
    from transfer_influence.vision import torchvision  # slow to import

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture.name not in known:
        raise UserError(
            f"architecture.name: {architecture.name!r} is neither small_resnet nor a classifier of "
            f"torchvision.models; choose one of those, such as resnet18."
        )
    model = torchvision.models.get_model(architecture.name, weights=None, num_classes=classes)
    head_name(model)
    if getattr(model, "aux_logits", False):
        raise UserError(
            f"architecture.name: {architecture.name!r} has auxiliary outputs beside its logits, "
            f"which the training does not use; choose another network."
        )
    return model


def check_architecture(architecture: Architecture, resolutions: set[int]) -> None:
    """Build and run the network without memory or numbers, to see that it can be done.

    Raises:
        UserError: see `build_model`; or the network cannot take images of a resolution.
    """
    model = _without_numbers(architecture).eval()
    for resolution in resolutions:
        try:
            model(torch.empty(2, 3, resolution, resolution, device="meta"))
        except Exception as error:
            raise UserError(
                f"recipe.resolution: {architecture.name} cannot take images of {resolution} "
                f"pixels ({' '.join(str(error).split())}); choose another resolution."
            ) from None


def _without_numbers(architecture: Architecture) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_model(architecture, classes=2, seed=0)
    except NotImplementedError:  # RegNets compute their widths with tensors
        return build_model(architecture, classes=2, seed=0).to("meta")


def head_of(model: nn.Module) -> nn.Linear:
    """Return the head, see `head_name`."""
    head = model.get_submodule(head_name(model))
    assert isinstance(head, nn.Linear)
    return head


def head_name(model: nn.Module) -> str:
    """Return the name of the head: the last linear layer.

    Raises:
        UserError: the network has no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise UserError(
            f"architecture.name: {type(model).__name__} does not end in a linear layer, so it "
            f"cannot be given a new head; choose another network."
        )
    return names[-1]


def load_backbone(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load everything but the head from the state of a source model; the head stays fresh.

    Raises:
        UserError: the state belongs to another network.
    """
    head = f"{head_name(model)}."
    backbone = {name: value for name, value in state.items() if not name.startswith(head)}
    expected = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [name for name in backbone if expected.get(name) != backbone[name].shape]
    wrong += [name for name in expected if name not in backbone and not name.startswith(head)]
    if wrong:
        raise UserError(
            f"the weights of the source model do not fit the network: {wrong[0]} is missing or has "
            f"another shape; use the architecture that the source models were trained with."
        )
    model.load_state_dict(backbone, strict=False)


NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the parameters that are trained, by their weight decay, for an optimizer.

    Those of normalisation layers may have one of their own (`weight_decay_norm`).
    """
    of_norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMALISATION)
        for parameter in module.parameters()
    }
    decay = recipe.weight_decay
    decay_norm = decay if recipe.weight_decay_norm is None else recipe.weight_decay_norm
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if id(one) not in of_norms], "weight_decay": decay},
        {"params": [one for one in trained if id(one) in of_norms], "weight_decay": decay_norm},
    ]
    return [group for group in groups if group["params"]]


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device, in channels-last memory, where convolutions are fastest."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def freeze_for(model: nn.Module, mode: Mode) -> None:
    """Leave trainable what `mode` trains: only the head (`fixed`) or everything (`full`)."""
    head = head_name(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mode == "full" or name.startswith(f"{head}."))

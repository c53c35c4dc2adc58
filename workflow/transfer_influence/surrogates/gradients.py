"""Gradients of single images, projected to a few random dimensions, for `trak`."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from transfer_influence.outcomes.evaluation import log_odds

BLOCK = 2**15  # parameters that are projected at a time


def gradients_of_margins(
    network: nn.Module, trained: list[str], images: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the gradient of each image's log odds, the margin of TRAK.

    By parameter, float32 (n, *shape).

    Args:
        network: from images to logits, in the state of evaluation.
        trained: names of the parameters that gradients are taken by.
        images: uint8 (n, 3, R, R).
        labels: int64 (n,).
    """
    state = dict(network.named_parameters())
    parameters = {name: state[name].detach() for name in trained}

    def one(parameters: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor):  # type: ignore[no-untyped-def]
        return log_odds(functional_call(network, parameters, (image[None],)), label[None])[0]

    found = vmap(grad(one), in_dims=(None, 0, 0))(parameters, images, labels)
    return {name: each.detach() for name, each in found.items()}


def project(gradients: dict[str, torch.Tensor], dimensions: int, seed: int) -> torch.Tensor:
    """Return gradients of n images in a few random dimensions, float32 (n, dimensions).

    By a matrix of ±1/√dimensions (Achlioptas 2003), which is drawn block by block and not kept.
    Equal seeds, on one kind of device, give an equal matrix.

    Args:
        gradients: by parameter, each (n, *shape).
        dimensions: how many.
        seed: of the matrix.
    """
    whole = torch.cat([each.flatten(1) for each in gradients.values()], dim=1)
    projected = whole.new_zeros(len(whole), dimensions)
    for columns, block in blocks(whole.shape[1], dimensions, seed, whole.device):
        projected += whole[:, columns] @ block
    return projected


def blocks(
    parameters: int, dimensions: int, seed: int, device: torch.device
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the matrix of a projection, some of its rows at a time, and which ones they are."""
    generator = torch.Generator(device).manual_seed(seed)
    for first in range(0, parameters, BLOCK):
        rows = slice(first, min(first + BLOCK, parameters))
        signs = torch.randint(
            0, 2, (rows.stop - first, dimensions), generator=generator, device=device
        )
        yield rows, (2 * signs - 1).float() / dimensions**0.5

"""Steps of training, against torch's own optimizer."""

import subprocess
import sys

import pytest
import torch
from tests.conftest import CHECKOUT

from transfer_influence.training.optimization import SGD


def groups(model: torch.nn.Module) -> list[dict]:
    """Biases without decay; a layer that is not trained has no gradients."""
    model[2].requires_grad_(False)
    named = list(model.named_parameters())
    return [
        {"params": [one for name, one in named if "weight" in name], "weight_decay": 0.1},
        {"params": [one for name, one in named if "bias" in name], "weight_decay": 0.0},
    ]


def trained(own: bool, momentum: float, scaled: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    images, labels = torch.randn(40, 8, 5), torch.randint(3, (40, 8))
    if own:
        optimizer = SGD(groups(model), momentum)
    else:
        optimizer = torch.optim.SGD(groups(model), lr=1, momentum=momentum, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for step in range(40):
        rate = 0.1 * (40 - step) / 40
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images[step]), labels[step])
        if scaled and step == 7:
            loss = loss * torch.inf  # the scaler passes over this step
        scaler.scale(loss).backward()
        if own:
            scaler.step(optimizer, rate=rate)
        else:
            for group in optimizer.param_groups:
                group["lr"] = rate
            scaler.step(optimizer)
        scaler.update()
    return [value.detach() for value in model.parameters()]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_torch_bit_by_bit(momentum, scaled):
    ours, theirs = (trained(own, momentum, scaled) for own in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert all(one.isfinite().all() for one in ours)


def test_a_step_does_without_torchs_compiler():
    program = (
        "import sys, torch\n"
        "from transfer_influence.training.optimization import SGD\n"
        "weight = torch.ones(3, requires_grad=True)\n"
        "optimizer = SGD([{'params': [weight], 'weight_decay': 0.0}], momentum=0.9)\n"
        "optimizer.zero_grad(); weight.sum().backward(); optimizer.step(0.1)\n"
        "assert weight[0] == torch.tensor(0.9), weight\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

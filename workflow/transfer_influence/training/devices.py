"""What models are trained on."""

import logging
import os
import socket

import torch

from transfer_influence.errors import UserError
from transfer_influence.job import visible_gpus

log = logging.getLogger(__name__)


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU, computing in one thread.

    One thread, since sums in another order differ in their last bits: more cores run more jobs,
    and change no result.

    Raises:
        UserError: the job was given a GPU that does not work.
    """
    torch.set_num_threads(1)
    if torch.version.cuda and visible_gpus() and not torch.cuda.is_available():
        raise UserError(
            f"GPU {os.getenv('CUDA_VISIBLE_DEVICES')} of {socket.gethostname()} cannot be used; "
            f"see nvidia-smi there, or exclude that machine."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    number = f", GPU {os.getenv('CUDA_VISIBLE_DEVICES', '0')}" if device.type == "cuda" else ""
    log.info("computes on %s%s", device_name(device), number)
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device, for provenance."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

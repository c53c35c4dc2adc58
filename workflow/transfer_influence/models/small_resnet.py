"""A residual network for images of about 32 pixels."""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.convolution2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            # oneDNN writes outside its memory in the backward pass of a convolution of 1 × 1 with a
            # stride and fewer than 8 channels, in channels-last memory on a CPU with AVX2 but not
            # AVX-512 (seen with torch 2.13.0). Without the class below once that is mended.
            convolution = nn.Conv2d if channels_in >= 8 else SubsampledConvolution
            self.shortcut = nn.Sequential(
                convolution(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        residual = torch.relu(self.norm1(self.convolution1(images)))
        residual = self.norm2(self.convolution2(residual))
        return torch.relu(residual + self.shortcut(images))


class SubsampledConvolution(nn.Conv2d):
    """A convolution of 1 × 1 that takes its stride before it computes, with the same result."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        step_y, step_x = self.stride
        return nn.functional.conv2d(images[:, :, ::step_y, ::step_x], self.weight, self.bias)


class SmallResNet(nn.Module):
    """Three stages of one residual block, with `width`, 2·`width` and 4·`width` channels.

    The stem halves the resolution, which is what makes the network fast on a CPU. With `width` 16
    and 20 classes it has 78,692 parameters.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))

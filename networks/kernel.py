"""The kernel generator G_k: a fully connected network with one hidden layer."""

import torch
from torch import nn


class KernelGenerator(nn.Module):
    """Fully connected generator of a blur kernel (paper, section 3.2).

    Linear, ReLU6, linear, softmax: the kernel is non-negative and sums to 1 by
    construction.

    Parameters
    ----------
    kernel_size : tuple of int
        (h, w) of the kernel.
    in_features : int
        Length of the noise vector z_k.
    hidden : int
        Units of the hidden layer.
    """

    def __init__(self, kernel_size, *, in_features=200, hidden=1000):
        super().__init__()
        self.kernel_size = tuple(kernel_size)
        h, w = self.kernel_size
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden), nn.ReLU6(), nn.Linear(hidden, h * w), nn.Softmax(dim=-1)
        )

    def forward(self, z):
        """Map z, shape (in_features,), to a kernel of shape (1, 1, h, w)."""
        return self.layers(z).view(1, 1, *self.kernel_size)

    @torch.no_grad()
    def start_at(self, z, kernel):
        """Set the last biases so that ``z`` gives ``kernel`` (h, w), non-negative, with 1e-6 in the place of 0."""
        _, relu, last, _ = self.layers
        hidden = relu(self.layers[0](z))
        last.bias.copy_((kernel.flatten() + 1e-6).log() - last.weight @ hidden)

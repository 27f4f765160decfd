"""The paper's released algorithm in PyTorch: a dense masked matrix per pair of layers, and autograd.

Per epoch: hidden states for the whole data set, layer by layer, then one NumPy-style asynchronous sweep of each layer
with intra-layer weights (one unit of all examples after another); then minibatches. Each pair of layers is one square
matrix over the units of both, of which a mask keeps the weights that exist, and the objective is differentiated
automatically. Written from the description in the paper (Liu, Quek and Lin, arXiv 1711.07732) to be timed: the same
mathematics as `vpf_jax`, at the cost that the released scripts had.
"""

import itertools

import torch


class DensePair:
    """Two layers as one square matrix of symmetric weights under a mask."""

    def __init__(self, num_lower: int, num_upper: int, intra: bool):
        self.num_lower = num_lower
        num_units = num_lower + num_upper
        self.mask = torch.zeros(num_units, num_units)
        self.mask[:num_lower, num_lower:] = 1
        if intra:
            self.mask[num_lower:, num_lower:] = torch.triu(torch.ones(num_upper, num_upper), diagonal=1)
        scale = (num_lower * num_upper) ** -0.5
        self.weights = (scale * torch.randn(num_units, num_units) * self.mask).requires_grad_()
        self.biases = torch.zeros(num_units, requires_grad=True)

    def symmetric(self) -> torch.Tensor:
        upper = self.weights * self.mask
        return upper + upper.T

    def objective(self, states: torch.Tensor) -> torch.Tensor:
        """Batch mean of the sum of all flip rates."""
        fields = states @ self.symmetric() + self.biases
        return torch.exp((0.5 - states) * fields).sum(dim=1).mean()

    @torch.no_grad()
    def feed_forward(self, lower: torch.Tensor) -> torch.Tensor:
        weights = self.symmetric()[: self.num_lower, self.num_lower :]
        fields = lower @ weights + self.biases[self.num_lower :]
        return torch.bernoulli(torch.sigmoid(fields))

    @torch.no_grad()
    def sweep(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        weights, upper = self.symmetric(), upper.clone()
        outside = lower @ weights[: self.num_lower, self.num_lower :] + self.biases[self.num_lower :]
        inside = weights[self.num_lower :, self.num_lower :]
        for j in range(upper.shape[1]):
            upper[:, j] = torch.bernoulli(torch.sigmoid(outside[:, j] + upper @ inside[:, j]))
        return upper


class DenseTraining:
    """Epochs of the released algorithm, at the paper's settings."""

    def __init__(self, visible: torch.Tensor, sizes: tuple[int, ...], intra: bool, batch_size: int = 40):
        torch.manual_seed(0)
        self.visible, self.intra, self.batch_size = visible, intra, batch_size
        self.pairs = [DensePair(a, b, intra) for a, b in itertools.pairwise(sizes)]
        parameters = [p for pair in self.pairs for p in (pair.weights, pair.biases)]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def epoch(self) -> None:
        layers = [self.visible]
        for pair in self.pairs:
            layers.append(pair.feed_forward(layers[-1]))
        states = []
        for pair, lower, upper in zip(self.pairs, layers[:-1], layers[1:], strict=True):
            states.append(torch.cat([lower, pair.sweep(lower, upper) if self.intra else upper], dim=1))
        for rows in torch.randperm(len(self.visible)).split(self.batch_size):
            self.optimizer.zero_grad()
            objective = sum(pair.objective(s[rows]) for pair, s in zip(self.pairs, states, strict=True))
            decay = sum((pair.weights**2).sum() for pair in self.pairs)
            (0.01 * objective + 0.5e-4 * decay).backward()
            self.optimizer.step()

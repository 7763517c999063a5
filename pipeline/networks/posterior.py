"""The posterior of a network's last layer, as it is kept with the weights; `pipeline.members.laplace` fits it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Posterior(nn.Module):
    """Eigendecomposition of the two factors, and tau; buffers, so that a network saves it with its weights.

    Attributes:
        input_directions: `(D + 1, r)` orthonormal eigenvectors of A, the bias last; r = min(n, D + 1), so that few
            images make a small file. Everything orthogonal to them has the prior's precision alone.
        input_curvature: `(r,)` eigenvalues of A.
        class_directions: `(C, C)` orthonormal eigenvectors of B.
        class_curvature: `(C,)` eigenvalues of B.
        prior_precision: scalar tau.
    """

    input_directions: Tensor
    input_curvature: Tensor
    class_directions: Tensor
    class_curvature: Tensor
    prior_precision: Tensor

    def __init__(
        self,
        input_directions: Tensor,
        input_curvature: Tensor,
        class_directions: Tensor,
        class_curvature: Tensor,
        prior_precision: Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("input_directions", input_directions)
        self.register_buffer("input_curvature", input_curvature)
        self.register_buffer("class_directions", class_directions)
        self.register_buffer("class_curvature", class_curvature)
        self.register_buffer("prior_precision", prior_precision)

    @classmethod
    def empty_like(cls, state: Mapping[str, Tensor]) -> "Posterior":
        """A posterior of the same shapes as this state dict, to load it into."""
        return cls(**{name: torch.zeros_like(values) for name, values in state.items()})

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws `(n, C, D + 1)` of what to add to the last layer's weights and, in the last column, its bias.

        `U_B (Z / sqrt(l_B l_A^T + tau)) U_A^T` with standard normal Z, on the posterior's device. More draws leave
        the first ones as they were.
        """
        directions, classes, tau = self.input_directions, self.class_directions, self.prior_precision
        shape = (len(classes), len(directions))
        noise = torch.stack([torch.randn(shape, generator=generator) for _ in range(n)]).to(directions)
        scale = (torch.outer(self.class_curvature, self.input_curvature) + tau).rsqrt() - tau.rsqrt()
        spread = noise * tau.rsqrt() + (noise @ directions * scale) @ directions.T
        return classes @ spread

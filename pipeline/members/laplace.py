"""Last-layer Laplace: a normal distribution around the weights of a trained network's last layer.

Kronecker-factored generalised Gauss-Newton (Daxberger et al., 2021; Ritter et al., 2018). With `h` what the last layer
reads of an image, and a 1 for the bias, the curvature of the summed cross-entropy of n images at the trained weights is

    H = sum_n B_n (x) h_n h_n^T + tau I,  B_n = diag p_n - p_n p_n^T
      ~ B (x) A + tau I,                  B = 1/n sum_n B_n,  A = sum_n h_n h_n^T

exact for one image and where all images have the same probabilities. The weights are drawn from N(trained, H^-1).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.classifier import Classifier
from pipeline.networks.posterior import Posterior

PRIOR_PRECISIONS = torch.logspace(-4, 4, 33, dtype=torch.float64)
"""What the marginal likelihood chooses from: four steps to each power of ten."""


def fit_posterior(
    model: Classifier,
    embeddings: Tensor,
    *,
    logits: Tensor | None = None,
    targets: Tensor | None = None,
    judged: Tensor | None = None,
) -> Posterior:
    """Fit the posterior of `model.tail[-1]`, a Linear layer trained with cross-entropy on a softmax.

    The marginal likelihood takes the weights for the optimum under tau. A head that stopped early, or that dropout and
    a few epochs kept from growing, is none, and the draws come out far too wide where there are fewer images than
    features; so give logits and targets where they are known, after the temperature is fitted.

    Args:
        embeddings: `(n, D)` what the last layer reads of the n >= 1 training images, dropout off. Each counts once:
            class weights and label smoothing are left out.
        logits: `(n, C)` of the same images, from networks that did not train on them (`cross_fit`), at temperature 1;
            chooses tau by `choose_by_prediction`. None: by `choose_by_evidence`.
        targets: `(n,)` class indices of the same images.
        judged: `(n,)` of bool, whose logits and targets choose tau (`judged_out_of_fold`); None for all.

    Returns:
        The posterior, float32 on the layer's device; to use it, make it `model.posterior`.
    """
    layer = model.tail[-1]
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise ValueError(f"last-layer Laplace needs a network that ends in a Linear layer with a bias, got {layer}")
    if embeddings.ndim != 2 or len(embeddings) == 0 or embeddings.shape[1] != layer.in_features:
        raise ValueError(f"embeddings must be (n, {layer.in_features}) with n >= 1, got {tuple(embeddings.shape)}")
    if (logits is None) != (targets is None):
        raise ValueError("tau is chosen by logits and targets, both or neither")
    weights = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().cpu().double()
    inputs = torch.cat([embeddings, embeddings.new_ones(len(embeddings), 1)], dim=1).to(weights)
    probs = (inputs @ weights.T).softmax(dim=1)
    input_curvature, input_directions = _gram_eigen(inputs)
    class_curvature, class_directions = torch.linalg.eigh(torch.diag(probs.mean(dim=0)) - probs.T @ probs / len(probs))
    class_curvature = class_curvature.clamp(min=0)
    rows = torch.arange(len(embeddings)) if judged is None else judged.cpu().nonzero().flatten()
    if logits is None or targets is None or len(rows) == 0:
        tau = choose_by_evidence(torch.outer(class_curvature, input_curvature), weights)
    else:
        tau = choose_by_prediction(
            logits.to(weights)[rows],
            targets.cpu()[rows],
            squares=(inputs[rows] @ input_directions).square(),
            shares=class_directions.square(),
            input_curvature=input_curvature,
            class_curvature=class_curvature,
            temperature=model.temperature.item(),
        )
    fitted = input_directions, input_curvature, class_directions, class_curvature, weights.new_tensor(tau)
    return Posterior(*(values.to(layer.weight.device, torch.float32) for values in fitted))


def choose_by_evidence(curvature: Tensor, weights: Tensor) -> float:
    """Return the tau of `PRIOR_PRECISIONS` under which the labels are likeliest (Immer et al., 2021, equation 8).

    Of the Laplace approximation of the log marginal likelihood, what depends on tau is

        P/2 log tau - tau/2 |weights|^2 - 1/2 sum_P log(curvature + tau)

    where directions without curvature add nothing to the first and last term together.

    Args:
        curvature: eigenvalues of the P weights' curvature without tau, of any shape; zeros may be left out.
        weights: the P trained weights, of any shape.
    """
    taus = PRIOR_PRECISIONS.to(curvature)
    evidence = torch.stack([-0.5 * (curvature / tau).log1p().sum() for tau in taus])
    return float(taus[(evidence - 0.5 * taus * weights.square().sum()).argmax()])


def choose_by_prediction(
    logits: Tensor,
    targets: Tensor,
    *,
    squares: Tensor,
    shares: Tensor,
    input_curvature: Tensor,
    class_curvature: Tensor,
    temperature: float,
) -> float:
    """Return the tau of `PRIOR_PRECISIONS` that predicts training images best when they are left out.

    With eigenvectors u of B and a of A, the logit of class c at input h has the variance

        sum_j u_jc^2 v_j,   v_j = sum_i (a_i h)^2 / (l_Bj l_Ai + tau)

    of which leaving h itself out makes v_j / (1 - l_Bj v_j) (Sherman and Morrison, 1950). The prediction is
    softmax(f / sqrt(1 + pi/8 variance)) (Daxberger et al., 2021, after MacKay, 1992), its score the mean NLL.

    Args:
        logits: `(n, C)` f of the images by networks that did not train on them.
        targets: `(n,)` class indices.
        squares: `(n, r)` of `a_i h`, squared.
        shares: `(C, C)` of `u_jc`, squared, classes in rows.
        input_curvature: `(r,)` of `l_Ai`.
        class_curvature: `(C,)` of `l_Bj`.
        temperature: what the network's logits, and so those of its draws, are divided by.
    """
    losses = []
    for tau in PRIOR_PRECISIONS.tolist():
        with_it = squares @ (torch.outer(input_curvature, class_curvature) + tau).reciprocal()
        without_it = with_it / (1 - class_curvature * with_it)
        variance = without_it @ shares.T / temperature**2
        predicted = logits / temperature / (1 + math.pi / 8 * variance).sqrt()
        losses.append(functional.cross_entropy(predicted, targets))
    return float(PRIOR_PRECISIONS[torch.stack(losses).argmin()])


def _gram_eigen(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(r,)` and eigenvectors `(D, r)` of `inputs^T inputs`, `(n, D)`; r = min(n, D), the rest are 0."""
    basis, rest = torch.linalg.qr(inputs.T)
    values, vectors = torch.linalg.eigh(rest @ rest.T)
    return values.clamp(min=0), basis @ vectors

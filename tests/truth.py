"""The exact robustness of a small ReLU network, proven sample by sample with a mixed-integer program.

The network averages a 3x32x32 image to 8x8 gray values and has two hidden layers of 32. An Linf ball with its box around a digit,
whose blocks of 4x4x3 pixels are of one value each, becomes exactly one interval per gray value: any value in it is reached by a block
of that value, and no other is. ``make_truth.py`` trains the network and writes ``truth.safetensors``.

Source: Tjeng, Xiao, Tedrake, ICLR 2019, "Evaluating Robustness of Neural Networks with Mixed Integer Programming".
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import LinearConstraint, linprog, milp
from torch import nn

FILE = Path(__file__).parent / "truth.safetensors"
EPS = 0.2
ROBUST, BROKEN, UNKNOWN, WRONG = 1, 0, -1, -2  # WRONG: misclassified without attack

# A proof must leave this much (in logits) for what the program and float32 round, and for the 1e-6 that robench lets an image leave
# the ball by. What is nearer is UNKNOWN.
SLACK = 1e-3


def make_network():
    """64-32-32-10 on the averaged image."""
    return nn.Sequential(
        Averaged(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )  # fmt: skip


class Averaged(nn.Module):
    """Images (N, 3, 32, 32) to gray values (N, 64)."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)


def to_images(values):
    """The image whose blocks have the given gray values, (N, 64) to (N, 3, 32, 32)."""
    blocks = torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 8, 8)
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()


@dataclass
class Truth:
    """The committed network and what is proven about it.

    ``verdict`` holds one of ROBUST, BROKEN, UNKNOWN, WRONG per test digit from the first; ``bound`` the proven upper bound on the
    largest z_t - z_y over the ball (of a broken sample, the value that was found).
    """

    network: nn.Sequential
    verdict: torch.Tensor
    bound: torch.Tensor
    about: dict


def load_truth():
    from safetensors import safe_open

    network = make_network()
    with safe_open(FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["about"])
    verdict, bound = tensors.pop("verdict"), tensors.pop("bound")
    network.load_state_dict(tensors)
    return Truth(network.eval().requires_grad_(False), verdict, bound, about)


class Program:
    """The network over one box as linear constraints with a binary per unstable unit.

    Variables in order: 64 inputs, 32 + 32 outputs of the hidden layers, 32 + 32 binaries (fixed where the unit is stable).
    """

    def __init__(self, network, low, high):
        layers = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in network if isinstance(layer, nn.Linear)]
        (w1, b1), (w2, b2), self.last = layers
        self.rows, self.lower, self.upper = [], [], []
        self.low = np.concatenate([low, np.zeros(128)])
        self.high = np.concatenate([high, np.zeros(64), np.ones(64)])
        pre = _interval(w1, b1, low, high)
        self._add_layer(w1, b1, pre, slice(0, 64), 64, 128)
        # Interval bounds of the second layer ignore that its inputs come from one image: linear programs tighten them.
        pre = _interval(w2, b2, self.low[64:96], self.high[64:96])
        for unit in np.flatnonzero((pre[0] < 0) & (pre[1] > 0)):
            cost = np.zeros(192)
            cost[64:96] = w2[unit]
            pre[0][unit] = max(pre[0][unit], self.relaxed(cost) + b2[unit])
            pre[1][unit] = min(pre[1][unit], -self.relaxed(-cost) + b2[unit])
        self._add_layer(w2, b2, pre, slice(64, 96), 96, 160)

    def _add_layer(self, weight, bias, pre, inputs, outputs, binaries):
        for unit, (low, high) in enumerate(zip(*pre, strict=True)):
            out, binary = outputs + unit, binaries + unit
            affine = np.zeros(192)
            affine[inputs], affine[out] = -weight[unit], 1.0
            self.high[out] = max(high, 0.0)
            if low >= 0:
                self._add(affine, bias[unit], bias[unit])
                self.low[binary] = 1.0
            elif high <= 0:
                self.high[binary] = 0.0
            else:
                self._add(affine, bias[unit], np.inf)  # out >= w x + b
                below = affine.copy()
                below[binary] = -low
                self._add(below, -np.inf, bias[unit] - low)  # out <= w x + b - low (1 - binary)
                on = np.zeros(192)
                on[out], on[binary] = 1.0, -high
                self._add(on, -np.inf, 0.0)  # out <= high * binary

    def _add(self, row, lower, upper):
        self.rows.append(row)
        self.lower.append(lower)
        self.upper.append(upper)

    def relaxed(self, cost):
        """A lower bound on the minimum of ``cost``, with binaries anywhere in [0, 1]."""
        rows, lower, upper = np.array(self.rows), np.array(self.lower), np.array(self.upper)
        below, above = np.isfinite(upper), np.isfinite(lower)
        matrix, limit = np.concatenate([rows[below], -rows[above]]), np.concatenate([upper[below], -lower[above]])
        found = linprog(cost, A_ub=matrix, b_ub=limit, bounds=np.stack([self.low, self.high], 1), method="highs")
        return found.fun if found.status == 0 else -np.inf

    def maximise(self, label, target, seconds):
        """(proven upper bound on z_target - z_label, the inputs of the best point found or None)."""
        weight, bias = self.last
        cost, constant = np.zeros(192), bias[target] - bias[label]
        cost[96:128] = -(weight[target] - weight[label])
        upper = constant - self.relaxed(cost)
        if upper < -SLACK:
            return upper, None
        binary = np.concatenate([np.zeros(128), np.ones(64)])
        found = milp(
            cost, constraints=LinearConstraint(np.array(self.rows), self.lower, self.upper), integrality=binary,
            bounds=(self.low, self.high), options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )  # fmt: skip
        proven = upper if found.mip_dual_bound is None else min(upper, constant - found.mip_dual_bound)
        return proven, None if found.x is None else found.x[:64]


def _interval(weight, bias, low, high):
    positive, negative = weight.clip(min=0), weight.clip(max=0)
    return positive @ low + negative @ high + bias, positive @ high + negative @ low + bias


def prove(network, image, label, *, eps=EPS, seconds=60.0):
    """(verdict, bound) of one image (1, 3, 32, 32): see ``Truth``."""
    if int(network(image).argmax()) != label:
        return WRONG, 0.0
    values = Averaged()(image)[0].double().numpy()
    program = Program(network, (values - eps).clip(0, 1), (values + eps).clip(0, 1))
    bounds = []
    logits = network(image)[0]
    for target in logits.argsort(descending=True).tolist():
        if target == label:
            continue
        bound, point = program.maximise(label, target, seconds)
        if point is not None:
            found = network(to_images(point.clip(program.low[:64], program.high[:64])))[0]
            if int(found.argmax()) != label:
                return BROKEN, float(found.max() - found[label])
        bounds.append(bound)
    return (ROBUST if max(bounds) < -SLACK else UNKNOWN), max(bounds)

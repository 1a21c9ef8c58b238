"""The training step captured once as a CUDA graph and replayed: one launch a step instead of hundreds."""

import torch
from torch import Tensor

from train.step import EagerStep

_WARM_UP_STEPS = 3
"""Steps before capture: kernels are compiled and libraries set up, which a capture may not do."""


class GraphStep:
    """Does what its EagerStep does, for full batches by replay; the last, smaller batch of an epoch stays eager.

    Dropout draws from the device's generator, whose offset a replay advances as the eager step does, so that a
    continued run goes on with the same masks.
    """

    def __init__(self, eager: EagerStep, batch: int) -> None:
        self.eager, self.batch = eager, batch
        self.device = eager.tally.bad.device
        self.clip_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self.view_B = torch.zeros_like(self.clip_B)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, clip_B: Tensor, view_B: Tensor, batch: int) -> None:
        """One step on the clips `clip_B`, each in its view."""
        if batch < self.batch:
            self.eager(clip_B, view_B, batch)
            return
        self.clip_B.copy_(clip_B)
        self.view_B.copy_(view_B)
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up and record, leaving weights, moments, sums and the generator as they were."""
        kept = [(tensor, tensor.clone()) for tensor in self.eager.tally.everything()]
        random = torch.cuda.get_rng_state(self.device)
        # With this set the optimizer leaves weights and moments alone.
        self.eager.tally.bad.fill_(1)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self.eager(self.clip_B, self.view_B, self.batch)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.eager.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.eager(self.clip_B, self.view_B, self.batch)
        for tensor, before in kept:
            tensor.copy_(before)
        torch.cuda.set_rng_state(random, self.device)
        return graph

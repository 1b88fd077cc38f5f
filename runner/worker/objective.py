"""What is trained for: the samples, and the loss of some of them as a part of the global batch's mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Objective:
    """Cross-entropy of a class per sample, or of the next token; padding neither counts nor is counted.

    The loss of the global batch is a mean, over its samples or over its tokens. A micro-batch's part is the sum over
    what it has, divided by what the whole batch has: so parts add up whatever the shares are.
    """

    def __init__(self, data: dict[str, torch.Tensor], global_batch: int, task: str) -> None:
        self.data, self.global_batch, self.causal = data, global_batch, task == "causal-lm"
        self.counted: dict[int, int] = {}

    def rows(self, start: int, size: int) -> torch.Tensor:
        """Numbers of the texts that are the samples ``[start, start + size)``; after the last comes the first."""
        import torch

        ids = self.data["ids"]
        return torch.arange(start, start + size, device=ids.device) % ids.shape[0]

    def inputs(self, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, and 1 where one is: both of shape [samples, tokens]."""
        rows = self.rows(start, size)
        return self.data["ids"][rows], self.data["mask"][rows]

    def targets(self, start: int, size: int) -> torch.Tensor:
        """Labels, of shape [samples]; or the token after each, of shape [samples, tokens], -100 where none follows."""
        import torch

        rows = self.rows(start, size)
        if not self.causal:
            return self.data["labels"][rows]
        ids, mask = self.data["ids"][rows], self.data["mask"][rows]
        following = torch.where(mask[:, 1:] > 0, ids[:, 1:], -100)
        return torch.nn.functional.pad(following, (0, 1), value=-100)

    def count(self, batch_start: int) -> int:
        """What the mean of the global batch from a sample on is over: its samples, or the tokens that are predicted."""
        if not self.causal:
            return self.global_batch
        first = batch_start % self.data["ids"].shape[0]
        if first not in self.counted:
            mask = self.data["mask"][self.rows(first, self.global_batch)]
            self.counted[first] = max(1, int((mask[:, 1:] > 0).sum()))
        return self.counted[first]

    def loss(self, logits: Any, targets: torch.Tensor, count: int) -> torch.Tensor:
        """The part of some samples in the mean over ``count``."""
        import torch

        flat = logits.flatten(0, 1) if self.causal else logits
        total = torch.nn.functional.cross_entropy(flat.float(), targets.flatten(), reduction="sum", ignore_index=-100)
        return total / count

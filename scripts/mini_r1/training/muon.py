"""Muon for the matrices of a model, AdamW for the rest of it, as one optimizer that a Trainer takes.

Muon (Jordan et al., 2024) makes the momentum of a matrix orthogonal before it is applied, so that all directions of
the matrix learn at the same rate. Embeddings, biases and norms, which are no maps between vectors, stay with AdamW.
"""

from __future__ import annotations

from typing import Any

import torch

# Muon's steps are scaled to the size of AdamW's (Liu et al., 2025); matrices this small bear larger ones.
MUON_RATE = 3.0


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of PyTorch's optimizers behind the interface of one.

    Args:
        model: its parameters are trained; tied weights count once, as embeddings.
        lr: learning rate of AdamW; Muon's is MUON_RATE times that. A scheduler scales both.
        weight_decay: of the matrices, embeddings included; biases and norms have none.
        betas: AdamW's.
    """

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in embeddings]
        tables = [p for p in trained if p.ndim == 2 and id(p) in embeddings]
        vectors = [p for p in trained if p.ndim != 2]
        adamw = [{"params": tables, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, MUON_RATE * lr, weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(adamw, lr, betas),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both, by their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading replaced their groups; a scheduler looks for them here.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

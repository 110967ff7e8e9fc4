"""Muon and AdamW as one optimizer: who trains what, schedules, and a state that survives."""

import copy

import pytest
import torch

from mini_r1.training.muon import MUON_RATE, MuonWithAdamW


class Tied(torch.nn.Module):
    """An embedding that is the output layer as well, a matrix, a norm: the parts of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(11, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.matrix = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.matrix(self.table(ids))))


def optimizer_of(model: Tied) -> MuonWithAdamW:
    return MuonWithAdamW(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))


def train(model: Tied, optimizer: MuonWithAdamW, steps: int) -> float:
    ids = torch.arange(11)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids), (ids * 3) % 11)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = Tied()
    optimizer = optimizer_of(model)
    muon, adamw = optimizer.parts
    assert [p is model.matrix.weight for group in muon.param_groups for p in group["params"]] == [True]
    tables, vectors = adamw.param_groups
    assert [p is model.table.weight for p in tables["params"]] == [True]
    assert {id(p) for p in vectors["params"]} == {id(p) for p in model.parameters() if p.ndim == 1}
    assert (tables["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_it_learns():
    model = Tied()
    optimizer = optimizer_of(model)
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 100) < first / 4


def test_a_scheduler_scales_both():
    optimizer = optimizer_of(Tied())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    rates = [[group["lr"] for group in part.param_groups] for part in optimizer.parts]
    assert rates == [[pytest.approx(MUON_RATE * 0.5e-2)], [pytest.approx(0.5e-2)] * 2]


def test_the_state_goes_on_where_it_stopped():
    one = Tied()
    optimizer = optimizer_of(one)
    train(one, optimizer, 3)
    two = copy.deepcopy(one)
    resumed = optimizer_of(two)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for p in resumed.parts for g in p.param_groups]
    assert train(one, optimizer, 3) == train(two, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    resumed.param_groups[0]["lr"] = 0.0  # the groups a scheduler sees are those that are stepped
    resumed.param_groups[0]["weight_decay"] = 0.0
    before = two.matrix.weight.clone()
    train(two, resumed, 1)
    assert torch.equal(two.matrix.weight, before)

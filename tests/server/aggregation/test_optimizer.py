"""The coordinator's step against the rules written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity

from confide.common.settings import Settings, from_flat
from confide.server.aggregation import ServerOptimizer
from tests import tiny

SIZE, ROUNDS, LR, MOMENTUM = 50, 6, 0.3, 0.8
CLOSE = 1e-6


def settings(kind: str, **overrides: Any) -> Settings:
    wanted = {"aggregate__optimizer": kind, "aggregate__momentum": MOMENTUM, "train__lr": LR}
    return from_flat(tiny.config(Path("m"), Path("d"), Path("o"), **{**wanted, **overrides}))


def changes() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SIZE, generator=generator) for _ in range(ROUNDS)]


def by_hand(kind: str, start: torch.Tensor, step: float) -> torch.Tensor:
    vector, first, second = start.double(), torch.zeros(SIZE).double(), torch.zeros(SIZE).double()
    for number, change in enumerate(changes(), start=1):
        gradient = -change.double()
        if kind == "none":
            vector = vector - step * gradient
        elif kind == "momentum":
            first = MOMENTUM * first + gradient
            vector = vector - step * first
        elif kind == "adagrad":
            second = second + gradient.square()
            vector = vector - step * gradient / (second.sqrt() + 1e-8)
        else:
            first = MOMENTUM * first + (1 - MOMENTUM) * gradient
            square = gradient.square()
            if kind == "yogi":
                second = second - 0.01 * torch.sign(second - square) * square
            else:
                second = 0.99 * second + 0.01 * square
            unbiased = first / (1 - MOMENTUM**number)
            scale = (second / (1 - 0.99**number)).sqrt() + 1e-8
            vector = vector - step * unbiased / scale
    return vector.float()


@pytest.mark.parametrize(
    ("kind", "mode", "step"),
    [
        ("none", "gradient", LR),
        ("none", "steps", 1.0),
        ("momentum", "gradient", LR),
        ("momentum", "steps", 1.0),
        ("adam", "gradient", LR),
        ("adam", "steps", LR),
        ("yogi", "gradient", LR),
        ("yogi", "steps", LR),
        ("adagrad", "gradient", LR),
        ("adagrad", "steps", LR),
    ],
)
def test_the_step_is_what_the_rule_says(kind: str, mode: str, step: float) -> None:
    start = torch.linspace(-1, 1, SIZE)
    optimizer = ServerOptimizer(start, settings(kind, round__mode=mode))
    for change in changes():
        found = optimizer.step(change, LR)
    assert torch.allclose(found, by_hand(kind, start, step), atol=CLOSE, rtol=CLOSE)


def test_a_step_goes_along_the_change_and_leaves_the_start_alone() -> None:
    start = torch.zeros(SIZE)
    moved = ServerOptimizer(start, settings("none")).step(torch.ones(SIZE), LR)
    assert torch.equal(moved, torch.full((SIZE,), LR))
    assert not start.any()


@pytest.mark.parametrize("kind", ["none", "momentum", "adam", "yogi", "adagrad"])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_stopped_and_restored_it_goes_on_bit_for_bit(kind: str, stop: int) -> None:
    whole = ServerOptimizer(torch.zeros(SIZE), settings(kind))
    vector = torch.zeros(SIZE)
    for change in changes()[:stop]:
        vector = whole.step(change, LR)
    kept = whole.state()
    restored = ServerOptimizer(vector, settings(kind))
    restored.restore(kept)
    for change in changes()[stop:]:
        assert torch.equal(restored.step(change, LR), whole.step(change, LR))


def test_a_state_once_taken_does_not_move_with_the_optimizer() -> None:
    optimizer = ServerOptimizer(torch.zeros(SIZE), settings("momentum"))
    optimizer.step(torch.ones(SIZE), LR)
    state = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    optimizer.step(torch.ones(SIZE), LR)
    assert state
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("kind", "mode", "scaled"),
    [
        ("none", "gradient", True),
        ("none", "steps", False),
        ("adam", "steps", True),
        ("yogi", "steps", True),
        ("adagrad", "steps", True),
    ],
)
def test_the_rate_of_a_round_is_its_own(kind: str, mode: str, scaled: bool) -> None:
    """With local steps the holders have used it, and only the adaptive scale by themselves."""
    wanted = settings(kind, round__mode=mode)
    first, other = (ServerOptimizer(torch.zeros(SIZE), wanted) for _ in range(2))
    whole, half = first.step(torch.ones(SIZE), LR), other.step(torch.ones(SIZE), LR / 2)
    assert torch.allclose(half, whole / 2 if scaled else whole)


def test_yogi_forgets_a_large_change_more_slowly_than_adam() -> None:
    """Zaheer et al. 2018: after one large gradient Adam's scale shrinks at once, Yogi's hardly."""
    moved = {}
    for kind in ("adam", "yogi"):
        optimizer = ServerOptimizer(torch.zeros(1), settings(kind, aggregate__momentum=0.0))
        optimizer.step(torch.full((1,), 100.0), LR)
        for _ in range(300):
            before = optimizer.step(torch.ones(1), LR)
        moved[kind] = float(optimizer.step(torch.ones(1), LR) - before)
    assert 0 < moved["yogi"] < moved["adam"] / 2


def _flowers(kind: str, step: float) -> Any:
    """Flower's own strategy of a kind, with our constants. FedAvgM and FedAdagrad as they are."""
    if kind == "momentum":
        return FedAvgM(server_learning_rate=step, server_momentum=MOMENTUM)
    if kind == "adagrad":
        return FedAdagrad(eta=step, tau=1e-8)
    wanted = {"eta": step, "beta_1": MOMENTUM, "beta_2": 0.99, "tau": 1e-8}
    return FedAdam(**wanted) if kind == "adam" else FedYogi(**wanted)


def _answers(arrays: np.ndarray[Any, Any]) -> list[Message]:
    """Two clients of equal weight whose new arrays average to ``arrays``."""
    asked = Message(RecordDict(), message_type="train", dst_node_id=1)
    told = [arrays + 0.25, arrays - 0.25]
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"values": Array(values)}),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            ),
            reply_to=asked,
        )
        for values in told
    ]


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi", "adagrad"])
def test_the_step_is_flowers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's Adam counts rounds from one and corrects for one more, its Yogi corrects nothing;
    both corrections are made up for here. The rest is the same rule in other words."""
    for name in ("_run_id", "_task_id", "_node_id"):  # or Flower makes no message
        monkeypatch.setattr(TaskIdentity, name, 1)
    mode = "steps" if kind == "momentum" else "gradient"
    step = 1.0 if kind == "momentum" else LR
    start = torch.linspace(-1, 1, SIZE)
    ours, theirs = ServerOptimizer(start, settings(kind, round__mode=mode)), _flowers(kind, step)
    arrays = start.double().numpy()
    for number, change in enumerate(changes(), start=1):
        named = {"values": arrays}
        theirs.current_arrays = (
            ArrayRecord({"values": Array(arrays)}) if kind == "momentum" else named
        )
        if kind == "yogi":
            theirs.eta = step * (1 - 0.99**number) ** 0.5 / (1 - MOMENTUM**number)
        counted = number - 1 if kind == "adam" else number
        moved, _ = theirs.aggregate_train(counted, _answers(arrays + change.double().numpy()))
        arrays = moved["values"].numpy()
        found = ours.step(change, LR)
        assert torch.allclose(found, torch.from_numpy(arrays).float(), atol=1e-5), number

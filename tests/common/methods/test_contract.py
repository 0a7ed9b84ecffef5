"""Every method of the table does what its facts say: what it trains, sends and refuses, how it
combines, and that neither the order of the holders nor a stop changes a bit."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from confide.client.training.personal import load_personal, personal_file
from confide.common.adapter.schema import WEIGHTS_FILE, AdapterSchema, size_of, unflatten
from confide.common.errors import ConfideError
from confide.common.methods import DEFAULT, METHODS, Method, Only
from confide.common.methods.products import product_shapes
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat, rules
from confide.common.settings.combinations import ROBUST
from confide.common.wire.messages import Reply, TrainRequest
from confide.server.checkpoint import FILE, load_checkpoint
from confide.server.doctor import Facts
from confide.server.doctor.noise import both_factors
from confide.server.run import run
from confide.server.run_folder import RunFolder
from tests import tiny
from tests.server.federated import Transport, config, events
from tests.server.test_methods import CLOSE, OFF, RECORDS, _gradients, first_adapter
from tests.server.test_ranks import members, text_of

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "m.classifier.weight"
EMBEDDED_B = "m.lora_embedding_B"
RANK, ALPHA, ROUNDS, LR = 3, 6, 4, 1.0
MIXED = {"lora__rank": RANK, "lora__alpha": ALPHA, "lora__layers": 2, "round__count": ROUNDS}
every = pytest.mark.parametrize("name", METHODS)


def only(method: Method, key: str) -> Only | None:
    return next((one for one in method.only if one.key == key), None)


def admitted(method: Method, **overrides: Any) -> dict[str, Any]:
    """Settings that the method admits, near the defaults."""
    wanted: dict[str, Any] = {"aggregate__method": method.name, "aggregate__optimizer": "none"}
    wanted |= {key.replace(".", "__"): value for key, value in method.needs().items()}
    if method.noise.verdict == "refused":
        wanted |= {"privacy__trust": "off", "privacy__noise_multiplier": "auto"}
    return wanted | overrides


def flat(method: Method, **overrides: Any) -> dict[str, Any]:
    return config(Path("m"), Path("d"), Path("o"), **admitted(method, **overrides))


# --- the facts ---


@every
def test_the_facts_are_whole_and_agree_with_each_other(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.paper
    assert method.__doc__
    assert method.trains in ("A", "B", "AB")
    assert set(method.stays) < set(method.trains)
    assert method.noise.why
    assert bool(method.noise.what and method.noise.instead) == (method.noise.verdict != "sound")
    refused = only(method, "privacy.trust")
    assert (refused is not None) == (method.noise.verdict == "refused")
    assert not method.at_one_rank or (method.ranks and method.at_one_rank in METHODS)
    # Who combines by itself uses neither a rule nor a step of the coordinator's, and says so.
    fixed = [only(method, f"aggregate.{key}") for key in ("robust", "optimizer")]
    if type(method).combine is not Method.combine:
        assert [one and one.values for one in fixed] == [("mean",), ("none",)]
    rounds = {method.factors(number) for number in range(1, 5)}
    assert set("".join(rounds)) == set(method.trains)
    # Both factors at once under noise is noise times noise, whoever averages what.
    assert (method.noise.verdict == "sound") == all(len(factors) == 1 for factors in rounds)


def test_the_table_is_read_without_torch() -> None:
    look = (
        "import sys; from confide.common.methods import METHODS; print(len(METHODS), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    count, *loaded = done.stdout.split()
    assert int(count) == len(METHODS)
    assert not {"torch", "peft", "numpy"} & set(loaded)


def test_settings_admit_the_methods_of_the_table_and_no_other() -> None:
    rule = rules()["aggregate.method"]
    assert (list(rule.options), rule.default) == (list(METHODS), DEFAULT)
    with pytest.raises(ConfideError, match=r"settings\.range"):
        from_flat(flat(METHODS[DEFAULT]) | {"aggregate.method": "fedavg"})


@every
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_round_sends_the_head_and_the_factors_that_it_trains_but_for_those_that_stay(
    name: str, number: int
) -> None:
    method = METHODS[name]
    shapes = ((A, (2, 6)), (B, (4, 2)), (EMBEDDED_B, (9, 2)), (HEAD, (3, 4)))
    in_model = {
        HEAD,
        EMBEDDED_B,
        *(n for f, n in (("A", A), ("B", B)) if f in method.factors(1)),
    }
    schema = AdapterSchema(shapes=shapes, trained=frozenset(in_model))
    leaves = set(method.factors(number)) - set(method.stays)
    wanted = {HEAD} | {n for f, n in (("A", A), ("B", B)) if f in leaves}
    wanted |= set() if "B" in method.stays else {EMBEDDED_B}
    sent = method.sent(schema, number)
    assert (sent.trained, sent.shapes) == (wanted, shapes)
    assert sent.trained <= method.moved(schema).trained
    assert (sent.digest == schema.digest) == (wanted == in_model)
    union = [method.sent(schema, n).trained for n in (1, 2)]
    assert method.moved(schema).trained == union[0] | union[1]


@every
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_model_of_what_holders_are_told_trains_what_the_round_trains(
    name: str, number: int, tiny_model: Path
) -> None:
    method = METHODS[name]
    told = METHODS[method.told(number)]
    assert told.factors(1) == method.factors(number)
    settings = from_flat(flat(method) | {"model.name": str(tiny_model)})
    there = replace(settings, aggregate=replace(settings.aggregate, method=told.name))
    ours, theirs = load_model(settings).schema, load_model(there).schema
    assert method.sent(ours, number).digest == told.sent(theirs).digest


# --- what is refused ---


def _refused() -> Iterator[Any]:
    known = {"aggregate.robust": tuple(ROBUST), "round.patience": (0, 1, 5)}
    for name, method in METHODS.items():
        for one in method.only:
            for value in known.get(one.key) or rules()[one.key].options:
                yield pytest.param(method, one, value, id=f"{name}-{one.key}-{value}")


@pytest.mark.parametrize(("method", "one", "value"), list(_refused()))
def test_what_a_method_does_not_admit_is_refused_with_its_reason(
    method: Method, one: Only, value: Any
) -> None:
    wanted = flat(method) | {one.key: value}
    wanted |= {"privacy.noise-multiplier": "auto"} if one.key == "privacy.trust" else {}
    wanted |= {"round.min-holders": 9} if one.key == "aggregate.robust" else {}
    if value in one.values:
        assert from_flat(wanted).to_flat()[one.key] == value
        return
    with pytest.raises(ConfideError) as caught:
        from_flat(wanted)
    assert caught.value.code == "settings.combination"
    assert one.why.format(key=one.key, value=value, method=method.name) in str(caught.value)
    assert repr(method.name) in str(caught.value)
    assert caught.value.hint == one.instead or f"Set {one.key} = " in caught.value.hint


MERGING = {
    "privacy.trust": ("distributed", "local"),
    "aggregate.optimizer": ("momentum", "adam", "yogi", "adagrad"),
    "aggregate.robust": tuple(rule for rule in ROBUST if rule != "mean"),
    "round.patience": (1, 5),
    "round.holder-metric": ("accuracy", "perplexity"),
    "lora.method": ("head",),
}
RANKED = {"aggregate.robust": MERGING["aggregate.robust"], "lora.method": ("head",)}
TURNING = {"aggregate.optimizer": ("adam", "yogi", "adagrad"), "lora.method": ("head",)}
# Written down once more, since a test that asks the table alone would believe it.
REFUSED: dict[str, dict[str, tuple[str | int, ...]]] = {
    "lora": {},
    "ffa": {},
    "ffb": {},
    "fedsvd": {**TURNING},
    "rolora": {"aggregate.optimizer": MERGING["aggregate.optimizer"], "lora.method": ("head",)},
    "hetlora": {**RANKED},
    "flexlora": {**TURNING, **RANKED},
    "fedex": {**MERGING},
    "flora": {**MERGING},
    "fedsa": {
        "round.mode": ("gradient",),
        "round.holder-metric": ("accuracy", "perplexity"),
        "lora.method": ("head",),
    },
}


def test_what_is_refused_is_what_is_written_down_here() -> None:
    found: dict[str, dict[str, set[Any]]] = {name: {} for name in METHODS}
    for param in _refused():
        method, one, value = param.values
        if value not in one.values:  # that it is then refused is the test above
            found[method.name].setdefault(one.key, set()).add(value)
    wanted = {name: {key: set(v) for key, v in keys.items()} for name, keys in REFUSED.items()}
    assert found == wanted


@every
def test_what_a_method_does_not_speak_of_is_admitted(name: str) -> None:
    method = METHODS[name]
    free = {
        "aggregate.optimizer": rules()["aggregate.optimizer"].options,
        "aggregate.robust": tuple(ROBUST),
        "round.mode": ("gradient", "steps"),
        "round.patience": (0, 3),
        "round.holder-metric": ("", "accuracy"),
    }
    for key, values in free.items():
        if only(method, key):
            continue
        for value in values:
            from_flat(flat(method) | {"round.min-holders": 9, key: value})


@every
def test_a_method_that_is_not_sound_under_noise_is_found_and_no_other(name: str) -> None:
    method = METHODS[name]
    found = list(both_factors(from_flat(flat(method)), Facts()))
    assert len(found) == (method.noise.verdict == "unsound")
    for one in found:
        assert (one.why, one.fix) == (method.noise.why, method.noise.instead)
        assert one.what == f"aggregate.method = {name!r} {method.noise.what}"
    bare = {"privacy__trust": "off", "privacy__noise_multiplier": "auto"}
    assert not list(both_factors(from_flat(flat(method, **bare)), Facts()))


# --- rounds, against plain autograd ---


def own_ranks(method: Method, count: int) -> tuple[int, ...]:
    """Ranks that differ where the method admits that."""
    return ((1, RANK, 2) if method.ranks else (RANK,) * 3)[-count:]


def by_path(adapter: Mapping[str, torch.Tensor], factor: str) -> dict[str, torch.Tensor]:
    ending = f".lora_{factor}.weight"
    return {n.removesuffix(ending): v.double() for n, v in adapter.items() if n.endswith(ending)}


def product(adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    b = by_path(adapter, "B")
    return {path: b[path] @ a for path, a in by_path(adapter, "A").items()}


def cut(name: str, value: torch.Tensor, rank: int) -> torch.Tensor:
    """What a holder of this rank has of a factor: nothing beyond it."""
    out = value.clone()
    if "lora_A" in name:
        out[rank:] = 0
    elif "lora_B" in name:
        out[:, rank:] = 0
    return out


@contextmanager
def other_weights(
    loaded: LoadedModel, merged: Mapping[str, torch.Tensor], scale: float
) -> Iterator[None]:
    """The slow way: written into the model, and copies written back."""
    layers = {path: loaded.model.get_submodule(path).get_base_layer() for path in merged}
    kept = {path: layer.weight.data.clone() for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.weight.data += (scale * merged[path]).float()
    try:
        yield
    finally:
        for path, layer in layers.items():
            layer.weight.data.copy_(kept[path])


@pytest.mark.parametrize("count", [1, 3])
@every
def test_each_round_is_what_the_holders_would_do_alone_put_together_by_the_formula(
    name: str, count: int, tiny_model: Path, tmp_path: Path
) -> None:
    """With one holder it is central training. Without noise, two steps in each round, or for one
    holder one gradient where the method admits that: every holder trains its rank of the round's
    factors by plain autograd; then, if the method is exact, the products are the mean of the
    holders' products, and otherwise each factor that leaves is the mean. A factor that stays goes
    on at its holder."""
    method = METHODS[name]
    data = tiny.save_federation(tmp_path / "data", holders=count, records=RECORDS)
    changes = {"train__batch": RECORDS, "train__lr": LR, "round__count": 3}
    mode = only(method, "round.mode")
    alone = count == 1 and mode is None
    wanted = {**OFF, **MIXED, **changes}
    wanted |= {} if alone else {"round__mode": "steps", "train__steps": 2}
    ranks = own_ranks(method, count)
    transport = Transport(members(data, tmp_path / "ledgers", ranks))
    folder = run(
        config(tiny_model, data, tmp_path / "runs", **admitted(method, **wanted)), transport
    )
    assert all(not event["left_out"] for event in events(folder, "round"))
    loaded = load_model(from_flat(flat(method, **wanted) | {"model.name": str(tiny_model)}))
    texts = [text_of(loaded, path) for path in sorted(data.glob("holder-*.jsonl"))]
    starts = [Start.of(task, loaded) for task in transport.tasks]
    starts.append(Start.last(folder, loaded, method))
    kept: list[dict[str, torch.Tensor]] = [{} for _ in texts]
    for number, (start, after) in enumerate(itertools.pairwise(starts), start=1):
        names = {n for n, _ in loaded.schema.shapes if not is_lora(n)}
        names |= {
            n for n, _ in loaded.schema.shapes for f in method.factors(number) if f"_{f}." in n
        }
        ends = []
        for text, rank, own in zip(texts, ranks, kept, strict=True):
            begun = {n: cut(n, v, rank) for n, v in {**start.adapter, **own}.items()}
            adapter = dict(begun)
            with other_weights(loaded, start.merged, ALPHA / RANK):
                for _ in range(1 if alone else 2):
                    found = _gradients(loaded, text, adapter, frozenset(names))
                    adapter |= {
                        n: adapter[n] - LR * cut(n, g, rank) / RECORDS for n, g in found.items()
                    }
            stays = [n for n in names for f in method.stays if f"_{f}." in n]
            own.update({n: adapter[n] for n in stays})
            # What a holder cut off is as it was.
            ends.append({n: start.adapter[n] + adapter[n] - begun[n] for n in begun})
        compare(method, start, ends, after)
    moved = [starts[-1].merged[path] + value for path, value in product(starts[-1].adapter).items()]
    at_coordinator = set(method.trains) - set(method.stays)
    # A product moves as soon as B does; without it there is the head.
    assert all(value.any() for value in moved) == ("B" in at_coordinator)
    assert all(v.any() for n, v in starts[-1].adapter.items() if not is_lora(n))
    for number, own in enumerate(kept):
        ledger = tmp_path / "ledgers" / f"holder-{number:02d}" / "ledger.sqlite"
        path = personal_file(ledger, folder.id)
        assert path.exists() == bool(method.stays)
        theirs = load_personal(path).adapter if own else {}
        assert all(value.any() and close(theirs[n], value) for n, value in own.items())


def is_lora(name: str) -> bool:
    return "lora_" in name


def close(found: torch.Tensor, value: torch.Tensor) -> bool:
    apart = float((found.double() - value.double()).norm())
    return apart <= CLOSE * float(value.double().norm())


@dataclass(frozen=True)
class Start:
    """What holders begin a round with."""

    adapter: dict[str, torch.Tensor]
    merged: dict[str, torch.Tensor]

    @classmethod
    def of(cls, task: TrainRequest, loaded: LoadedModel) -> Start:
        shapes = product_shapes(loaded.schema)
        sent = (
            torch.frombuffer(bytearray(task.merged), dtype=torch.float32) if task.merged else None
        )
        vector = torch.zeros(size_of(shapes)) if sent is None else sent
        return cls(first_adapter(task, loaded), unflatten(vector, shapes))

    @classmethod
    def last(cls, folder: RunFolder, loaded: LoadedModel, method: Method) -> Start:
        added, schema = size_of(method.added(loaded.schema)), loaded.schema
        state = load_checkpoint(folder, schema, added, method.moved(schema).trained_size)
        shapes = product_shapes(schema)
        vector = state.merged if added else torch.zeros(size_of(shapes))
        return cls(unflatten(state.adapter, schema.shapes), unflatten(vector, shapes))


def compare(
    method: Method, start: Start, ends: Sequence[Mapping[str, torch.Tensor]], after: Start
) -> None:
    def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([v.double() for v in values]).mean(0)

    for name, value in after.adapter.items():
        leaves = not any(f"_{f}." in name for f in method.stays)
        if not is_lora(name) or (not method.exact and leaves):
            assert close(value, mean([end[name] for end in ends])), name
        elif not leaves:
            assert not value.any()
    if method.exact:
        for path, value in product(after.adapter).items():
            total = after.merged[path].double() + value
            wanted = start.merged[path].double() + mean([product(end)[path] for end in ends])
            assert close(total, wanted), path
    if not method.merges:
        assert not any(value.any() for value in after.merged.values())


# --- order, resume, sizes ---


class Backwards(Transport):
    def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
        return dict(reversed(super().ask(list(nodes)[::-1], task, timeout).items()))


class Stopping(Transport):
    def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
        if task.round == ROUNDS - 1:
            raise KeyboardInterrupt
        return super().ask(nodes, task, timeout)


@dataclass(frozen=True)
class Done:
    folder: RunFolder
    tasks: Sequence[TrainRequest]

    def bits(self) -> dict[str, torch.Tensor]:
        """Adapter and checkpoint."""
        saved = load_file(self.folder.path / "adapter" / WEIGHTS_FILE)
        return saved | {f"state.{n}": v for n, v in load_file(self.folder.path / FILE).items()}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of four rounds under noise where that is not refused, holders' ranks apart where that
    is admitted."""

    @cache
    def done(name: str, optimizer: str, kind: type[Transport]) -> Done:
        method, out = METHODS[name], tmp_path_factory.mktemp("run")
        wanted = admitted(method, **MIXED, aggregate__optimizer=optimizer)
        settings = config(tiny_model, tiny_federation, out / "runs", **wanted)

        def transport(of: type[Transport]) -> Transport:
            return of(members(tiny_federation, out / "ledgers", own_ranks(method, 3)))

        asked = transport(kind)
        if kind is not Stopping:
            return Done(run(settings, asked), asked.tasks)
        with pytest.raises(KeyboardInterrupt):
            run(settings, asked)
        (path,) = (out / "runs").iterdir()
        return Done(run({**settings, "run.resume": str(path)}, transport(Transport)), asked.tasks)

    return done


def _stepped() -> Iterator[tuple[str, str]]:
    """Each method with momentum, if it admits that; and one of them with Adam."""
    for name, method in METHODS.items():
        limit = only(method, "aggregate.optimizer")
        yield name, "momentum" if limit is None or "momentum" in limit.values else "none"
    yield "fedsa", "adam"


@pytest.mark.parametrize(("name", "optimizer"), list(_stepped()))
@pytest.mark.parametrize("kind", [Backwards, Stopping])
def test_neither_the_order_of_the_holders_nor_a_stop_changes_a_bit(
    name: str, optimizer: str, kind: type[Transport], runs: Any
) -> None:
    first, other = (runs(name, optimizer, one).bits() for one in (Transport, kind))
    assert first.keys() == other.keys()
    assert all(torch.equal(other[key], value) for key, value in first.items())
    assert any(value.any() for key, value in first.items() if "classifier" in key)


@pytest.mark.parametrize(("name", "optimizer"), list(_stepped())[:-1])
def test_a_message_has_the_values_of_what_leaves_and_of_nothing_else(
    name: str, optimizer: str, runs: Any, tiny_model: Path
) -> None:
    method, done = METHODS[name], runs(name, optimizer, Transport)
    wanted = admitted(method, **MIXED) | {"aggregate__optimizer": optimizer}
    schema = load_model(from_flat(config(tiny_model, Path("d"), Path("o"), **wanted))).schema
    whole = set()
    for number, (event, task) in enumerate(
        zip(events(done.folder, "round"), done.tasks, strict=True), start=1
    ):
        assert not event["left_out"]
        leaves = set(method.factors(number)) - set(method.stays)
        sizes = [
            4 * sum(_values(n, s, rank) for n, s in schema.shapes if _leaves(n, leaves))
            for rank in (*own_ranks(method, 3), RANK)
        ]
        whole.add(sizes.pop() // 4)
        assert [row["bytes_up"] for row in event["accepted"]] == sizes
        assert event["bytes_down"] == len(task.adapter) + len(task.merged)
        added = sum(out * wide for _, (out, wide) in product_shapes(schema))
        assert len(task.merged) == (4 * added if method.merges and number > 1 else 0)
        assert task.settings["aggregate.method"] == method.told(number)
    report = json.loads((done.folder.path / "report.json").read_text(encoding="utf-8"))
    assert (", without LoRA's" in json.dumps(report)) == bool(method.stays)
    (size,) = whole  # of the tiny model A and B are of one size
    released = report["released"]["accounted"] or report["released"]["not_accounted"]
    assert f" of {size:,} numbers" in released[0]["what"], "what leaves, and not what is trained"
    assert ("a smaller rank" in released[0]["what"]) == method.ranks
    (start,) = events(done.folder, "start")
    assert ("B stays at zero" in "".join(start["warnings"])) == ("B" not in method.trains)
    # ffb learns nothing alone, and its report says so.
    (trained,) = [one for one in report["checks"] if one["name"] == "The adapter was trained"]
    assert (trained["state"] == "passed") == ("B" in method.trains)


def _leaves(name: str, factors: set[str]) -> bool:
    return not is_lora(name) or any(f"_{factor}." in name for factor in factors)


def _values(name: str, shape: tuple[int, ...], rank: int) -> int:
    return (
        shape[0]
        if len(shape) == 1
        else shape[0] * shape[1] * rank // (RANK if is_lora(name) else rank)
    )


def test_the_report_of_the_head_alone_calls_it_trained(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    wanted = {"lora__method": "head", "round__count": 1}
    asked = Transport(members(tiny_federation, tmp_path / "ledgers", (RANK,) * 3))
    folder = run(config(tiny_model, tiny_federation, tmp_path / "runs", **wanted), asked)
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    (trained,) = [one for one in report["checks"] if one["name"] == "The adapter was trained"]
    assert trained["state"] == "passed"

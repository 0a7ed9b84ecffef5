"""Loading: what is shared, what is refused, and that every place starts from the same model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from confide.common.adapter.schema import get_adapter
from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model, weights_sha256
from confide.common.settings import from_flat
from confide.common.tasks import task_for
from confide.common.text.readers import Record
from tests import tiny, warm

POSITIONS = 64
LAYERS = 3


def load(model: Path, **changes: Any) -> LoadedModel:
    return load_model(from_flat(tiny.config(model, Path("federation"), Path("runs"), **changes)))


def refused(model: Path, **changes: Any) -> ConfideError:
    with pytest.raises(ConfideError) as caught:
        load(model, **changes)
    return caught.value


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# One model for equal settings


def test_equal_settings_give_the_same_object(tiny_model: Path) -> None:
    assert load(tiny_model) is load(tiny_model)


@pytest.mark.parametrize(
    "changes",
    [{"privacy__epsilon": 1.0}, {"train__lr": 0.5}, {"round__count": 7}, {"run__name": "other"}],
)
def test_settings_that_the_model_does_not_depend_on_do_not_load_it_again(
    tiny_model: Path, changes: dict[str, Any]
) -> None:
    assert load(tiny_model, **changes) is load(tiny_model)


@pytest.mark.parametrize(
    "changes",
    [{"lora__rank": 3}, {"train__max_length": 16}, {"run__seed": 1}, {"aggregate__method": "lora"}],
)
def test_settings_that_it_depends_on_do(tiny_model: Path, changes: dict[str, Any]) -> None:
    assert load(tiny_model, **changes) is not load(tiny_model)


# The same start everywhere


def test_the_head_starts_at_zero_and_so_do_the_products(tiny_model: Path) -> None:
    # A seed of its own: models are warm, and other tests may have written into theirs.
    for name, tensor in get_adapter(load(tiny_model, run__seed=77).model).items():
        if "classifier" in name or "lora_B" in name:
            assert torch.count_nonzero(tensor) == 0, name
        else:
            assert torch.count_nonzero(tensor) == tensor.numel(), name


def test_of_a_head_with_two_layers_only_the_last_starts_at_zero(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "roberta", "roberta")
    adapter = get_adapter(load(model, task__pooling="model").model)
    zero = {name for name, tensor in adapter.items() if not tensor.any()}
    assert any("out_proj.weight" in name for name in zero)
    assert not any("dense.weight" in name for name in zero), "no gradient would ever reach it"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_a_mean_is_refused_where_its_head_would_be_taken_for_the_last_tokens(
    kind: str, tmp_path: Path
) -> None:
    """Promise 39: transformers' text classifier read the last token with it, without a word."""
    folder = tiny.save_model(tmp_path, kind)
    with pytest.raises(ConfideError, match="reads the last token") as caught:
        load(folder, task__pooling="mean")
    assert caught.value.code == "task.pooling"
    load(folder, task__pooling="model")


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_regression_starts_in_the_middle_of_its_scale(tiny_model: Path, pooling: str) -> None:
    scale = {"task__low": 1.0, "task__high": 4.0, "run__seed": 78}
    task = {"task__kind": "regression", "task__labels": "", "task__pooling": pooling}
    if pooling == "model":
        tiny_model = tiny.save_model(tiny_model.parent / "distil", "distilbert")
    loaded = load(tiny_model, **task, **scale)
    examples = loaded.task.encode([Record("a day", "2"), Record("the town", "4")],
                                  loaded.tokenizer, loaded.max_length)  # fmt: skip
    batch = EncodedText(examples, loaded).together([0, 1])
    with torch.no_grad():
        assert forward(loaded, loaded.task, batch).flatten().tolist() == [2.5, 2.5]
    assert sum(2.5 in tensor for tensor in loaded.initial.values()) == 1, "it travels to everybody"


@pytest.fixture(scope="module")
def uneven_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of encoder, four of decoder."""
    folder = tiny.save_task_model(tmp_path_factory.mktemp("t5"), "seq2seq")
    config = transformers.T5Config.from_pretrained(folder, num_decoder_layers=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("layers", "encoder", "decoder"),
    [(1, {1}, {3}), (2, {0, 1}, {2, 3}), (3, {0, 1}, {1, 2, 3}), (0, {0, 1}, {0, 1, 2, 3})],
)
def test_encoder_and_decoder_are_each_counted_from_their_own_top(
    uneven_t5: Path, layers: int, encoder: set[int], decoder: set[int]
) -> None:
    loaded = load(uneven_t5, **tiny.TASKS["seq2seq"], lora__layers=layers)
    names = [name.split(".") for name, _ in loaded.schema.shapes]
    found = {(n[n.index("block") - 1], int(n[n.index("block") + 1])) for n in names}
    assert found == {("encoder", n) for n in encoder} | {("decoder", n) for n in decoder}
    kinds = {n[n.index("block") + 4] for n in names}
    assert kinds == {"SelfAttention", "EncDecAttention"}


def test_a_pair_of_stacks_has_no_more_layers_than_the_deeper_one(uneven_t5: Path) -> None:
    error = refused(uneven_t5, **tiny.TASKS["seq2seq"], lora__layers=5)
    assert error.code == "settings.range"
    assert "0 (all) to 4" in str(error)


def test_a_run_begins_with_the_adapter_as_it_was_loaded_whatever_the_model_carries_now(
    tmp_path: Path,
) -> None:
    model = tiny.save_model(tmp_path / "roberta", "roberta")
    loaded = load(model, task__pooling="model")
    at_first = get_adapter(loaded.model)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.zero_()
    assert set(loaded.initial) == set(at_first)
    assert all(torch.equal(loaded.initial[name], at_first[name]) for name in at_first)
    dense = [tensor for name, tensor in loaded.initial.items() if "dense.weight" in name]
    assert dense
    assert all(tensor.any() for tensor in dense), "two layers at zero would never learn"


def test_the_seed_decides_the_initial_adapter(tiny_model: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        adapter = get_adapter(load(tiny_model, run__seed=seed).model)
        return torch.cat([t.flatten() for n, t in adapter.items() if "lora_A" in n])

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_loading_does_not_touch_the_process_generator(tiny_model: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load(tiny_model, run__seed=17)
    assert torch.equal(torch.rand(1), expected)


def digest(loaded: LoadedModel) -> str:
    """Over every value of the model, adapter and base alike."""
    state = loaded.model.state_dict()
    parts = [state[name].numpy().tobytes() for name in sorted(state)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


SECOND = """
import json, sys
from pathlib import Path
from tests.common.test_models import digest, load
for folder, pooling in json.loads(sys.argv[1]):
    print(digest(load(Path(folder), task__pooling=pooling)))
"""


def test_a_second_process_starts_from_the_same_values(
    tiny_model: Path, tmp_path: Path, root: Path
) -> None:
    # DistilBERT's own head has a layer that no folder of a base model holds.
    distilbert = tiny.save_model(tmp_path / "distilbert", "distilbert")
    wanted = [(tiny_model, "mean"), (distilbert, "model")]
    here = [digest(load(folder, task__pooling=pooling)) for folder, pooling in wanted]
    argument = json.dumps([[str(folder), pooling] for folder, pooling in wanted])
    done = warm.run(SECOND, argument, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == here


def test_a_layer_of_the_head_that_the_folder_lacks_is_trained_and_travels(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "distilbert", "distilbert")
    schema = load(model, task__pooling="model").schema
    assert any("pre_classifier" in name for name in schema.trained)
    assert not any("pre_classifier" in name for name in load(model).schema.trained)


def test_a_head_for_other_classes_is_replaced(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=5)
    transformers.AutoModelForTokenClassification.from_pretrained(
        folder, config=config
    ).save_pretrained(folder)
    shapes = dict(load(folder).schema.shapes)
    assert [s for n, s in shapes.items() if "classifier" in n] == [(2,), (2, 16)]


@pytest.mark.parametrize("method", ["lora", "ffa"])
def test_what_is_trained_is_what_the_method_says(tiny_model: Path, method: str) -> None:
    trained = load(tiny_model, aggregate__method=method).schema.trained
    assert any("lora_B" in name for name in trained)
    assert any("classifier" in name for name in trained)
    assert any("lora_A" in name for name in trained) == (method == "lora")


def test_the_base_model_is_frozen(tiny_model: Path) -> None:
    for name, parameter in load(tiny_model).model.named_parameters():
        if "lora_" not in name and "modules_to_save" not in name:
            assert not parameter.requires_grad, name


@pytest.mark.parametrize(
    ("kind", "pooling"),
    tiny.poolings("bert", "roberta", "distilbert", "llama", "qwen2", "gpt2"),
)
def test_dropout_is_off_in_training(kind: str, pooling: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / kind, kind)
    rates = json.loads((folder / "config.json").read_text())
    high = [n for n, v in rates.items() if "drop" in n and isinstance(v, float)]
    edit_config(folder, **dict.fromkeys([*high, "attention_dropout"], 0.5))
    loaded = load(folder, task__pooling=pooling)
    loaded.model.train()  # it rests in eval mode, where no dropout would be on anyway
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.1)
        first, second = (loaded.model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)


def test_weights_stored_in_half_precision_are_trained_in_float32(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, dtype="bfloat16")
    assert {p.dtype for p in load(folder).model.parameters()} == {torch.float32}


def test_the_hash_is_that_of_the_weights(folder: Path) -> None:
    before = load(folder).sha256
    assert before == weights_sha256(folder) != ""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert weights_sha256(folder) != before


def test_a_decoders_head_reads_no_neighbours_padding(tmp_path: Path) -> None:
    """One record's loss must not depend on how long the others are: its gradient would, too."""
    folder = tiny.save_model(tmp_path / "gpt2", "gpt2")
    edit_config(folder, pad_token_id=None, eos_token_id=3)
    tokenizer_config = folder / "tokenizer_config.json"
    kept = json.loads(tokenizer_config.read_text())
    kept.pop("pad_token")
    tokenizer_config.write_text(json.dumps(kept | {"eos_token": "[SEP]"}))
    settings = from_flat(tiny.config(folder, folder, folder, task__pooling="model"))
    loaded, task = load_model(settings), task_for(settings.task)
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id != 0
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    records = [Record("a day", "positive"), Record("the people of the town " * 4, "positive")]
    text = EncodedText(task.encode(records, loaded.tokenizer, 32), loaded)
    with torch.no_grad():
        (alone,) = (forward(loaded, task, batch) for batch in text.batches([0]))
        (both,) = (forward(loaded, task, batch) for batch in text.batches())
    assert torch.allclose(alone[0], both[0], atol=1e-5)


# What is refused


@pytest.mark.parametrize("name", ["nowhere", "bert-bse-uncased"])
def test_a_model_that_is_not_there(name: str, tmp_path: Path) -> None:
    error = refused(tmp_path / name if name == "nowhere" else Path(name))
    assert error.code == "model.missing"
    assert name in error.message
    assert "assets fetch" in error.hint
    assert "Hub id" in error.hint


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "unheard-of"}'])
def test_a_folder_whose_config_is_broken(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert refused(folder).code in ("model.missing", "model.tokenizer")


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_a_folder_without_sound_weights(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "model.safetensors").unlink()
    else:
        (folder / "model.safetensors").write_bytes(content)
    error = refused(folder)
    assert error.code == "model.missing"
    assert "assets" in error.hint


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert refused(folder).code == "model.missing"


def test_a_folder_that_lacks_a_layers_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if "layer.2" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    error = refused(folder)
    assert error.code == "model.weights"
    assert "layer.2" in error.message


def test_a_model_without_a_pooler_cannot_use_it(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "pooler" in name]:
        weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert refused(folder, task__pooling="model").code == "model.weights"
    load(folder, task__pooling="mean")


def test_no_code_of_a_model_folder_is_run(folder: Path) -> None:
    trap = folder / "ran"
    (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w')\nclass Trap: pass\n")
    edit_config(
        folder,
        model_type="trap",
        auto_map=dict.fromkeys(("AutoConfig", "AutoTokenizer", "AutoModel"), "trap.Trap"),
    )
    assert refused(folder).code in ("model.missing", "model.tokenizer")
    assert not trap.exists()


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    error = refused(folder)
    assert error.code == "model.tokenizer"
    assert "tokenizer.json" in error.hint


@pytest.mark.parametrize(("layers", "fits"), [(LAYERS, True), (LAYERS + 1, False)])
def test_no_more_layers_than_the_model_has(tiny_model: Path, layers: int, fits: bool) -> None:
    if fits:
        assert load(tiny_model, lora__layers=layers).trunk.frozen == 0
    else:
        error = refused(tiny_model, lora__layers=layers)
        assert (error.code, f"to {LAYERS}" in error.hint) == ("settings.range", True)


@pytest.mark.parametrize(("kind", "longest"), [("bert", POSITIONS), ("roberta", POSITIONS - 1)])
def test_no_more_tokens_than_the_model_reads(kind: str, longest: int, tmp_path: Path) -> None:
    # RoBERTa's positions begin behind its padding index, which is 0 here (and 1 on the Hub).
    folder = tiny.save_model(tmp_path / kind, kind)
    loaded = load(folder, train__max_length=longest)
    ids = torch.full((1, longest), 5)
    assert torch.isfinite(loaded.model(input_ids=ids).logits).all()
    error = refused(folder, train__max_length=longest + 1)
    assert (error.code, str(longest) in error.hint) == ("settings.range", True)


@pytest.mark.parametrize("targets", ["nothing_like_it", "query,,", "LayerNorm", "word_embeddings"])
def test_targets_that_fit_no_module(tiny_model: Path, targets: str) -> None:
    if targets == "query,,":
        names = load(tiny_model, lora__targets=targets).schema.trained
        assert {n.split(".")[-3] for n in names if "lora" in n} == {"query"}
    else:
        assert refused(tiny_model, lora__targets=targets).code == "settings.range"

"""One-line faults of tasks, their models and their measurements, each of which a test must find.

More rows of ``table``, which says what a row is. A loss, a mask or a label that is wrong makes no
run fail: it makes a worse model, or one whose promise rests on another loss than was clipped.
"""

from __future__ import annotations

from tests.mutants.table import Mutant

_MODELS, _SCHEDULE = "tests/common/test_models.py", "tests/server/test_schedule.py"
_RUN_TASKS, _RUNS = "tests/server/test_run_tasks.py", "tests/simulations/test_benchmark_runs.py"
_LANG = ("tests/common/tasks/test_language.py",)
_IMB = ("tests/common/tasks/test_imbalance.py",)
_CLASS = ("tests/common/tasks/test_classification.py",)
_SETS = ("tests/common/tasks/test_multilabel.py",)
_REG = ("tests/common/tasks/test_regression.py",)
_LABELS = (*_CLASS, "tests/server/test_run_labels.py")
_SETTLED = ("tests/common/text/test_settled.py",)
_MODELS_REG = (f"{_MODELS}::test_a_regression_starts_in_the_middle_of_its_scale",)
_MODELS_T5 = (f"{_MODELS}::test_encoder_and_decoder_are_each_counted_from_their_own_top",)
_SPIECE = ("tests/server/test_sentencepiece_run.py",)
_KEPT = (f"{_SCHEDULE}::test_the_best_adapter_is_kept_and_the_run_says_whose_it_is",)
_KILLED = (f"{_SCHEDULE}::test_the_best_adapter_outlives_a_killed_run",)
_WRITTEN = (f"{_RUN_TASKS}::test_text_is_written_before_and_after_a_run_alone",)
_RUNS_TEXT = (f"{_RUN_TASKS}::test_what_is_written_does_not_depend_on_the_other_texts",)
_RUNS_SEQ = (*_LANG, *_SPIECE)
_BENCH = (f"{_RUNS}::test_a_description_names_a_benchmark_and_runs",)
_BENCH_CHANGED = (f"{_RUNS}::test_rows_that_changed_are_shared_out_anew",)

TASK_MUTANTS = (
    Mutant(
        "task: a mean over the batch's tokens",
        "common/tasks/tokens.py",
        "    return each.view_as(targets).sum(1) / token_counts(targets)\n",
        "    return each.view_as(targets).sum(1) / token_counts(targets).float().mean()\n",
        _LANG,
    ),
    Mutant(
        "task: targets that are none are counted",
        "common/tasks/tokens.py",
        "    return (targets != IGNORED).sum(1)",
        "    return torch.full((len(targets),), targets.shape[1])",
        _LANG,
    ),
    Mutant(
        "task: the decoder sees what it is to write",
        "common/tasks/tokens.py",
        "torch.cat([before, targets[:, :-1].masked_fill(targets[:, :-1] == IGNORED, pad)], 1)",
        "targets.masked_fill(targets == IGNORED, pad)",
        _RUNS_SEQ,
    ),
    Mutant(
        "task: the prompt is learnt, too",
        "common/tasks/causal.py",
        "            targets = [*[IGNORED] * (1 + len(kept)), *learnt]",
        "            targets = [begin, *kept, *learnt]",
        _LANG,
    ),
    Mutant(
        "a resumed run takes a loss that it has for a new one",
        "server/rounds.py",
        "written=not state.round, new=not state.round)",
        "written=not state.round)",
        (f"{_SCHEDULE}::test_an_abandoned_round_before_a_kill_is_no_loss_that_stood_still",),
    ),
    Mutant(
        "a resumed run forgets how many rounds were abandoned",
        "server/checkpoint.py",
        ', "advanced", "abandoned", "clip")',
        ', "advanced", "clip")',
        (f"{_SCHEDULE}::test_a_killed_run_still_knows_how_many_rounds_were_abandoned",),
    ),
    Mutant(
        "fedsa: the checkpoint is held against what the holders keep",
        "server/run.py",
        "size_of(added), method.moved(schema).trained_size)",
        "size_of(added))",
        ("tests/common/methods/test_contract.py",),
    ),
    Mutant(
        "task: a token foretells itself",
        "common/tasks/causal.py",
        "    return replace(batch, targets=torch.cat([batch.targets[:, 1:], ended], 1))",
        "    return batch",
        _LANG,
    ),
    Mutant(
        "task: logits of the first places, not of the learnt ones",
        "common/models/batches.py",
        "        return _at(args[0], places), *args[1:]",
        "        return args[0][:, : places.shape[1]], *args[1:]",
        _LANG,
    ),
    Mutant(
        "task: a long prompt loses its end",
        "common/tasks/causal.py",
        "            kept = body[-(max_length - len(learnt) - 1) :]",
        "            kept = body[: max_length - len(learnt) - 1]",
        _LANG,
    ),
    Mutant(
        "task: the user's words are learnt, too",
        "common/tasks/causal.py",
        '        if message.role != "assistant":',
        '        if message.role == "nobody":',
        _LANG,
    ),
    Mutant(
        "task: a text without any mask",
        "common/tasks/masked.py",
        "        if not hidden:",
        "        if len(ids) < 0:",
        _LANG,
    ),
    Mutant(
        "task: every token is a target",
        "common/tasks/masked.py",
        "        targets = [token if i in hidden else IGNORED for i, token in enumerate(ids)]",
        "        targets = list(ids)",
        _LANG,
    ),
    Mutant(
        "task: the frame is masked",
        "common/tasks/masked.py",
        "        frame = set(place.tokenizer.all_special_ids)",
        "        frame = set[int]()",
        _LANG,
    ),
    Mutant(
        "task: what is masked stays to be read",
        "common/tasks/masked.py",
        "                ids[i] = place.tokenizer.mask_token_id",
        "                pass",
        _LANG,
    ),
    Mutant(
        "task: spans overlap",
        "common/tasks/spans.py",
        "            at += kept + gone",
        "            at += kept",
        _LANG,
    ),
    Mutant(
        "task: a target without its end",
        "common/tasks/seq2seq.py",
        "        ended = [ids if end in ids[-2:] else (*ids[: most - 1], end) for ids in found]",
        "        ended = [ids[:-1] for ids in found]",
        _LANG,
    ),
    Mutant(
        "task: prompts of a decoder end at different places",
        "common/tasks/generation.py",
        "    alone = not place.model.config.is_encoder_decoder",
        "    alone = place.model.config.is_encoder_decoder is None",
        _RUNS_TEXT,
    ),
    Mutant(
        "task: a neighbour's length in an answer",
        "common/tasks/generation.py",
        "    return list(row[: next((i for i, one in enumerate(row) if one in ends), len(row))])",
        "    return list(row)",
        _LANG,
    ),
    Mutant(
        "task: focus on what is right",
        "common/tasks/classification.py",
        "            each = (1 - torch.exp(-each)) ** self.spec.gamma * each",
        "            each = torch.exp(-each) ** self.spec.gamma * each",
        _IMB,
    ),
    Mutant(
        "task: weights relative to the batch",
        "common/tasks/classification.py",
        "return each * torch.tensor(weights, device=each.device)[targets] if weights else each",
        "w = torch.tensor(weights or [1.0] * 99)[targets]\n        return each * w / w.mean()",
        _IMB,
    ),
    Mutant(
        "task: a label that is not declared",
        "common/tasks/classification.py",
        "        place = None if record.target is None else place_of(record.target)\n",
        "        place = None if record.target is None else place_of(record.target) or 0\n",
        _LABELS,
    ),
    Mutant(
        "task: a mean over the labels of all records",
        "common/tasks/multilabel.py",
        "if weights else each).mean(-1)",
        "if weights else each).mean().expand(len(logits))",
        _SETS,
    ),
    Mutant(
        "task: a label that is not declared is left out of its set",
        "common/tasks/multilabel.py",
        "    return known if len(known) == len(found) else None",
        "    return known",
        _SETS,
    ),
    Mutant(
        "task: padding is part of the mean",
        "common/tasks/pooled.py",
        "        scores = (scores * weight).sum(1) / weight.sum(1)",
        "        scores = scores.mean(1)",
        _CLASS,
    ),
    Mutant(
        "task: the frame is left out",
        "common/tasks/pooled.py",
        "    frame = set(place.tokenizer.all_special_ids)",
        "    frame = set[int]()",
        _IMB,
    ),
    Mutant(
        "task: a number outside of its scale",
        "common/tasks/regression.py",
        "        if not low <= number <= high:",
        "        if math.isnan(number):",
        _REG,
    ),
    Mutant(
        "task: classes without rates",
        "common/models/batches.py",
        "[i for i in unit if next(coins) < rates[self._class(i)]]",
        "[i for i in unit if next(coins) < 1]",
        _IMB,
    ),
    Mutant(
        "task: a batch stays where the model is not",
        "common/models/batches.py",
        "            return batch.on(device)",
        "            return batch",
        ("tests/common/test_device.py::test_batches_and_losses_lie_where_the_model_is",),
    ),
    Mutant(
        "task: a regression starts at zero",
        "common/models/heads.py",
        'if name == "bias":',
        "if False:",
        _MODELS_REG,
    ),
    Mutant(
        "task: layers counted from below",
        "common/models/targets.py",
        "sorted(layers)[-count:]",
        "sorted(layers)[:count]",
        _MODELS_T5,
    ),
    Mutant(
        "task: the merged model lacks the adapter",
        "server/predict.py",
        ".merge_and_unload()",
        ".unload()",
        _SPIECE,
    ),
    Mutant(
        "task: the last adapter in place of the best",
        "server/checkpoint.py",
        "        return self.adapter if self.best is None else self.best",
        "        return self.adapter",
        _KEPT,
    ),
    Mutant(
        "task: the best adapter is lost in a restart",
        "server/checkpoint.py",
        '("adapter", "merged", "best")',
        '("adapter", "merged")',
        _KILLED,
    ),
    Mutant(
        "task: the report tells of the last round",
        "server/report/reading.py",
        "        return last if self.kept is None else self.evaluations.get(self.kept, last)",
        "        return last",
        _KEPT,
    ),
    Mutant(
        "task: no text is written at the end",
        "server/rounds.py",
        "        if score and kept == state.round and score.whole:",
        "        if score and kept == state.round:",
        _WRITTEN,
    ),
    Mutant(
        "task: settings against the benchmark",
        "common/text/benchmarks.py",
        '        if given.get(key, "") not in ("", value):',
        '        if given.get(key, "") is None:',
        _SETTLED,
    ),
    Mutant(
        "task: a benchmark is measured on its training rows",
        "simulations/sources/__init__.py",
        'for split in ("train", public))',
        'for split in ("train", "train"))',
        _BENCH,
    ),
    Mutant(
        "task: rows that changed go unnoticed",
        "simulations/sources/__init__.py",
        "    return digest.hexdigest()",
        '    return "same"',
        _BENCH_CHANGED,
    ),
)

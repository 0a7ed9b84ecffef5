"""One-line faults that the privacy tests must find: the code is broken so, and a test must fail.

A test that no fault can make fail shows nothing. Each row names a file, a text that stands there
exactly once, what takes its place, and the tests of which at least one must then fail. ``run.py``
tries them (``make mutants``); ``test_table.py`` keeps the rows true while the code moves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``file``; ``tests`` are what pytest is given."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_STEP = "client/private_step.py"
_STEP_TESTS = ("tests/client/test_private_step.py",)
_TRAINER = "client/trainer.py"
_TRAINER_TESTS = ("tests/client/test_trainer.py",)
_PLAN = "common/privacy/plan.py"
_PLAN_TESTS = ("tests/common/privacy/test_plan.py",)
_NOISE = "common/privacy/noise.py"
_NOISE_TESTS = ("tests/common/privacy/test_noise.py",)
_LORA = "client/per_example/lora.py"
_GRADIENT_TESTS = ("tests/client/test_per_example.py",)
_VARIANT_TESTS = ("tests/client/test_per_example_variants.py",)
_HOLDER = "client/holder.py"
_HOLDER_TESTS = ("tests/client/test_holder.py",)
_LEDGER = "common/privacy/ledger.py"
_LEDGER_TESTS = ("tests/common/privacy/test_ledger.py",)
_ACCOUNTANT = "common/privacy/accountant.py"
_ACCOUNTANT_TESTS = ("tests/common/privacy/test_accountant.py",)
_PROVISION_TESTS = ("tests/deployment/test_provision.py",)
_DOOR_TESTS = ("tests/deployment/test_door.py",)

MUTANTS = (
    # --- real holders: keys, the door, the run ---
    Mutant(
        "others can read a private key",
        "server/deploy/keys.py",
        "_write(path, data, 0o600)",
        "_write(path, data, 0o644)",
        _PROVISION_TESTS,
    ),
    Mutant(
        "an expired key counts",
        "server/deploy/federation.py",
        "return not self.revoked and today <= self.expires",
        "return not self.revoked",
        _PROVISION_TESTS,
    ),
    Mutant(
        "a bundle that nobody pinned is sent",
        "server/deploy/bundle.py",
        "if found != federation.bundle:",
        "if False:",
        _PROVISION_TESTS,
    ),
    Mutant(
        "a revoked key stays registered",
        "server/deploy/members.py",
        "            flower.unregister(federation, member.node)\n",
        "",
        ("tests/deployment/test_members.py",),
    ),
    Mutant(
        "every path leads through the door",
        "server/deploy/door.py",
        "        location / {{ return 403; }}",
        "        location / {{ proxy_pass https://superlink; }}",
        _DOOR_TESTS,
    ),
    Mutant(
        "anybody may register a node",
        "server/deploy/flower.py",
        '        "--enable-supernode-auth",\n',
        "",
        _DOOR_TESTS,
    ),
    Mutant(
        "the SuperLink listens everywhere",
        "server/deploy/flower.py",
        '*("--host", host, "--port", port)',
        '*("--host", "0.0.0.0", "--port", port)',
        _DOOR_TESTS,
    ),
    Mutant(
        "a run that died begins anew",
        "server/deploy/run.py",
        '"run.resume": str(resumed or "")}',
        '"run.resume": ""}',
        ("tests/deployment/test_run.py",),
    ),
    # --- the private step ---
    Mutant(
        "noise off",
        _STEP,
        "summed = summed + std * draw.to",
        "summed = summed + 0 * std * draw.to",
        _STEP_TESTS,
    ),
    Mutant(
        "noise halved",
        _STEP,
        "std = self.noise_multiplier * self.max_grad_norm",
        "std = 0.5 * self.noise_multiplier * self.max_grad_norm",
        _STEP_TESTS,
    ),
    Mutant(
        "noise 10 % too small",
        _STEP,
        "std = self.noise_multiplier * self.max_grad_norm",
        "std = 0.9 * self.noise_multiplier * self.max_grad_norm",
        _STEP_TESTS,
    ),
    Mutant(
        "sigma per layer",
        _STEP,
        "std = self.noise_multiplier * self.max_grad_norm",
        "std = self.noise_multiplier * self.max_grad_norm / len(self.params) ** 0.5",
        _STEP_TESTS,
    ),
    Mutant(
        "noise that does not scale with the clip norm",
        _STEP,
        "std = self.noise_multiplier * self.max_grad_norm",
        "std = self.noise_multiplier",
        _STEP_TESTS,
    ),
    Mutant(
        "clip off",
        _STEP,
        "factors = most / kept.clamp(min=most)",
        "factors = torch.ones_like(kept)",
        _STEP_TESTS,
    ),
    Mutant(
        "clip off, and its check",
        _STEP,
        "        factors = most / kept.clamp(min=most)\n"
        "        if bool((factors * kept > most * (1 + _ROUNDING)).any()):",
        "        factors = torch.ones_like(kept)\n        if False:",
        _STEP_TESTS,
    ),
    Mutant(
        "short gradients made as long as the clip norm",
        _STEP,
        "factors = most / kept.clamp(min=most)",
        "factors = most / kept",
        _STEP_TESTS,
    ),
    Mutant(
        "clip by each tensor's own norm",
        _STEP,
        "            squares += torch.linalg.vecdot(exact, exact)",
        "            squares = torch.maximum(squares, torch.linalg.vecdot(exact, exact))",
        _STEP_TESTS,
    ),
    Mutant(
        "norms in the gradient's own precision",
        _STEP,
        "            exact = part.double()",
        "            exact = part",
        _STEP_TESTS,
    ),
    Mutant(
        "sums in the gradient's own precision",
        _STEP,
        "torch.mv(kept.double().t(), factors, out=place)",
        "place.copy_(torch.mv(kept.t(), factors.to(kept.dtype)))",
        _STEP_TESTS,
    ),
    Mutant(
        "a record that is not finite is kept",
        _STEP,
        "finite = torch.isfinite(norms)",
        "finite = torch.ones_like(norms, dtype=torch.bool)",
        _STEP_TESTS,
    ),
    Mutant(
        "an empty batch takes no step",
        _STEP,
        "        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))\n"
        "    optimizer.step()",
        "        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))",
        _STEP_TESTS,
    ),
    Mutant(
        "noise of another size is not noticed",
        _STEP,
        "    if not low <= square <= high:",
        "    if False:",
        _STEP_TESTS,
    ),
    Mutant(
        "a longer gradient is not noticed",
        _STEP,
        "        if bool((factors * kept > most * (1 + _ROUNDING)).any()):",
        "        if False:",
        _STEP_TESTS,
    ),
    Mutant(
        "the sum of a person's records for their mean",
        _STEP,
        "shares = rows / sizes[units].view",
        "shares = rows / torch.ones_like(sizes)[units].view",
        _STEP_TESTS,
    ),
    Mutant(
        "the second half of a person alone",
        _STEP,
        "parameter.grad_sample = means if held is None else means + held",
        "parameter.grad_sample = means",
        _STEP_TESTS,
    ),
    Mutant(
        "half a person is clipped",
        _STEP,
        "        if self._held:\n",
        "        if False:\n",
        _STEP_TESTS,
    ),
    # --- the training loop ---
    Mutant(
        "mean for sum",
        _TRAINER,
        "task.losses(logits, piece.batch.targets).sum().backward()",
        "task.losses(logits, piece.batch.targets).mean().backward()",
        _TRAINER_TESTS,
    ),
    Mutant(
        "all records of a person, however many",
        _TRAINER,
        "    if len(records) <= most:\n        return records",
        "    if True:\n        return records",
        _TRAINER_TESTS,
    ),
    Mutant(
        "persons are clipped record by record",
        _TRAINER,
        "            if not piece.whole or piece.sizes.max() > 1:",
        "            if False:",
        _TRAINER_TESTS,
    ),
    Mutant(
        "noise for each physical batch's part of the sum, none for the whole",
        _TRAINER,
        "optimizer.signal_skip_step(seen < len(drawn))",
        "optimizer.signal_skip_step(False)",
        _TRAINER_TESTS,
    ),
    Mutant(
        "a tensor that stands still is not noticed",
        _TRAINER,
        "    if torch.equal(before, after):",
        "    if False:",
        _TRAINER_TESTS,
    ),
    Mutant(
        "a loss over the batch",
        "common/tasks/classification.py",
        'each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")',
        "each = torch.nn.functional.cross_entropy(logits.float(), targets).expand(len(targets))",
        ("tests/common/tasks/test_classification.py", "tests/client/test_private_step.py"),
    ),
    Mutant(
        "gradients are not held against those of each example alone",
        "client/self_check.py",
        "if not torch.isfinite(difference) or difference > tolerance * size:",
        "if False:",
        ("tests/client/test_self_check.py",),
    ),
    Mutant(
        "one stream of masks for all records",
        _TRAINER,
        "return torch.Generator().manual_seed(int(generator.uniform(1)[0] * 2**53))",
        "return torch.Generator().manual_seed(0)",
        _TRAINER_TESTS,
    ),
    Mutant(
        "masks drawn on from the record before",
        "common/batches.py",
        "            examples = [loaded.task.redraw(e, loaded, draws()) for e in examples]",
        "            common = draws()\n"
        "            examples = [loaded.task.redraw(e, loaded, common) for e in examples]",
        ("tests/common/tasks/test_imbalance.py",),
    ),
    # --- per-example gradients ---
    Mutant(
        "the gradient of B without its scale",
        _LORA,
        "record(branch.b, outer(g, kept.inner[number], branch.scale))",
        "record(branch.b, outer(g, kept.inner[number]))",
        _GRADIENT_TESTS,
    ),
    Mutant(
        "the gradient of A forgets dropout",
        _LORA,
        "record(branch.a, outer(inner, _masked(kept.x, mask), branch.scale))",
        "record(branch.a, outer(inner, kept.x, branch.scale))",
        ("tests/client/test_per_example_dropout.py",),
    ),
    Mutant(
        "the layers below do not see the branch",
        _LORA,
        "    if gx is None:\n        return\n    inner = inner",
        "    return\n    inner = inner",
        _GRADIENT_TESTS,
    ),
    Mutant(
        "DoRA without its scale",
        _LORA,
        "    return g * (magnitude / norm).to(g.dtype)",
        "    return g",
        _VARIANT_TESTS,
    ),
    Mutant(
        "a layer that is called twice keeps the last",
        "client/per_example/record.py",
        "kept.grad_sample = known + rows",
        "kept.grad_sample = rows",
        _GRADIENT_TESTS,
    ),
    # --- sampler, noise, plan ---
    Mutant(
        "shuffle for Poisson",
        _PLAN,
        '        coins = generator.bernoulli(_whole("units", units), self.sampling_rate)\n'
        "        return np.flatnonzero(coins).astype(np.int64)",
        "        return generator.subset(units, round(units * self.sampling_rate))",
        _PLAN_TESTS,
    ),
    Mutant(
        "the event of another rate than the sampler's",
        _PLAN,
        "            sampling_rate=self.sampling_rate,\n            steps=self.steps_per_round",
        "            sampling_rate=self.sampling_rate / 2,\n            steps=self.steps_per_round",
        _PLAN_TESTS,
    ),
    Mutant(
        "noise for half the rounds",
        _PLAN,
        "steps=steps_per_round * max_rounds,",
        "steps=steps_per_round * max(1, max_rounds // 2),",
        _PLAN_TESTS,
    ),
    Mutant(
        "a delta of one unit",
        _PLAN,
        "if self.trust is not Trust.OFF and self.delta >= 1 / n:",
        "if False:",
        _PLAN_TESTS,
    ),
    Mutant(
        "the same noise each time",
        _NOISE,
        "            self._key = cipher.update(bytes(_KEY_BYTES))",
        "            cipher.update(bytes(_KEY_BYTES))",
        _NOISE_TESTS,
    ),
    Mutant(
        "a child shares its parent's noise",
        _NOISE,
        "            if os.getpid() != self._process:",
        "            if False:",
        _NOISE_TESTS,
    ),
    Mutant(
        "cosine twice: correlated noise",
        _NOISE,
        "np.multiply(radius, np.sin(angle), out=draws[pairs:])",
        "np.multiply(radius, np.cos(angle), out=draws[pairs:])",
        _NOISE_TESTS,
    ),
    Mutant(
        "seed reused",
        _HOLDER,
        "self._generator = generator or SecureGenerator()",
        "self._generator = generator or SecureGenerator.insecure_seeded(0)",
        (*_HOLDER_TESTS, "tests/architecture/test_source.py"),
    ),
    # --- charge, train, release ---
    Mutant(
        "trained before it is charged",
        _HOLDER,
        "        ledger.charge(charge, *self._limits(settings))\n"
        "        change = ready.trainer.train(\n"
        "            ready.adapter, text, settings, plan, self._generator, units=units\n"
        "        )\n",
        "        change = ready.trainer.train(\n"
        "            ready.adapter, text, settings, plan, self._generator, units=units\n"
        "        )\n"
        "        ledger.charge(charge, *self._limits(settings))\n",
        _HOLDER_TESTS,
    ),
    Mutant(
        "a repeated task is answered anew",
        _HOLDER,
        "            if seen is not None:\n                return Update.from_bytes(seen)\n",
        "",
        _HOLDER_TESTS,
    ),
    Mutant(
        "a run without end",
        _HOLDER,
        "    if sum(s.steps for s in ledger.steps(task.run)) + steps > steps * count:",
        "    if False:",
        _HOLDER_TESTS,
    ),
    Mutant(
        "what was not charged may leave",
        _LEDGER,
        "            if task_hash not in self._book.tasks:\n                raise ConfideError(",
        "            if False:\n                raise ConfideError(",
        (*_LEDGER_TESTS, "tests/client/test_release.py"),
    ),
    Mutant(
        "a task is charged twice",
        _LEDGER,
        "            if charge.task_hash in book.tasks:\n                raise task_spent()\n",
        "",
        _LEDGER_TESTS,
    ),
    Mutant(
        "the budget is no limit",
        _LEDGER,
        "    if limit is not None and not fit(book.steps(None), limit):",
        "    if False:",
        _LEDGER_TESTS,
    ),
    Mutant(
        "each run has a budget of its own",
        _LEDGER,
        "not fit(book.steps(None), limit):",
        "not fit(book.steps(run), limit):",
        (*_LEDGER_TESTS, *_HOLDER_TESTS),
    ),
    Mutant(
        "what is not finite may leave",
        "client/release.py",
        "    if not torch.isfinite(decode_vector(values, encoding, change.numel())).all():",
        "    if False:",
        ("tests/client/test_release.py",),
    ),
    # --- the accountant ---
    Mutant(
        "rounds do not add up",
        _ACCOUNTANT,
        "counts[float(s.noise_multiplier), float(s.sampling_rate)] += s.steps",
        "counts[float(s.noise_multiplier), float(s.sampling_rate)] = s.steps",
        _ACCOUNTANT_TESTS,
    ),
)

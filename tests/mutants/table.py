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


_STEP = "client/training/private_step.py"
_STEP_TESTS = ("tests/client/test_private_step.py",)
_TRAINER = "client/training/trainer.py"
_TRAINER_TESTS = ("tests/client/test_trainer.py",)
_PLAN = "common/privacy/plan.py"
_PLAN_TESTS = ("tests/common/privacy/test_plan.py",)
_NOISE = "common/privacy/noise.py"
_NOISE_TESTS = ("tests/common/privacy/test_noise.py",)
_LORA = "client/training/per_example/lora.py"
_GRADIENT_TESTS = ("tests/client/test_per_example.py",)
_VARIANT_TESTS = ("tests/client/test_per_example_variants.py",)
_HOLDER = "client/holder.py"
_HOLDER_TESTS = ("tests/client/test_holder.py",)
_SUMS = "client/training/sums.py"
_SUM_TESTS = ("tests/client/test_sums.py",)
_LEDGER = "common/privacy/ledger.py"
_LEDGER_TESTS = ("tests/common/privacy/test_ledger.py",)
_BUDGET = "common/privacy/budget.py"
_BUDGET_TESTS = ("tests/common/privacy/test_budget.py",)
_FILTERS = "common/privacy/filters.py"
_FILTER_TESTS = ("tests/common/privacy/test_filters.py", *_BUDGET_TESTS)
_ACCOUNTANT_TESTS = ("tests/common/privacy/test_accountant.py",)
_GATE = "server/gate.py"
_GATE_TESTS = ("tests/server/test_gate.py",)
_ROUNDS = "server/rounds.py"
_ROUNDS_TESTS = "tests/server/test_rounds.py"
_ROBUST = "server/aggregation/robust.py"
_ROBUST_TESTS = ("tests/server/aggregation/test_robust.py",)
_METHODS = "common/methods"
_CONTRACT = "tests/common/methods/test_contract.py"
_PULLED = "test_a_proximal_step_is_pulled_back_after_clipping_and_noise"
_PROVISION_TESTS = ("tests/deployment/test_provision.py",)
_DOOR_TESTS = ("tests/deployment/test_door.py",)

MUTANTS = (
    # --- real holders: keys, the door, the run ---
    Mutant(
        "others can read a private key",
        "common/machine/paths.py",
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
        "            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))\n"
        "        self.step()",
        "            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))",
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
        "                optimizer.add()\n",
        "                optimizer.step()\n",
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
        "the self-check looks at short texts alone",
        "client/training/self_check.py",
        "    if pair > max(_LENGTHS):",
        "    if pair > 10**9:",
        ("tests/client/test_self_check.py",),
    ),
    Mutant(
        "the self-check holds the frozen layers against themselves",
        "client/training/self_check.py",
        "whole = replace(loaded, trunk=loaded.trunk.whole())",
        "whole = loaded",
        ("tests/client/test_self_check.py",),
    ),
    Mutant(
        "the frozen model trains in training mode",
        "client/training/per_example/engine.py",
        "        self._module.eval()\n        self._module.training = True",
        "        self._module.train()",
        ("tests/client/test_per_example_state.py",),
    ),
    Mutant(
        "gradients are not held against those of each example alone",
        "client/training/self_check.py",
        "        if _off(found, expected) > _allowed(loaded):",
        "        if False:",
        ("tests/client/test_self_check.py",),
    ),
    Mutant(
        "one stream of masks for all records",
        _TRAINER,
        "own[place] = torch.Generator().manual_seed(seeds[place])",
        "own[place] = torch.Generator().manual_seed(0)",
        _TRAINER_TESTS,
    ),
    Mutant(
        "masks drawn on from the record before",
        "common/models/batches.py",
        "            examples = [loaded.task.redraw(e, loaded, draws(i)) for i, e in pairs]",
        "            common = draws(0)\n"
        "            examples = [loaded.task.redraw(e, loaded, common) for i, e in pairs]",
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
        "client/training/per_example/layers.py",
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
        "            ledger.charge(self._charge_of(job), *self._limits(settings))\n"
        "            return self._paid(job, ledger)\n",
        "            corpus = self._read(settings, ledger.identity_key)\n"
        "            self._sum(job, corpus) if job.kind else self._train(job, corpus)\n"
        "            ledger.charge(self._charge_of(job), *self._limits(settings))\n"
        "            return self._paid(job, ledger)\n",
        _HOLDER_TESTS,
    ),
    Mutant(
        "a repeated task is answered anew",
        _HOLDER,
        "        if seen is not None:\n            return reply_from_bytes(seen)\n",
        "",
        _HOLDER_TESTS,
    ),
    Mutant(
        "a run without end",
        _HOLDER,
        "full, what = trained + steps > steps * count,",
        "full, what = False,",
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
        _BUDGET,
        "    if _is_limit(limit) and not _fits(book, charge, limit, run=None):",
        "    if False:",
        _BUDGET_TESTS,
    ),
    Mutant(
        "each run has a budget of its own",
        _BUDGET,
        "_is_limit(limit) and not _fits(book, charge, limit, run=None)",
        "_is_limit(limit) and not _fits(book, charge, limit, run=charge.run)",
        _BUDGET_TESTS,
    ),
    Mutant(
        "several runs are held to the PLD sum alone",
        _BUDGET,
        "    return enforced(terms, after, limit, min({plan.delta, *book.deltas}))\n",
        "    return within(after, plan.delta, limit)\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "a plan that fills the limit by PLD may be followed by another run",
        _BUDGET,
        "    return not by_filter and within(first.whole, first.delta, limit)\n",
        "    return False\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "a larger delta undoes a smaller one",
        _BUDGET,
        "min({plan.delta, *book.deltas})",
        "max({plan.delta, *book.deltas})",
        _BUDGET_TESTS,
    ),
    Mutant(
        "a run may take more than its plan at the price of the plan",
        _BUDGET,
        "    alone = set(plans) <= {plan} and covers(plan.whole, after)\n",
        "    alone = set(plans) <= {plan}\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "the claim is of what was spent, though the end may depend on what was seen",
        _BUDGET,
        "        return epsilon_pld(plans[0].whole, delta)\n",
        "        return epsilon_pld(spent, delta)\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "several runs are told by their PLD sum",
        _BUDGET,
        "    told = filters.bound(book.terms, merge((*spent, *left)), delta)\n",
        "    told = epsilon_pld(merge((*spent, *left)), delta)\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "a run whose plan changes is one run",
        _BUDGET,
        "    if len(plans) == 1 and covers(plans[0].whole, spent):\n",
        "    if len({plan.run for plan in plans}) == 1:\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "a run that outgrows its plan is told as its plan",
        _BUDGET,
        "    if len(plans) == 1 and covers(plans[0].whole, spent):\n",
        "    if len(plans) == 1:\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "the rounds to come are left out of the claim",
        _BUDGET,
        "    left = missing(own[-1].whole, book.steps(run)) if own else ()\n",
        "    left = ()\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "each level of the odometer has all of delta",
        _FILTERS,
        "if holds(terms, steps, level, _LEVEL_SHARE * delta))",
        "if holds(terms, steps, level, delta))",
        _FILTER_TESTS,
    ),
    Mutant(
        "the limit has all of delta beside the levels",
        _FILTERS,
        "    return holds(terms, steps, limit, LIMIT_SHARE * delta)\n",
        "    return holds(terms, steps, limit, delta)\n",
        _FILTER_TESTS,
    ),
    Mutant(
        "both filters have all of delta",
        _FILTERS,
        "        if delta_gaussian(multiplier, epsilon) <= (1 - sampled) * delta:\n",
        "        if delta_gaussian(multiplier, epsilon) <= delta:\n",
        _FILTER_TESTS,
    ),
    Mutant(
        "the Renyi filter has all of delta beside the Gaussian one",
        _FILTERS,
        "    most = epsilon - renyi.conversion(sampled * delta)[place]\n",
        "    most = epsilon - renyi.conversion(delta)[place]\n",
        _FILTER_TESTS,
    ),
    Mutant(
        "the Gaussian filter takes sampled steps",
        _FILTERS,
        "    if terms.plain and is_plain(merged):\n",
        "    if terms.plain:\n",
        _FILTER_TESTS,
    ),
    Mutant(
        "the order follows what was spent",
        _FILTERS,
        "    place = renyi.ORDERS.index(terms.order)\n",
        "    place = int((renyi.divergences(merged) + renyi.conversion(delta)).argmin())\n",
        _FILTER_TESTS,
    ),
    Mutant(
        "the newest limit is told, whenever it was set",
        _BUDGET,
        "    held = book.terms.limit\n",
        "    held = book.limit\n",
        _BUDGET_TESTS,
    ),
    Mutant(
        "what is not finite may leave",
        "client/guard/release.py",
        "    if not torch.isfinite(decode_vector(values, encoding, change.numel())).all():",
        "    if False:",
        ("tests/client/test_release.py",),
    ),
    # --- noisy sums ---
    Mutant(
        "no noise on a sum",
        _SUMS,
        "total + plan.noise_std * draw",
        "total + 0 * plan.noise_std * draw",
        _SUM_TESTS,
    ),
    Mutant(
        "half the noise on a sum",
        _SUMS,
        "total + plan.noise_std * draw",
        "total + 0.5 * plan.noise_std * draw",
        _SUM_TESTS,
    ),
    Mutant(
        "one draw for all numbers of a sum",
        _SUMS,
        "draw = generator.normal(len(total))",
        "draw = np.repeat(generator.normal(1), len(total))",
        _SUM_TESTS,
    ),
    Mutant(
        "classes counted as they are",
        _HOLDER,
        "        total = noisy_sum(used, job.values, units, job.plan, self._generator, longest)\n",
        "        total = torch.from_numpy(sum(used))\n",
        _SUM_TESTS,
    ),
    Mutant(
        "a person counts once for each record",
        _SUMS,
        "one = shares[list(records)].mean(axis=0)",
        "one = shares[list(records)].sum(axis=0)",
        _SUM_TESTS,
    ),
    Mutant(
        "what a unit adds is not clipped",
        _SUMS,
        "total += one * (most / max(float(np.linalg.norm(one)), most))",
        "total += one",
        _SUM_TESTS,
    ),
    Mutant(
        "what is not a number stays in a sum",
        _SUMS,
        "        if np.isfinite(one).all():\n",
        "        if True:\n",
        _SUM_TESTS,
    ),
    Mutant(
        "the noise of training leaves no room for sums",
        "common/plans.py",
        "        besides=steps_of_sums(settings),\n",
        "        besides=(),\n",
        _SUM_TESTS,
    ),
    Mutant(
        "a sum as often as one likes",
        _HOLDER,
        "full, what = request.round in charged,",
        "full, what = False,",
        _SUM_TESTS,
    ),
    Mutant(
        "a sum that does not fit opens the text",
        _HOLDER,
        "                _raise(ledger.objection(charge, *limits))\n",
        "",
        _SUM_TESTS,
    ),
    Mutant(
        "a policy without sums is passed by",
        "client/guard/policy.py",
        "    if not policy.allow_sums:\n",
        "    if False:\n",
        _SUM_TESTS,
    ),
    Mutant(
        "a receipt without the sum passes the gate",
        "server/gate.py",
        "        if summed and not any(is_sum(step, settings) for step in receipt.steps_run):\n",
        "        if False:\n",
        ("tests/server/test_sums.py",),
    ),
    Mutant(
        "the report does not read sums",
        "server/report/reading.py",
        'summed[event["round"]] = {**event, "accepted": len(event["accepted"])}\n'
        "            add_round(histories, event)\n",
        'summed[event["round"]] = {**event, "accepted": len(event["accepted"])}\n',
        ("tests/server/test_run_sums.py",),
    ),
    # --- ranks ---
    Mutant(
        "a change of smaller rank is padded at the front",
        f"{_METHODS}/ranks.py",
        "        tensors[name][_first(tuple(part.shape))] = part",
        "        tensors[name].flatten()[-part.numel():] = part.flatten()",
        ("tests/common/methods/test_ranks.py", "tests/server/test_ranks.py"),
    ),
    Mutant(
        "a node may answer in another's name",
        _GATE,
        "            senders.check(node, reply.holder)\n",
        "            pass\n",
        ("tests/server/test_senders.py",),
    ),
    Mutant(
        "what a holder says is taken for the gate's word",
        _GATE,
        ' and not code.startswith("gate.")',
        "",
        ("tests/server/test_senders.py",),
    ),
    Mutant(
        "the gate takes any schema for the run's",
        "server/gate.py",
        "    if update.schema != schema:\n",
        "    if False:\n",
        ("tests/server/test_ranks.py",),
    ),
    Mutant(
        "a holder trains more than its policy's rank",
        f"{_METHODS}/context.py",
        "min(rank, most_rank) if",
        "rank if",
        ("tests/server/test_ranks.py",),
    ),
    Mutant(
        "one rank alone, and the policy's is no limit",
        "client/guard/policy.py",
        "not method_of(settings.aggregate.method).ranks:",
        "False:",
        ("tests/server/test_ranks.py", "tests/client/test_policy.py"),
    ),
    Mutant(
        "the long factors do not come back",
        f"{_METHODS}/ranks.py",
        "            factor.weight = weight",
        "            factor.weight = factor.weight",
        ("tests/common/methods/test_narrowed.py",),
    ),
    # --- frozen weights that are added to ---
    Mutant(
        "what is added is not scaled",
        f"{_METHODS}/products.py",
        "base.weight + scale * turned",
        "base.weight + turned",
        ("tests/server/test_merged.py",),
    ),
    Mutant(
        "the frozen weights do not come back",
        f"{_METHODS}/products.py",
        "            base.weight = weight",
        "            base.weight = base.weight",
        ("tests/server/test_merged.py",),
    ),
    Mutant(
        "what is added is no part of the task's hash",
        "common/wire/messages.py",
        "if self.merged else []",
        "if False else []",
        ("tests/server/test_merged.py",),
    ),
    Mutant(
        "fedex forgets its residual",
        f"{_METHODS}/merging.py",
        "merged[path] + total[path] - kept[path]",
        "merged[path]",
        ("tests/common/methods/test_products.py",),
    ),
    Mutant(
        "flora multiplies the means of the factors",
        f"{_METHODS}/merging.py",
        "total = mean_product(adapter, changes)",
        "total = products_of(mean_moved(adapter, changes))",
        ("tests/common/methods/test_products.py",),
    ),
    Mutant(
        "products of noisy factors are added",
        f"{_METHODS}/merging.py",
        '("off",)',
        '("off", "local")',
        (_CONTRACT,),
    ),
    Mutant(
        "what a method does not admit is admitted",
        f"{_METHODS}/method.py",
        "            if value not in only.values:",
        "            if False:",
        (_CONTRACT,),
    ),
    Mutant(
        "a holder is asked for another factor than the round's",
        f"{_METHODS}/rolora.py",
        "return Ffa.name if number % 2 else Ffb.name",
        "return Ffa.name",
        (_CONTRACT,),
    ),
    # --- a factor that stays ---
    Mutant(
        "B leaves with A",
        f"{_METHODS}/method.py",
        "if not stays(name, self.stays)}",
        "}",
        ("tests/server/test_fedsa.py", _CONTRACT),
    ),
    Mutant(
        "a holder's B begins anew in every round",
        "client/training/personal.py",
        "if path.exists() else {}",
        "if False else {}",
        (_CONTRACT,),
    ),
    Mutant(
        "the coordinator's B is read",
        f"{_METHODS}/context.py",
        "own.get(name, torch.zeros_like(tensors[name]))",
        "own.get(name, tensors[name])",
        ("tests/server/test_fedsa.py",),
    ),
    Mutant(
        "a damaged B goes unnoticed",
        "client/training/personal.py",
        "        if schema is not None:",
        "        if False:",
        ("tests/client/test_personal.py",),
    ),
    # --- what an update must be ---
    Mutant(
        "what is not finite is let in",
        _GATE,
        "    if not torch.isfinite(values).all():",
        "    if False:",
        _GATE_TESTS,
    ),
    Mutant(
        "an update of any length is let in",
        _GATE,
        "    if not float(change.double().norm()) <= most:",
        "    if False:",
        _GATE_TESTS,
    ),
    Mutant(
        "an answer to any task is let in",
        _GATE,
        "    if (update.task_hash, update.run, update.round) !="
        " (request.hash, request.run, request.round):",
        "    if False:",
        _GATE_TESTS,
    ),
    Mutant(
        "a receipt of less noise is let in",
        _GATE,
        "    if any(noise < least for noise, _ in new):\n",
        "    if False:\n",
        _GATE_TESTS,
    ),
    Mutant(
        "a step's loss is taken one way round alone",
        "common/privacy/accountant.py",
        "in ways[:1] if q == 1 else ways:",
        "in ways[:1]:",
        ("tests/common/privacy/test_loss.py",),
    ),
    Mutant(
        "a step's loss ends before its tail",
        "common/privacy/accountant.py",
        "_TAIL = 10.0",
        "_TAIL = 4.0",
        ("tests/common/privacy/test_loss.py",),
    ),
    Mutant(
        "a step's loss is a thousandth too small",
        "common/privacy/accountant.py",
        "q * ndtr((1 - x) / z) - weight",
        "0.999 * q * ndtr((1 - x) / z) - weight",
        ("tests/common/privacy/test_loss.py",),
    ),
    Mutant(
        "the accountant hears of every plan that a holder makes up",
        _GATE,
        "    if len(new) > 1 or any(",
        "    if any(",
        _GATE_TESTS,
    ),
    Mutant(
        "a ledger may go back",
        _GATE,
        "    if last and ((before and not contains) or not _goes_on(receipt, last)):\n",
        "    if last and (before and not contains):\n",
        _GATE_TESTS,
    ),
    Mutant(
        "a receipt need not have this round's steps",
        _GATE,
        "    contains = _total(receipt) >= before + steps",
        "    contains = _total(receipt) >= before",
        _GATE_TESTS,
    ),
    Mutant(
        "who was barred is let in again",
        _GATE,
        "    if reply.holder in barred:",
        "    if False:",
        (f"{_ROUNDS_TESTS}::test_a_ledger_put_back_from_a_backup_is_noticed_by_the_coordinator",),
    ),
    Mutant(
        "two of one name count twice",
        _GATE,
        "passed.items() if times[update.holder] > 1}",
        "passed.items() if times[update.holder] > 9}",
        (f"{_ROUNDS_TESTS}::test_two_holders_of_one_name_are_both_left_out",),
    ),
    # --- what becomes of it ---
    Mutant(
        "the order of arrival decides",
        "server/aggregation/robust.py",
        "    for holder in sorted(changes):",
        "    for holder in changes:",
        ("tests/server/aggregation/test_mean.py",),
    ),
    Mutant(
        "the mean is summed in single precision",
        "server/aggregation/robust.py",
        "torch.zeros_like(next(iter(changes.values())), dtype=torch.float64)",
        "torch.zeros_like(next(iter(changes.values())))",
        ("tests/server/aggregation/test_mean.py",),
    ),
    Mutant(
        "one end alone is trimmed",
        _ROBUST,
        "values[cut : len(stack) - cut]",
        "values[cut:]",
        _ROBUST_TESTS,
    ),
    Mutant(
        "everybody is close to itself",
        _ROBUST,
        "others.fill_diagonal_(torch.inf)",
        "others.fill_diagonal_(0)",
        _ROBUST_TESTS,
    ),
    Mutant(
        "multi-krum leaves nobody out",
        _ROBUST,
        'chosen = order[:1] if rule == "krum" else order[: len(names) - f]',
        'chosen = order[:1] if rule == "krum" else order',
        _ROBUST_TESTS,
    ),
    Mutant(
        "the factors are turned apart",
        f"{_METHODS}/fedsvd.py",
        "b.double() @ turn, turn)",
        "b.double() @ turned, turn)",
        ("tests/common/methods/test_factors.py",),
    ),
    Mutant(
        "one factor is trained in every round",
        f"{_METHODS}/rolora.py",
        'return "B" if number % 2 else "A"',
        'return "B"',
        (_CONTRACT,),
    ),
    Mutant(
        "the step goes the other way",
        "server/aggregation/optimizer.py",
        "self._vector.grad = -change",
        "self._vector.grad = change",
        ("tests/server/aggregation/test_optimizer.py",),
    ),
    Mutant(
        "an abandoned round moves the adapter",
        _ROUNDS,
        "        if not abandoned:",
        "        if accepted:",
        (f"{_ROUNDS_TESTS}::test_below_min_holders_the_round_is_abandoned_whole",),
    ),
    Mutant(
        "a resumed run forgets the momentum",
        _ROUNDS,
        "            self._optimizer.restore(found.optimizer)",
        "            pass",
        (
            "tests/server/test_run.py::test_a_run_killed_in_any_round_and_resumed_ends_as_one_never_killed",
        ),
    ),
    Mutant(
        "other initial values are taken for the coordinator's",
        "common/adapter/encoding.py",
        "    if _digest(initial, rest) != parcel.rest:",
        "    if False:",
        ("tests/common/test_parcel.py",),
    ),
    Mutant(
        "the pull goes the other way",
        _STEP,
        "parameter.detach() - origin, alpha=strength)",
        "parameter.detach() - origin, alpha=-strength)",
        (f"{_TRAINER_TESTS[0]}::{_PULLED}",),
    ),
    Mutant(
        "nothing is pulled back",
        _TRAINER,
        "            optimizer.attach_step_hook(pull_back(optimizer, settings.train.proximal))",
        "            pass",
        (f"{_TRAINER_TESTS[0]}::{_PULLED}",),
    ),
    # --- the report ---
    Mutant(
        "what was not checked passes",
        "server/report/checks.py",
        "    state = FAILED if problems else PASSED if done else NOT_CHECKED\n",
        "    state = FAILED if problems else PASSED\n",
        ("tests/server/report/test_html.py", "tests/server/report/test_verify.py"),
    ),
    Mutant(
        "a missing ledger is no reason to say so",
        "server/report/verify.py",
        "        return 1 if not self.agrees else 0 if self.complete else 3\n",
        "        return 1 if not self.agrees else 0\n",
        ("tests/server/report/test_verify.py",),
    ),
    Mutant(
        "the claim is of this run alone",
        "server/report/claim.py",
        "        proven=max(parts) if known else None,\n",
        "        proven=planned if known else None,\n",
        ("tests/server/report/test_verify.py",),
    ),
    Mutant(
        "the claim is of the rounds that were taken",
        "server/report/claim.py",
        "    parts = [account.proven or 0.0, all_runs or 0.0, planned or 0.0, spent or 0.0]\n",
        "    parts = [all_runs or 0.0, spent or 0.0]\n",
        ("tests/server/report/test_verify.py",),
    ),
    Mutant(
        "a page that is gone shows the report",
        "server/report/verify.py",
        '        return [f"{name}: it is gone"]\n',
        "        return []\n",
        ("tests/server/report/test_forgeries.py",),
    ),
    Mutant(
        "another version of confide is believed",
        "server/report/verify.py",
        '        return found, [f"{told} words, page and card"]\n',
        "        return found, []\n",
        ("tests/server/report/test_forgeries.py",),
    ),
    Mutant(
        "a finding that leaves no promise leaves the claim",
        "server/report/build.py",
        "    doubts += [one.what for one in findings if _withdraws(one)]\n",
        "",
        ("tests/server/doctor/test_doctor_run.py",),
    ),
    Mutant(
        "a line of metrics.jsonl may be rewritten",
        "server/seal.py",
        '    if (told.get("lines"), told.get("metrics")) != (found["lines"], found["metrics"]):\n',
        '    if told.get("lines") != found["lines"]:\n',
        ("tests/server/test_seal.py",),
    ),
    Mutant(
        "any adapter is the run's",
        "server/seal.py",
        "        if not isinstance(kept, dict) or kept.get(name) != now.get(name)\n",
        "        if not isinstance(kept, dict)\n",
        ("tests/server/test_seal.py",),
    ),
    Mutant(
        "a terminal obeys the words of a report",
        "server/report/terminal.py",
        "    report = all_plain(report)\n",
        "",
        ("tests/server/report/test_terminal.py",),
    ),
    Mutant(
        "the card links where a report says",
        "server/card.py",
        '    quiet = _MEANS.sub(lambda found: f"&#{ord(found.group())};", flat)\n',
        '    quiet = flat.replace("<", "&lt;")\n',
        ("tests/server/test_card.py",),
    ),
    # --- the accountant ---
    Mutant(
        "rounds do not add up",
        "common/privacy/steps.py",
        "counts[float(step.noise_multiplier), float(step.sampling_rate)] += step.steps",
        "counts[float(step.noise_multiplier), float(step.sampling_rate)] = step.steps",
        _ACCOUNTANT_TESTS,
    ),
    # --- the deployed holder ---
    Mutant(
        "any bundle runs",
        "client/site/supernode.py",
        "        if found not in bundles or found != digest:",
        "        if False:",
        ("tests/client/test_supernode.py",),
    ),
    Mutant(
        "a pinned bundle under another name runs",
        "client/site/supernode.py",
        "        if found not in bundles or found != digest:",
        "        if found not in bundles:",
        ("tests/client/test_supernode.py",),
    ),
    Mutant(
        "a lock is taken at its word",
        "client/site/isolation.py",
        "    if held and way_out is None:",
        "    if held:",
        ("tests/client/test_isolation.py",),
    ),
    Mutant(
        "the filter lets every socket through",
        "client/site/isolation.py",
        "        (_EQUAL, 0, 2, socket_call),",
        "        (_EQUAL, 0, 2, 0xFFFF),",
        ("tests/client/test_isolation.py",),
    ),
    Mutant(
        "two tasks at a time",
        "client/site/resident.py",
        "            with self._turn:",
        "            with Lock():",
        ("tests/client/test_resident.py",),
    ),
    Mutant(
        "any word of the gateway's is kept",
        "client/site/connection.py",
        "        if code not in MEANINGS:",
        "        if False:",
        ("tests/client/test_connection.py",),
    ),
    Mutant(
        "a gateway that is heard no more is connected for ever",
        "client/site/connection.py",
        "if self._code == CONNECTED and self._clock() - self._heard > SILENT_SECONDS:",
        "if False:",
        ("tests/client/test_connection.py",),
    ),
    Mutant(
        "a status without a connection is well",
        "client/commands/join.py",
        'if report.get("alive") is not True or not (connected or resident):',
        'if report.get("alive") is not True:',
        ("tests/client/test_setup_cli.py",),
    ),
    Mutant(
        "a renewed kit brings what lay there before",
        "server/deploy/provision.py",
        "    (kit / POLICY_FILE).unlink(missing_ok=True)\n",
        "",
        ("tests/deployment/test_provision.py",),
    ),
    Mutant(
        "the whole environment is handed on",
        "client/site/gateway.py",
        "for name in _PASSED_ON if name in os.environ}",
        "for name in os.environ}",
        ("tests/client/test_gateway.py",),
    ),
)

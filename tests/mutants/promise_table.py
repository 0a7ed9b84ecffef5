"""Mutants of what an epsilon that can be believed rests on: whatever a holder's text may decide.

Each brings back a fault that once was there, or one of its kind.
"""

from __future__ import annotations

from tests.mutants.table import Mutant

_SEEN = ("tests/client/test_non_interference.py",)
_COUNTED = ("tests/client/test_count_hidden.py",)
_HOLDER, _CORPUS, _TRAINER = (
    "client/holder.py",
    "client/text/corpus.py",
    "client/training/trainer.py",
)
_CONTRACT = "client/guard/contract.py"

PROMISE_MUTANTS = (
    Mutant(
        "the noise follows the length of the text",
        _HOLDER,
        "            plan=job.plan,\n",
        "            plan=replace(\n"
        "                job.plan,\n"
        "                noise_multiplier=job.plan.noise_multiplier\n"
        "                * (1 + self.site.data.stat().st_size / 1e6),\n"
        "            ),\n",
        _SEEN,
    ),
    Mutant(
        "the rate is the batch by the number of records",
        _HOLDER,
        "            change = own.train(start, text, settings, inner, self._generator,"
        " units=units)\n",
        "            plan = replace(job.plan, sampling_rate=min(1, 6 / max(1, len(units))))\n"
        "            change = own.train(start, text, settings, plan, self._generator,"
        " units=units)\n",
        _SEEN,
    ),
    Mutant(
        "noise of another size for one record more",
        _HOLDER,
        "            change = own.train(start, text, settings, inner, self._generator,"
        " units=units)\n",
        "            more = job.plan.noise_multiplier * (1 + len(units) / 100)\n"
        "            plan = replace(job.plan, noise_multiplier=more)\n"
        "            change = own.train(start, text, settings, plan, self._generator,"
        " units=units)\n",
        _COUNTED,
    ),
    Mutant(
        "a file that cannot be read is a code",
        _CORPUS,
        "        self.records = tried(lambda: _records(path, content, settings, contract)) or []\n",
        "        self.records = _records(path, content, settings, contract)\n"
        "        if not any(self.records):\n"
        '            raise ConfideError("data.empty", "There is nothing to train on.")\n',
        ("tests/client/test_holder.py",),
    ),
    Mutant(
        "one person in two forms of Unicode is two",
        "common/text/readers.py",
        '            object.__setattr__(self, "person", person_in_form(self.person))\n',
        '            object.__setattr__(self, "person", self.person.strip())\n',
        ("tests/common/text/test_readers.py",),
    ),
    Mutant(
        "a row that is no record is a code",
        "common/text/readers.py",
        "    return [None if isinstance(one, ConfideError) else one for _, one in found]\n",
        "    rows = [one for _, one in found]\n"
        "    for one in rows:\n"
        "        if isinstance(one, ConfideError):\n"
        "            raise one\n"
        "    return rows\n",
        _SEEN,
    ),
    Mutant(
        "a record that cannot be encoded takes all others with it",
        _CORPUS,
        "        alone = [tried(partial(encoded, [record])) for record in known]\n",
        "        alone = [None for record in known]\n",
        ("tests/client/test_corpus.py",),
    ),
    Mutant(
        "a label that is not declared is a code",
        _CORPUS,
        "    found: Sequence[Example | None] | None = tried(lambda: encoded(known))\n",
        "    found: Sequence[Example | None] | None = encoded(known)\n",
        ("tests/client/test_no_leak.py",),
    ),
    Mutant(
        "a batch that fails is a code",
        _TRAINER,
        '        if settings.privacy.trust == "off":\n            add(drawn)\n',
        "        if True:\n            add(drawn)\n",
        ("tests/client/test_no_leak.py",),
    ),
    Mutant(
        "what comes after a record that fails is not used",
        _TRAINER,
        "            failed = sum(not added([unit]) for unit in drawn)\n",
        "            failed = sum(not added([unit]) for unit in drawn[:0])\n",
        ("tests/client/test_trainer.py",),
    ),
    Mutant(
        "a record that fails leaves half of its gradient",
        _TRAINER,
        "            optimizer.go_back(summed)\n",
        "",
        ("tests/client/test_trainer.py",),
    ),
    Mutant(
        "one mask of dropout for all records",
        "common/settings/combinations.py",
        '    if s.lora.dropout and s.privacy.trust != "off":\n',
        "    if False:\n",
        (f"{_SEEN[0]}::test_dropout_of_adapters_shows_no_record",),
    ),
    Mutant(
        "a request chooses the unit",
        _CONTRACT,
        '        _same("unit", "privacy.unit", settings.privacy.unit, (self.unit,))\n',
        "",
        (f"{_SEEN[0]}::test_no_row_of_requests_shows_a_record_or_its_past",),
    ),
    Mutant(
        "a request names the column of persons",
        _CONTRACT,
        '        _same("person", "data.person", data.person, persons)\n',
        "",
        ("tests/client/test_contract.py",),
    ),
    Mutant(
        "a request reads any column",
        _CONTRACT,
        '        _same("text", "data.text", data.text, (self.text,))\n',
        "",
        ("tests/client/test_contract.py",),
    ),
    Mutant(
        "a policy without a contract takes any text",
        "client/guard/policy.py",
        "    elif not policy.allow_any_data:\n        raise missing()\n",
        "",
        ("tests/client/test_policy.py",),
    ),
    Mutant(
        "a refused task makes a ledger",
        _HOLDER,
        "        settings = from_flat(request.settings)\n"
        "        review(settings, self.site.policy)\n",
        "        Ledger.open(self.site.ledger).close()\n"
        "        settings = from_flat(request.settings)\n"
        "        review(settings, self.site.policy)\n",
        (f"{_SEEN[0]}::test_no_request_of_the_bank_shows_a_record",),
    ),
    Mutant(
        "a ledger counts the records",
        _HOLDER,
        "            identity=corpus.identity,\n",
        '            identity=f"{corpus.identity} {len(corpus.records)}",\n',
        _SEEN,
    ),
    Mutant(
        "the log tells how many records were left out",
        _HOLDER,
        "        self.unused = sum(one is None for one in examples) + failed\n",
        "        self.unused = sum(one is None for one in examples) + failed\n"
        "        import logging\n\n"
        "        logging.disable(0)\n"
        '        logging.getLogger("confide.holder").error("%d not used", self.unused)\n',
        _SEEN,
    ),
    Mutant(
        "delta is held against the number of records",
        _HOLDER,
        "        return release(\n            self._sum(job, corpus)",
        "        job.plan.check_units(len(corpus.records))\n"
        "        return release(\n            self._sum(job, corpus)",
        ("tests/client/test_holder.py",),
    ),
    Mutant(
        "a link's owner alone is looked at",
        "client/site/users.py",
        "        if found.st_uid != 0:\n            return place\n        if stat.S_ISLNK",
        "        if found.st_uid != 0 and stat.S_ISLNK(found.st_mode):\n"
        "            return place\n        if stat.S_ISLNK",
        ("tests/client/test_unix_socket_attacked.py",),
    ),
    Mutant(
        "a sum is as long as the text is",
        "client/training/private_step.py",
        "        shorter = min(1.0, self._longest / norm) if norm > 0 else 1.0\n",
        "        shorter = 1.0\n",
        ("tests/client/test_private_step.py",),
    ),
)

"""Mutants of the secure sum: its masks, its openers, its shares of noise.

More rows of ``table``, which says what a row is.
"""

from __future__ import annotations

from tests.mutants.table import Mutant

_RING = "common/masking/ring.py"
_OPENERS, _OPENERS_TESTS = "common/masking/openers.py", ("tests/common/masking/test_openers.py",)
_OPENING_TESTS = ("tests/client/test_opening.py",)
_SUM_TESTS = ("tests/server/test_secure_sum.py",)
_SHARES_TESTS = ("tests/common/privacy/test_shares.py",)
_AUDIT_TESTS = ("tests/client/test_sum_audit.py",)

SUM_MUTANTS = (
    # --- a clip norm that follows the updates ---
    Mutant(
        "the clip norm goes the wrong way",
        "common/privacy/clipping.py",
        "clip * math.exp(-_RATE",
        "clip * math.exp(_RATE",
        ("tests/common/privacy/test_clipping.py",),
    ),
    Mutant(
        "the bit is under the noise of the update alone",
        "common/plans.py",
        "    return replace(plan, clip_norm=longest)\n",
        "    return plan\n",
        ("tests/common/privacy/test_clipping.py",),
    ),
    Mutant(
        "an update is not cut before its bit is added",
        "client/training/private_step.py",
        "    kept, norm = _cut(change, clip)\n",
        "    kept, norm = change.double(), _cut(change, clip)[1]\n",
        ("tests/common/privacy/test_clipping.py",),
    ),
    # --- who spoils sums ---
    Mutant(
        "a suspect of wrong sums is cleared by none that is right",
        "server/secure_sum.py",
        "sorted(set(known.suspects) - of)",
        "sorted(known.suspects)",
        _SUM_TESTS,
    ),
    # --- masks ---
    Mutant(
        "one seed masks for all openers",
        _OPENERS,
        "        seed = secrets.token_bytes(SEED_BYTES)\n",
        "        seed = call.digest.encode()[:SEED_BYTES]\n",
        _OPENERS_TESTS,
    ),
    Mutant(
        "each piece of a mask is the same keystream",
        _RING,
        "        part = total[start : start + _PIECE]\n",
        "        part = total[start : start + _PIECE]\n"
        "        stream = Cipher(ChaCha20(seed, nonce=bytes(16)), mode=None).encryptor()\n",
        ("tests/common/masking/test_ring.py",),
    ),
    Mutant(
        "a sum of another number of vectors is taken for right",
        _RING,
        "total[-CHECKS:].tolist() != [count, 0, 0, 0]",
        "total[-CHECKS + 1 :].tolist() != [0, 0, 0]",
        ("tests/common/masking/test_ring.py",),
    ),
    # --- openers ---
    Mutant(
        "an opener answers for too few",
        _OPENERS,
        "    if len(names) < call.least:\n",
        "    if len(names) < FEWEST:\n",
        _OPENERS_TESTS,
    ),
    Mutant(
        "an opener counts a contributor twice",
        _OPENERS,
        "    if len(set(names)) != len(names):\n",
        "    if not names:\n",
        _OPENERS_TESTS,
    ),
    Mutant(
        "an opener does not look at signatures",
        _OPENERS,
        "        one.check(call)\n        seeds.append",
        "        seeds.append",
        _OPENERS_TESTS,
    ),
    Mutant(
        "a statement of one call serves for another",
        _OPENERS,
        '            "confide-statement/1", self.name, call.digest, self.masked.hex(), sealed\n',
        '            "confide-statement/1", self.name, call.run, self.masked.hex(), sealed\n',
        _OPENERS_TESTS,
    ),
    Mutant(
        "a seed opens in any place",
        _OPENERS,
        '        return hashed("confide-seed/1", self.digest, contributor, opener).encode()\n',
        '        return hashed("confide-seed/1", self.digest, opener).encode()\n',
        _OPENERS_TESTS,
    ),
    Mutant(
        "as many openers as may collude are enough",
        _OPENERS,
        "            and len(names) == len(self.openers) == self.colluding + 1\n",
        "            and len(names) == len(self.openers)\n",
        _OPENERS_TESTS,
    ),
    Mutant(
        "a sealing key of another run is taken",
        _OPENERS,
        "        member.check(self.signature, _about_key(run, self.name, self.sealing))\n",
        "        assert member\n",
        _OPENERS_TESTS,
    ),
    # --- what is booked, and restored ---
    Mutant(
        "a second set is opened",
        "common/privacy/ledger.py",
        "            elif known != contributions:\n                raise already_opened()\n",
        "            elif known != contributions:\n                pass\n",
        (*_OPENING_TESTS, "tests/common/privacy/test_ledger.py"),
    ),
    Mutant(
        "an opening is booked in the ledger alone",
        "client/opening.py",
        "        self._keys.book(call.run, call.digest, chosen.digest)\n",
        "",
        _OPENING_TESTS,
    ),
    Mutant(
        "an answer leaves before it is booked",
        "client/opening.py",
        "        ledger.open_sum(call.digest, chosen.digest)\n",
        "        chosen.answer()\n        ledger.open_sum(call.digest, chosen.digest)\n",
        _OPENING_TESTS,
    ),
    Mutant(
        "a key from a backup is used",
        "client/guard/sum_keys.py",
        '            if first.rpartition(" ")[0] == _file_of(path):\n',
        "            if first:\n",
        _OPENING_TESTS,
    ),
    Mutant(
        "the key of a run stays for ever",
        "client/guard/sum_keys.py",
        "        self.destroy_old()\n        path = self._path(run)\n",
        "        path = self._path(run)\n",
        _OPENING_TESTS,
    ),
    Mutant(
        "an opener does not hold a sum against its own policy",
        "client/opening.py",
        "        review_sizes(request.least, request.colluding, self._policy)\n",
        "",
        _OPENING_TESTS,
    ),
    Mutant(
        "a roster that nobody compared will do",
        "client/guard/policy.py",
        '    if not policy.roster or policy.roster != f"{_SHA256}{roster}":\n',
        '    if policy.roster and policy.roster != f"{_SHA256}{roster}":\n',
        ("tests/client/test_policy.py",),
    ),
    # --- shares of noise ---
    Mutant(
        "holders who collude are counted for noise",
        "common/privacy/plan.py",
        "        return self.least - self.colluding\n",
        "        return self.least\n",
        (*_SHARES_TESTS, *_AUDIT_TESTS),
    ),
    Mutant(
        "a holder of a secure sum adds no noise",
        "client/training/private_step.py",
        "        self._noised = plan.trust is not Trust.OFF\n",
        "        self._noised = plan.trust is Trust.LOCAL\n",
        _AUDIT_TESTS,
    ),
    Mutant(
        "the grid is as coarse as the noise",
        "common/privacy/shares.py",
        "COARSEST, FINEST = 8.0, 128.0",
        "COARSEST, FINEST = 0.125, 0.25",
        (*_SHARES_TESTS, *_AUDIT_TESTS),
    ),
    Mutant(
        "a sum wraps",
        "common/privacy/shares.py",
        "MOST_MEMBERS * largest / (_RING - MOST_MEMBERS)",
        "largest / (_RING - MOST_MEMBERS)",
        _SHARES_TESTS,
    ),
    Mutant(
        "float32 rounds a sum before the ring does",
        "client/training/private_step.py",
        "            self.released[parameter] = summed.double().view_as(parameter)\n",
        "            self.released[parameter] = summed.float().double().view_as(parameter)\n",
        ("tests/client/test_trainer.py",),
    ),
    Mutant(
        "several private steps between two sums",
        "common/settings/combinations.py",
        '    if s.round.mode != "gradient" and s.privacy.unit != "holder":\n',
        "    if s.round.mode == about:\n",
        ("tests/common/test_settings.py",),
    ),
    Mutant(
        "a holder's update is clipped value by value",
        "client/training/private_step.py",
        "    norm = float(torch.linalg.vector_norm(whole))\n",
        "    norm = float(whole.abs().max()) if whole.numel() else 0.0\n",
        ("tests/client/test_holder_unit.py",),
    ),
    # --- the coordinator, and what is said ---
    Mutant(
        "a sum longer than any honest one is taken",
        "server/rounds.py",
        "        if not np.linalg.norm(total) <= largest_sum(settings, len(total), count):\n",
        "        if total is None:\n",
        _SUM_TESTS,
    ),
    Mutant(
        "an opener that failed opens again",
        "server/secure_sum.py",
        "            self.troubles.failed[name] = self.troubles.failed.get(name, 0) + 1\n",
        "",
        _SUM_TESTS,
    ),
    Mutant(
        "values under anothers statement are summed",
        "server/gate.py",
        "    if statement.name != update.holder or not of_these:\n",
        "    if statement.name != update.holder:\n",
        _SUM_TESTS,
    ),
    Mutant(
        "a claim behind masks is against everybody",
        "common/privacy/statement.py",
        "    if trust is Trust.DISTRIBUTED:\n",
        "    if trust is Trust.OFF:\n",
        _SUM_TESTS,
    ),
)

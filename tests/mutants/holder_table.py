"""Mutants of a holder's machine: its users, its ledger, its administrator's word.

More rows of ``table``, which says what a row is.
"""

from __future__ import annotations

from tests.mutants.table import Mutant

_RUNS, _RUNS_TESTS = "client/guard/runs.py", ("tests/client/test_runs.py",)
_OUTGOING_TESTS = ("tests/client/test_outgoing.py", "tests/client/test_consent.py")

_REQUEST_TESTS = ("tests/deployment/test_provision_requests.py",)

HOLDER_MUTANTS = (
    Mutant(
        "a request that its owner did not sign is taken",
        "common/masking/enrolment.py",
        "        member.check(request.signature, _about(member, request.node))\n",
        "        pass\n",
        ("tests/common/test_enrolment.py",),
    ),
    Mutant(
        "a revoked holder stays in the roster",
        "server/deploy/federation.py",
        "if holder.signing and not holder.revoked",
        "if holder.signing",
        _REQUEST_TESTS,
    ),
    Mutant(
        "a real federation's roster is what its holders say",
        "server/deploy/members.py",
        "return load_federation(Path(folder)).roster if folder is not None else None",
        "return None",
        _REQUEST_TESTS,
    ),
    Mutant(
        "a run with a secure sum begins without its members",
        "server/run.py",
        "        check_roster(settings, roster)\n",
        "        pass\n",
        _REQUEST_TESTS,
    ),
    Mutant(
        "a kit for own keys keeps a private one",
        "server/deploy/provision.py",
        "    (kit / KEY_FILE).unlink(missing_ok=True)",
        "    pass",
        _REQUEST_TESTS,
    ),
    Mutant(
        "a key of another holder's is taken",
        "server/deploy/provision.py",
        "other.key == key or other.signing == signing",
        "other.key == key",
        _REQUEST_TESTS,
    ),
    Mutant(
        "others may read a signing key",
        "client/site/enrol.py",
        'return f"{path} has mode {mode:04o}" if mode & _OTHERS else ""',
        'return ""',
        ("tests/client/test_enrol.py",),
    ),
    Mutant(
        "a kit may bring a node key",
        "client/site/enrol.py",
        "if read_request(path).node == public_line(read_holder_key(kit.key)).decode():",
        "if True:",
        ("tests/client/test_enrol.py",),
    ),
    # --- root, and the folders of others ---
    Mutant(
        "root makes a socket in anybody's folder",
        "client/site/unix_socket.py",
        "    if os.geteuid() != 0:\n        return\n",
        "    if os.geteuid() >= 0:\n        return\n",
        ("tests/client/test_unix_socket_attacked.py",),
    ),
    Mutant(
        "root hands a kit's links to the network",
        "common/machine/kit.py",
        "os.O_NOFOLLOW if owner != 0 and os.geteuid() == 0 else 0",
        "0",
        ("tests/common/test_kit.py",),
    ),
    Mutant(
        "root reads another's ledger as root",
        "client/site/users.py",
        "    owner = folder.stat() if os.geteuid() == 0 and folder.is_dir() else None\n",
        "    owner = None\n",
        ("tests/client/test_users.py", "tests/client/test_ledger_cli.py"),
    ),
    Mutant(
        "a federation is made in a folder of another's",
        "server/deploy/provision.py",
        "            mine = os.fstat(handle).st_uid == os.geteuid()\n",
        "            mine = True\n",
        ("tests/deployment/test_provision.py",),
    ),
    Mutant(
        "a namespace is entered before it is known to work",
        "client/site/isolation.py",
        "    return _as_child(lambda: _enter(user, group)) and _enter(user, group)\n",
        "    return _enter(user, group)\n",
        ("tests/client/test_isolation.py",),
    ),
    Mutant(
        "whoever connects is told everything",
        "client/site/resident.py",
        "self.status(own=_is_own(caller))",
        "self.status(own=True)",
        ("tests/client/test_resident.py",),
    ),
    # --- the ledger over time ---
    Mutant(
        "a resident makes the ledger that it lacks",
        "client/site/resident_main.py",
        "Ledger.open(residence.ledger, create=False).close()",
        "Ledger.open(residence.ledger).close()",
        ("tests/deployment/test_resident.py::test_without_its_ledger_nothing_is_served",),
    ),
    Mutant(
        "a join starts a new ledger without a word",
        "client/commands/join.py",
        "    if unasked and not agreed:\n",
        "    if unasked and agreed:\n",
        ("tests/client/test_setup_cli.py",),
    ),
    Mutant(
        "the receipts of a run before are forgotten",
        "server/ledgers.py",
        "        known = self._memory.load() if self._memory else {}\n",
        "        known: Mapping[str, Receipt] = {}\n",
        ("tests/server/test_ledgers.py",),
    ),
    Mutant(
        "another ledger is not named",
        "server/ledgers.py",
        "                faults[holder] = NEW_LEDGER\n",
        "",
        ("tests/server/test_ledgers.py",),
    ),
    Mutant(
        "of two receipts the one that came last counts",
        "server/deploy/receipts.py",
        "receipt=before if older else receipt,",
        "receipt=receipt,",
        ("tests/deployment/test_receipts.py",),
    ),
    Mutant(
        "a receipt of any length is taken",
        "common/privacy/chain.py",
        ' or len(values["steps_run"]) > MOST_MECHANISMS:\n',
        ":\n",
        ("tests/common/privacy/test_ledger.py",),
    ),
    Mutant(
        "no code is booked",
        "client/site/resident.py",
        "            bundle=code_hash(),\n",
        '            bundle="",\n',
        ("tests/deployment/test_resident.py",),
    ),
    Mutant(
        "a foreign folder's count sets what it likes",
        "server/sums.py",
        'found.keys() != with_counted(settings, "", "").keys()',
        "not found",
        ("tests/server/test_sums.py",),
    ),
    # --- the administrator's word ---
    Mutant(
        "a denied run goes on",
        _RUNS,
        "    if decision is Decision.DENIED:\n",
        "    if decision is Decision.DENIED and policy.ask_before_run:\n",
        _RUNS_TESTS,
    ),
    Mutant(
        "a run that asked is taken for allowed",
        _RUNS,
        "    if not policy.ask_before_run or decision is Decision.ALLOWED:\n",
        "    if not policy.ask_before_run or decision or run in asked(ledger):\n",
        _RUNS_TESTS,
    ),
    Mutant(
        "decisions that cannot be read are none",
        _RUNS,
        "    except (OSError, ValueError, AttributeError, RecursionError):\n        raise",
        "    except (OSError, ValueError, AttributeError, RecursionError):\n"
        "        return {}\n        raise",
        _RUNS_TESTS,
    ),
    Mutant(
        "nobody asks for the administrator's word",
        "client/holder.py",
        "        check_run(request.run, settings, self.site.policy, self.site.ledger)\n",
        "",
        _RUNS_TESTS,
    ),
    Mutant(
        "the consent is silent about sums",
        "common/wire/outgoing.py",
        "*([asked] if sums else [])",
        "*([asked] if not sums else [])",
        _OUTGOING_TESTS,
    ),
    Mutant(
        "what the newest run may still spend counts as left",
        "client/site/budget.py",
        "max(0.0, self.limit - self.taken) if self.open",
        "max(0.0, self.limit - self.spent) if self.open",
        ("tests/client/test_budget.py",),
    ),
    # --- who is asked, and what is taken in ---
    Mutant(
        "who only asks is charged",
        "client/holder.py",
        "        if request.dry:\n            card",
        "        if request.round < 0:\n            card",
        ("tests/client/test_holder.py",),
    ),
    Mutant(
        "a text that was changed is used without a word",
        "client/holder.py",
        "        check_taken(self.site.data, self.site.ledger)\n",
        "",
        ("tests/client/test_holder.py",),
    ),
    Mutant(
        "nobody is asked before the first charge",
        "server/rounds.py",
        "        self._able.ask(request, there, self._folder)\n",
        "        del there\n",
        ("tests/server/test_ready.py",),
    ),
    Mutant(
        "abandoned rounds are charged for ever",
        "server/rounds.py",
        "state.abandoned >= MOST_ABANDONED and",
        "state.abandoned == -1 and",
        ("tests/server/test_ready.py",),
    ),
    Mutant(
        "an event of another command counts",
        "server/run_folder.py",
        "        if part and named not in (None, command):\n            break\n",
        "",
        ("tests/server/test_run_folder.py",),
    ),
)

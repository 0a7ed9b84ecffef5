# %% [markdown]
# # Joining as a holder
#
# A holder's administrator decides three things: what the text is (the contract), what may be done
# with it (the policy), and how much privacy it may cost (the limit, kept by a ledger). Here the
# code of a real holder answers two runs, on one machine. docs/deploy.md sets up the real thing.

# %%
import json
import tempfile
from pathlib import Path

import confide

folder = Path(tempfile.mkdtemp(prefix="holder-"))
words = {"fine": "a calm and useful day", "poor": "a loud and wasted day"}
for number in range(2):
    lines = [
        json.dumps({"text": f"{text}, note {i} of {number}", "label": label})
        for i in range(60)
        for label, text in words.items()
    ]
    (folder / f"holder-{number:02d}.jsonl").write_text("\n".join(lines) + "\n")
public = [json.dumps({"text": f"{words[label]}, indeed", "label": label}) for label in words]
(folder / "public.jsonl").write_text("\n".join(public) + "\n")

# %% [markdown]
# The policy of the second holder: at most epsilon 2 in all, ever. `confide client init` writes such
# a file with every limit and what it means.

# %%
(folder / "holder-01.policy.toml").write_text(
    """
max-epsilon = 2.0
max-delta = 1e-5
max-rounds = 100
"""
)
settings = {
    "model.name": "sentence-transformers/all-MiniLM-L6-v2",
    "task.labels": "fine,poor",
    "data.path": str(folder),
    "privacy.epsilon": 8.0,
    "lora.layers": 1,
    "train.max-length": 32,
    "round.mode": "gradient",
    "round.count": 2,
    "run.out": str(folder / "runs"),
}

# %% [markdown]
# A run that would cost epsilon 8 is refused before anything is spent, with a code that depends on
# the policy alone and never on the text.

# %%
try:
    confide.simulate(settings)
except confide.ConfideError as error:
    print(error)

# %% [markdown]
# One that costs 2 is answered. The ledger lies with the holder, and proves what left.

# %%
run = confide.simulate(settings, {"privacy.epsilon": 2.0})
with confide.Ledger.open(run.path / "holders" / "holder-01" / "ledger.sqlite") as ledger:
    print(f"spent: epsilon {ledger.epsilon(1e-5):.3f}")
print(run.verify().headline)

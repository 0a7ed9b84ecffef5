# %% [markdown]
# # Your own text, and what privacy costs
#
# Two files are all that is needed: records to train on, and held-out records to measure by. Here
# they are made up; put your own in their place. Nothing leaves this machine.

# %%
import json
import random
import tempfile
from pathlib import Path

import confide

folder = Path(tempfile.mkdtemp(prefix="own-text-"))
things = ["the printer", "the new screen", "our server", "the phone line", "the door lock"]
good = ["works well again", "is quick and quiet", "was repaired at once", "is a pleasure to use"]
bad = ["is broken again", "is slow and loud", "fails every morning", "makes us wait for hours"]
draw = random.Random(1)


def rows(numbers: range) -> str:
    """Made-up tickets, a JSON object a line."""
    lines = []
    for number in numbers:
        kind, words = draw.choice([("good", good), ("bad", bad)])
        ticket = f"Ticket {number}: {draw.choice(things)} {draw.choice(words)}."
        lines.append(json.dumps({"ticket": ticket, "kind": kind}) + "\n")
    return "".join(lines)


(folder / "train.jsonl").write_text(rows(range(400)))
(folder / "val.jsonl").write_text(rows(range(400, 500)))

# %% [markdown]
# Settings are flat keys; `confide settings` explains each. The text is shared out to four holders.

# %%
settings = {
    "model.name": "sentence-transformers/all-MiniLM-L6-v2",
    "federation.train": str(folder / "train.jsonl"),
    "federation.val": str(folder / "val.jsonl"),
    "federation.text": "ticket",
    "federation.target": "kind",
    "lora.layers": 1,
    "train.max-length": 32,
    "train.lr": 2.5,
    "round.mode": "gradient",
    "round.count": 4,
    "run.name": "tickets",
    "run.out": str(folder / "runs"),
}

# %% [markdown]
# The smaller epsilon is, the stronger the promise, and the more noise there is.

# %%
for epsilon in (8.0, 1.0):
    run = confide.simulate(settings, {"privacy.epsilon": epsilon})
    print(f"epsilon {epsilon:g}: accuracy {run.scores['accuracy']:.2f}")

# %% [markdown]
# How much noise is that? `calibrate` and `epsilon` are each other's inverse.

# %%
noise = confide.calibrate(epsilon=1.0, delta=1e-5, sampling_rate=1.0, steps=4)
spent = confide.epsilon(noise_multiplier=noise, sampling_rate=1.0, steps=4, delta=1e-5)
print(f"noise multiplier {noise:.2f} for epsilon {spent:.3f}")

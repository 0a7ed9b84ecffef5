# %% [markdown]
# # A first run
#
# Three holders with newspaper editorials train a small adapter together, each with differential
# privacy; nobody sees another's text. Fetch the public text and the model once:
# `confide assets fetch`. A part of the text will do here.

# %%
import pandas as pd

import confide

settings = {"federation.public-limit": 200, "federation.limit": 1000, "round.count": 6}
run = confide.simulate("nyt", settings, holders=3)
print(run.claim["sentence"])

# %% [markdown]
# The adapter before and after, round by round, with the epsilon that the fullest holder had spent:

# %%
rows = pd.DataFrame(run.metrics)
print(rows[["round", "loss", "accuracy", "epsilon"]].to_string(index=False))

# %% [markdown]
# The adapter answers, lies in a folder with the Hub's layout, and the report can be made again from
# the run's own files and the holders' ledgers.

# %%
(answer,) = run.predict(["A brave and generous speech."])
print(answer.answer, answer.probabilities)
print("adapter:", run.adapter)
print("report: ", run.path / "report.html")
print(run.verify().headline)

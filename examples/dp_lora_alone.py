# %% [markdown]
# # LoRA with differential privacy, without a federation
#
# The private step serves alone: a PEFT model, a torch optimizer, a plan. Three things matter: the
# plan draws each batch (Poisson, so that the accounting holds), the loss is a sum (each record's
# gradient is its own), and the optimizer divides by a public constant.

# %%
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import confide
from confide.common.machine.paths import local_or_cached

name = local_or_cached("sentence-transformers/all-MiniLM-L6-v2", "models")
tokenizer = AutoTokenizer.from_pretrained(name)
base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
texts = ["a calm and useful day", "a loud and wasted day"] * 200
labels = torch.tensor([0, 1] * 200)

# %%
model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"]))
rate, steps = 0.1, 20
plan = confide.Plan.calibrate(
    epsilon=8.0, delta=1e-5, sampling_rate=rate, steps_per_round=steps, max_rounds=1, clip_norm=1.0
)
generator = confide.SecureGenerator()
engine = confide.PerExample(model)
adam = torch.optim.Adam(engine.trained, lr=0.01)
optimizer = confide.PrivateOptimizer(adam, plan, int(rate * len(texts)), generator)

engine.train()
for _ in range(steps):
    drawn = plan.draw(len(texts), generator)
    optimizer.zero_grad(set_to_none=True)
    for part in torch.from_numpy(drawn).split(16):
        inputs = tokenizer([texts[i] for i in part], padding=True, return_tensors="pt")
        logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits, labels[part], reduction="sum").backward()
        engine.check()
        optimizer.add()
    optimizer.finish()

# %%
spent = confide.epsilon(
    noise_multiplier=plan.noise_multiplier, sampling_rate=rate, steps=steps, delta=1e-5
)
engine.remove_hooks()
model.eval()
with torch.no_grad():
    right = model(**tokenizer(texts[:2], padding=True, return_tensors="pt")).logits.argmax(-1)
print(f"epsilon {spent:.2f}; accuracy {(right == labels[:2]).float().mean():.2f}")

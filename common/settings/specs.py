"""The settings of a run, room by room: what each is, by default and within which bounds, what it
means, and what others call it (library and name; in brackets what differs there).

Only data: ``settings`` makes a run's settings of it, ``rule`` the checks, and `confide settings`
prints it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import DEFAULT, METHODS
from ..metrics import METRICS
from ..privacy import UNITS
from ..tasks import TASKS
from ..tasks.labels import COUNTED, numbers_in
from ..text.rows import in_form
from .combinations import ROBUST
from .rule import any_text, choice, number

# A table: the default and the bounds, the meaning, the names of others.
# fmt: off

# How text is shared out: ``simulations.partition`` does it.
PARTITIONS = ("unit", "iid", "dirichlet")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The frozen base model. bfloat16 is not the default: in it a record's gradient depends on the
    records beside it by a thousandth, so the sensitivity bound holds only up to about 0.1 %
    (docs/benchmarks.md)."""

    name: str = any_text("",
        "The base model: a Hub id, a folder, or a name in the cache.",
        "HF model_name_or_path; PEFT base_model_name_or_path")
    dtype: str = choice("float32", ("auto", "float32", "bfloat16"),
        "The precision of the base model. auto: bfloat16 where the processor multiplies it in "
        "hardware. Adapters and heads stay float32.",
        "HF torch_dtype; HF bf16 (is true or false); HF fp16 (is float16, which is not offered); "
        "HF load_in_4bit (quantises the base, which is not offered)")


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The adapter."""

    method: str = choice("lora", ("lora", "head"),
        "What to train: LoRA and the task's head, or the head alone.",
        "PEFT peft_type")
    rank: int = number(8, "[1, 256]",
        "The rank of LoRA's two factors.",
        "PEFT r; HF lora_r")
    alpha: float = number(16.0, "(0, 4096]",
        "The scale: LoRA's product is multiplied by alpha / rank.",
        "PEFT lora_alpha")
    dropout: float = number(0.0, "[0, 0.9]",
        "The share of inputs that adapters leave out. Refused under noise.",
        "PEFT lora_dropout")
    targets: str = any_text("",
        "The modules that get adapters: names separated by commas, a regular expression over whole"
        " names, or all-linear. Empty: PEFT's own table for the model's family, else the query and"
        " value projections of attention.",
        "PEFT target_modules; HF lora_target_modules")
    layers: int = number(0, "[0, 1000]",
        "How many layers get adapters, counted from the top. 0: all.",
        "PEFT layers_to_transform (lists layers by their place from below, ours counts them from "
        "the top and 0 is all)")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is learnt, and what is done against classes of unequal size. Weights and rates that are
    ``counted`` come from noisy sums that the holders are charged for (``common.plans``); the
    coordinator then sends ``counted`` with the numbers. The unit of privacy stays one unit,
    whatever the copies of a record."""

    kind: str = choice(next(iter(TASKS)), tuple(TASKS),
        "What to learn.",
        "PEFT task_type (is CAUSAL_LM, SEQ_CLS and so on)")
    labels: str = any_text("",
        "The classes, in their order, separated by commas.",
        "HF id2label (is a table); HF num_labels (is a number)")
    metric: str = choice("", ("", "perplexity", *METRICS),
        "The main metric. Empty: the task's own.",
        "HF metric_for_best_model; HF compute_metrics (is a function)")
    loss: str = choice("cross-entropy", ("cross-entropy", "focal"),
        "The loss of a class. focal: examples that are still wrong count more (Lin et al. 2017).")
    gamma: float = number(2.0, "[0, 10]",
        "Focal loss: how much less an example counts that is right.")
    class_weights: str = any_text("",
        "The weight of each class in the loss: one number for each of task.labels, separated by "
        "commas; or 'counted': from a noisy count.",
        "scikit-learn class_weight (is a table)")
    class_rates: str = any_text("",
        "The chance that a step uses a record of each class: numbers as in task.class-weights, or "
        "'counted'.")
    word_dropout: float = number(0.0, "[0, 0.9]",
        "The share of words to leave out, drawn anew for each copy.")
    copies: int = number(1, "[1, 64]",
        "Copies of a record in a step. Their gradients are averaged before clipping.")
    pooling: str = choice("mean", ("mean", "model"),
        "How the tokens of a text become one answer: by their mean, or by the model's own pooling.",
        "HF pooling_mode")
    template: str = any_text("{text}",
        "The prompt around a text, with {text} once. 'chat': the tokenizer's own template.",
        "HF chat_template (is the tokenizer's template itself); HF source_prefix (has no {text})")
    target_length: int = number(64, "[2, 8192]",
        "Maximum number of tokens of a target or an answer.",
        "HF max_target_length; HF max_new_tokens; HF generation_max_length")
    beams: int = number(1, "[1, 64]",
        "Beams of the search for an answer.",
        "HF num_beams; HF generation_num_beams")
    mask: float = number(0.15, "[0.01, 0.9]",
        "The share of tokens to hide, for the tasks masked and spans.",
        "HF mlm_probability")
    low: float = number(0.0, "[-1e+06, 1e+06]", "The lowest number of a regression's scale.")
    high: float = number(1.0, "[-1e+06, 1e+06]", "The highest number of a regression's scale.")

    @property
    def label_names(self) -> tuple[str, ...]:
        names = (in_form(name) for name in self.labels.split(","))
        return tuple(name for name in names if name)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the loss of each class; none when all are alike."""
        return numbers_in(self.class_weights.removeprefix(COUNTED))

    @property
    def rates(self) -> tuple[float, ...]:
        """The chance of each class's records to be used in a step; none when it is 1."""
        return numbers_in(self.class_rates.removeprefix(COUNTED))

    @property
    def counted(self) -> bool:
        """Whether weights or rates come from a noisy count, known by now or not."""
        return any(text.startswith(COUNTED) for text in (self.class_weights, self.class_rates))

    @property
    def uncounted(self) -> bool:
        """Whether there are such that are not known yet."""
        return COUNTED in (self.class_weights, self.class_rates)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the text is, and its columns. A benchmark settles what is learnt and how it is measured
    (``common.text.settled``)."""

    path: str = any_text("",
        "The folder of a simulation's prepared federation, or its name in the cache.",
        "HF dataset_name (is of the Hub); HF train_file (is one file); HF data_dir")
    text: str = any_text("text",
        "The column with the text. Several, separated by commas, are joined into one text.",
        "HF dataset_text_field; HF text_column")
    target: str = any_text("label",
        "The column with the answers. Empty: there is only the text.",
        "HF label_column_name; HF summary_column")
    person: str = any_text("",
        "The column that tells persons apart: equal values are one person. Empty: none.",
        "Flower partition_by")
    benchmark: str = any_text("",
        "A task of GLUE or SuperGLUE, such as glue/sst2.",
        "HF task_name; HF dataset_config_name")


@dataclass(frozen=True, kw_only=True)
class FederationSpec:
    """The text of a simulation, and how it is shared out to holders. No real holder is told, and
    none needs it: its text lies where it is."""

    source: str = any_text("",
        "The public text: one of confide's sources (nyt), or a benchmark (glue/sst2).")
    folder: str = any_text("",
        "The folder of that benchmark's suite, in the Hub's format.")
    train: str = any_text("",
        "A file of your own to share out among holders, in place of a source.",
        "HF train_file")
    val: str = any_text("",
        "The file with the held-out text, which the coordinator keeps.",
        "HF validation_file")
    text: str = any_text("text", "The column with the text, in these two files.",
        "HF dataset_text_field")
    target: str = any_text("label", "The column with the answers, in these two files. Empty: none.")
    person: str = any_text("",
        "The column that tells persons apart, in these two files. Empty: none.")
    holders: int = number(4, "[1, 100_000]",
        "How many holders to simulate.",
        "Flower num-supernodes")
    partition: str = choice("unit", PARTITIONS,
        "How to share out a source: unit: whole persons; iid: records evenly; dirichlet: by label.",
        "Flower partitioner (is a class)")
    alpha: float = number(1.0, "(0, 1_000_000]",
        "Concentration of the Dirichlet distribution. Small is uneven.")
    seed: int = number(0, "[0, 2_147_483_647]",
        "Decides who is held out and which holder gets what.")
    limit: int = number(0, "[0, 1_000_000_000]",
        "Maximum number of training records. 0: all.",
        "HF max_train_samples")
    public_limit: int = number(0, "[0, 1_000_000_000]",
        "Maximum number of held-out records. 0: all.",
        "HF max_eval_samples")


@dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """The promise. A noise multiplier that is given decides what epsilon is, and the holder's
    policy whether that will do. In the program 0 stands for ``auto``."""

    trust: str = choice("local", ("local", "distributed", "off"),
        "Who adds the noise. local: each holder adds all of it itself. distributed: each adds a "
        "share, and a secure sum hides the shares. off: nobody, and there is no privacy.",
        "Flower central-dp (is not offered: distributed has its accuracy); Flower local-dp; "
        "Flower secaggplus-mod (hides updates and adds no noise)")
    colluding: int = number(1, "[0, 63]",
        "How many holders may tell the coordinator what they sent, and the promise still holds "
        "(trust = distributed). Of round.min-holders shares of noise so many do not count.",
        "Flower reconstruction-threshold (is how many shares open a mask)")
    openers: str = any_text("",
        "The holders that are to open secure sums, separated by commas; privacy.colluding + 1 of "
        "them do. Empty: any.")
    unit: str = choice("record", UNITS,
        "What the promise protects: a record, all records of a person, or all that a holder has "
        "(with trust = distributed; 100 holders and more).")
    records_per_person: int = number(8, "[1, 1_000_000]",
        "Maximum number of a person's records in a step, drawn anew each time (unit = person).")
    epsilon: float = number(8.0, "(0, 100]",
        "What the whole run may spend, noisy sums included. Less is stronger.",
        "Opacus target_epsilon")
    delta: float = number(1e-05, "(0, 0.1]",
        "The chance that epsilon does not hold. Choose it far below 1 / number of units.",
        "Opacus target_delta")
    clip: float = number(1.0, "(0, 1e+06]",
        "The clip norm: a longer gradient of a unit is cut to this L2 norm.",
        "Opacus max_grad_norm; Flower clipping_norm (clips updates, ours each unit's gradient)")
    clip_quantile: float = number(0.0, "(0, 1]",
        "The share of holders whose update is to be no longer than the clip norm, which follows it "
        "from round to round, beginning with privacy.clip (unit = holder). off: the norm is fixed.",
        "Flower target_clipped_quantile; Flower clip_norm_lr (is 0.2, as Andrew et al. advise); "
        "Flower clipped_count_stddev (follows from the noise and round.min-holders)",
        word="off")
    noise_multiplier: float = number(0.0, "(0, 10000]",
        "Standard deviation of the noise, divided by the clip norm. auto: from epsilon.",
        "Opacus noise_multiplier (takes 0 for no noise, which is privacy.trust = 'off' here)",
        word="auto")
    sum_noise: float = number(10.0, "(0, 10000]",
        "Standard deviation of a holder's noise on each number of a noisy sum, in units of "
        "privacy. With trust = distributed: of the noise of all shares that count.")

    @property
    def opener_names(self) -> tuple[str, ...]:
        """Whom ``openers`` names, in its order."""
        return tuple(name for name in (one.strip() for one in self.openers.split(",")) if name)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Local training. Rate and batch are public, and the same at every holder, whatever it has. A
    sum is cut to the length that ``batch`` clipped units can have. FedProx: Li et al. 2020."""

    rate: float = number(1.0, "(0, 1]",
        "The chance that a step uses a unit of privacy.",
        "Opacus sample_rate")
    batch: int = number(64, "[1, 1_000_000]",
        "What every holder divides a sum of gradients by; never the number of units drawn.",
        "HF per_device_train_batch_size (is what is computed at once, which train.memory "
        "decides); Opacus batch_size; Opacus expected_batch_size; HF train_batch_size")
    steps: int = number(1, "[1, 100_000]",
        "Private steps of each holder in a round.",
        "HF max_steps (counts the whole run's, ours are of each round); Flower local-epochs "
        "(counts passes, ours are steps)")
    optimizer: str = choice("sgd", ("sgd", "adam", "adamw"),
        "The optimizer of the holders' steps.",
        "HF optim")
    weight_decay: float = number(0.0, "[0, 1]",
        "The weight decay of adamw.",
        "HF weight_decay")
    proximal: float = number(0.0, "[0, 10000]",
        "FedProx's mu: how strongly local steps are pulled back to where the round began.",
        "Flower proximal_mu")
    lr: float = number(0.1, "(0, 10000]",
        "The learning rate of the holders' steps.",
        "HF learning_rate; Flower learning-rate")
    schedule: str = choice("constant", ("constant", "linear", "cosine", "plateau"),
        "How train.lr changes over the rounds. plateau: it is halved when the public loss stalls.",
        "HF lr_scheduler_type")
    warmup: int = number(0, "[0, 100_000]",
        "In how many first rounds train.lr rises.",
        "HF warmup_steps (counts steps, ours counts rounds); HF warmup_ratio (is a share, ours "
        "counts rounds)")
    max_length: int = number(128, "[8, 8192]",
        "Maximum number of tokens of a text; the rest is cut.",
        "HF max_length; HF max_seq_length; HF block_size; HF max_source_length")
    memory: int = number(1024, "[1, 1_000_000]",
        "MiB for activations and gradients that are computed at once. Changes no result.",
        "Opacus max_physical_batch_size (counts examples, ours MiB); HF "
        "gradient_accumulation_steps (follows from the MiB here)")


@dataclass(frozen=True, kw_only=True)
class RoundSpec:
    """Rounds. A round with fewer than ``min_holders`` accepted updates is abandoned whole. What a
    holder measures of the outcome on its own text is a noisy sum."""

    count: int = number(20, "[1, 100_000]",
        "How many rounds.",
        "Flower num-server-rounds; Flower num_rounds; HF num_train_epochs (counts passes over the"
        " text, of which each is 1 / train.rate steps; ours are round.count x train.steps steps "
        "in all)")
    holders: int = number(0, "[0, 1_000_000]",
        "How many holders are drawn for each round. 0: all that are connected.",
        "Flower fraction-train (is a share, ours is a number); Flower fraction_fit (is a share, "
        "ours is a number)")
    min_holders: int = number(2, "[1, 1_000_000]",
        "Minimum number of accepted updates; a round with fewer is abandoned.",
        "Flower min_train_nodes; Flower min_available_nodes; Flower min_fit_clients; Flower "
        "min_available_clients")
    mode: str = choice("steps", ("gradient", "steps"),
        "What a holder sends in a round. gradient: one private gradient. steps: the change after "
        "train.steps private steps.")
    timeout: float = number(600.0, "[1, 604_800]",
        "Seconds that a round waits for its holders.",
        "Flower round_timeout")
    patience: int = number(0, "[0, 100_000]",
        "End after so many rounds without a lower public loss, and keep the round with the lowest. "
        "0: never.",
        "HF early_stopping_patience")
    evaluate_every: int = number(1, "[0, 100_000]",
        "Score the public text after every so many rounds, and at both ends. 0: only at the ends; "
        "patience and plateau score every round.",
        "HF eval_steps (counts steps, ours counts rounds); HF eval_strategy (is a word); Flower "
        "fraction-evaluate (asks holders, ours scores the coordinator's public text)")
    generate_every: int = number(0, "[0, 100_000]",
        "The same for metrics of text that the model writes, which takes one pass for each token.",
        "HF predict_with_generate (is true or false)")
    holder_metric: str = choice("", ("", "accuracy", "perplexity"),
        "What each holder measures of the outcome on its own text, by a noisy sum. Empty: nothing.")


@dataclass(frozen=True, kw_only=True)
class AggregateSpec:
    """What the coordinator does with accepted updates; the methods are modules of ``methods``."""

    method: str = choice(DEFAULT, METHODS,
        "What holders train and send, and how updates are combined (docs/aggregation.md).",
        "Flower strategy (is a class)")
    robust: str = choice("mean", tuple(ROBUST),
        "The rule that combines updates; all but mean withstand hostile holders.",
        "Flower strategy (is a class)")
    byzantine: int = number(0, "[0, 100_000]",
        "How many hostile holders the rule withstands. 0: one in five, at least one.",
        "Flower num_malicious_nodes; Flower num_malicious_clients")
    optimizer: str = choice("none", ("none", "momentum", "adam", "yogi", "adagrad"),
        "The optimizer of the coordinator's step along the combined update.",
        "Flower strategy (is a class)")
    momentum: float = number(0.8, "[0, 0.999]",
        "The momentum of the coordinator's step.",
        "Flower server_momentum; Flower beta_1")


@dataclass(frozen=True, kw_only=True)
class WireSpec:
    """How updates travel; the adapter always goes down in fp32."""

    encoding: str = choice("fp32", ("fp32", "bf16", "int8", "int4"),
        "How updates are encoded. int8 and int4 have a scale for each block of 64 values.")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Name, place and public seed. The seed decides initial adapter and partitions; it never
    decides noise, private batches or which holders are drawn."""

    name: str = any_text("run",
        "The end of the run folder's name.",
        "HF run_name")
    coordinator: str = any_text("", "What the coordinator calls itself. Nobody checks it.")
    out: str = any_text("runs",
        "The folder for run folders.",
        "HF output_dir")
    id: str = any_text("",
        "The run folder's name; the command that starts a run sets it.")
    resume: str = any_text("",
        "The folder of a run to continue.",
        "HF resume_from_checkpoint")
    seed: int = number(0, "[0, 2_147_483_647]",
        "The seed of the initial adapter and of partitions; never of noise.",
        "HF data_seed; HF random_seed")

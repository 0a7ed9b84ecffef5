"""confide: federated fine-tuning of language models on private text.

The door. From Python::

    import confide

    run = confide.simulate("nyt", {"privacy.epsilon": 3.0})
    print(run.claim["sentence"], run.scores)

Names are loaded when they are asked for; to import confide itself takes a few milliseconds.

The rooms of the house (``common``, ``client``, ``server``, ``simulations``) are installed as
``confide.common`` and so on. In a checkout, or in the app bundle that Flower ships, they lie
beside this folder instead; then the parent folder joins this package's search path, so that
``confide.common`` means the same files everywhere.
"""

from importlib import import_module as _import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.guard.policy import Policy
    from .client.training.per_example import PerExample
    from .client.training.private_step import PrivateOptimizer
    from .common.errors import ConfideError
    from .common.privacy.accountant import calibrate, epsilon, true_positive_rate
    from .common.privacy.ledger import Ledger
    from .common.privacy.noise import SecureGenerator
    from .common.privacy.plan import Plan, Unit
    from .common.settings import Settings, from_flat
    from .common.text.readers import Record, read_records
    from .server.results import Run
    from .simulations.simulation import as_settings, simulate

__version__ = "0.1.0"

_parent = Path(__file__).resolve().parent.parent
if (_parent / "common" / "errors.py").is_file() and (_parent / "confide").samefile(__path__[0]):
    __path__.append(str(_parent))

__all__ = [
    "ConfideError",
    "Ledger",
    "PerExample",
    "Plan",
    "Policy",
    "PrivateOptimizer",
    "Record",
    "Run",
    "SecureGenerator",
    "Settings",
    "Unit",
    "__version__",
    "as_settings",
    "calibrate",
    "epsilon",
    "from_flat",
    "read_records",
    "simulate",
    "true_positive_rate",
]

# Where each public name lives.
_HOMES = {
    "ConfideError": "common.errors",
    "Ledger": "common.privacy.ledger",
    "PerExample": "client.training.per_example",
    "Plan": "common.privacy.plan",
    "Policy": "client.guard.policy",
    "PrivateOptimizer": "client.training.private_step",
    "Record": "common.text.readers",
    "Run": "server.results",
    "SecureGenerator": "common.privacy.noise",
    "Settings": "common.settings",
    "Unit": "common.privacy.plan",
    "as_settings": "simulations.simulation",
    "calibrate": "common.privacy.accountant",
    "epsilon": "common.privacy.accountant",
    "from_flat": "common.settings",
    "read_records": "common.text.readers",
    "simulate": "simulations.simulation",
    "true_positive_rate": "common.privacy.accountant",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'confide' has no attribute {name!r}")
    found = getattr(_import_module(f"confide.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

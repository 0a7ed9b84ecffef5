"""confide: federated fine-tuning of language models on private text.

The rooms of the house (``common``, ``client``, ``server``, ``simulations``) are installed as
``confide.common`` and so on. In a checkout, or in the app bundle that Flower ships, they lie
beside this folder instead; then the parent folder joins this package's search path, so that
``confide.common`` means the same files everywhere.
"""

from pathlib import Path

__version__ = "0.1.0"

_parent = Path(__file__).resolve().parent.parent
if (_parent / "common" / "errors.py").is_file() and (_parent / "confide").samefile(__path__[0]):
    __path__.append(str(_parent))

__all__ = ["__version__"]

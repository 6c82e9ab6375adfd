"""What the model is given before it writes."""

from reasonrl.core.defaults import Plain

__all__ = ["Plain"]

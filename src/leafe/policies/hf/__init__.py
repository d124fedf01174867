"""In-process transformers with its own continuous batching engine. Importing this package imports
torch."""

from leafe.policies.hf._policy import HFPolicy
from leafe.policies.hf.loading import adapter_base, load_model, load_tokenizer

__all__ = ["HFPolicy", "adapter_base", "load_model", "load_tokenizer"]

"""In-process transformers with a continuous batching engine of its own.

`HFPolicy` is the policy; `load_model` and `load_tokenizer` read checkpoint folders. Importing this
package imports torch; of leafe it knows `core` alone.
"""

from leafe.policies.hf._policy import HFPolicy
from leafe.policies.hf.loading import adapter_base, load_model, load_tokenizer

__all__ = ["HFPolicy", "adapter_base", "load_model", "load_tokenizer"]

"""WebShop: pages, search, goals and reward as published, on an index that is built once and
memory-mapped.

Rules and file formats: Yao et al., *WebShop: Towards Scalable Real-World Web Interaction with
Grounded Language Agents* (arXiv 2207.01206), and the repository princeton-nlp/WebShop. The code is
leafe's own.
"""

from leafe.envs.webshop._env import WebShop

__all__ = ["WebShop"]

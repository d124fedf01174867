"""A policy behind OpenAI-compatible servers: vLLM, SGLang, llama.cpp, a hosted service.

`_client` sends requests through aiohttp, `_wire` writes and reads their bodies, `_refusals` reads
errors, `_endpoint` is one server, `_chat` one request in a server's dialect, `_pool` several
servers, `_check` the probes before a run, `_policy` the whole. It imports `leafe.core` alone.
"""

from leafe.policies.http._policy import HTTPPolicy

__all__ = ["HTTPPolicy"]

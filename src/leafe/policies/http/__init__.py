"""A policy behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, `transformers serve`, a
hosted service)."""

from leafe.policies.http._policy import HTTPPolicy

__all__ = ["HTTPPolicy"]

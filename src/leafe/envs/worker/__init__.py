"""Environments in processes of their own.

A process that hangs is killed, one that died is started anew, and a fork of it is a snapshot.
"""

from leafe.envs.worker._proxy import ProcessEnv

__all__ = ["ProcessEnv"]

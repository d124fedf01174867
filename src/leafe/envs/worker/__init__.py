"""An environment in a process of its own: what hangs is killed, what dies is made anew, and a copy
of the process is a snapshot."""

from leafe.envs.worker._proxy import ProcessEnv

__all__ = ["ProcessEnv"]

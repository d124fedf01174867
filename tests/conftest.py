"""Hypothesis on shared machines: no test asserts a time, so no example has a deadline. CI draws the
same examples every time.

Signals are as in a terminal, whoever started the tests: under nohup or in a background job some are
ignored, and all that tests start would inherit that.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "leafe", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", settings.get_profile("leafe"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "leafe")

for _each in signal.valid_signals() - {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGPIPE,
    getattr(signal, "SIGXFSZ", signal.SIGKILL),
}:
    if signal.getsignal(_each) == signal.SIG_IGN:
        signal.signal(
            _each, signal.default_int_handler if _each == signal.SIGINT else signal.SIG_DFL
        )
signal.pthread_sigmask(signal.SIG_SETMASK, ())

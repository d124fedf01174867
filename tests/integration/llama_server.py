"""llama.cpp's server on a GGUF file, by xllamacpp: `python tests/integration/llama_server.py FILE
PORT [ALIAS]`."""

import sys
import threading

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 4096, 2
# one thread: with more, they wait for each other without end where the machine is shared
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.hostnames, params.port = ["127.0.0.1"], int(sys.argv[2])
if len(sys.argv) > 3:
    params.model_alias = {sys.argv[3]}
server = xllamacpp.Server(params)
threading.Event().wait()

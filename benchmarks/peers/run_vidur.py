"""Run by Vidur's own Python, in its folder: simulate a trace and print how long that took.

    python run_vidur.py TRACE CHUNK MAX_SEQS

Only the events are timed: neither its models of step times, which it fits first, nor its plots.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time


def main(trace: str, chunk: str, max_seqs: str) -> None:
    os.environ["WANDB_MODE"] = "disabled"
    sys.path.insert(0, os.getcwd())
    options = {
        "replica_config_device": "a100",
        "replica_config_model_name": "meta-llama/Meta-Llama-3-8B",
        "replica_config_network_device": "a100_dgx",
        "cluster_config_num_replicas": "1",
        "request_generator_config_type": "trace_replay",
        "trace_request_generator_config_trace_file": trace,
        "trace_request_generator_config_max_tokens": "16384",
        "replica_scheduler_config_type": "sarathi",
        "sarathi_scheduler_config_batch_size_cap": max_seqs,
        "sarathi_scheduler_config_chunk_size": chunk,
        "execution_time_predictor_config_type": "linear_regression",
        "linear_regression_execution_time_predictor_config_prediction_max_prefill_chunk_size": "16384",
        "linear_regression_execution_time_predictor_config_prediction_max_batch_size": max_seqs,
        "linear_regression_execution_time_predictor_config_prediction_max_tokens_per_request": "16384",
    }
    off = ["store_plots", "enable_chrome_trace", "write_json_trace", "store_operation_metrics"]
    sys.argv = ["vidur", *(x for k, v in options.items() for x in (f"--{k}", v))]
    sys.argv += [f"--no-metrics_config_{name}" for name in off]
    from vidur.config import SimulationConfig
    from vidur.events import base_event
    from vidur.simulator import Simulator

    simulator = Simulator(SimulationConfig.create_from_cli_args())
    atexit.unregister(simulator._write_output)
    begun = time.perf_counter()
    simulator.run()
    seconds = time.perf_counter() - begun
    print(
        json.dumps({"seconds": seconds, "events": base_event.BaseEvent._id, "simulated_s": simulator._time})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

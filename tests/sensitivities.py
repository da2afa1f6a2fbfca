"""What a step depends on, made up, for tests of how it is shown."""

ROW = {"group": "GPU", "paths": ["a.b"], "step": 0.01}
FOUND = {
    "scenario": {"name": "mine", "job": "training"},
    "metric": "step_time_s",
    "value": 18.0,
    "ranks": "ideal",
    "target": 0.1,
    "rows": [
        ROW | {"name": "HBM", "value": "3.35 TB/s", "elasticity": -0.5, "saves": 0.4, "costs": 0.6,
               "need": {"factor": 1.25, "values": {"a.b": "4.1875 TB/s"}}, "at_most": 0.1},
        ROW | {"name": "NIC", "value": "400 Gbit/s", "elasticity": -0.1, "saves": 0.0, "costs": 0.2,
               "need": None, "at_most": 0.03},
        ROW | {"name": "PCIe", "value": "64 GB/s", "elasticity": 0.0, "saves": 0.0, "costs": 0.0,
               "need": None, "at_most": 0.0},
    ],
}  # fmt: skip

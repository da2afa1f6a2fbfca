"""Steps on devices that contend, in simulated time: GPUs, their ranks, and the network."""

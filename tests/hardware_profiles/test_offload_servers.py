"""Servers that keep routed experts in CPU memory."""

import pytest

from hardware_profiles.offload_servers import known_servers, load_server


def test_the_shipped_server_is_that_of_the_tutorial():
    server = load_server("ktransformers_4090d")
    assert "ktransformers_4090d" in known_servers()
    assert (server.sockets, server.cpu.cores) == (2, 32)
    # 8 channels of DDR5-4800, 8 bytes each.
    assert server.cpu.memory_bandwidth == pytest.approx(8 * 4800e6 * 8)
    assert server.routed_expert_bytes == 382e9
    assert [row.tokens_per_second for row in server.fitted_rows] == [8.73, 10.303]
    assert [row.sockets for row in server.held_out_rows] == [2, 2]


def test_an_unknown_server_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown server 'nobody'; known: ktransformers_4090d"):
        load_server("nobody")

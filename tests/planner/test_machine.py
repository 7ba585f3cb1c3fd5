from priml.planner.machine import PRESETS, Machine


def test_presets_are_found_by_their_names():
    assert all(device.name == name for name, device in PRESETS.items())
    assert {"h100", "h200", "a100", "a800", "rtx4090", "cpu"} <= PRESETS.keys()


def test_a_collective_is_as_fast_as_its_slowest_way():
    one, many = Machine(PRESETS["h100"], per_node=8), Machine(PRESETS["h100"], per_node=8, nodes=4)
    assert (one.devices, many.devices) == (8, 32)
    assert one.wire(8) == many.wire(8) == 450e9 * 0.7
    assert many.wire(9) == many.wire(32) == 50e9 * 0.7


def test_what_is_reached_is_below_the_peak():
    machine = Machine(PRESETS["a100"])
    assert machine.flops("bf16") == 312e12 * 0.4
    assert machine.flops("fp32") == 19.5e12 * 0.4
    assert machine.capacity == (79.3 - 1.5) * 2**30
    assert machine.pcie == 32e9 * 0.7
    assert machine.host_rate == 51e9 * 0.6

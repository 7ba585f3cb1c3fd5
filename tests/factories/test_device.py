import pytest
import torch

from priml.config.backend import LocalBackend
from priml.errors import ConfigError
from priml.factories.device import resolve_device


def test_auto_means_fp32_on_a_cpu():
    device = resolve_device(LocalBackend(device="cpu"))
    assert (device.device.type, device.precision) == ("cpu", "fp32")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device(LocalBackend()).device.type == expected


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_a_mistake_in_the_settings(device):
    with pytest.raises(ConfigError, match=f"backend.device: found '{device}', which does not work here"):
        resolve_device(LocalBackend(device=device))

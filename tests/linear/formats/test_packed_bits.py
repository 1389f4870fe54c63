from __future__ import annotations

import torch

from predictor.linear.formats.packed_bits import E2M1, INT4, SIGNED_INT4, unpack_nibbles


def test_the_lower_bits_come_first() -> None:
    packed = torch.tensor([[0x21, 0x43], [0x65, 0xF7]], dtype=torch.uint8)
    assert unpack_nibbles(packed, INT4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 15]]


def test_the_upper_bits_come_first_when_told() -> None:
    packed = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    assert unpack_nibbles(packed, INT4, high_first=True).tolist() == [[2, 1, 4, 3]]


def test_each_number_stands_for_its_value() -> None:
    packed = torch.arange(0, 256, 17, dtype=torch.uint8).view(1, 16)
    assert unpack_nibbles(packed, SIGNED_INT4)[0, ::2].tolist() == list(range(-8, 8))
    assert unpack_nibbles(packed, E2M1)[0, ::2].tolist() == list(E2M1)

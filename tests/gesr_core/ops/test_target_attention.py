"""The mask of target attention, and the cached form against the plain one."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from gesr_core.ops.target_attention import attend, attend_cached, attend_history, target_mask


def test_the_mask_is_the_public_one_for_a_history_of_two_with_padding_and_two_targets() -> None:
    mask = target_mask(torch.tensor([2]), history=3, targets=2)[0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],  # padding: its row has no meaning, its column is seen by nobody
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@given(
    events=st.integers(0, 5),
    targets=st.integers(1, 4),
    heads=st.integers(1, 2),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_the_cached_form_equals_the_plain_one(
    events: int, targets: int, heads: int, seed: int, data: st.DataObject
) -> None:
    length_B = torch.tensor(data.draw(st.lists(st.integers(0, events), min_size=1, max_size=3)))
    generator = torch.Generator().manual_seed(seed)
    batch, total = len(length_B), events + targets

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = (rows(batch, heads, total, 3) for _ in range(3))
    bias_BHTT, to_history_BHT, own_H = rows(batch, heads, events, events), rows(batch, heads, events), rows(heads)
    bias_BHLL = torch.zeros(batch, heads, total, total, dtype=torch.float64)
    bias_BHLL[:, :, :events, :events] = bias_BHTT
    bias_BHLL[:, :, events:, :events] = to_history_BHT.unsqueeze(2)
    bias_BHLL[:, :, events:, events:] = own_H.view(1, -1, 1, 1)
    mask_BLL = target_mask(length_B, history=events, targets=targets)
    plain = attend(q, k, v, bias_BHLL=bias_BHLL, mask_BLL=mask_BLL, normaliser=7.0)

    history = [t[:, :, :events] for t in (q, k, v)]
    target_q, target_k, target_v = (t[:, :, events:] for t in (q, k, v))
    valid_BT = torch.arange(events) < length_B.unsqueeze(-1)
    cached = attend_cached(
        target_q,
        target_k,
        target_v,
        history_k_BHTK=history[1],
        history_v_BHTK=history[2] * valid_BT[:, None, :, None],
        bias_BHT=to_history_BHT,
        own_bias_H=own_H,
        normaliser=7.0,
        length_B=length_B,
    )
    prefilled = attend_history(*history, bias_BHTT=bias_BHTT, normaliser=7.0)
    torch.testing.assert_close(cached, plain[:, :, events:], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        prefilled[valid_BT[:, None].expand(-1, heads, -1)],
        plain[:, :, :events][valid_BT[:, None].expand(-1, heads, -1)],
        rtol=0,
        atol=1e-12,
    )

"""The restatement that MELP is timed beside computes the same, with the published layout of every part."""

import subprocess
import sys

import pytest
import torch

from encoders.melp import MelpConfig, MelpModel
from eval.speed import melp

SMALL = {  # 16 channels a group: oneDNN's bfloat16 convolution is wrong for 8 and an even kernel on CPUs with AMX
    "sampling_rate": 100, "conv_dim": (16, 16, 16, 16), "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48, "conv_pos_kernel": 16, "conv_pos_groups": 2, "shared_dim": 16,
    "pooler_heads": 4, "n_queries_contrast": 3, "n_queries_caption": 5,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("caption_dim", [32, 16])  # one fused weight in the pooler, and three
def test_the_restatement_gives_what_the_encoder_gives(caption_dim):
    torch.manual_seed(0)
    model = MelpModel(MelpConfig(caption_dim=caption_dim, **SMALL)).double().eval()
    length, direction = melp.weight_norm(model)
    weight = model.ecg_encoder.conv_pos.pos_conv[0].weight
    assert not torch.allclose(direction, weight)  # folded only when it is applied
    torch.testing.assert_close(length * direction / direction.norm(dim=(0, 1), keepdim=True), weight)
    x = torch.rand(2, 12, 1000, dtype=torch.float64)
    want = melp.plain_encoder(model, (length, direction), x)
    got = model(x)
    for name in melp.OUTPUTS:
        torch.testing.assert_close(got[name], want[name], atol=1e-9, rtol=0)


def test_times_stand_beside_those_of_the_restatement(capsys):
    melp.time_encoder(2, 1, MelpConfig(caption_dim=32, **SMALL))
    shown = capsys.readouterr().out
    plain, ours, half = shown.splitlines()[-3:]
    assert plain.startswith("plain, float32") and "of plain" not in plain
    milliseconds, ratio = float(ours.split()[2]), float(ours.split()[4].rstrip("x"))
    assert ratio == pytest.approx(float(plain.split()[2]) / milliseconds, rel=0.02)
    assert half.startswith("ours, bfloat16")
    cosines = {line.split()[0]: float(line.split()[2]) for line in shown.splitlines()[1:6]}
    assert cosines.keys() == set(melp.OUTPUTS) and all(0.99 < least < 1 for least in cosines.values())


def test_a_restatement_of_something_else_is_not_timed(monkeypatch):
    plain = melp.plain_encoder
    monkeypatch.setattr(melp, "plain_encoder", lambda *a: (out := plain(*a)) | {"probe": out["probe"] + 1e-3})
    with pytest.raises(RuntimeError, match="the encoder's probe differ from those of its restatement by 0.001"):
        melp.encoder_rows(2, MelpConfig(caption_dim=32, **SMALL))


@pytest.mark.slow
def test_help_waits_for_no_torch():
    run_help = "try: main(['melp', '--help'])\nfinally: print('torch' in sys.modules)"
    code = f"import sys\nfrom eval.speed.__main__ import main\n{run_help}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("False\n")

"""The benchmark: what `make bench-gpu` does, tiny and on a CPU; kinds of kernels; stretches that end in time."""
import json, subprocess, sys

import pytest, torch
from conftest import ROOT

FOLDER = ROOT/'benchmarks'


@pytest.fixture
def benchmarks(monkeypatch):
    "The folder's modules can be imported."
    monkeypatch.syspath_prepend(str(FOLDER))
    import engine
    import kernels
    yield engine, kernels
    torch.set_flush_denormal(False)   # the benchmark sets it for the whole process


@pytest.mark.slow
def test_dry_run(tmp_path):
    "All parts, a row each, and the file whole after every one."
    out = tmp_path/'dry.json'
    cases = ['lenet-60', 'mnist1d_conv', 'resnet20-bf16']
    how = ['--dry-run', '--box', '2', '--out', str(out), '--cases', *cases]
    command = [sys.executable, str(FOLDER/'engine.py'), *how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    rows = []
    for line in process.stdout:
        if line.endswith(' s\n') and ':' in line and out.exists(): rows.append(json.loads(out.read_text()))
    assert process.wait() == 0
    found = json.loads(out.read_text())
    assert [row['case'] for row in found['replicas']] == ['resnet20-bf16', 'lenet-60', 'mnist1d_conv']
    assert [row['case'] for row in found['compute']] == ['resnet20-bf16', 'lenet-60', 'mnist1d_conv']
    assert [row['case'] for row in found['plain']] == ['resnet20-bf16', 'lenet-60']
    assert all(row['ratio'] > 0 and len(row['seconds']) == 3 for row in found['plain'])
    assert all(row['steps'] >= 20 for case in found['replicas'] for row in case['rows'])
    kinds = found['profile'][0]['seconds']
    assert {'data', 'forward', 'BatchNorm', 'gradients', 'update'} <= kinds.keys()
    assert len({len(json.dumps(row)) for row in rows}) > 4, 'it is written after every row'


def test_kinds_of_kernels(benchmarks):
    _, kernels = benchmarks
    back = ('autograd::engine::evaluate_function: ConvolutionBackward0',)
    network = ('bench: network', 'bench: step')
    for names,kind in (
            (('sm90_xmma_wgrad_implicit_gemm_bf16', 'aten::convolution_backward', *back), 'weight gradients'),
            (('cutlass_80_tensorop_dgrad_optimized', 'aten::convolution_backward', *back), 'data gradients'),
            (('nchwToNhwcKernel', 'aten::convolution_backward', *back), 'gradients'),
            (('batch_norm_backward_reduce_channels_last_kernel', 'aten::native_batch_norm_backward',
              'autograd::engine::evaluate_function: NativeBatchNormBackward0'), 'BatchNorm'),
            (('cudnn_bn_fw_tr_1C11', 'aten::cudnn_batch_norm', *network), 'BatchNorm'),
            (('sm80_xmma_fprop_implicit_gemm', 'aten::cudnn_convolution', *network), 'forward'),
            (('vectorized_elementwise', 'aten::threshold_backward',
              'autograd::engine::evaluate_function: ReluBackward0'), 'other backward'),
            (('index_kernel', 'aten::index_select', 'bench: data', 'bench: step'), 'data'),
            (('triton_poi_fused', 'bench: update', 'bench: step'), 'update')):
        assert kernels.kind_of(names) == kind, names


class Thing:
    "Takes ten steps a look, as a lane might."
    def __init__(self): self.step = 0
    def pump(self, until):
        self.step = min(until, self.step + 10)
        return self.step >= until


@pytest.mark.parametrize('box,steps', ((1e9, 500), (0, 210)))
def test_a_stretch_ends_in_time(benchmarks, box, steps):
    "After the box two windows more, at most, so that it ends where all have got to."
    engine, _ = benchmarks
    _, taken = engine.sustained(engine.Clock('cpu'), [Thing(), Thing()], 500, box)
    assert taken == steps

"""Networks read back from files: ours, the authors', and those of somebody who means harm."""

import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from common import SHARED
from fuzzing import EDITS, FUZZ, edit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from networks import SkipGenerator
from selfdeblur import UserError, load_model
from selfdeblur.files.images import read_image
from selfdeblur.files.records import read_json
from selfdeblur.files.tensors import read_torch, write_torch


class Concat(nn.Module):
    """Stand-in with the place and the parts of the authors' class."""

    def __init__(self, *branches):
        super().__init__()
        for i, branch in enumerate(branches):
            self.add_module(str(i), branch)


class NONLocalBlock2D(nn.Module):
    """Stand-in with the place and the parts of the authors' class."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.g = nn.Sequential(nn.Conv2d(channels, half, 1), nn.MaxPool2d(2))
        self.W = nn.Sequential(nn.Conv2d(half, channels, 1), nn.BatchNorm2d(channels))
        self.theta = nn.Conv2d(channels, half, 1)
        self.phi = nn.Sequential(nn.Conv2d(channels, half, 1), nn.MaxPool2d(2))


@pytest.fixture
def stand_ins(monkeypatch):
    """The stand-ins under the module names that the authors' files name."""
    for cls, name in ((Concat, "networks.common"), (NONLocalBlock2D, "networks.non_local_dot_product")):
        module = types.ModuleType(name)
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(cls, "__module__", name)


def conv(inside, outside, size, stride=1):
    layer = nn.Conv2d(inside, outside, size, stride)
    return nn.Sequential(nn.ReflectionPad2d(size // 2), layer) if size > 1 else nn.Sequential(layer)


def original(channels=8, width=128, skip=16, scales=5):
    """The image generator nested as the authors' program nests it."""

    def level(scale, inside):
        deeper = [conv(inside, width, 3, 2), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        if scale > 1:
            deeper.append(NONLocalBlock2D(width))
        deeper += [conv(width, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        if scale + 1 < scales:
            deeper.append(nn.Sequential(*level(scale + 1, width)))
        deeper.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        branch = nn.Sequential(conv(inside, skip, 1), nn.BatchNorm2d(skip), nn.LeakyReLU(0.2))
        joined = [Concat(branch, nn.Sequential(*deeper)), nn.BatchNorm2d(skip + width)]
        up = [conv(skip + width, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        return [*joined, *up, conv(width, width, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]

    return nn.Sequential(*level(0, channels), conv(width, 1, 1), nn.Sigmoid())


def run_original(module, x):
    """What the authors' program computes, layer by layer, on the stand-ins."""
    if isinstance(module, Concat):
        parts = [run_original(branch, x) for branch in module.children()]
        height, width = (min(p.shape[d] for p in parts) for d in (2, 3))
        cut = [p[:, :, (p.shape[2] - height) // 2 :, (p.shape[3] - width) // 2 :][:, :, :height, :width] for p in parts]
        return torch.cat(cut, 1)
    if isinstance(module, NONLocalBlock2D):
        theta, phi, g = (part(x).flatten(2) for part in (module.theta, module.phi, module.g))
        y = theta.transpose(1, 2) @ phi @ g.transpose(1, 2) / phi.shape[2]
        return x + module.W(y.transpose(1, 2).reshape(1, -1, *x.shape[2:]))
    if isinstance(module, nn.Sequential):
        for child in module:
            x = run_original(child, x)
        return x
    return module(x)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch 1.6", "torch 1.0"])
def test_the_authors_image_generator(tmp_path, stand_ins, zipped):
    torch.manual_seed(0)
    net = original()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    path = tmp_path / "im1_xnet.pth"
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    model = load_model(path, image_size=(40, 44), kernel_size=(5, 3))
    z_x = torch.rand(1, 8, 44, 46, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        expected = run_original(net, z_x)[0, 0, 2:-2, 1:-1].numpy()
    assert model.image.shape == (40, 44)
    assert np.abs(model.image - expected).max() < 1e-3
    assert expected.std() > 0.02


def test_the_authors_kernel_of_a_real_run():
    folder = SHARED / "reference" / "models"
    if not folder.is_dir():
        pytest.skip("NOT TESTED: a model of the authors' program, because the reference folder is not here")
    kernel = load_model(folder / "im1_kernel5_img_knet.pth").kernel
    saved = read_image(folder / "im1_kernel5_img_k.png")
    assert kernel.shape == saved.shape == (11, 11)
    # The authors' program cuts the digits off where it makes 8 bits.
    assert np.abs(kernel / kernel.max() - saved).max() <= 1 / 255


@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_kernel_generator(tmp_path, zipped):
    net = nn.Sequential(nn.Linear(200, 1000), nn.ReLU6(), nn.Linear(1000, 49), nn.Softmax(dim=0))
    path = tmp_path / "a_knet.pth"
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    z = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        expected = net(z).view(7, 7).numpy()
    assert np.abs(load_model(path).kernel - expected).max() < 1e-6


def test_our_own_image_generator_needs_the_sizes(tmp_path):
    path = tmp_path / "a_xnet.pth"
    write_torch(path, SkipGenerator().state_dict())
    with pytest.raises(UserError, match="sizes"):
        _ = load_model(path).image
    assert load_model(path, image_size=(33, 34), kernel_size=(3, 3)).image.shape == (33, 34)


class Planted:
    """Would make a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def planted_files(folder, trap):
    plain = pickle.dumps(Planted(trap), protocol=2)
    (folder / "pickle_knet.pth").write_bytes(plain)
    torch.save({"layers.2.bias": Planted(trap)}, folder / "zip_knet.pth")
    torch.save({"layers.2.bias": Planted(trap)}, folder / "stream_knet.pth", _use_new_zipfile_serialization=False)
    stream = (folder / "stream_knet.pth").read_bytes()
    (folder / "first_knet.pth").write_bytes(plain + stream)
    with zipfile.ZipFile(folder / "entry_knet.pth", "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3")
    hidden = nn.Sequential(nn.Linear(200, 1000), nn.ReLU6(), nn.Linear(1000, 49))
    hidden[1].extra = Planted(trap)
    torch.save(hidden, folder / "hidden_knet.pth")


@pytest.mark.parametrize("name", ["pickle", "zip", "stream", "first", "entry", "hidden"])
def test_planted_code_is_not_run(tmp_path, name):
    trap = tmp_path / "trap"
    planted_files(tmp_path, trap)
    with pytest.raises(UserError) as error:
        load_model(tmp_path / f"{name}_knet.pth")
    assert "\n" not in str(error.value)
    assert not trap.exists()


def test_planted_code_would_run_otherwise(tmp_path):
    trap = tmp_path / "trap"
    planted_files(tmp_path, trap)
    pickle.loads((tmp_path / "pickle_knet.pth").read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_models_are_refused_in_one_line(tmp_path, zipped):
    net = nn.Sequential(nn.Linear(200, 10), nn.ReLU6(), nn.Linear(10, 9), nn.Softmax(dim=0))
    path = tmp_path / "a_knet.pth"
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    cases = [content[: len(content) * i // 20] for i in range(20)]
    for _ in range(60):
        changed = bytearray(content)
        for position in rng.integers(0, min(len(content), 3000), 3):
            changed[position] = rng.integers(256)
        cases.append(bytes(changed))
    for case in cases:
        path.write_bytes(case)
        # Even the whole one does not fit: it has 10 hidden units.
        with pytest.raises(UserError) as error:
            load_model(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("how", ["holds itself", "is nested deeply"])
def test_a_network_without_end_is_refused(tmp_path, zipped, how):
    net = nn.Sequential()
    if how == "holds itself":
        net._modules.update(first=net, second=net)
    else:
        for _ in range(150):
            net = nn.Sequential(net, net)
    torch.save(net, tmp_path / "a_knet.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a network of this method"):
        load_model(tmp_path / "a_knet.pth")


def test_torch_does_not_read_the_old_stream(tmp_path):
    """The reason for our reader of it: with a version of torch that does, that reader can go."""
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a", _use_new_zipfile_serialization=False)
    allowed = torch.serialization.safe_globals([nn.Sequential, nn.Linear])
    with allowed, pytest.raises(pickle.UnpicklingError, match="Only persistent_load of storage is allowed"):
        torch.load(tmp_path / "a", weights_only=True)


def test_a_missing_model(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "a_xnet.pth")


@pytest.fixture(scope="module")
def whole_models(tmp_path_factory):
    """Whole files of each kind: the authors', in both formats, and ours."""
    folder = tmp_path_factory.mktemp("whole")
    net = nn.Sequential(nn.Linear(200, 4), nn.ReLU6(), nn.Linear(4, 9), nn.Softmax(dim=0))
    torch.save(net, folder / "a")
    torch.save(net, folder / "b", _use_new_zipfile_serialization=False)
    torch.save(net.state_dict(), folder / "c")
    torch.save({"steps_done": 1, "losses": torch.zeros(1)}, folder / "d", _use_new_zipfile_serialization=False)
    return [(folder / name).read_bytes() for name in "abcd"]


def test_a_damaged_pickle_that_breaks_off_in_its_own_way(tmp_path):
    # Found by the fuzzer: an operation on an empty stack, an IndexError in the reader of torch.
    (tmp_path / "a_knet.pth").write_bytes(b"q\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    for read in (load_model, read_torch):
        with pytest.raises(UserError):
            read(tmp_path / "a_knet.pth")


def test_a_name_of_any_length_and_kind(tmp_path):
    # Found by the fuzzer: a name that goes on over line ends is not repeated as it is.
    (tmp_path / "a_knet.pth").write_bytes(b"ccollections" + 300 * b"q\x01\x7f\r" + b"\nOrdered\nq\x00.")
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "a_knet.pth")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("shape", [(128, 10**9, 3, 3), (10**12, 8, 3, 3), (128, 600, 3, 3)])
@pytest.mark.parametrize("name", ["scales.0.down.0.weight", "scales.0.refine.0.weight", "guide"])
def test_a_network_of_any_claimed_size_takes_no_memory(tmp_path, name, shape):
    # Found by the fuzzer: a tensor that repeats one number may claim more than the machine can hold.
    state = SkipGenerator(8).state_dict()
    state[name] = torch.zeros(1).expand(shape)
    torch.save(state, tmp_path / "a_xnet.pth")
    with pytest.raises(UserError, match="a_xnet"):
        load_model(tmp_path / "a_xnet.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_network_of_any_claimed_size_takes_no_memory(tmp_path, zipped):
    net = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 9))
    net[0].weight = nn.Parameter(torch.zeros(1).expand(10**6, 10**7))
    torch.save(net, tmp_path / "a_knet.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not the state of a network"):
        load_model(tmp_path / "a_knet.pth")


@pytest.mark.parametrize(
    ("name", "shape"), [("guide", (1, 1, 9, 9)), ("guide", (9, 9)), ("other", (8, 9)), ("other", (9,))]
)
def test_images_beside_a_network_that_do_not_fit_it(tmp_path, name, shape):
    images = {"guide": torch.zeros(1, 2, 9, 9), name: torch.zeros(shape)}
    torch.save({**SkipGenerator(2).state_dict(), **images}, tmp_path / "a_xnet.pth")
    with pytest.raises(UserError, match="of another shape"):
        load_model(tmp_path / "a_xnet.pth")


@FUZZ
@given(which=st.integers(0, 3), edits=EDITS)
def test_fuzz_models(tmp_path_factory, whole_models, which, edits):
    path = tmp_path_factory.getbasetemp() / "fuzz_knet.pth"
    path.write_bytes(edit(whole_models[which], edits))
    for read in (load_model, read_torch):
        try:
            read(path)
        except UserError as error:
            said = str(error)
            assert "\n" not in said
            assert len(said) < 500


@FUZZ
@given(edits=EDITS)
def test_fuzz_records(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(edit(b'{"settings": {"seed": 0, "milestones": [1, 2.5e3]}, "finished": true, "a": null}', edits))
    try:
        assert isinstance(read_json(path), dict)
    except UserError as error:
        said = str(error)
        assert "\n" not in said

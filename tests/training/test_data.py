"""MNIST as tensors: the IDX files, the book's split, the bundled images, the shifts."""

import pytest
import torch

from manual_backprop.training import data
from manual_backprop.training.config import InputError
from tests.training.conftest import CPU, write_idx


@pytest.mark.parametrize(("validation", "sizes"), [(True, (50_000, 10_000, 10_000)), (False, (60_000, 0, 10_000))])
def test_split_and_encoding(make_config, validation, sizes):
    mnist, source = data.load(make_config(validation=validation), CPU)
    assert tuple(len(part) for part in mnist) == sizes
    assert "60,000" in source
    x, labels, y = mnist.test
    assert x.shape == (10_000, 784)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert torch.equal(y.argmax(1), labels)
    assert torch.equal(y.sum(1), torch.ones(10_000))


def test_pixels_keep_their_order(make_config, data_root):
    raw = (data_root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16 : 16 + 784]
    mnist, _ = data.load(make_config(dtype="float64"), CPU)
    assert torch.equal(mnist.test.x[0], torch.tensor(list(raw), dtype=torch.float64) / 255)


DAMAGED = {
    "truncated": (lambda whole: whole[:-1], "expected a length in bytes of 20, found 19"),
    "too long": (lambda whole: whole + b"\0", "expected a length in bytes of 20, found 21"),
    "magic number": (lambda whole: b"\0\0\x08\x03" + whole[4:], "expected the magic number 2049, found 2051"),
    "count": (lambda whole: whole[:7] + b"\x0b" + whole[8:], "expected the sizes (12,), found (11,)"),
    "empty": (lambda whole: b"", "expected the magic number 2049, found 0"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_idx_file_is_named(tmp_path, damage, message):
    path = tmp_path / "labels"
    write_idx(path, torch.arange(12, dtype=torch.uint8))
    assert torch.equal(data.read_idx(path, (12,)), torch.arange(12, dtype=torch.uint8))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        data.read_idx(path, (12,))
    assert str(error.value) == f"{path}: {message}"


def test_without_files_and_network_the_bundled_images_serve(make_config, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr("torchvision.datasets.MNIST", no_network)
    mnist, source = data.load(make_config(data_root=tmp_path), CPU)
    assert tuple(len(part) for part in mnist) == (3500, 700, 800)
    assert "only the 5,000 images" in source
    assert "*-ubyte" in source
    assert sorted(torch.cat([part.labels for part in mnist]).bincount().tolist()) == [500] * 10
    assert float(mnist.train.x.max()) == 1.0


def test_without_a_download_the_network_is_left_alone(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda *args, **kwargs: pytest.fail("a download"))
    mnist, source = data.load(make_config(data_root=tmp_path / "absent"), CPU, download=False)
    assert len(mnist.test) == 800
    assert f"{tmp_path / 'absent' / 'MNIST' / 'raw'} has not the whole set" in source
    assert not (tmp_path / "absent").exists()


def test_displaced_moves_each_image_whole():
    x = torch.zeros(200, 28, 28)
    x[:, 10, 10] = 1.0
    moved = data.displaced(x.reshape(200, 784), 1, torch.Generator().manual_seed(0)).reshape(200, 28, 28)
    places = moved.nonzero()
    assert torch.equal(places[:, 0], torch.arange(200))
    offsets = {tuple(offset) for offset in (places[:, 1:] - 10).tolist()}
    assert offsets == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}

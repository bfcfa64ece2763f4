"""Files of transformers and torch, as those libraries save them; random weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import dinov2_jax
from dinov2_jax.heads.linear import from_stored, load_head
from dinov2_jax.weights.export import export
from dinov2_jax.weights.files import WeightsError
from tests.weights import peers
from tests.weights.tiny import features, reference_tensors, tiny_backbone

pytestmark = pytest.mark.parity


def tokens(backbone, images: np.ndarray) -> np.ndarray:
    model, params = backbone
    out = jax.jit(model.apply)({"params": params}, images)
    return np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], axis=1)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", list(peers.SIZES))
def test_transformers_in_and_out(size, registers, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = peers.transformers_model(size, registers, image_px=518 if size == "small" else 126)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = dinov2_jax.load(tmp_path / "theirs")
    own = (theirs.config.image_size,) * 2
    # Without registers transformers resamples positions otherwise than the reference.
    sizes = (own, (224, 224), (126, 84)) if registers else (own,)
    for images in peers.random_images(*sizes):
        want = peers.transformers_features(theirs, images)
        np.testing.assert_allclose(tokens(loaded, images), want, rtol=0, atol=1e-4)
    folder = export(loaded, "huggingface", tmp_path / "ours")
    source, written = (load_file(p / "model.safetensors") for p in (tmp_path / "theirs", folder))
    assert source.keys() == written.keys()
    assert all(np.array_equal(written[name], value) for name, value in source.items())
    again = transformers.AutoModel.from_pretrained(folder)
    (images,) = peers.random_images(own)
    np.testing.assert_array_equal(
        peers.transformers_features(again, images), peers.transformers_features(theirs, images)
    )
    assert type(again) is type(theirs)


def test_without_offset_positions_are_those_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    theirs = peers.transformers_model("large", 0, image_px=126)
    theirs.save_pretrained(tmp_path)
    loaded = dinov2_jax.load(tmp_path, interpolate_offset=0.0)
    for images in peers.random_images((224, 224), (126, 84)):
        want = peers.transformers_features(theirs, images)
        np.testing.assert_allclose(tokens(loaded, images), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 4])
def test_classifier_of_transformers(registers, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    names = tuple(f"class {n}" for n in range(7))
    options = peers.SIZES["large"] | {"image_size": 126, "patch_size": 14}
    options |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **options)
        theirs = transformers.Dinov2WithRegistersForImageClassification(config)
    else:
        theirs = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**options))
    peers.randomize(theirs, 3).save_pretrained(tmp_path)
    loaded, head = dinov2_jax.load(tmp_path), load_head(tmp_path)
    assert from_stored(loaded.heads["classifier"]).class_names == head.class_names == names
    (images,) = peers.random_images((126, 126))
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    found = features(loaded, images)
    got = head.logits([found["cls"], found["patches"].mean(axis=1)])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_pth_in_and_out(tmp_path):
    torch = pytest.importorskip("torch")
    source = reference_tensors(tiny_backbone(4))
    torch.save({k: torch.from_numpy(x) for k, x in source.items()}, tmp_path / "x.pth")
    loaded = dinov2_jax.load(tmp_path / "x.pth", heads=3)
    written = torch.load(export(loaded, "pth", tmp_path) / "backbone.pth", weights_only=True)
    assert list(written) == list(source)
    assert all(np.array_equal(written[name].numpy(), value) for name, value in source.items())


def test_training_checkpoint_of_the_original(tmp_path):
    torch = pytest.importorskip("torch")
    sides = {}
    for which, registers in (("teacher", 0), ("student", 4)):
        tensors = reference_tensors(tiny_backbone(registers))
        sides[which] = {
            f"backbone.{k}".replace("blocks.", "blocks.0."): torch.from_numpy(x)
            for k, x in tensors.items()
        }
    torch.save(sides, tmp_path / "teacher_checkpoint.pth")
    for which, registers in (("teacher", 0), ("student", 4)):
        loaded = dinov2_jax.load(tmp_path / "teacher_checkpoint.pth", which=which, heads=3)
        assert loaded.model.registers == registers


def test_broken_pickles(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"

    class Runs:
        def __reduce__(self):
            return print, ("this pickle runs code",)

    torch.save({"cls_token": Runs()}, path)
    with pytest.raises(WeightsError, match="could run code: refused"):
        dinov2_jax.load(path)
    tensors = reference_tensors(tiny_backbone())
    torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="damaged or truncated"):
        dinov2_jax.load(path, heads=3)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        dinov2_jax.load(path)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_timm_in_and_out(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    theirs = timm.create_model(name, pretrained=False, depth=2, num_classes=0, img_size=126)
    peers.randomize(theirs, 1)
    path = peers.save_safetensors(theirs.state_dict(), tmp_path / "model.safetensors")
    loaded = dinov2_jax.load(path)
    (images,) = peers.random_images((126, 126))
    with torch.no_grad():
        want = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(tokens(loaded, images), want.numpy(), rtol=0, atol=1e-4)
    source = load_file(path)
    written = load_file(export(loaded, "timm", tmp_path) / "model.safetensors")
    assert source.keys() == written.keys()
    assert all(np.array_equal(written[key], value) for key, value in source.items())

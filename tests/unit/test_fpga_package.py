"""FPGA packages: what the tool writes is read back, and each kind of bad package is refused with its reason; no pynq is needed."""

import hashlib

import msgspec
import numpy as np
import pytest

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import ConfigurationError, ModelRefused
from workers.fpga.bitfile import read_bit, write_bit
from workers.fpga.boards import read_choice
from workers.fpga.building import BuildOptions, build_package
from workers.fpga.design import decode_design
from workers.fpga.finn_package import read_finn
from workers.fpga.hwh import read_hwh
from workers.fpga.latency_line import FACTOR, FLOOR_MS, UNKNOWN_MS, LatencyLine
from workers.fpga.manifest import PostProcessing, TensorLayout, check_fits, check_package, sink_spec, source_spec
from workers.fpga.network import Layer, Network, rounded_shift
from workers.fpga.onnx_network import QuantizedModel, read_network, write_network
from workers.fpga.package_file import pack_files, read_files, read_variant_model, unpack_files, variant_model
from workers.onnx_files import read_variant

SOURCE = TensorLayout(name="x", datatype="UINT8", shape=(2, 3), inner=1)
SINK = TensorLayout(name="y", datatype="INT32", shape=(4,), inner=1)


def network(seed=0):
    random = np.random.default_rng(seed)
    first = Layer(random.integers(-128, 128, (6, 5), dtype=np.int8), random.integers(-99, 99, 5, dtype=np.int32), 5)
    return Network((first, Layer(random.integers(-128, 128, (5, 4), dtype=np.int8), random.integers(-99, 99, 4, dtype=np.int32))))


def package(**options):
    return build_package(network(), SOURCE, SINK, BuildOptions(**{"name": "small", **options}))


def changed(given, **fields):
    return msgspec.structs.replace(given, manifest=msgspec.structs.replace(given.manifest, **fields))


def rebit(given, bit):
    return msgspec.structs.replace(changed(given, bitfile_sha256=hashlib.sha256(bit).hexdigest()), bit=bit)


def rehwh(given, hwh):
    return msgspec.structs.replace(changed(given, hwh_sha256=hashlib.sha256(hwh).hexdigest()), hwh=hwh)


def test_a_package_is_one_model_file_and_comes_back_whole(tmp_path):
    made = package(flow="finn-iodma", runtime_weights=True)
    data = variant_model(made)
    assert variant_model(made) == data, "equal packages make equal files"
    assert read_variant_model(data, "file") == made
    file = tmp_path / "package.onnx"
    file.write_bytes(data)
    # For the catalog it is a model like every other, with inputs and outputs.
    spec = VariantSpec(name="v", file=file.name, sha256=hashlib.sha256(data).hexdigest(), accuracy=0.5)
    fitted = read_variant(spec, file).spec
    assert fitted.inputs == (TensorSpec("x", "UINT8", (-1, 2, 3)),)
    assert fitted.outputs == (TensorSpec("y", "INT32", (-1, 4)),)


def test_the_design_in_the_bitfile_is_the_network():
    design, found = decode_design(read_bit(package().bit).payload)
    rows = np.random.default_rng(1).integers(0, 256, (9, 6))
    assert np.array_equal(found.run(rows), network().run(rows))
    assert set(design.ips) == {"dma", "accelerator"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: changed(p, bitfile_sha256="0" * 64), "the bitfile has SHA-256"),
        (lambda p: changed(p, hwh_sha256="0" * 64), "the hand-off file has SHA-256"),
        (lambda p: changed(p, ips={"dma": "axi_dma_7", "accelerator": "dense_network_0"}), "'axi_dma_7' is not in the hand-off file"),
        (lambda p: changed(p, ips={"dma": "dense_network_0", "accelerator": "dense_network_0"}), "no AXI DMA"),
        (lambda p: changed(p, ips={"dma": "axi_dma_0"}), "needs an IP as accelerator"),
        (lambda p: changed(p, part="xc7z020-clg400-1"), "the manifest says xc7z020"),
        (lambda p: rebit(changed(p, part="xc7z020-clg400-1"), write_bit("s", "xc7z020-clg400-1", b"1234")), "the hand-off file for xczu7ev"),
        (lambda p: rebit(p, p.bit[:-5]), "the bitfile cannot be read"),
        (lambda p: rebit(p, b""), "the bitfile cannot be read"),
        (lambda p: rehwh(p, b"<EDKSYSTEM>"), "the hand-off file cannot be read"),
        (lambda p: rehwh(p, b"<a/>"), "no SYSTEMINFO"),
        (lambda p: rehwh(p, b'<!DOCTYPE a [<!ENTITY b "c">]><EDKSYSTEM/>'), "declares entities"),
        (lambda p: changed(p, flow="pcie"), "flow 'pcie' is unknown"),
        (lambda p: changed(p, batch_size_max=0), "cannot be"),
        (lambda p: changed(p, clock_mhz=float("nan")), "cannot be"),
        (lambda p: changed(p, version=99), "version 99"),
        (lambda p: changed(p, source=msgspec.structs.replace(SOURCE, datatype="FLOAT32")), "tensor 'x': datatype 'FLOAT32'"),
        (lambda p: changed(p, source=msgspec.structs.replace(SOURCE, inner=4)), "does not fold into groups of 4"),
        (lambda p: changed(p, post=PostProcessing(then="sort")), "'sort' is unknown"),
    ],
)
def test_a_bad_package_is_refused_with_the_reason(spoil, words):
    check_package(package())
    with pytest.raises(ModelRefused, match=words):
        check_package(spoil(package()))


def test_runtime_weights_that_are_short_or_others_are_refused():
    made = package(flow="finn-iodma", runtime_weights=True)
    (weights,) = made.manifest.weights
    short = made.weights[weights.sha256][:-4]
    replaced = msgspec.structs.replace(weights, sha256=hashlib.sha256(short).hexdigest())
    with pytest.raises(ModelRefused, match="are short"):
        check_package(msgspec.structs.replace(changed(made, weights=(replaced,)), weights={replaced.sha256: short}))
    with pytest.raises(ModelRefused, match="missing, or not those"):
        check_package(msgspec.structs.replace(made, weights={}))


@pytest.mark.parametrize(
    ("fields", "batch", "words"),
    [
        ({"inputs": (TensorSpec("z", "UINT8", (-1, 2, 3)),)}, 4, "input 'z'"),
        ({"inputs": (TensorSpec("x", "INT8", (-1, 2, 3)),)}, 4, "INT8"),
        ({"inputs": (TensorSpec("x", "UINT8", (-1, 6)),)}, 4, r"\[-1, 6\]"),
        ({"outputs": (TensorSpec("y", "FP32", (-1, 4)),)}, 4, "output 'y'"),
        ({}, 65, "up to 65 rows, the package takes 64"),
    ],
)
def test_a_package_that_is_not_what_the_catalog_says_is_refused(fields, batch, words):
    manifest = package().manifest
    stated = {"inputs": (source_spec(manifest),), "outputs": (sink_spec(manifest),)} | fields
    with pytest.raises(ModelRefused, match=words):
        check_fits(manifest, VariantSpec(name="v", accuracy=0.5, **stated), batch)


def test_archives_that_are_none_or_leave_their_folder_are_refused():
    for data, words in ((b"no archive", "no archive"), (pack_files({"../a": b""}), "holds a file called"), (pack_files({}), "no manifest.json")):
        with pytest.raises(ModelRefused, match=words):
            read_files(unpack_files(data))
    with pytest.raises(ModelRefused, match="cannot be read"):
        read_files({"manifest.json": b"{}"})
    with pytest.raises(ModelRefused, match="ordinary model"):
        read_variant_model(write_network(quantized()).SerializeToString(), "mlp.onnx")


def quantized(**post):
    return QuantizedModel(network(), SOURCE, SINK, PostProcessing(**post))


@pytest.mark.parametrize("post", [{}, {"scale": 0.5}, {"scale": 0.25, "then": "softmax"}, {"then": "argmax"}])
def test_a_quantised_network_is_written_to_onnx_and_read_back(post):
    back = read_network(write_network(quantized(**post)), "back")
    rows = np.random.default_rng(2).integers(0, 256, (5, 6))
    assert np.array_equal(back.network.run(rows), network().run(rows))
    assert back.post == PostProcessing(**post)
    assert back.source == SOURCE


def test_rounding_is_half_to_even():
    values = np.arange(-40, 41)
    for shift in (0, 1, 2, 3):
        assert np.array_equal(rounded_shift(values, shift), np.rint(values / 2**shift))


def test_an_accumulator_that_may_overflow_is_refused():
    wide = Network((Layer(np.full((70_000, 1), 127, np.int8), np.zeros(1, np.int32)),))
    with pytest.raises(ValueError, match="may overflow 32 bits"):
        wide.check()


SHAPES = {
    "idt": "['UINT8']",
    "odt": "[DataType.INT32]",
    "ishape_normal": "(1, 2, 3)",
    "oshape_normal": "[(1, 4)]",
    "ishape_folded": "(1, 2, 1, 3)",
    "oshape_folded": "[(1, 4, 1)]",
    "ishape_packed": "(1, 2, 1, 3)",
    "oshape_packed": "[(1, 4, 4)]",
}


def finn(**shapes):
    made = package(flow="finn-iodma")
    text = "io_shape_dict = {" + ", ".join(f"'{key}': {value}" for key, value in (SHAPES | shapes).items()) + "}"
    return {"bitfile/a.bit": made.bit, "bitfile/a.hwh": made.hwh, "driver/driver.py": text.encode()}


def test_a_finn_package_is_read_as_it_is():
    read = read_finn(finn(), batch_size_max=8, post=PostProcessing())
    check_package(read)
    assert (read.manifest.source.datatype, read.manifest.source.shape, read.manifest.source.inner) == ("UINT8", (2, 3), 3)
    assert read.manifest.sink == TensorLayout(name="output", datatype="INT32", shape=(4,), inner=1)
    assert read.manifest.ips == {"idma": "idma0", "odma": "odma0"}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"ishape_packed": "(1, 2, 1, 4)"}, "does not hold UINT8 folded as"),
        ({"ishape_folded": "(1, 3, 1, 3)", "ishape_packed": "(1, 3, 1, 3)"}, "does not hold"),
        ({"idt": "['FLOAT32']"}, "cannot be packed"),
        ({"idt": "[eval('1')]"}, "line 1 is no literal"),
        ({"ishape_normal": "()"}, "it is no shape"),
        ({"output_dma_name": "['odma0', 'odma1']"}, "names 2 DMA engines"),
    ],
)
def test_a_bad_finn_driver_is_refused(shapes, words):
    with pytest.raises(ModelRefused, match=words):
        read_finn(finn(**shapes), batch_size_max=8, post=PostProcessing())


def test_a_finn_package_without_its_parts_is_refused():
    for missing, words in (("driver/driver.py", "io_shape_dict"), ("bitfile/a.hwh", "has a .bit and a .hwh")):
        files = {name: data for name, data in finn().items() if name != missing}
        with pytest.raises(ModelRefused, match=words):
            read_finn(files, batch_size_max=8, post=PostProcessing())
    with pytest.raises(ModelRefused, match="no hexadecimal words"):
        read_finn(finn() | {"driver/runtime_weights/1_0_a.dat": b"xyz"}, batch_size_max=8, post=PostProcessing())


def test_the_part_of_a_hand_off_file_is_read():
    hardware = read_hwh(package().hwh)
    assert hardware.part == "xczu7ev-ffvc1156"
    assert "axi_dma" in hardware.ips["axi_dma_0"]


def test_what_a_worker_calls_a_board():
    assert read_choice(None).target == ""
    assert read_choice("192.168.2.99").target == "192.168.2.99"
    assert read_choice("192.168.2.99+twice").twice
    assert b"rtl" in read_choice("emulated:rtl").settings
    for wrong in ("a b", "http://board", "emulated:/nowhere.json"):
        with pytest.raises(ConfigurationError):
            read_choice(wrong)


def test_latency_is_a_line_and_deadlines_follow_it():
    line = LatencyLine()
    assert line.deadline_ms(1) == UNKNOWN_MS
    line.observe(1, 1.0, looks=3)
    line.observe(11, 6.0, looks=3)
    assert line.expected_ms(21) == pytest.approx(11.0)
    assert line.expected_ms(6) == pytest.approx(3.5)
    assert line.deadline_ms(11) == pytest.approx(FLOOR_MS + FACTOR * 6.0)
    # Looked at too late: it was done already, so that the next look comes earlier, until one comes in time.
    for _ in range(10):
        line.observe(1, 1.0, looks=1)
    assert line.expected_ms(1) < 0.1
    line.observe(1, 0.4, looks=2)
    assert 0.05 < line.expected_ms(1) < 0.4

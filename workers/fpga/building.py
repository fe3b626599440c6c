"""Makes the bitfile, the hand-off file and the manifest of an emulated design from a quantised network."""

from __future__ import annotations

import msgspec

from workers.fpga.bitfile import write_bit
from workers.fpga.design import AXI_DMA, FINN_IODMA, Design, IpAddress, StreamSpec, encode_design
from workers.fpga.hwh import Ip, Register, write_hwh
from workers.fpga.manifest import Manifest, Package, PostProcessing, RuntimeWeights, TensorLayout, check_package, sha256_of
from workers.fpga.network import Network
from workers.fpga.registers_map import ACCELERATOR_REGISTERS, AXI_DMA_PARAMETERS, AXI_DMA_REGISTERS, FINN_DMA_REGISTERS

DEVICE, PACKAGE = "xczu7ev", "ffvc1156"
PART = f"{DEVICE}-{PACKAGE}-2-e"
BATCH_SIZE_MAX = 64
_BASE = 0xA000_0000


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the network itself does not say."""

    name: str
    flow: str = AXI_DMA
    batch_size_max: int = BATCH_SIZE_MAX
    clock_mhz: float = 100.0
    folding: int = 1
    post: PostProcessing = PostProcessing()
    runtime_weights: bool = False
    """The last layer's weights come after the download, through registers (finn-iodma)."""


def build_package(network: Network, source: TensorLayout, sink: TensorLayout, options: BuildOptions) -> Package:
    """Raises ModelRefused, or ValueError for a network that cannot be."""
    network.check()
    words = last_layer_words(network) if options.runtime_weights else b""
    ips = _stream_ips() if options.flow == AXI_DMA else _finn_ips()
    design = Design(
        flow=options.flow,
        part=PART,
        source=StreamSpec(source.datatype, source.packing().elements, source.inner),
        sink=StreamSpec(sink.datatype, sink.packing().elements, sink.inner),
        ips={role: ip.address for role, ip in ips.items()},
        clock_mhz=options.clock_mhz,
        folding=options.folding,
        weights_words=len(words) // 4,
    )
    bit = write_bit(options.name, PART, encode_design(design, network))
    hwh = write_hwh(options.name, DEVICE, PACKAGE, list(ips.values()), options.clock_mhz).encode()
    named = {role: ip.address.name for role, ip in ips.items() if role != "weights"}
    weights = (RuntimeWeights(ip=ips["weights"].address.name, sha256=sha256_of(words), words=len(words) // 4),) if words else ()
    manifest = Manifest(
        design=options.name,
        bitfile_sha256=sha256_of(bit),
        hwh_sha256=sha256_of(hwh),
        part=PART,
        flow=options.flow,
        ips=named,
        source=source,
        sink=sink,
        batch_size_max=options.batch_size_max,
        clock_mhz=options.clock_mhz,
        weights=weights,
        post=options.post,
    )
    package = Package(manifest=manifest, bit=bit, hwh=hwh, weights={sha256_of(words): words} if words else {})
    check_package(package)
    return package


def last_layer_words(network: Network) -> bytes:
    """Its weights as registers hold them: int8, output by output, four to a little-endian word."""
    weights = network.layers[-1].weights.T.astype("<i1").tobytes()
    return weights + b"\0" * (-len(weights) % 4)


def _stream_ips() -> dict[str, Ip]:
    dma = IpAddress("axi_dma_0", _BASE, 0x10000)
    accelerator = IpAddress("dense_network_0", _BASE + 0x10000, 0x10000)
    return {
        "dma": Ip(dma, "xilinx.com:ip:axi_dma:7.1", "S_AXI_LITE", AXI_DMA_REGISTERS, AXI_DMA_PARAMETERS),
        "accelerator": Ip(accelerator, "headrace.org:hls:dense_network:1.0", "s_axi_control", ACCELERATOR_REGISTERS),
    }


def _finn_ips() -> dict[str, Ip]:
    addresses = {
        "idma": IpAddress("idma0", _BASE, 0x1000),
        "odma": IpAddress("odma0", _BASE + 0x1000, 0x1000),
        "weights": IpAddress("StreamingDataflowPartition_1", _BASE + 0x10000, 0x10000),
    }
    vlnv = "xilinx_finn:finn:StreamingDataflowPartition_{}:1.0".format
    return {
        "idma": Ip(addresses["idma"], vlnv(0), "s_axi_control_0", FINN_DMA_REGISTERS),
        "odma": Ip(addresses["odma"], vlnv(2), "s_axi_control_0", FINN_DMA_REGISTERS),
        "weights": Ip(addresses["weights"], vlnv(1), "s_axilite_0", (Register("weights", 0),)),
    }


__all__ = ["AXI_DMA", "FINN_IODMA", "BuildOptions", "build_package", "last_layer_words"]

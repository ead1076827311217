"""What the official code trains, counted once for every test that compares with it."""

# Trainable parameters beside LLaVA's projector of 20,979,712, as counted in the official code at
# CLIP-L/14-336 and an LLM 4096 wide; the projector's further columns included.
REFERENCE = {
    "penultimate": 0,
    "dense_connector-sti": 0,
    "dense_connector-sci": 8_388_608,
    "dense_connector-dci": 8_388_608,
    "dense_connector-efficient": 8_388_608,
    "mmfuser": 5_190_592,
    "lsf_external_direct-3_18_23": 8_388_608,
    "scalar_mix": 25,
    "scalar_mix-per_channel": 24_576,
    "lln_layerscale-per_layer": 25_239_576,
    "lln_layerscale-shared": 1_051_672,
    "vip_llava": 16_787_456,
    "hf_list": 3 * 1024 * 4096,
    "igva": 27_047_940 + 4_194_304,
    "tgif": 2_112_024,
    "llava_stf": 151_012_352,
    "token_packer": 15_742_976,
    "deepstack": 0,
    "mema": 11_021_569,
    "dia_lstm": 2_630_144,
    "lsf_internal_direct": 62_939_136,
    "lsf_internal_modular": 670_064_646,
    "qwen3vl_deepstack": 15_750_144,
    "mrla-light": 344_304,
    "mrla-base": 270_576,
}

# DLA's recurrent unit with a reduction of 4; its attention is MRLA-light's.
PUBLISHED_UNIT = 2_103_808

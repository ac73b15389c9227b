"""``--arch synth_transformer*``: fairseq's Transformer for translation, with the attention of your choice."""

from typing import Any, Dict, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.models.transformer import TransformerModelBase

from fairseq_synth.models.base import SynthModel, finish_model
from fairseq_synth.models.config import SynthTransformerFlatConfig
from fairseq_synth.models.decoder import SynthDecoder
from fairseq_synth.models.encoder import SynthEncoder
from fairseq_synth.models.presets import register_presets
from fairseq_synth.modules.projected_embedding import ProjectedEmbedding


class SynthTransformerBase(SynthModel, TransformerModelBase):
    """Encoder-decoder Transformer (Vaswani et al. 2017) with synthesized attention (Tay et al. 2021).

    With ``dot_product`` everywhere it has the parameters, the names and the outputs of fairseq's ``transformer``.
    """

    defaults: Type[FairseqDataclass] = SynthTransformerFlatConfig

    @classmethod
    def add_args(cls, parser):
        # delete_default: options that are not given stay off the namespace, and the dataclass fills them
        from fairseq.dataclass.utils import gen_parser_from_dataclass

        gen_parser_from_dataclass(parser, cls.defaults(), delete_default=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SynthTransformerBase":
        """Build from flat options. Raises UsageError for options that cannot work or have no effect."""
        cfg = cls.config(args)
        return finish_model(super().build_model(cfg, task), cfg)

    @classmethod
    def build_embedding(cls, cfg, dictionary, embed_dim, path=None):
        return super().build_embedding(cfg, dictionary, cfg.embedding_dim or embed_dim, path)

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens) -> SynthEncoder:
        if cfg.embedding_dim not in (0, cfg.encoder.embed_dim):
            embed_tokens = ProjectedEmbedding(embed_tokens, cfg.encoder.embed_dim)
        return SynthEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens) -> SynthDecoder:
        return SynthDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)


def _sizes(layers, embed_dim, ffn_embed_dim, heads) -> Dict[str, Any]:
    encoder_layers, decoder_layers = layers
    return {
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_embed_dim": embed_dim,
        "encoder_ffn_embed_dim": ffn_embed_dim,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
    }


# name -> what differs from fairseq's `transformer` (6+6 layers, 512, 2048, 8 heads)
PRESETS: Dict[str, Dict[str, Any]] = {
    "synth_transformer": {},
    # Wu et al. 2021 on Multi30k; fairseq's own transformer_tiny is smaller still (2+2 layers, 64)
    "synth_transformer_tiny": _sizes((4, 4), 128, 256, 4),
    "synth_transformer_iwslt_de_en": _sizes((6, 6), 512, 1024, 4),
    "synth_transformer_wmt_en_de": {},
    "synth_transformer_wmt_en_de_big": {
        **_sizes((6, 6), 1024, 4096, 16),
        "dropout": 0.3,
        "attention_dropout": 0.1,
    },
    # Bogoychev 2021: the student of Marian's presets
    "synth_transformer_marian_tiny": _sizes((6, 2), 256, 1536, 8),
}


register_presets(SynthTransformerBase, PRESETS)

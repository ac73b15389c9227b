"""Embeddings smaller than the model, with a projection (the factorized embeddings of ALBERT, Lan et al. 2020)."""

from torch import Tensor, nn


class ProjectedEmbedding(nn.Module):
    """Looks like an embedding of the model's dimension to fairseq's encoder, which has no projection of its own.

    (fairseq's decoder has: it projects an embedding of another size, and its own output towards it.)

    Args:
        embedding: V x E, possibly shared with the decoder.
        size: C, the model's dimension.
    """

    def __init__(self, embedding: nn.Embedding, size: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.embedding_dim, self.padding_idx = size, embedding.padding_idx
        self.project_in_dim = nn.Linear(embedding.embedding_dim, size, bias=False)
        nn.init.xavier_uniform_(self.project_in_dim.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """B x S -> B x S x C."""
        return self.project_in_dim(self.embedding(tokens))

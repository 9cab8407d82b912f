"""Overrides that give the small model, whose tiles are 8 x 8 patches, each kind of connector."""

from __future__ import annotations

CONNECTORS = {
    "linear": ["model.connector.kind=linear"],
    "mlp of single patches": ["model.connector.pixel_shuffle=1"],
    "mlp of 4 x 4 patches": ["model.connector.pixel_shuffle=4"],
    "average_pooling": ["model.connector.kind=average_pooling", "model.connector.pool_size=4"],
    "attention_pooling": [
        "model.connector={kind: attention_pooling, num_queries: 10, num_attention_heads: 5}"
    ],
    # 8 x 8 patches to 3 x 3 tokens: bins that overlap.
    "c_abstractor": ["model.connector={kind: c_abstractor, num_queries: 9, hidden_size: 96}"],
}
TOKENS = {
    "linear": 16,
    "mlp of single patches": 64,
    "mlp of 4 x 4 patches": 4,
    "average_pooling": 4,
    "attention_pooling": 10,
    "c_abstractor": 9,
}

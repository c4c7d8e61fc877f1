"""Contracts that both halves share: errors, keys, tables, boxes, masks, vocabulary, provenance."""

"""From shards to tables: read, crop, embed, project, store."""

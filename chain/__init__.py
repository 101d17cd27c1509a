"""The stages put together. Only arrays pass between them; `cli` calls what is here."""

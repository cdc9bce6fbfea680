"""The first level: an immutable, interned graph of typed nodes."""

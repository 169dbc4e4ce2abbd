"""How answers stream out: beside `transformers serve`, with many streams open, and the time added between engine and client."""

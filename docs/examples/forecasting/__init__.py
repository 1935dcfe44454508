"""Forecast candlesticks: a tokenizer, a causal transformer on its tokens, and a service that answers with them."""

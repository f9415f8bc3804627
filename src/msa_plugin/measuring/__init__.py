"""What benchmarks and training both measure with; it knows neither."""

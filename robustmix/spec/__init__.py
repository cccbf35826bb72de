"""What a person may ask for: names, recipes and suites. Validated, frozen, free of torch."""

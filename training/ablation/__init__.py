"""The paper's ablations (Tables VII and VIII) at one budget; `python -m training.ablate` runs them.

`settings` reads the one configuration file, `tokenizers` and `priors` are the model's variants,
`learning` trains them, `scoring` takes the figures, `runner` keeps what is done in a folder and
`table` prints it. Nothing outside imports this package.
"""

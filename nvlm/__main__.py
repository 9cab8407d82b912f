"""`python -m nvlm VERB` is `nvlm VERB`; torchrun starts training this way."""

from nvlm.cli import main

if __name__ == "__main__":
    main()

"""`python -m prefine`, and through it `accelerate launch -m prefine sft RECIPE`."""

from prefine.cli.app import main

if __name__ == "__main__":
    main()

"""Configurations of TRL, LLaMA-Factory and axolotl, rewritten as prefine's recipes. Nothing of them is executed.

`read` turns a file into settings, `move` turns settings into a recipe's fields and a list of what has no counterpart,
`text` writes both as a commented recipe.
"""

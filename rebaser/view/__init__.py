"""The address space of a tree as values; `rebaser.commands` paints it."""

"""The texts that make a package manager call rebaser; `rebaser.commands.hook` fills them in."""

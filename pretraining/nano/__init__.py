"""How the embedded encoder `nano` was trained and measured; not part of the wheel."""
